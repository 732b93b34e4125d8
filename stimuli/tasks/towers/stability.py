"""towers-stability: will the tower stay up?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from vlm_probe.stimuli.condition import Condition, in_bin
from vlm_probe.stimuli.question import THINK, Answer, ChoiceFormat, Option, Question, Variant, named_options
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.statics import stack_margin
from vlm_probe.stimuli.tasks import SamplingFailed, Task, simulator_or_default
from vlm_probe.stimuli.tasks.towers.tower import (
    MARGIN_BINS,
    MAX_STEP,
    SMALL_STEP,
    Floats,
    Look,
    draw_towers,
    fallen,
    largest_step,
    tower_arrays,
    tower_margin,
    weakest_step,
    width_cm,
)

# Wordings by polarity: whether "yes" means that the tower stands, or that it falls.
STAY = (
    "Will this tower stay up?",
    "Look at the blocks. Is the tower stable, so that it keeps standing?",
    "The blocks are let go. Will the tower remain standing?",
    "Nothing holds these blocks. Does the tower stand on its own?",
)
FALL = (
    "Will this tower fall?",
    "Look at the blocks. Is the tower unstable, so that it falls over?",
    "The blocks are let go. Will the tower collapse?",
    "Nothing holds these blocks. Does the tower fall down?",
)

TRIES = 4
"""Places tried for the block that moves, per standing tower."""
SAME_REACH = 0.02
"""Blocks by which the falling tower of a pair may reach further out, where the neighbour rule is made to fail."""


class TowersStability(Task):
    """Will the tower stay up or fall?

    Items come as minimal pairs: the same image except for one block, whose place decides between standing and falling.
    From three blocks on and near the boundary, half the pairs stand by a counterweight although one step exceeds half a
    block, and half fall although every step is small, so that the neighbour rule is right on exactly one member of each.
    """

    name: ClassVar[str] = "towers-stability"
    family: ClassVar[str] = "towers"
    facts: ClassVar[str] = (
        "A stack of blocks stands if, at every level, the centre of mass of all blocks above lies over the "
        "area where they touch the block below; otherwise it falls."
    )
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "neighbour rule": "with two blocks, and beyond a margin of 0.4, the rule is the physics; right on half of the rest",
        "largest step": "the neighbour rule with a fitted threshold",
        "largest overhang": "with two blocks it is the largest step; beyond a margin of 0.4 no towers of equal reach exist",
        "linear classifier on 16x16 pixels": "sees the steps of towers of two blocks, which decide about them",
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Number of blocks x |margin| bin, twice each: counterweighted and leaning where both exist, else plain."""
        return tuple(
            Condition(count, margin_bin, build)
            for count in (2, 3, 4)
            for margin_bin in MARGIN_BINS
            for build in (("counterweighted", "leaning") if count > 2 and margin_bin[1] <= 0.4 else ("plain", "plain"))
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """The same cell on the other side of the boundary."""
        low, high = condition.margin_bin
        return replace(condition, margin_bin=(-high, -low))

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene, Scene]:
        """The scene on the condition and its foil, in which one block stands elsewhere and the outcome is the other."""
        low, high = condition.margin_bin
        if low < 0 < high or (low, high) == (0.0, 0.0):
            raise SamplingFailed(f"{self.name} needs a margin bin on one side of 0, got ({low}, {high})")
        stands_bin = condition.margin_bin if low >= 0 else (-high, -low)
        stands, falls = _pair(rng, condition.count, stands_bin, condition.build)
        look = Look(rng, condition.count)
        # Both members share the place of the blocks that did not move, so neither one can be told by its position.
        shift = look.offset(min(stands.min(), falls.min()), max(stands.max(), falls.max()))
        scenes = [look.scene(np.round(x - shift, 2)) for x in (stands, falls)]
        return (scenes[0], scenes[1]) if low >= 0 else (scenes[1], scenes[0])

    def margin(self, scene: Scene) -> float:
        """Signed distance of the centre of mass from the edge of the contact, at the weakest interface, half widths."""
        return tower_margin(scene)

    def margin_length(self, scene: Scene) -> float:
        """Half the width of a block."""
        return width_cm(scene) / 200

    def critical(self, scene: Scene) -> Mapping[str, str | int]:
        """How far the block above the weakest contact is displaced from the one below."""
        return weakest_step(scene)

    def question(self, scene: Scene, variant: Variant) -> Question:
        """A yes/no question; polarity 0 asks whether it stays up, 1 whether it falls."""
        yes, no = ("stands", "falls") if variant.polarity == 0 else ("falls", "stands")
        options, clause = named_options((Option("yes", yes), Option("no", no)), variant.order)
        wording = (STAY, FALL)[variant.polarity][variant.paraphrase]
        prompt = f"{wording} Answer with one word: {clause}."
        return Question(prompt + (THINK if variant.style == "think" else ""), ChoiceFormat(options), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """ "stands" or "falls", by simulation."""
        outcome = simulator_or_default(simulator).simulate(scene, stop=fallen(scene))
        return "falls" if outcome.decided else "stands"

    def statics_answer(self, scene: Scene) -> Answer:
        """ "stands" or "falls", by the sign of the margin."""
        return "stands" if self.margin(scene) > 0 else "falls"

    def cues(self) -> Mapping[str, Callable[[Scene], float]]:
        """Numbers that are not the physics, but go with it in badly designed sets."""
        return {
            "block count": lambda scene: len(scene.bodies),
            "height": lambda scene: max(b.position[2] + b.size[2] / 2 for b in scene.bodies),
            "largest step": largest_step,
            "largest overhang": _largest_overhang,
            "centroid": lambda scene: abs(float(np.mean([b.position[0] for b in scene.bodies]))),
        }

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """The neighbour rule: it falls if some block sits more than half a block next to the one below."""
        return {"neighbour rule": lambda scene: "falls" if largest_step(scene) > SMALL_STEP + 1e-9 else "stands"}


def _largest_overhang(scene: Scene) -> float:
    """How far the outermost block reaches beyond the bottom block, in blocks."""
    x, width, _ = tower_arrays(scene)
    return float(np.abs(x - x[0]).max() / width[0])


def _pair(rng: np.random.Generator, count: int, stands_bin: tuple[float, float], build: str) -> tuple[Floats, Floats]:
    """Centres (blocks) of a standing and a falling tower that differ in one block, both in the bin on their side.

    `build` says which of the two breaks the neighbour rule: "counterweighted" (the standing one has a step above half a
    block), "leaning" (the falling one has none), "plain" (neither), "tricky" (both). In all but plain pairs the falling
    tower does not reach further out than the standing one, where geometry allows, so that the largest overhang tells
    nothing either.
    """
    stands_breaks = build in ("counterweighted", "tricky")
    falls_breaks = build in ("leaning", "tricky")
    falls_bin = (-stands_bin[1], -stands_bin[0])
    # Three blocks with small steps cannot both stand with margin 0.2 and reach as far as one that falls by 0.2.
    matched_reach = build != "plain" and not (build == "leaning" and count == 3 and stands_bin[1] > 0.2)
    # A proposal that fits the build: both towers of a leaning pair have small steps only.
    largest = {"leaning": SMALL_STEP, "counterweighted": MAX_STEP}.get(build)
    reach = 0.6 if build in ("leaning", "counterweighted") else 0.9
    batch = 256
    for _ in range(60):
        first = draw_towers(rng, count, batch, largest)
        first = first[in_bin(stack_margin(first, 1.0), stands_bin)]
        first = first[(_largest_steps(first) > SMALL_STEP + 1e-9) == stands_breaks]
        # Several places for the one block that moves, for every tower that can be the standing one.
        first = np.repeat(first, TRIES, axis=0)
        rows, moved = np.arange(len(first)), rng.integers(0, count, len(first))
        second = first.copy()
        second[rows, moved] = np.round(second[rows, moved] + rng.uniform(-reach, reach, len(first)), 2)
        steps = _largest_steps(second)
        good = np.flatnonzero((steps <= MAX_STEP) & ((steps > SMALL_STEP + 1e-9) != falls_breaks))
        if matched_reach:
            reach_first, reach_second = (np.abs(x[good] - x[good, :1]).max(axis=1) for x in (first, second))
            good = good[reach_second <= reach_first + SAME_REACH]
        good = good[in_bin(stack_margin(second[good], 1.0), falls_bin)]
        if len(good):
            return first[good[0]], second[good[0]]
        batch = min(2 * batch, 16384)
    raise SamplingFailed(f"found no {build} pair of towers of {count} blocks with |margin| in {stands_bin}")


def _largest_steps(x: Floats) -> Floats:
    """(batch,) largest shift between neighbours, in blocks."""
    largest: Floats = np.abs(np.diff(x, axis=1)).max(axis=1)
    return largest
