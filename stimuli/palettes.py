"""Palettes: which red is called red. The standard one, and others for the shift of colours."""

from __future__ import annotations

from stimuli.scene import COLOURS, NEUTRALS, Body, Marker, Vec3

PALETTES: dict[str, dict[str, Vec3]] = {"standard": {**COLOURS, **NEUTRALS}}


def paint(thing: Body | Marker, palette: str) -> Vec3:
    """The (red, green, blue) in [0, 1] in which a body or marker is drawn. Raises ValueError for an unknown palette."""
    try:
        red, green, blue = PALETTES[palette][thing.colour]
    except KeyError:
        raise ValueError(f"unknown palette {palette!r}: there are {', '.join(PALETTES)}") from None
    if isinstance(thing, Marker):
        fade = thing.fade
        return (red + (1 - red) * fade, green + (1 - green) * fade, blue + (1 - blue) * fade)
    return (min(1.0, red * thing.shade), min(1.0, green * thing.shade), min(1.0, blue * thing.shade))
