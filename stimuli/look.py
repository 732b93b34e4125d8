"""How an image looks apart from its physics: small random differences in colour, light and floor within the unshifted set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm_probe.stimuli.scene import COLOURS, Background, Light


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Light and background of an image."""

    light: Light
    background: Background


def draw_colours(rng: np.random.Generator, count: int, reserved: str | None = None) -> list[str]:
    """That many different colour names, in random order, without the reserved one.

    Args:
        rng: Draws them.
        count: How many, at most as many as there are.
        reserved: A colour that is left out.
    """
    names = [name for name in COLOURS if name != reserved]
    return [names[i] for i in rng.permutation(len(names))[:count]]


def draw_surroundings(rng: np.random.Generator) -> Surroundings:
    """A light from the upper front, a little to one side, and a floor of some light grey."""
    x, z = np.round(rng.uniform((-0.6, 0.6), (0.6, 1.2)), 2).tolist()
    light = Light(direction=(x, -0.8, z), ambient=float(np.round(rng.uniform(0.5, 0.6), 2)))
    grey = np.round(rng.uniform(0.62, 0.78) + rng.uniform(-0.03, 0.03, 3), 2).tolist()
    return Surroundings(light, Background(floor=(grey[0], grey[1], grey[2])))
