"""Procedural textures: patterns in space that are evaluated per pixel, so that they are the same with every renderer.

A pattern is a function of the point that a pixel shows, in the body's own coordinates (a solid texture: Peachey, 1985, SIGGRAPH
19:279-286; Perlin, 1985, SIGGRAPH 19:287-296), so that it moves and turns with the body and needs no mapping onto
its surface. Patterns change brightness only: a textured red is still red. The name of a texture is its recipe, `KIND:LEVEL:SEED`,
followed by `:mirror` in mirror images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.scene import MIRRORED, Body, Marker, Scene
from vlm_probe.stimuli.shapes import rotation
from vlm_probe.stimuli.simulators import BACKGROUND, FLOOR, Frame, Poses
from vlm_probe.stimuli.viewing import axes, things, unproject

Floats = npt.NDArray[np.float64]
Pattern = Callable[[Floats, "Texture"], Floats]

CONTRAST = {1: 0.12, 2: 0.25, 3: 0.42}
"""How much darker or lighter a pattern makes a surface, as a share of its brightness, by level."""
BODY_PERIOD = 0.45
"""Length of a pattern on a body, as a share of the cube root of its size's product."""
FLOOR_PERIOD = 0.12
"""Length of a pattern on the floor, as a share of the distance of the camera."""
SKY_PERIOD = 0.45
"""Length of a pattern in the sky, in half images."""


@dataclass(frozen=True, slots=True)
class Texture:
    """A texture: one of `PATTERNS`, a level of contrast (1 to 3), a seed, and whether it is the mirror image."""

    kind: str
    level: int
    seed: int
    mirrored: bool = False

    @property
    def name(self) -> str:
        """The recipe, as scenes hold it."""
        return f"{self.kind}:{self.level}:{self.seed}" + (MIRRORED if self.mirrored else "")


@lru_cache(maxsize=256)
def parse_texture(name: str) -> Texture:
    """The texture of that name.

    Raises:
        ValueError: If it is none; the message says how names are made and which kinds there are.
    """
    kind, _, numbers = name.removesuffix(MIRRORED).partition(":")
    level, _, seed = numbers.partition(":")
    if kind not in PATTERNS or level not in ("1", "2", "3") or not seed.isdecimal():
        raise InvalidInput(
            f"unknown texture {name!r}: a name is KIND:LEVEL:SEED, such as wood:2:7, with a level from 1 to 3 and one of"
            f" the kinds {', '.join(PATTERNS)}"
        )
    return Texture(kind, int(level), int(seed), name.endswith(MIRRORED))


def textured(frame: Frame, scene: Scene, poses: Poses | None = None) -> Frame:
    """The frame with the textures of the scene, whose bodies are at `poses` (by default where they start).

    Args:
        frame: Without textures.
        scene: What it shows.
        poses: Where the bodies are; None where they start.

    Raises:
        ValueError: If a texture does not exist.
    """
    seen = things(scene)
    background = scene.background
    if not (background.floor_texture or background.sky_texture or any(thing.texture for thing in seen)):
        return frame
    size = len(frame.rgb)
    rgb = frame.rgb.copy()
    # Metres that a pixel spans, per metre of depth.
    pixel = 2 * math.tan(math.radians(scene.camera.fov) / 2) / size
    surfaces = [(index, thing.texture) for index, thing in enumerate(seen)]
    for index, name in [*surfaces, (FLOOR, background.floor_texture), (BACKGROUND, background.sky_texture)]:
        if not name:
            continue
        rows, columns = np.nonzero(frame.segmentation == index)
        if not len(rows):
            continue
        texture = parse_texture(name)
        if index == BACKGROUND:
            points = np.stack([2 * columns / size - 1, 1 - 2 * rows / size, np.zeros(len(rows))], axis=1)
            period, footprint = SKY_PERIOD, np.full(len(rows), 2 / size)
        else:
            depth = frame.depth[rows, columns].astype(float)
            points = unproject(scene.camera, rows, columns, depth, size)
            footprint = pixel * depth
            if index == FLOOR:
                # Seen at a grazing angle, a pixel spans much more of the floor.
                away = points - axes(scene.camera)[0]
                footprint = footprint * np.linalg.norm(away, axis=1) / np.maximum(np.abs(away[:, 2]), 1e-6)
                period = FLOOR_PERIOD * scene.camera.distance
                points = points * np.array([1.0, 1.0, 0.0])
            else:
                thing = seen[index]
                points = _own_frame(points, thing, index, scene, poses)
                period = BODY_PERIOD * float(np.prod(thing.size)) ** (1 / 3)
        if texture.mirrored:
            shape = seen[index].shape if index >= 0 else ""
            # The mirror image of these shapes is itself turned half about z, which swaps the sign of the other axis.
            points = points * (
                np.array([1.0, -1.0, 1.0]) if shape in ("wedge", "arrow") else np.array([-1.0, 1.0, 1.0])
            )
        gain = brightness(texture, points / period, footprint / period)
        rgb[rows, columns] = np.clip(np.round(rgb[rows, columns] * gain[:, None]), 0, 255).astype(np.uint8)
    return replace(frame, rgb=rgb)


def brightness(texture: Texture, points: Floats, footprint: Floats) -> Floats:
    """What a texture multiplies the brightness by.

    Args:
        texture: The texture.
        points: (n, 3) points in units of its period.
        footprint: (n,) how much of the pattern a pixel spans, in the same unit; what is too fine to be drawn fades.

    Returns:
        (n,) around 1, at most `CONTRAST` away from it.
    """
    offset = np.random.default_rng([texture.seed, 1]).uniform(0, 64, 3)
    pattern = np.clip(PATTERNS[texture.kind](points + offset, texture), -1, 1)
    fade = np.clip(2 - 4 * footprint, 0, 1)
    return 1 + CONTRAST[texture.level] * fade * pattern


def _own_frame(points: Floats, thing: Body | Marker, index: int, scene: Scene, poses: Poses | None) -> Floats:
    """World points in the coordinates of a body or marker."""
    position, turn = np.array(thing.position), thing.orientation
    if poses is not None and index < len(scene.bodies):
        x, y, z, w = poses.orientations[index].tolist()
        position, turn = poses.positions[index], (x, y, z, w)
    own: Floats = (points - position) @ rotation(turn)
    return own


def _stripes(points: Floats, texture: Texture) -> Floats:
    angle = texture.seed % 6 * math.pi / 6
    across = points @ np.array([math.cos(angle), 0.6, math.sin(angle)])
    return np.tanh(3 * np.sin(2 * math.pi * across))


def _checks(points: Floats, texture: Texture) -> Floats:
    # Steep, so that a face that happens to lie where one factor changes sign is not left blank.
    checks: Floats = np.prod(np.tanh(8 * np.sin(2 * math.pi * points / 1.4)), axis=1)
    return checks


def _dots(points: Floats, texture: Texture) -> Floats:
    # Bars of round section along all three axes: every face shows discs.
    near = np.sort(np.abs(points * 1.6 - np.round(points * 1.6)), axis=1)
    return np.tanh(14 * (np.hypot(near[:, 1], near[:, 2]) - 0.42))


def _wood(points: Floats, texture: Texture) -> Floats:
    warped = points + 0.25 * (_noise(points * np.array([0.4, 1.0, 1.0]), texture.seed)[:, None] - 0.5)
    rings = np.sin(2 * math.pi * 2.2 * np.hypot(warped[:, 1] + 0.7, warped[:, 2] * 0.8 - 1.3))
    return 0.75 * rings + 0.5 * (_noise(points * np.array([2.0, 14.0, 14.0]), texture.seed + 1) - 0.5)


def _marble(points: Floats, texture: Texture) -> Floats:
    swirl = sum(np.abs(2 * _noise(points * scale, texture.seed) - 1) / scale for scale in (1.0, 2.0, 4.0))
    return np.sin(2 * math.pi * (points @ np.array([0.7, 0.4, 0.5])) + 5 * swirl)


def _grain(points: Floats, texture: Texture) -> Floats:
    return np.asarray(2.4 * sum((_noise(points * s, texture.seed) - 0.5) / s**0.5 for s in (2.0, 4.0, 8.0)))


def _planks(points: Floats, texture: Texture) -> Floats:
    board = np.floor(points[:, 0])
    tone = 1.2 * (_noise(np.stack([board * 7.3, board * 3.1, board * 0.0], axis=1), texture.seed) - 0.5)
    fibre = _noise(points * np.array([9.0, 0.8, 1.0]) + board[:, None] * 11.0, texture.seed + 1) - 0.5
    seam = np.where(np.abs(points[:, 0] - board - 0.5) > 0.46, -0.9, 0.0)
    return tone + 0.8 * fibre + seam


def _tiles(points: Floats, texture: Texture) -> Floats:
    cell = np.floor(points)
    tone = 1.1 * (_noise(cell * 5.7, texture.seed) - 0.5)
    edge = np.abs(points - cell - 0.5)[:, :2].max(axis=1)
    return tone + np.where(edge > 0.465, -0.9, 0.5 * ((cell[:, 0] + cell[:, 1]) % 2) - 0.35)


def _gradient(points: Floats, texture: Texture) -> Floats:
    # In the sky only, where points span about -2 to 2 periods: light at the horizon or light above.
    offset = np.random.default_rng([texture.seed, 1]).uniform(0, 64, 3)
    return (1 if texture.seed % 2 else -1) * (points - offset)[:, 1] * SKY_PERIOD


def _clouds(points: Floats, texture: Texture) -> Floats:
    stretched = points * np.array([0.7, 1.3, 1.0])
    return np.asarray(2.2 * sum((_noise(stretched * s, texture.seed) - 0.5) / s for s in (1.0, 2.0, 4.0)))


PATTERNS: dict[str, Pattern] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "wood": _wood,
    "marble": _marble,
    "grain": _grain,
    "planks": _planks,
    "tiles": _tiles,
    "gradient": _gradient,
    "clouds": _clouds,
}
ON_BODIES = ("stripes", "checks", "dots", "wood", "marble", "grain")
ON_FLOORS = ("planks", "tiles", "grain", "checks")


@lru_cache(maxsize=64)
def _lattice(seed: int) -> tuple[npt.NDArray[np.intp], Floats]:
    rng = np.random.default_rng([seed, 2])
    order = rng.permutation(256)
    return np.concatenate([order, order, order[:1]]).astype(np.intp), rng.random(256)


def _noise(points: Floats, seed: int) -> Floats:
    """Lattice noise in [0, 1]: random values at whole points, joined smoothly (Peachey, 1985)."""
    order, values = _lattice(seed)
    base = np.floor(points)
    share = points - base
    share = share * share * (3 - 2 * share)
    x, y, z = (base[:, axis].astype(np.intp) & 255 for axis in range(3))
    planes = []
    for dx in (0, 1):
        lines = []
        for dy in (0, 1):
            row = order[order[x + dx] + y + dy]
            low, high = values[order[row + z]], values[order[row + z + 1]]
            lines.append(low + (high - low) * share[:, 2])
        planes.append(lines[0] + (lines[1] - lines[0]) * share[:, 1])
    joined: Floats = planes[0] + (planes[1] - planes[0]) * share[:, 0]
    return joined
