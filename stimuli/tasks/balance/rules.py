"""What could stand in for the physics of a plank: rules about numbers, weights and distances, each blind to something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.tasks.balance.seesaw import SIDES, Floats, half_width, lean, standing

Signs = npt.NDArray[np.int64]

SAME = 0.03
"""Share by which two weights or volumes may differ and still look the same."""
CLOSE = 0.005
"""Metres by which two distances may differ and still look the same."""

SIGN_RULES = (
    "side with more objects",
    "heavier side",
    "heaviest object",
    "largest object",
    "object farthest out",
    "sum of distances",
    "longer arm of the plank",
)
"""Rules without physics: the side that each of them names goes down, or the plank stays level if it names none."""


def sides(x: Floats, mass: Floats, volume: Floats, offset: float) -> dict[str, Signs]:
    """Which side each of `SIGN_RULES` names: -1 left, 1 right, 0 neither.

    Args:
        x: (k, n) centres of mass of the objects from the fulcrum's middle, metres, for k planks.
        mass: (k, n) kilograms.
        volume: (k, n) cubic metres.
        offset: Of the plank's middle, metres.

    Returns:
        Rule name -> (k,).
    """
    side = np.sign(np.where(np.abs(x) < CLOSE / 2, 0.0, x))
    weights = (mass * side).sum(axis=1)
    found = {
        "side with more objects": np.sign(side.sum(axis=1)),
        "heavier side": np.sign(np.where(np.abs(weights) < SAME * mass.sum(axis=1), 0.0, weights)),
        "heaviest object": _of_greatest(side, mass, mass.max(axis=1, keepdims=True) * (1 - SAME)),
        "largest object": _of_greatest(side, volume, volume.max(axis=1, keepdims=True) * (1 - SAME)),
        "object farthest out": _of_greatest(side, np.abs(x), np.abs(x).max(axis=1, keepdims=True) - CLOSE),
        "sum of distances": np.sign(np.where(np.abs(x.sum(axis=1)) < CLOSE, 0.0, x.sum(axis=1))),
        "longer arm of the plank": np.full(len(x), np.sign(offset) if abs(offset) >= CLOSE else 0.0),
    }
    return {name: found[name].astype(int) for name in SIGN_RULES}


def _of_greatest(side: Floats, value: Floats, least: Floats) -> Floats:
    """(k,) the side on which the greatest value is; 0 where it is on both."""
    among = np.where(value >= least, side, 0.0)
    both = (among.max(axis=1) > 0) & (among.min(axis=1) < 0)
    return np.where(both, 0.0, np.sign(among.sum(axis=1)))


def sign_rules() -> Mapping[str, Callable[[Scene], str]]:
    """What each of `SIGN_RULES` says: "left", "right" or "balanced". They share their work on the scene last asked about."""
    last: tuple[Scene, dict[str, int]] | None = None

    def say(name: str, scene: Scene) -> str:
        nonlocal last
        if last is None or last[0] is not scene:
            last = scene, scene_sides(scene)
        return SIDES[last[1][name]]

    return {name: partial(say, name) for name in SIGN_RULES}


def scene_sides(scene: Scene) -> dict[str, int]:
    """Which side each of `SIGN_RULES` names in a scene."""
    things = standing(scene)
    x, mass, size = (np.array([[getattr(t, name) for t in things]]) for name in ("x", "mass", "volume"))
    return {name: int(sign[0]) for name, sign in sides(x, mass, size, _offset(scene)).items()}


def objects_alone(scene: Scene) -> str:
    """What would happen if the plank weighed nothing: "left", "right" or "balanced"."""
    things = standing(scene)
    centre = sum(t.mass * t.x for t in things) / sum(t.mass for t in things) / half_width(scene)
    return "balanced" if abs(centre) < 1 else ("right" if centre > 0 else "left")


def torque_side(scene: Scene) -> str:
    """The side of the common centre of mass, as if the fulcrum were an edge: "left" or "right"."""
    return "right" if lean(scene) > 0 else "left"


def cues() -> Mapping[str, Callable[[Scene], float]]:
    """Numbers that go with the outcome; positive ones mean right."""
    return {
        "object count": lambda scene: len(standing(scene)),
        "difference of numbers": lambda scene: sum(np.sign(t.x) for t in standing(scene)),
        "difference of weights": lambda scene: sum(np.sign(t.x) * t.mass for t in standing(scene)),
        "mean place of the objects": lambda scene: float(np.mean([t.x for t in standing(scene)])),
        "place of the heaviest object": lambda scene: max(standing(scene), key=lambda t: t.mass).x,
        "place of the outermost object": lambda scene: max(standing(scene), key=lambda t: abs(t.x)).x,
        "weight of all objects": lambda scene: sum(t.mass for t in standing(scene)),
        "overhang of the plank": _offset,
        "width of the fulcrum": half_width,
    }


def _offset(scene: Scene) -> float:
    """Of the plank's middle from the fulcrum's, metres."""
    return scene.body("plank").position[0] - scene.body("fulcrum").position[0]
