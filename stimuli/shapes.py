"""Geometry of the shapes: volumes, corners, convex pieces and meshes, in the frame of a body's centre of mass.

A wedge is a right-angled triangular prism: its upright side is at its own -x end, its slope descends towards +x, its section lies
in the x-z plane. Its centre of mass is a third of the way from the upright side and from the base. A cradle is a U of three
boards, open at the top, which keeps a sphere from rolling along x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.scene import Body, Marker, Quaternion, Vec3

Floats = npt.NDArray[np.float64]
Triangles = list[tuple[int, int, int]]

WALL = 0.12
"""Thickness of a cradle's side walls, as a share of its width; its floor is as thick as `WALL` of its height."""
ARROW_HEAD, ARROW_SHAFT = 0.35, 0.4
"""Length of an arrow's head as a share of its length (at most as long as high), and height of its shaft as a share of its height."""


def volume(shape: str, size: Vec3) -> float:
    """Volume of a body, cubic metres.

    Args:
        shape: One of `SHAPES`.
        size: Full extents, metres.

    Raises:
        ValueError: For a shape that is no body.
    """
    x, y, z = size
    if shape == "box":
        return x * y * z
    if shape == "cylinder":
        return math.pi / 4 * x * y * z
    if shape == "sphere":
        return math.pi / 6 * x * y * z
    if shape == "wedge":
        return x * y * z / 2
    if shape == "cradle":
        return sum(math.prod(extents) for _, extents in cradle_boards(size))
    raise ValueError(f"{shape!r} is not the shape of a body")


def cradle_boards(size: Vec3) -> list[tuple[Vec3, Vec3]]:
    """The floor and the two side walls of a cradle as (centre, extents), metres, in the frame of its centre of mass."""
    x, y, z = size
    wall, floor = WALL * x, WALL * z
    boards = [
        ((0.0, 0.0, floor / 2), (x, y, floor)),
        ((-(x - wall) / 2, 0.0, (z + floor) / 2), (wall, y, z - floor)),
        (((x - wall) / 2, 0.0, (z + floor) / 2), (wall, y, z - floor)),
    ]
    weights = [math.prod(extents) for _, extents in boards]
    centre = sum(w * c[2] for w, (c, _) in zip(weights, boards, strict=True)) / sum(weights)
    return [((c[0], c[1], c[2] - centre), extents) for c, extents in boards]


def bottom(shape: str, size: Vec3) -> float:
    """How far the centre of mass of an upright body lies above its underside, metres.

    Args:
        shape: One of `SHAPES`.
        size: Full extents, metres.
    """
    if shape == "wedge":
        return size[2] / 3
    if shape == "cradle":
        (_, _, z), (_, _, thickness) = cradle_boards(size)[0]
        return thickness / 2 - z
    return size[2] / 2


def mesh(shape: str, size: Vec3) -> tuple[Floats, Triangles]:
    """Vertices (n, 3) in metres and triangles (outward, counter-clockwise) of a wedge or an arrow.

    Args:
        shape: "wedge" or "arrow".
        size: Full extents, metres.

    Raises:
        ValueError: For any other shape.
    """
    x, y, z = size
    if shape == "wedge":
        outline = [(-x / 3, -z / 3), (2 * x / 3, -z / 3), (-x / 3, 2 * z / 3)]
        pieces = [(0, 1, 2)]
    elif shape == "arrow":
        neck = x / 2 - min(ARROW_HEAD * x, z)
        shaft = ARROW_SHAFT * z / 2
        outline = [
            (-x / 2, -shaft),
            (neck, -shaft),
            (neck, -z / 2),
            (x / 2, 0),
            (neck, z / 2),
            (neck, shaft),
            (-x / 2, shaft),
        ]
        pieces = [(0, 1, 5), (0, 5, 6), (2, 3, 4)]
    else:
        raise ValueError(f"{shape!r} has no mesh")
    n = len(outline)
    vertices = [(px, depth, pz) for depth in (-y / 2, y / 2) for px, pz in outline]
    # The front (-y) is seen with x to the right and z up, so that its counter-clockwise outline faces the viewer.
    triangles = [*pieces, *((n + c, n + b, n + a) for a, b, c in pieces)]
    for i in range(n):
        j = (i + 1) % n
        triangles += [(i, n + i, n + j), (i, n + j, j)]
    return np.array(vertices, dtype=float), triangles


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """A convex part of a body or marker, in the frame of its centre of mass, metres.

    Attributes:
        points: (n, 3) whose convex hull holds it.
        planes: (k, 4) unit outward normals of its faces and their distances from the origin; none for round pieces.
        round: "sphere" or "cylinder" (about the own z axis); empty for a polytope.
    """

    points: Floats
    planes: Floats
    round: str = ""


@lru_cache(maxsize=1024)
def convex_pieces(shape: str, size: Vec3) -> tuple[Piece, ...]:
    """The convex parts of a body or marker, none of which overlap.

    Args:
        shape: One of `MARKER_SHAPES`.
        size: Full extents, metres.
    """
    x, y, z = size
    if shape in ("sphere", "cylinder"):
        return (Piece(_outline(shape, size), np.zeros((0, 4)), shape),)
    if shape == "box":
        return (_prism(_rectangle(-x / 2, x / 2, -z / 2, z / 2), y),)
    if shape == "cradle":
        return tuple(
            _prism(_rectangle(cx - ex / 2, cx + ex / 2, cz - ez / 2, cz + ez / 2), y)
            for (cx, _, cz), (ex, _, ez) in cradle_boards(size)
        )
    outline = mesh(shape, size)[0][: 3 if shape == "wedge" else 7, ::2]
    if shape == "wedge":
        return (_prism(outline, y),)
    return (_prism(outline[[0, 1, 5, 6]], y), _prism(outline[[2, 3, 4]], y))


def _rectangle(left: float, right: float, low: float, high: float) -> Floats:
    return np.array([(left, low), (right, low), (right, high), (left, high)])


def _prism(outline: Floats, depth: float) -> Piece:
    """The prism over a convex outline (n, 2) in the x-z plane, counter-clockwise as the viewer sees it."""
    edges = np.roll(outline, -1, axis=0) - outline
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1) / np.sqrt((edges**2).sum(axis=1))[:, None]
    sides = [(nx, 0.0, nz, nx * px + nz * pz) for (nx, nz), (px, pz) in zip(normals, outline, strict=True)]
    points = [(px, py, pz) for py in (-depth / 2, depth / 2) for px, pz in outline]
    return Piece(np.array(points), np.array([*sides, (0, -1, 0, depth / 2), (0, 1, 0, depth / 2)]))


def corners(thing: Body | Marker) -> Floats:
    """(n, 3) world points whose convex hull holds a body or marker, metres (for keeping it in the image)."""
    points = _outline(thing.shape, thing.size)
    if thing.orientation != (0.0, 0.0, 0.0, 1.0):
        points = points @ rotation(thing.orientation).T
    return points + np.array(thing.position)


@lru_cache(maxsize=1024)
def _outline(shape: str, size: Vec3) -> Floats:
    """(n, 3) points in the frame of the body whose convex hull holds it, metres. Not to be written to."""
    if shape in ("wedge", "arrow"):
        return mesh(shape, size)[0]
    half = np.array(size) / 2
    points = np.array(list(product(*zip(-half, half, strict=True))))
    if shape == "cradle":
        points[:, 2] += half[2] - bottom("cradle", size)
    return points


def rotation(quaternion: Quaternion) -> Floats:
    """(3, 3) rotation matrix of a unit quaternion (x, y, z, w)."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def about_y(degrees: float) -> Quaternion:
    """A turn in the image plane: clockwise as the camera at yaw 0 sees it."""
    return (0.0, math.sin(math.radians(degrees) / 2), 0.0, math.cos(math.radians(degrees) / 2))


def about_z(degrees: float) -> Quaternion:
    """A turn on the table: counter-clockwise seen from above."""
    return (0.0, 0.0, math.sin(math.radians(degrees) / 2), math.cos(math.radians(degrees) / 2))
