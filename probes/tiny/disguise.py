"""Pictures in disguise: surfaces recoloured and patterned, shadows and strange things added, so that only what matters is learned.

This works on the small pixels with the map of what covers them, at about three milliseconds a picture. It is none of the shifts:
what a shift does beyond the level of pretraining stays unseen.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.tiny.architecture import PIXELS
from vlm_probe.probes.tiny.pictures import Picture
from vlm_probe.stimuli.simulators import FLOOR

Floats = npt.NDArray[np.float32]
_ROWS, _COLUMNS = np.mgrid[:PIXELS, :PIXELS].astype(np.float32)


def disguised(rng: np.random.Generator, picture: Picture, other: Picture) -> Picture:
    """The same scene, looking otherwise; `other` may lend what stands about in it.

    Args:
        rng: Draws the disguise.
        picture: The scene to show.
        other: Any other picture.
    """
    things = picture.things
    gain = np.ones((PIXELS, PIXELS, 3), np.float32)
    for thing in np.unique(things):
        mask = things == thing
        behind = thing < 0
        tint = rng.uniform(0.6 if behind else 0.7, 1.15) * rng.uniform(0.88, 1.12, 3)
        surface = np.ones((PIXELS, PIXELS), np.float32)
        if rng.random() < 0.5:
            surface += _stripes(rng, rng.uniform(0.03, 0.2))
        if behind and rng.random() < 0.5:
            surface += rng.uniform(-0.2, 0.2) * (2 * _ROWS / PIXELS - 1)
        gain[mask] = tint * surface[mask][:, None]
    if rng.random() < 0.5:
        down, aside = rng.integers(0, PIXELS // 13), rng.integers(-PIXELS // 5, PIXELS // 5 + 1)
        cast = np.roll(things >= 0, (int(down), int(aside)), (0, 1))
        gain[cast & (things == FLOOR)] *= rng.uniform(0.5, 0.85)
    pixels = picture.pixels * gain
    lent = other.things >= len(other.scene.bodies)
    names = [marker.name for marker in other.scene.markers]
    lent &= np.isin(
        other.things, [len(other.scene.bodies) + i for i, name in enumerate(names) if name.startswith("distractor")]
    )
    lent &= things < 0
    pixels[lent] = other.pixels[lent]
    return replace(picture, pixels=np.clip(pixels, 0, 255).astype(np.uint8))


def _stripes(rng: np.random.Generator, strength: float) -> Floats:
    """(`PIXELS`, `PIXELS`) waves across the picture, or two waves that cross."""
    waves = np.zeros((PIXELS, PIXELS), np.float32)
    for _ in range(int(rng.integers(1, 3))):
        angle, pitch, start = rng.uniform(0, np.pi), rng.uniform(24, 128) / PIXELS, rng.uniform(0, 2 * np.pi)
        waves += np.sin(pitch * (np.cos(angle) * _ROWS + np.sin(angle) * _COLUMNS) + start)
    return np.asarray(strength * waves, np.float32)
