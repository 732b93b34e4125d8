"""The ray-casting renderer: exact edges, soft shadows, materials; the same bytes on every machine, whatever engine simulates.

Here a scene becomes arrays. The code that draws them (`vlm_probe.stimuli.rays`) is compiled once, kept in the user's cache folder, and
loaded when the first image is drawn.
"""

from __future__ import annotations

import atexit
import logging
import math
import multiprocessing
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.palettes import paint
from vlm_probe.stimuli.scene import Body, Light, Marker, Scene
from vlm_probe.stimuli.shapes import Piece, convex_pieces, rotation
from vlm_probe.stimuli.simulators import (
    BACKGROUND,
    FLOOR,
    MAX_DURATION,
    MIN_DURATION,
    Frame,
    Outcome,
    Poses,
    Simulator,
    Stop,
    get_simulator,
)
from vlm_probe.stimuli.viewing import axes, is_sign, things

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
IntegerFormat = npt.NDArray[np.int64]

VERSION = 1
"""Goes up whenever the same scene gets other bytes."""
SPREAD = 0.16
"""Tangent of the light's radius as seen from the scene: how soft shadows are."""
REACH = 0.2
"""How far things darken what is around them at most, as a share of the camera's distance."""
HAZE = 8.0
"""Depth at which the floor is half way to its palest, in distances of the camera."""
SUNNY, SHINY = 1.15, 10.0
"""What a scene's diffuse and specular coefficients are multiplied by: they were chosen for a renderer without linear light."""
FAR = 10.0
"""Depth of the background, and the largest of the floor, metres."""
FINE = 2.0**40
"""Sines and cosines are rounded to one part in this: their last bits differ between C libraries."""
SLOW = 1.5
"""Seconds of loading after which the user is told what takes so long."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """How a surface looks apart from its colour.

    Attributes:
        grain: One of `GRAINS`: a pattern in the solid that changes its brightness.
        strength: Of the grain, as a share of the brightness.
        waves: Of the grain, per metre.
        gloss: Strength of the highlight.
        polish: Base-2 logarithm of the highlight's exponent: how small it is.
        mirror: Share of the surroundings that is reflected head-on.
        tinted: How far reflections have the colour of the surface, 0 to 1, as those of metals do.
    """

    grain: str = "plain"
    strength: float = 0.0
    waves: float = 0.0
    gloss: float = 0.0
    polish: int = 4
    mirror: float = 0.0
    tinted: float = 0.0


GRAINS = ("plain", "paint", "wood", "metal")
SIGN = ReportData()
PAINTED = ReportData("paint", 0.035, 140.0, gloss=0.25, polish=4, mirror=0.02)
WOOD = ReportData("wood", 0.10, 60.0, gloss=0.2, polish=4, mirror=0.02)
METAL = ReportData("metal", 0.05, 400.0, gloss=6.0, polish=4, mirror=0.55, tinted=1.0)
RUBBER = ReportData(gloss=0.3, polish=3, mirror=0.02)
LACQUER = ReportData(gloss=1.2, polish=6, mirror=0.05)
SATIN = ReportData(gloss=0.25, polish=4, mirror=0.02)


def material(thing: Body | Marker) -> ReportData:
    """What a body or marker is made of.

    Arrows and ghosts are signs, without shine. Balls are lacquered; what is brown is wood, what is grey metal, what is black rubber,
    and everything else painted wood. A thing with a texture has no grain of its own.

    Args:
        thing: The body or marker.
    """
    if is_sign(thing):
        return SIGN
    if thing.shape == "sphere":
        return LACQUER
    if thing.texture:
        return SATIN
    return {"brown": WOOD, "grey": METAL, "black": RUBBER}.get(thing.colour, PAINTED)


class RayCast:
    """An engine whose images are ray cast. Implements `vlm_probe.stimuli.simulators.Simulator`.

    Args:
        engine: Simulates; it draws nothing.
    """

    renderer = f"raycast {VERSION}"

    def __init__(self, engine: Simulator) -> None:
        self._engine, self.name = engine, engine.name

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """A copy, here or in another process, is the renderer that is there."""
        return get_raycast, (self.name,)

    def version(self) -> str:
        """Engine and version."""
        return self._engine.version()

    def simulate(
        self,
        scene: Scene,
        *,
        stop: Stop | None = None,
        min_duration: float = MIN_DURATION,
        max_duration: float = MAX_DURATION,
    ) -> Outcome:
        """The engine's outcome."""
        return self._engine.simulate(scene, stop=stop, min_duration=min_duration, max_duration=max_duration)

    def render(self, scene: Scene, size: int, poses: Poses | None = None) -> Frame:
        """A square image of the scene at its start, or with the bodies at `poses`.

        Colours are antialiased; segmentation and depth are those of the rays through the centres of the pixels. The floor ends at the
        horizon; depths beyond `FAR` are given as `FAR`.
        """
        return _drawn(compiled(), scene, size, poses)


@lru_cache(maxsize=4)
def get_raycast(engine: str | None = None) -> RayCast:
    """The ray-casting renderer on top of an engine, with its code compiled or loaded.

    Args:
        engine: Name of the engine; by default the default one.

    Raises:
        ModuleNotFoundError: If the engine is not installed; the message says how to install it.
    """
    compiled()
    return RayCast(get_simulator(engine))


@lru_cache(maxsize=1)
def compiled() -> ModuleType:
    """The module `vlm_probe.stimuli.rays`, compiled for this processor or loaded from the cache folder."""
    note = threading.Timer(
        SLOW, log.warning, ["preparing the renderer: it is compiled once, which takes about 20 seconds"]
    )
    note.daemon = True
    if multiprocessing.parent_process() is None:  # a worker's parent has said so
        note.start()
    try:
        rays = _imported()
        _drawn(rays, Scene(()), 4, None)
    finally:
        note.cancel()
    return rays


def _imported() -> ModuleType:
    """Import the compiled module so that its code is kept in our cache folder, unless the user chose one for numba."""
    import numba

    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = before or str(_code_folder())
    try:
        # Where compiled code is kept is decided when a function is decorated, which is now.
        from vlm_probe.stimuli import rays
    finally:
        numba.config.CACHE_DIR = before
    return rays


def _code_folder() -> Path:
    """Where compiled code is kept: in the cache folder, or for this process alone where that cannot be written."""
    from vlm_probe.stimuli.standard import cache_folder

    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        log.warning(
            "cannot keep the compiled renderer in %s (%s), so that every command compiles it: set PROBE_CACHE to a folder"
            " that can be written",
            folder,
            error.strerror,
        )
        alone = tempfile.mkdtemp(prefix="vlm-probe-")
        atexit.register(shutil.rmtree, alone, ignore_errors=True)
        return Path(alone)


def _drawn(rays: ModuleType, scene: Scene, size: int, poses: Poses | None) -> Frame:
    """The image of a scene by the compiled code."""
    a = prepare(rays, scene, size, poses)
    geometry = (a.camera, a.settings, a.shape, a.planes, a.solid)
    depth, surface = rays.look(size, a.camera, a.shape, a.lens, a.boxes)
    sun, around = rays.light(depth, surface, *geometry, a.boxes, a.way, a.inverse)
    rgb = rays.colours(depth, surface, sun, around, *geometry, a.lens, a.boxes, a.finish, a.tint, SPOTS, *_lattice())
    owner = np.concatenate([a.shape[:, 2], [BACKGROUND, FLOOR]]).astype(np.int32)
    piece = np.where(surface >= 0, surface // rays.FACES, surface)
    return Frame(rgb, owner[piece], np.minimum(depth, FAR).astype(np.float32))


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """A scene as the arrays of `vlm_probe.stimuli.rays`, which says what is in them."""

    camera: Floats
    settings: Floats
    shape: IntegerFormat
    planes: Floats
    solid: Floats
    lens: Floats
    boxes: IntegerFormat
    way: Floats
    inverse: Floats
    finish: Floats
    tint: Floats


def prepare(rays: ModuleType, scene: Scene, size: int, poses: Poses | None = None) -> Prepared:
    """The arrays of a scene.

    Args:
        rays: The compiled code.
        scene: The scene.
        size: Edge of the image, pixels.
        poses: Where the bodies are; by default where they start.
    """
    seen = things(scene)
    places, turns = _poses(scene, poses)
    camera, lens_width = _camera(scene)
    sun, across, above = _sun(scene.light)
    camera = np.concatenate([camera, sun[None]])
    reach = REACH * scene.camera.distance
    pieces = [(index, piece) for index, thing in enumerate(seen) for piece in convex_pieces(thing.shape, thing.size)]
    solids = [_solid(rays, seen[i], piece, places[i], turns[i], reach) for i, piece in pieces]
    shape = np.array(
        [(s.kind, len(p.planes), i, not is_sign(seen[i])) for s, (i, p) in zip(solids, pieces, strict=True)]
    )
    shape = shape.astype(np.int64).reshape(-1, 4)
    planes = np.array([s.planes for s in solids]).reshape(-1, rays.FACES, 4)
    numbers = np.array([s.numbers for s in solids]).reshape(-1, 10)
    hulls = np.array([s.hull for s in solids]).reshape(-1, CORNERS, 3)
    disc, sphere = _patterns(rays.SUNS, rays.AXES)
    toward = sun + SPREAD * (disc[:, :1] * across + disc[:, 1:] * above)
    way = _fine(np.concatenate([toward / np.sqrt((toward**2).sum(axis=1))[:, None], sphere]))
    with np.errstate(divide="ignore"):
        inverse = 1.0 / _dot(planes[:, None, :, :3], way[:, None])
    edges = [sun + SPREAD * (a * across + b * above) for a in (-1, 1) for b in (-1, 1)]
    boxes = [
        _boxes(camera, hulls, size),
        _shadows(camera, hulls, edges, size),
        _surroundings(camera, hulls, numbers[:, 9], size),
    ]
    light = scene.light
    settings = [
        SPREAD,
        light.ambient,
        SUNNY * light.diffuse,
        SHINY * light.specular,
        reach,
        HAZE * scene.camera.distance,
    ]
    return Prepared(
        camera,
        np.array([*settings, lens_width]),
        shape,
        planes,
        numbers,
        _lens(rays, camera, lens_width, shape, planes, numbers),
        np.stack(boxes, axis=1),
        way,
        inverse,
        _finish(rays, scene, places, turns),
        np.array([scene.background.floor, scene.background.sky], dtype=float) ** 2,
    )


CORNERS = 8
"""Points whose hull holds a piece."""


@dataclass(frozen=True, eq=False, slots=True)
class _Solid:
    """A piece in its place: its kind, faces (FACES, 4), numbers (10,) and corners (CORNERS, 3)."""

    kind: int
    planes: Floats
    numbers: Floats
    hull: Floats


def _solid(rays: ModuleType, thing: Body | Marker, piece: Piece, place: Floats, turn: Floats, reach: float) -> _Solid:
    hull = _dot(piece.points[:, None], turn) + place
    # Wedges have fewer corners: the first again is none.
    hull = np.concatenate([hull, np.repeat(hull[:1], CORNERS - len(hull), axis=0)])
    planes, numbers = np.zeros((rays.FACES, 4)), np.zeros(10)
    radius, half = thing.size[0] / 2, thing.size[2] / 2
    if piece.round:
        bound = radius if piece.round == "sphere" else math.hypot(radius, half)
        numbers[:9] = (*place, radius, *turn[:, 2], half, bound)
    else:
        normals = _dot(piece.planes[:, None, :3], turn)
        planes[: len(normals), :3] = normals
        planes[: len(normals), 3] = piece.planes[:, 3] + _dot(normals, place)
        centre = (hull.min(axis=0) + hull.max(axis=0)) / 2
        numbers[:3] = centre
        numbers[8] = math.sqrt(float(((hull - centre) ** 2).sum(axis=1).max()))
    extents = np.ptp(piece.points, axis=0)
    # What is thin or small darkens little: twice the edge of a cube of that size.
    numbers[9] = min(reach, 2 * math.sqrt(math.sqrt(float(extents.min() * extents.max())) * float(np.median(extents))))
    kind = {"": rays.POLYTOPE, "sphere": rays.SPHERE, "cylinder": rays.CYLINDER}[piece.round]
    return _Solid(kind, planes, numbers, hull)


def _poses(scene: Scene, poses: Poses | None) -> tuple[Floats, Floats]:
    """Places (m, 3) and rotation matrices (m, 3, 3) of bodies and markers."""
    seen = things(scene)
    places = np.array([thing.position for thing in seen], dtype=float).reshape(-1, 3)
    turns = [thing.orientation for thing in seen]
    if poses is not None:
        places[: len(scene.bodies)] = poses.positions
        turns[: len(scene.bodies)] = [(x, y, z, w) for x, y, z, w in poses.orientations.tolist()]
    return places, np.array([rotation(turn) for turn in turns]).reshape(-1, 3, 3)


def _camera(scene: Scene) -> tuple[Floats, float]:
    """Rows eye, into, right, up (4, 3), and half the image at a depth of one metre."""
    eye, right, up, into = (_fine(v) for v in axes(scene.camera))
    width = float(_fine(np.array(math.tan(math.radians(scene.camera.fov) / 2))))
    return np.stack([eye, into, right * width, up * width]), width


def _sun(light: Light) -> tuple[Floats, Floats, Floats]:
    """Unit vectors to the light, and across it in two directions."""
    toward = np.array(light.direction, dtype=float)
    length = math.sqrt(float((toward**2).sum()))
    toward = _fine(toward / length) if length > 0 else np.array([0.0, 0.0, 1.0])
    level = math.hypot(toward[0], toward[1])
    across = np.array([-toward[1], toward[0], 0.0]) / level if level > 0 else np.array([1.0, 0.0, 0.0])
    return toward, across, np.cross(toward, across)


def _lens(
    rays: ModuleType, camera: Floats, width: float, shape: IntegerFormat, planes: Floats, solid: Floats
) -> Floats:
    """The camera against every piece, (n, FACES, 4)."""
    eye, frame = camera[0], camera[1:4]
    found = np.zeros(planes.shape)
    found[:, :, 0] = planes[:, :, 3] - _dot(planes[:, :, :3], eye)
    found[:, :, 1:] = _dot(planes[:, :, None, :3], frame)
    for i in np.flatnonzero(shape[:, 0] != rays.POLYTOPE):
        away, axis, radius = solid[i, :3] - eye, solid[i, 4:7], solid[i, 3]
        found[i] = 0.0
        found[i, 0] = (_dot(away, away) - radius**2, *_dot(frame, away))
        if shape[i, 0] == rays.CYLINDER:
            found[i, 0, 0] -= _dot(away, axis) ** 2
            found[i, 1] = (_dot(away, axis), *_dot(frame, axis))
            found[i, 2, 0] = solid[i, 7]
        found[i, 3, 0] = width**2
    return found


def _boxes(camera: Floats, points: Floats, size: int) -> IntegerFormat:
    """Columns and rows (n, 4: from, from, to, to) within which the hulls of points (n, k, 3) are; all if one is behind the camera."""
    away = points - camera[0]
    depth = _dot(away, camera[1])
    width = _dot(camera[2], camera[2])
    with np.errstate(all="ignore"):
        across, above = (_dot(away, edge) / (depth * width) for edge in camera[2:4])
        columns, rows = (1 + across) * size / 2, (1 - above) * size / 2
        found = np.stack(
            [columns.min(axis=1) - 1, rows.min(axis=1) - 1, columns.max(axis=1) + 2, rows.max(axis=1) + 2], axis=1
        )
    unknown = (depth <= 0.01).any(axis=1) | ~np.isfinite(found).all(axis=1)
    found[unknown] = (0, 0, size, size)
    return np.clip(np.floor(found), 0, size).astype(np.int64)


def _shadows(camera: Floats, hulls: Floats, edges: Sequence[Floats], size: int) -> IntegerFormat:
    """Where in the image shadows on the floor can be (n, 4), when the light comes from between the `edges`."""
    if min(edge[2] for edge in edges) < 0.02:
        return np.tile(np.array([0, 0, size, size]), (len(hulls), 1))
    fallen = [hulls - hulls[:, :, 2:] * (edge / edge[2]) for edge in edges]
    return _boxes(camera, np.concatenate(fallen, axis=1), size)


def _surroundings(camera: Floats, hulls: Floats, reach: Floats, size: int) -> IntegerFormat:
    """Where in the image the floor is so near pieces that they darken it (n, 4)."""
    low, high = hulls.min(axis=1) - reach[:, None], hulls.max(axis=1) + reach[:, None]
    ground = [np.stack([x[:, 0], y[:, 1], 0 * x[:, 2]], axis=1) for x in (low, high) for y in (low, high)]
    found = _boxes(camera, np.stack(ground, axis=1), size)
    found[low[:, 2] > 0] = 0
    return found


def _finish(rays: ModuleType, scene: Scene, places: Floats, turns: Floats) -> Floats:
    """What things look like, (m, FINISH)."""
    found = np.zeros((len(places), rays.FINISH))
    for index, thing in enumerate(things(scene)):
        made_of, longest = material(thing), int(np.argmax(thing.size))
        own = turns[index].T[[longest, (longest + 1) % 3, (longest + 2) % 3]]
        colour = [channel * channel for channel in paint(thing, scene.palette)]
        grain = (GRAINS.index(made_of.grain), made_of.strength, made_of.waves)
        shine = (made_of.gloss, made_of.polish, made_of.mirror, made_of.tinted)
        found[index] = (*places[index], *own.ravel(), *colour, *grain, *shine)
    return found


def _dot(a: Floats, b: Floats) -> Floats:
    """Scalar products along the last axis, in a fixed order: those of matrices depend on the processor in their last bits."""
    products = a * b
    found: Floats = products[..., 0] + products[..., 1] + products[..., 2]
    return found


def _fine(values: Floats) -> Floats:
    """The values without the bits that differ between C libraries."""
    return np.round(values * FINE) / FINE


def _sobol(count: int) -> Floats:
    """The first `count` points of Sobol's sequence in the unit square, (count, 2): every aligned block is spread evenly, too."""
    bits = 32
    second = [1 << (bits - 1)]
    for _ in range(bits - 1):
        second.append(second[-1] ^ second[-1] >> 1)
    first = [1 << (bits - 1 - k) for k in range(bits)]

    def place(index: int, directions: list[int]) -> float:
        found = 0
        for k, direction in enumerate(directions):
            found ^= direction if index >> k & 1 else 0
        return (found + 0.5) / 2**bits

    return np.array([(place(i, first), place(i, second)) for i in range(count)])


@lru_cache(maxsize=1)
def _patterns(suns: int, around: int) -> tuple[Floats, Floats]:
    """Points (suns, 2) of a disc, and unit vectors (around, 3) of the upper half of a sphere, both spread evenly."""
    u, v = (_sobol(count) + 0.5 / count for count in (suns, around))
    turn = 2 * math.pi * u[:, 1]
    disc = np.sqrt(u[:, 0])[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    turn, level = 2 * math.pi * v[:, 1], np.sqrt(1 - v[:, 0] ** 2)
    return _fine(disc), _fine(np.stack([level * np.cos(turn), level * np.sin(turn), v[:, 0]], axis=1))


SPOTS = _sobol(16) + 1 / 32
"""(16, 2) where in a pixel its rays go through where surfaces meet: no two in one row or column."""


@lru_cache(maxsize=1)
def _lattice() -> tuple[Floats, IntegerFormat]:
    """Random values (256,) of a lattice, and a permutation (513,) that scatters them."""
    rng = np.random.default_rng(5)
    order = rng.permutation(256)
    return rng.random(256), np.concatenate([order, order, order[:1]]).astype(np.int64)
