"""Palettes: which red is called red. The standard one, and others for the shift of colours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.scene import COLOURS, NEUTRALS, Body, Marker, Vec3

# In every palette each colour is nearest, in hue, to its own name in the standard one (tests/stimuli/test_shifts.py).
PALETTES: dict[str, dict[str, Vec3]] = {
    "standard": {**COLOURS, **NEUTRALS},
    "soft": {
        "red": (0.80, 0.22, 0.22),
        "green": (0.24, 0.62, 0.30),
        "blue": (0.22, 0.33, 0.78),
        "yellow": (0.90, 0.80, 0.26),
        "purple": (0.52, 0.22, 0.62),
        "orange": (0.92, 0.52, 0.18),
        "white": (0.93, 0.93, 0.91),
        "grey": (0.56, 0.56, 0.56),
        "black": (0.14, 0.14, 0.15),
        "brown": (0.46, 0.32, 0.22),
    },
    "vivid": {
        "red": (1.00, 0.05, 0.05),
        "green": (0.05, 0.78, 0.12),
        "blue": (0.05, 0.22, 1.00),
        "yellow": (1.00, 0.93, 0.00),
        "purple": (0.62, 0.05, 0.78),
        "orange": (1.00, 0.55, 0.00),
        "white": (1.00, 1.00, 1.00),
        "grey": (0.50, 0.50, 0.52),
        "black": (0.05, 0.05, 0.06),
        "brown": (0.48, 0.28, 0.14),
    },
    "pastel": {
        "red": (0.94, 0.42, 0.40),
        "green": (0.50, 0.80, 0.50),
        "blue": (0.45, 0.58, 0.92),
        "yellow": (0.97, 0.92, 0.52),
        "purple": (0.72, 0.46, 0.82),
        "orange": (0.98, 0.66, 0.34),
        "white": (0.97, 0.97, 0.95),
        "grey": (0.62, 0.63, 0.64),
        "black": (0.20, 0.20, 0.22),
        "brown": (0.58, 0.44, 0.34),
    },
    "deep": {
        "red": (0.62, 0.04, 0.06),
        "green": (0.04, 0.42, 0.12),
        "blue": (0.06, 0.12, 0.58),
        "yellow": (0.80, 0.70, 0.04),
        "purple": (0.36, 0.05, 0.46),
        "orange": (0.86, 0.40, 0.02),
        "white": (0.88, 0.88, 0.86),
        "grey": (0.44, 0.45, 0.46),
        "black": (0.07, 0.07, 0.08),
        "brown": (0.36, 0.23, 0.13),
    },
    # Other hues under the same names: each turned towards a neighbour on the colour circle.
    "turned": {
        "red": (0.86, 0.08, 0.22),
        "green": (0.38, 0.70, 0.10),
        "blue": (0.05, 0.45, 0.88),
        "yellow": (0.97, 0.76, 0.06),
        "purple": (0.66, 0.12, 0.58),
        "orange": (0.98, 0.38, 0.10),
        "white": (0.95, 0.93, 0.88),
        "grey": (0.50, 0.50, 0.55),
        "black": (0.14, 0.10, 0.10),
        "brown": (0.44, 0.34, 0.16),
    },
    "pale turned": {
        "red": (0.95, 0.36, 0.44),
        "green": (0.62, 0.84, 0.40),
        "blue": (0.38, 0.66, 0.96),
        "yellow": (0.99, 0.88, 0.50),
        "purple": (0.80, 0.46, 0.78),
        "orange": (0.99, 0.62, 0.36),
        "white": (0.97, 0.96, 0.92),
        "grey": (0.62, 0.62, 0.66),
        "black": (0.22, 0.19, 0.19),
        "brown": (0.56, 0.46, 0.30),
    },
}


def lab(colour: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Colours (..., 3), red, green and blue of sRGB in [0, 1], as CIELAB (..., 3) with the white point D65."""
    value = np.asarray(colour, dtype=np.float64)
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def paint(thing: Body | Marker, palette: str) -> Vec3:
    """The (red, green, blue) in [0, 1] in which a body or marker is drawn.

    Args:
        thing: By its colour, and its shade or fade.
        palette: One of `PALETTES`.

    Raises:
        ValueError: If there is no such palette.
    """
    try:
        red, green, blue = PALETTES[palette][thing.colour]
    except KeyError:
        raise InvalidInput(f"unknown palette {palette!r}: there are {', '.join(PALETTES)}") from None
    if isinstance(thing, Marker):
        fade = thing.fade
        return (red + (1 - red) * fade, green + (1 - green) * fade, blue + (1 - blue) * fade)
    return (min(1.0, red * thing.shade), min(1.0, green * thing.shade), min(1.0, blue * thing.shade))
