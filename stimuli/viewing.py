"""Where things fall in the image: the camera's geometry, from world points to the image and from pixels back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.scene import Body, Camera, Marker, Scene
from vlm_probe.stimuli.shapes import corners

Floats = npt.NDArray[np.float64]

MIN_SEPARATION = 0.015
"""Metres between two centres from which left and right of each other are asked about, and must be the same in the image."""
ASIDE = 16.0
"""Degrees by which `raised` moves the camera further round, at most."""
HIGHER, HIGHER_AT_PLANKS = 6.0, 4.0
"""Degrees by which it moves the camera up: less where there are planks."""
FROM_ABOVE = -30.0
"""Degrees of pitch beyond which a camera looks down on a table, and stays as it is: directions on the table are asked about."""
SLANT = 1.6
"""Degrees by which a level plank may slant in the middle of the image: it must be seen to be level."""
PLANK = 3.0
"""Times that a plank is at least longer than high."""
EDGE = 0.95
"""Share of the image, from its middle, within which everything stays."""


def axes(camera: Camera) -> tuple[Floats, Floats, Floats, Floats]:
    """Place of the camera (m), and the unit vectors to the right of the image, up in it, and into it."""
    yaw, pitch = math.radians(camera.yaw), math.radians(camera.pitch)
    into = np.array([-math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), math.sin(pitch)])
    right = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    return np.array(camera.target) - camera.distance * into, right, np.cross(right, into), into


def project(camera: Camera, points: Floats) -> Floats:
    """Where world points (n, 3), metres, fall in the image.

    Args:
        camera: The camera.
        points: (n, 3) in the world, metres.

    Returns:
        (n, 3): place to the right and up, from -1 to 1 within the image, and depth along the viewing axis, metres.
    """
    eye, right, up, into = axes(camera)
    away = np.asarray(points, dtype=float) - eye
    depth = away @ into
    half = depth * math.tan(math.radians(camera.fov) / 2)
    return np.stack([away @ right / half, away @ up / half, depth], axis=1)


def across(scene: Scene, length: float, size: int) -> float:
    """How many pixels a length from left to right takes in the image, in the middle of the bodies.

    Args:
        scene: What is shown.
        length: Metres.
        size: Edge of the image, pixels; of a strip of panels, the whole of it.
    """
    middle = np.mean([body.position for body in scene.bodies], axis=0)
    ends = project(scene.camera, middle + np.array([[-0.5], [0.5]]) * length * np.array([1.0, 0.0, 0.0]))
    return float(ends[1, 0] - ends[0, 0]) * (size / 2 if scene.panels else size) / 2


def unproject(
    camera: Camera, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], depth: Floats, size: int
) -> Floats:
    """World points (n, 3), metres, that the centres of pixels show.

    Args:
        camera: The camera.
        rows, columns: (n,) of the pixels.
        depth: (n,) metres along the viewing axis.
        size: Edge of the image, pixels.
    """
    eye, right, up, into = axes(camera)
    half = depth * math.tan(math.radians(camera.fov) / 2)
    across = (2 * columns + 1) / size - 1
    above = 1 - (2 * rows + 1) / size
    points: Floats = eye + depth[:, None] * into + (half * across)[:, None] * right + (half * above)[:, None] * up
    return points


def fitted(camera: Camera, points: Floats, frame: float) -> Camera:
    """The camera, moved straight back (to the next millimetre) until all points are in the image.

    Args:
        camera: The camera.
        points: (n, 3) in the world, metres.
        frame: Share of the image, from its middle, within which they have to be.
    """
    eye, right, up, into = axes(camera)
    away = points - eye
    aside = np.maximum(np.abs(away @ right), np.abs(away @ up))
    missing = float((aside / (frame * math.tan(math.radians(camera.fov) / 2)) - away @ into).max())
    return replace(camera, distance=math.ceil((camera.distance + missing) * 1000) / 1000) if missing > 0 else camera


def raised(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """The scenes from a little higher and further to the side, so that fronts, tops and sides of things are seen.

    Left and right in the image stay what they are in the scene; planks that are level are seen to be level. The side is the one to
    which the camera is turned already, so that the mirror image of a raised scene is the raised mirror image. A camera that looks down
    on a table stays where it is.

    Args:
        scenes: Scenes that belong together and have one camera; so have they afterwards.
    """
    old = scenes[0].camera
    if old.pitch < FROM_ABOVE:
        return tuple(scenes)
    planks = any(b.shape == "box" and b.size[0] > PLANK * b.size[2] for scene in scenes for b in scene.bodies)
    pitch = old.pitch - (HIGHER_AT_PLANKS if planks else HIGHER)
    most = abs(old.yaw) + ASIDE
    if planks:
        # A line to the right rises in the image by the sine of the pitch times the tangent of the yaw.
        rise = math.tan(math.radians(SLANT)) / max(math.sin(math.radians(abs(pitch))), 1e-3)
        most = max(abs(old.yaw), min(most, math.degrees(math.atan(rise))))
    points = np.concatenate([extent(scene) for scene in scenes])
    camera = old
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        yaw = math.copysign(round(abs(old.yaw) + share * (most - abs(old.yaw)), 1), old.yaw)
        camera = fitted(replace(old, pitch=round(pitch, 1), yaw=yaw), points, EDGE)
        if all(sides_kept(camera, scene) for scene in scenes):
            break
    return tuple(replace(scene, camera=camera) for scene in scenes)


def sides_kept(camera: Camera, scene: Scene) -> bool:
    """Whether left and right of any two bodies are the same in the image as in the scene, where the scene's own camera has them right.

    Args:
        camera: Another camera.
        scene: The scene.
    """
    places = np.array([body.position for body in scene.bodies])
    gaps = places[:, None, 0] - places[None, :, 0]
    before, after = (u[:, None] - u[None, :] for u in (project(c, places)[:, 0] for c in (scene.camera, camera)))
    asked = (gaps >= MIN_SEPARATION) & (before > 0)
    return bool((after[asked] > 0).all())


def things(scene: Scene) -> list[Body | Marker]:
    """Bodies and markers, as the segmentation numbers them."""
    return [*scene.bodies, *scene.markers]


def is_sign(thing: Body | Marker) -> bool:
    """Whether it tells something and is no thing itself, so that it casts no shadow: an arrow, or the ghost of an earlier place."""
    return isinstance(thing, Marker) and (thing.shape == "arrow" or thing.fade > 0)


def extent(scene: Scene) -> Floats:
    """(n, 3) points that hold everything the image of a scene shows, in all its panels before the start, metres."""
    return np.concatenate([points for _, points in shown(scene)])


def shown(scene: Scene) -> Iterable[tuple[Body | Marker, Floats]]:
    """Every body and marker with points (n, 3) whose hull holds it, once for each panel up to the start, metres."""
    for body in scene.bodies:
        hull = corners(body)
        for moment in {0.0, *(m for m in scene.panels if m < 0)}:
            yield body, hull + moment * np.array(body.velocity)
    for marker in scene.markers:
        yield marker, corners(marker)
