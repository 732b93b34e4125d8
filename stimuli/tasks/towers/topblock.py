"""towers-topblock: shift the misplaced top block so that the tower stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.question import THINK, Answer, IntegerFormat, Question, Variant, wordings
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.statics import stack_margin
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND, SamplingFailed, Score, Task, simulator_or_default
from vlm_probe.stimuli.tasks.towers.tower import (
    BLOCK,
    MAX_STEP,
    Floats,
    Look,
    draw_towers,
    fallen,
    tower_arrays,
    tower_blocks,
    tower_margin,
    width_cm,
)

REACH = 2
"""Block widths to either side that an answer may state: with blocks of 10 cm, from -20 to 20 whole centimetres."""
MAX_WORKING = 5
"""An item has at most this many answers that work, out of 41."""
REWARD_WIDTH = 1.2
"""Block widths from the nearest working answer at which the partial reward has fallen to 0."""

TEXTS = (
    "The top block is misplaced and the tower would fall. How far must the top block be moved sideways so that the "
    "tower stands?",
    "Move only the top block, to the left or to the right, so that this tower does not collapse. By how much?",
    "This tower falls unless its top block is shifted. Which shift makes it stable?",
    "By how many centimetres must the top block be pushed sideways for the tower to stay up?",
)


def ask(wide: float) -> str:
    """The sentences of the prompt that state scale and range, for blocks that are `wide` centimetres wide."""
    low, high = answer_range(wide)
    return (
        f" Each block is {wide:g} cm wide; right is positive, left is negative."
        f" Answer with one whole number of centimetres from {low} to {high}."
    )


def answer_range(wide: float) -> tuple[int, int]:
    """Whole centimetres that an answer may state, for blocks that are `wide` centimetres wide."""
    return -round(REACH * wide), round(REACH * wide)


class TowersTopblock(Task):
    """By how much must the misplaced top block be moved so that the tower stands?

    The lower tower leans, so that pushing the top block to the middle of the one below fails: it has to be a
    counterweight. Items are stratified by the size and the sign of the shift that is needed.
    """

    name: ClassVar[str] = "towers-topblock"
    family: ClassVar[str] = "towers"
    facts: ClassVar[str] = (
        "A stack of blocks stands if, at every level, the centre of mass of all blocks above lies over the "
        "area where they touch the block below; a block on top can be a counterweight."
    )
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "action"

    def conditions(self) -> tuple[Condition, ...]:
        """Number of blocks x size of the shift that is needed, in centimetres (`build`)."""
        return tuple(
            Condition(count, (-2.0, -AMBIGUITY_BAND), f"{low}to{high}cm")
            for count in (3, 4)
            for low, high in ((2, 4), (5, 7), (8, 10), (11, 13))
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """Actions have no foils but their mirror images, whose answers have the other sign."""
        return condition

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene]:
        """A tower that falls, and stands with the top block elsewhere."""
        low, high = (int(part) for part in condition.build.removesuffix("cm").split("to"))
        sign = 1 if rng.random() < 0.5 else -1
        batch = 1024
        for _ in range(40):
            towers = draw_towers(rng, condition.count, batch)
            middle = towers.copy()
            middle[:, -1] = middle[:, -2]
            shift = sign * rng.integers(low, high + 1, batch) / 10
            solved = towers.copy()
            solved[:, -1] = np.round(solved[:, -1] + shift, 2)
            good = np.flatnonzero(
                (stack_margin(towers, 1.0) < condition.margin_bin[1] - 1e-9)
                & (stack_margin(towers, 1.0) > condition.margin_bin[0])
                & (stack_margin(middle, 1.0) < -AMBIGUITY_BAND / 2)
                & (stack_margin(solved, 1.0) > AMBIGUITY_BAND + 1e-9)
                & (np.abs(np.diff(towers, axis=1)).max(axis=1) <= MAX_STEP)
            )
            for index in good:
                answers = working_shifts(towers[index], 1.0)
                centre = answers[len(answers) // 2]
                # The stated shift must be the middle answer, so that strata do not overlap.
                if len(answers) <= MAX_WORKING and centre == round(10 * float(shift[index])):
                    look = Look(rng, condition.count)
                    return (look.scene(look.centred(towers[index])),)
            batch = min(2 * batch, 8192)
        raise SamplingFailed(f"found no tower of {condition.count} blocks that a shift of {condition.build} mends")

    def margin(self, scene: Scene) -> float:
        """Stability margin of the tower as shown, half widths; negative, since it falls."""
        return tower_margin(scene)

    def margin_length(self, scene: Scene) -> float:
        """Half the width of a block."""
        return width_cm(scene) / 200

    def question(self, scene: Scene, variant: Variant) -> Question:
        """One whole number of centimetres. Polarity and order do not apply."""
        wide = width_cm(scene)
        prompt = TEXTS[variant.paraphrase] + ask(wide) + (THINK if variant.style == "think" else "")
        return Question(prompt, IntegerFormat((answer_range(wide),)), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The shift in the middle of those that work, centimetres."""
        answers = _scene_shifts(scene)
        return answers[len(answers) // 2] if answers else 0

    def score(self, scene: Scene, question: Question, answer: Answer, simulator: Simulator | None = None) -> Score:
        """Reward 1 if the tower stands after the shift, in simulation; otherwise up to 0.5 for coming close.

        Partial reward: 0.5 (1 - d / `REWARD_WIDTH`)^2, d being the distance to the nearest working answer in block widths.
        """
        if not isinstance(answer, int):
            return Score(False, 0.0, {"truth": None})
        outcome = simulator_or_default(simulator).simulate(self.apply(scene, answer), stop=fallen(scene))
        if not outcome.decided:
            return Score(True, 1.0, {"distance_cm": 0}, outcome)
        distance = min((abs(answer - a) for a in _scene_shifts(scene)), default=99)
        reward = 0.5 * max(0.0, 1 - distance / (REWARD_WIDTH * width_cm(scene))) ** 2
        return Score(False, reward, {"distance_cm": distance}, outcome)

    def apply(self, scene: Scene, answer: Answer) -> Scene:
        """The scene with the top block shifted by `answer` centimetres."""
        if not isinstance(answer, int):
            raise TypeError(f"an answer is one whole number of centimetres, got {answer!r}")
        return scene.moved(tower_blocks(scene)[-1].name, dx=answer / 100)

    def variants(self) -> tuple[Variant, ...]:
        """One per paraphrase."""
        return wordings(polarities=1, orders=1)

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Whole centimetres that need no physics."""
        return {
            "push to the middle": partial(_to_reference, level=-2),
            "push over the bottom block": partial(_to_reference, level=0),
        }

    def certify(self, scene: Scene, question: Question) -> dict[str, Any]:
        """Which answers work, in simulation: those that statics names, and their neighbours."""
        low, high = answer_range(width_cm(scene))
        near = {a + d for a in _scene_shifts(scene) for d in (-1, 0, 1)}
        tried = sorted(a for a in near if low <= a <= high)
        return {"working": [a for a in tried if self.score(scene, question, a).success]}


def working_shifts(
    x: Floats, width: Floats | float, mass: Floats | float = 1.0, wide: float = 100 * BLOCK
) -> list[int]:
    """Whole centimetres by which the top block can be shifted so that statics lets the tower stand.

    Args:
        x: (n,) centres in blocks; `width` in blocks.
        width, mass: Of the blocks.
        wide: Width of a block, centimetres.
    """
    low, high = answer_range(wide)
    shifts = np.arange(low, high + 1)
    moved = np.repeat(np.asarray(x, dtype=float)[None], len(shifts), axis=0)
    moved[:, -1] += shifts / wide
    return [int(s) for s in shifts[stack_margin(moved, width, mass) > 1e-9]]


def _scene_shifts(scene: Scene) -> list[int]:
    """The shifts that work in a scene, centimetres."""
    (x, width, mass), wide = tower_arrays(scene), width_cm(scene)
    return working_shifts(x / (wide / 100), width / (wide / 100), mass, wide)


def _to_reference(scene: Scene, level: int) -> int:
    """The shift that puts the top block exactly over another block, centimetres."""
    blocks = tower_blocks(scene)
    return round(100 * (blocks[level].position[0] - blocks[-1].position[0]))
