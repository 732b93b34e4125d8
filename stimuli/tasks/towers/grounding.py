"""towers-grounding: what is in the image? Counting, colours, left and right, existence, shifts: perception, no physics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.question import Answer, Grammar, IntegerFormat
from vlm_probe.stimuli.scene import COLOURS, Body, Scene
from vlm_probe.stimuli.tasks.grounding import (
    About,
    GroundingTask,
    TrialSpec,
    count,
    exists,
    left_right,
    nth_colour,
    number_of,
    words,
)
from vlm_probe.stimuli.tasks.towers.tower import BLOCK, Look, draw_towers, tower_blocks, width_cm
from vlm_probe.stimuli.viewing import MIN_SEPARATION

ASKS = ("count", "nth-colour", "left-right", "exists", "shift")
"""The questions of the standard set; the others are easier or denser ones about the same images, for pretraining."""
TOLERANCE = 0.1
"""A stated shift within a tenth of a block (or the nearest whole centimetre) is right."""
SHIFT_REACH, PLACE_REACH = 1, 3
"""Block widths to either side within which shifts and places are stated."""


def scale(wide: float) -> str:
    """The sentence of the prompt that states the scale, for blocks that are `wide` centimetres wide."""
    return f" Each block is {wide:g} cm wide; right is positive, left is negative."


def blocks(scene: Scene) -> Sequence[Body]:
    """Everything in the image that is asked about."""
    return scene.bodies


def shift() -> TrialSpec:
    """By how many centimetres is the top block displaced from the one below?"""
    return TrialSpec(
        (
            "How far is the top block shifted from the block below it?",
            "By how many centimetres is the top block displaced from the block under it?",
            "What is the sideways shift of the top block relative to the block below?",
            "How far to the side of the block below does the top block sit?",
        ),
        lambda scene: [{}] if len(tower_blocks(scene)) >= 2 else [],
        lambda scene, about: round(100 * (tower_blocks(scene)[-1].position[0] - tower_blocks(scene)[-2].position[0])),
        _centimetres(SHIFT_REACH),
        _tolerance,
    )


def which_number() -> TrialSpec:
    """Which block from the bottom has that colour?"""
    return TrialSpec(
        (
            "Which number from the bottom is the {a} block?",
            "Counting from the bottom, which block is {a}?",
            "What is the position of the {a} block, counted from the floor?",
            "The {a} block is which number from the bottom?",
        ),
        lambda scene: [{"a": block.colour} for block in tower_blocks(scene)],
        lambda scene, about: [block.colour for block in tower_blocks(scene)].index(str(about["a"])) + 1,
        number_of(blocks),
    )


def position() -> TrialSpec:
    """How many centimetres is a block from the middle of the image?"""
    return TrialSpec(
        (
            "How far is the {a} block from the middle of the picture?",
            "Where is the {a} block, in centimetres from the middle?",
            "What is the sideways position of the {a} block?",
            "How far to the side of the middle is the {a} block?",
        ),
        lambda scene: [{"a": body.colour} for body in scene.bodies],
        lambda scene, about: round(100 * (_coloured(scene, about["a"]).position[0] - scene.camera.target[0])),
        _centimetres(PLACE_REACH),
        _tolerance,
    )


def above_colour() -> TrialSpec:
    """What colour is the block that rests on another?"""

    def answer(scene: Scene, about: About) -> Answer:
        colours = [block.colour for block in tower_blocks(scene)]
        return colours[colours.index(str(about["a"])) + 1]

    return TrialSpec(
        (
            "What colour is the block above the {a} block?",
            "Which colour does the block on top of the {a} block have?",
            "What is the colour of the block that rests on the {a} block?",
            "Name the colour of the block above the {a} one.",
        ),
        lambda scene: [{"a": block.colour} for block in tower_blocks(scene)[:-1]],
        answer,
        words(*COLOURS),
    )


def shift_between() -> TrialSpec:
    """By how many centimetres is one block displaced from another?"""

    def abouts(scene: Scene) -> list[About]:
        reach = PLACE_REACH * width_cm(scene) / 100
        return [
            {"a": a.colour, "b": b.colour}
            for a in scene.bodies
            for b in scene.bodies
            if abs(a.position[0] - b.position[0]) >= MIN_SEPARATION and _gap_cm(a, b) <= 100 * reach
        ]

    def answer(scene: Scene, about: About) -> Answer:
        return round(100 * (_coloured(scene, about["a"]).position[0] - _coloured(scene, about["b"]).position[0]))

    return TrialSpec(
        (
            "How far is the {a} block shifted from the {b} block?",
            "By how many centimetres is the {a} block displaced from the {b} block?",
            "What is the sideways shift of the {a} block relative to the {b} block?",
            "How far to the side of the {b} block does the {a} block sit?",
        ),
        abouts,
        answer,
        _centimetres(PLACE_REACH),
        _tolerance,
    )


def _coloured(scene: Scene, colour: str | int) -> Body:
    return next(body for body in scene.bodies if body.colour == colour)


def _gap_cm(a: Body, b: Body) -> float:
    return 100 * abs(a.position[0] - b.position[0])


def _tolerance(scene: Scene) -> float:
    """Centimetres by which a stated distance may be off."""
    return TOLERANCE * width_cm(scene)


def _centimetres(reach: int) -> Callable[[Scene, int], tuple[Grammar, str]]:
    """The grammar of a distance of up to `reach` block widths to either side."""

    def grammar(scene: Scene, order: int) -> tuple[Grammar, str]:
        wide = width_cm(scene)
        far = round(reach * wide)
        sentence = f"{scale(wide)} Answer with one whole number of centimetres from {-far} to {far}."
        return IntegerFormat(((-far, far),)), sentence

    return grammar


class TowersGrounding(GroundingTask):
    """What is in the image?

    The condition's `build` is "ASK" or "ASK:scattered", where ASK is one of `asks` and "scattered" puts the blocks side by
    side on the floor instead of on top of each other.
    """

    name: ClassVar[str] = "towers-grounding"
    version: ClassVar[int] = 2
    family: ClassVar[str] = "towers"
    asks: ClassVar[Mapping[str, TrialSpec]] = {
        "count": count("block", blocks),
        "nth-colour": nth_colour("block", tower_blocks, "from the bottom"),
        "left-right": left_right("block", blocks),
        "exists": exists("block", blocks),
        "shift": shift(),
        "which-number": which_number(),
        "position": position(),
        "above-colour": above_colour(),
        "shift-between": shift_between(),
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Question x number of blocks; existence and left/right also among scattered blocks."""
        towers = [Condition(count, build=ask) for ask in ASKS for count in (2, 3, 4)]
        scattered = [Condition(c, build=f"{a}:scattered") for a in ("count", "left-right", "exists") for c in (2, 3, 4)]
        return (*towers, *scattered)

    def sample_scene(self, rng: np.random.Generator, condition: Condition) -> Scene:
        """One tower, standing or not, or blocks scattered on the floor.

        Raises:
            ValueError: If there is no such layout.
        """
        layout = condition.build.partition(":")[2]
        if layout not in ("", "scattered"):
            raise InvalidInput(f"{self.name} knows no layout {layout!r}; it knows scattered, and towers without a name")
        return scattered_blocks(rng, condition.count) if layout else any_tower(rng, condition.count)


def any_tower(rng: np.random.Generator, count: int) -> Scene:
    """A tower without regard to physics; every fifth has a further block on the floor next to it.

    Args:
        rng: Draws it.
        count: Blocks in all.
    """
    beside = rng.random() < 0.2 and count > 2
    look = Look(rng, count)
    x = draw_towers(rng, count - beside, 1)[0]
    if not beside:
        return look.scene(look.centred(x))
    # On a small tower, so that both fit the image.
    x = x * min(1.0, 2.0 / max(1e-9, x.max() - x.min()))
    gap = float(rng.uniform(1.15, 2.0))
    side = x[0] + gap if rng.random() < 0.5 else x[0] - gap
    middle = look.offset(min(x.min(), side), max(x.max(), side))
    return look.scene(np.round(x - middle, 2), (look.colours[-1], round(float(side - middle), 2)))


def scattered_blocks(rng: np.random.Generator, count: int) -> Scene:
    """Blocks side by side on the floor, with gaps, in random order of colour.

    Args:
        rng: Draws them.
        count: How many.
    """
    look = Look(rng, count)
    free = max(0.2, 5.2 - 1.08 * count)
    gaps = rng.dirichlet(np.ones(count + 1)) * free
    x = -2.6 + 0.54 + np.cumsum(gaps[:count]) + 1.08 * np.arange(count, dtype=float)
    scene = look.scene(np.round(x, 2))
    bodies = tuple(
        replace(b, name=f"loose{i}", position=(b.position[0], 0.0, BLOCK / 2)) for i, b in enumerate(scene.bodies)
    )
    return replace(scene, bodies=bodies)
