"""Where things fall in the picture: the camera's geometry, from world points to the picture and from pixels back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.scene import Body, Camera, Marker, Scene
from vlm_probe.stimuli.shapes import corners

Floats = npt.NDArray[np.float64]


def axes(camera: Camera) -> tuple[Floats, Floats, Floats, Floats]:
    """Place of the camera (m), and the unit vectors to the right of the picture, up in it, and into it."""
    yaw, pitch = math.radians(camera.yaw), math.radians(camera.pitch)
    into = np.array([-math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), math.sin(pitch)])
    right = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    return np.array(camera.target) - camera.distance * into, right, np.cross(right, into), into


def project(camera: Camera, points: Floats) -> Floats:
    """Where world points (n, 3), metres, fall in the picture.

    Args:
        camera: The camera.
        points: (n, 3) in the world, metres.

    Returns:
        (n, 3): place to the right and up, from -1 to 1 within the picture, and depth along the viewing axis, metres.
    """
    eye, right, up, into = axes(camera)
    away = np.asarray(points, dtype=float) - eye
    depth = away @ into
    half = depth * math.tan(math.radians(camera.fov) / 2)
    return np.stack([away @ right / half, away @ up / half, depth], axis=1)


def unproject(
    camera: Camera, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], depth: Floats, size: int
) -> Floats:
    """World points (n, 3), metres, that the centres of pixels show.

    Args:
        camera: The camera.
        rows, columns: (n,) of the pixels.
        depth: (n,) metres along the viewing axis.
        size: Edge of the picture, pixels.
    """
    eye, right, up, into = axes(camera)
    half = depth * math.tan(math.radians(camera.fov) / 2)
    across = (2 * columns + 1) / size - 1
    above = 1 - (2 * rows + 1) / size
    points: Floats = eye + depth[:, None] * into + (half * across)[:, None] * right + (half * above)[:, None] * up
    return points


def fitted(camera: Camera, points: Floats, frame: float) -> Camera:
    """The camera, moved straight back (to the next millimetre) until all points are in the picture.

    Args:
        camera: The camera.
        points: (n, 3) in the world, metres.
        frame: Share of the picture, from its middle, within which they have to be.
    """
    eye, right, up, into = axes(camera)
    away = points - eye
    aside = np.maximum(np.abs(away @ right), np.abs(away @ up))
    missing = float((aside / (frame * math.tan(math.radians(camera.fov) / 2)) - away @ into).max())
    return replace(camera, distance=math.ceil((camera.distance + missing) * 1000) / 1000) if missing > 0 else camera


def things(scene: Scene) -> list[Body | Marker]:
    """Bodies and markers, as the segmentation numbers them."""
    return [*scene.bodies, *scene.markers]


def extent(scene: Scene) -> Floats:
    """(n, 3) points that hold everything the picture of a scene shows, in all its panels before the start, metres."""
    return np.concatenate([points for _, points in shown(scene)])


def shown(scene: Scene) -> Iterable[tuple[Body | Marker, Floats]]:
    """Every body and marker with points (n, 3) whose hull holds it, once for each panel up to the start, metres."""
    for body in scene.bodies:
        hull = corners(body)
        for moment in {0.0, *(m for m in scene.panels if m < 0)}:
            yield body, hull + moment * np.array(body.velocity)
    for marker in scene.markers:
        yield marker, corners(marker)
