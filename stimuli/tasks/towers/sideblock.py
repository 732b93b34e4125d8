"""towers-sideblock: move the red block from the floor onto the tower, so that a taller tower stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
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
    MAX_EXTENT,
    Floats,
    Look,
    draw_towers,
    fallen,
    tower_arrays,
    tower_blocks,
    tower_margin,
    width_cm,
)

REACH, RISE = 3, 5
"""Block widths to either side, and upwards, that an answer may state; further up for towers that are as high already."""
MAX_DROP = 2
"""Centimetres above the tower from which the block may be let go."""
MAX_WORKING = 6
"""An item has at most this many sideways shifts that work, out of 61."""
REWARD_WIDTH = 2
"""Block widths from the nearest working answer at which the partial reward has fallen to 0."""
COLOUR = "red"

TEXTS = (
    "Lift the red block from the floor onto the tower, so that a taller tower stands. How far to the right and how far "
    "up must it be moved?",
    "The red block is to become the new top of the tower without making it fall. Which move does this?",
    "Put the red block on top of the tower so that everything stays up. By how much must it be moved?",
    "Build a taller tower that stands by moving only the red block. What is the move?",
)


def ask(wide: float, blocks: int) -> str:
    """The sentences of the prompt that state scale and ranges.

    Args:
        wide: Width of a block, centimetres.
        blocks: Of the tower.
    """
    (left, right), (low, high) = answer_ranges(wide, blocks)
    return (
        f" Each block is {wide:g} cm wide and high; right and up are positive, left is negative; let go at most"
        f" {MAX_DROP} cm above the tower. Answer with two whole numbers of centimetres: right from {left} to {right}, up"
        f" from {low} to {high}, like 7, 25."
    )


def answer_ranges(wide: float, blocks: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Whole centimetres to the right and up that an answer may state.

    Args:
        wide: Width of a block, centimetres.
        blocks: Of the tower.
    """
    return (-round(REACH * wide), round(REACH * wide)), (0, round(max(RISE, blocks + 1) * wide))


class TowersSideblock(Task):
    """By how much must the red block be moved, right and up, to become the top of a tower that stands?

    The tower leans: it stands as it is, but falls if the red block is put over the middle of its top block.
    """

    name: ClassVar[str] = "towers-sideblock"
    family: ClassVar[str] = "towers"
    facts: ClassVar[str] = (
        "A stack of blocks stands if, at every level, the centre of mass of all blocks above lies over the "
        "area where they touch the block below; a block on top can be a counterweight."
    )
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "action"

    def conditions(self) -> tuple[Condition, ...]:
        """Number of blocks in the tower x distance of the red block, in tenths of a block (`build`)."""
        return tuple(
            Condition(count, (AMBIGUITY_BAND, 1.0), f"{low}to{high}")
            for count in (3, 4)
            for low, high in ((13, 17), (18, 22), (23, 27))
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """Actions have no foils but their mirror images."""
        return condition

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene]:
        """A leaning tower that stands, and a red block on the floor next to it."""
        low, high = (int(part) for part in condition.build.split("to"))
        batch = 1024
        for _ in range(40):
            towers = draw_towers(rng, condition.count, batch)
            good = np.flatnonzero(
                (stack_margin(towers, 1.0) > AMBIGUITY_BAND + 1e-9)
                & (stack_margin(_with_top(towers, towers[:, -1]), 1.0) < -0.01)
            )
            for index in good:
                tower = towers[index]
                side = 1 if rng.random() < 0.5 else -1
                edge = tower.max() if side > 0 else tower.min()
                red = float(np.round(tower[-1] + side * rng.uniform(low, high) / 10, 2))
                works = working_moves(tower, red)
                clear = side * (red - edge) >= 1.1 and side * (red - tower[0]) >= 1.1
                if not clear or not 2 <= len(works) <= MAX_WORKING:
                    continue
                # Certified: the middle answer keeps clear of the boundary.
                moved = _with_top(tower[None], np.array([red + works[len(works) // 2] / 10]))
                extent = max(tower.max(), red) - min(tower.min(), red)
                if stack_margin(moved, 1.0)[0] <= AMBIGUITY_BAND or extent > MAX_EXTENT:
                    continue
                look = Look(rng, condition.count, reserved=COLOUR)
                middle = look.offset(min(tower.min(), red), max(tower.max(), red))
                return (look.scene(np.round(tower - middle, 2), (COLOUR, round(red - middle, 2))),)
            batch = min(2 * batch, 8192)
        raise SamplingFailed(
            f"found no leaning tower of {condition.count} blocks with a red block at {condition.build}"
        )

    def margin(self, scene: Scene) -> float:
        """Stability margin of the tower as shown, half widths; positive, since it stands."""
        return tower_margin(scene)

    def margin_length(self, scene: Scene) -> float:
        """Half the width of a block."""
        return width_cm(scene) / 200

    def question(self, scene: Scene, variant: Variant) -> Question:
        """Two whole numbers of centimetres. Polarity and order do not apply."""
        wide, blocks = width_cm(scene), len(tower_blocks(scene))
        prompt = TEXTS[variant.paraphrase] + ask(wide, blocks) + (THINK if variant.style == "think" else "")
        return Question(prompt, IntegerFormat(answer_ranges(wide, blocks)), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The middle of the sideways moves that work, and the height of the tower, centimetres."""
        works = _scene_moves(scene)
        return (works[len(works) // 2] if works else 0, _height_cm(scene))

    def score(self, scene: Scene, question: Question, answer: Answer, simulator: Simulator | None = None) -> Score:
        """Reward 1 if the red block ends as the top of a tower that stands, in simulation; else up to 0.5 for closeness.

        The block may not start inside another one nor be dropped from more than `MAX_DROP` centimetres. Partial reward:
        0.5 (1 - d / `REWARD_WIDTH`)^2, d being the city-block distance to the nearest answer that works, in block widths.
        """
        if not isinstance(answer, tuple):
            return Score(False, 0.0, {"truth": None})
        right, up = answer
        drop = round(up - _exact_height_cm(scene), 3)
        works = _scene_moves(scene)
        sideways = min((abs(right - w) for w in works), default=99)
        upward = max(0.0, -drop, drop - MAX_DROP)
        fits = upward == 0
        outcome = None
        if fits:
            moved = self.apply(scene, answer)
            outcome = simulator_or_default(simulator).simulate(moved, stop=_left_place(moved, drop))
            if not outcome.decided and "side" not in outcome.on_floor:
                return Score(True, 1.0, {"distance_cm": 0}, outcome)
        distance = sideways + upward
        reward = 0.5 * max(0.0, 1 - distance / (REWARD_WIDTH * width_cm(scene))) ** 2
        return Score(False, reward, {"distance_cm": distance, "fits": fits}, outcome)

    def apply(self, scene: Scene, answer: Answer) -> Scene:
        """The scene with the red block moved by (right, up) centimetres."""
        if not isinstance(answer, tuple):
            raise TypeError(f"an answer is two whole numbers of centimetres, got {answer!r}")
        return scene.moved("side", dx=answer[0] / 100, dz=answer[1] / 100)

    def variants(self) -> tuple[Variant, ...]:
        """One per paraphrase."""
        return wordings(polarities=1, orders=1)

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Moves that need no physics."""
        return {"onto the middle of the top block": _onto_top}

    def certify(self, scene: Scene, question: Question) -> dict[str, Any]:
        """Which answers work, in simulation.

        At the height of the tower those moves that statics names and their neighbours are tried; from up to `MAX_DROP`
        centimetres above it, those that worked at its height.
        """
        height = _height_cm(scene)
        (left, right_end), (_, top) = answer_ranges(width_cm(scene), len(tower_blocks(scene)))
        near = sorted({w + d for w in _scene_moves(scene) for d in (-1, 0, 1)})
        inside = [right for right in near if left <= right <= right_end]
        fits = [right for right in inside if self.score(scene, question, (right, height)).success]
        dropped = [
            [right, height + drop]
            for drop in range(1, MAX_DROP + 1)
            for right in fits
            if height + drop <= top and self.score(scene, question, (right, height + drop)).success
        ]
        return {"working": [[right, height] for right in fits] + dropped}


def working_moves(
    tower: Floats, red: float, mass: Floats | float = 1.0, red_mass: float = 1.0, wide: float = 100 * BLOCK
) -> list[int]:
    """Whole centimetres by which a block at `red` can be moved onto the tower so that it stands.

    Args:
        tower: (n,) centres, in blocks; `red` likewise.
        red: Centre of the block on the floor.
        mass: Of the tower's blocks, (n,) or scalar; `red_mass` in the same unit.
        red_mass: Of the block that is moved.
        wide: Width of a block, centimetres.
    """
    (left, right), _ = answer_ranges(wide, len(tower))
    shifts = np.arange(left, right + 1)
    stacks = _with_top(np.repeat(tower[None], len(shifts), axis=0), red + shifts / wide)
    masses = np.append(np.broadcast_to(mass, tower.shape), red_mass)
    return [int(s) for s in shifts[stack_margin(stacks, 1.0, masses) > 1e-9]]


def _with_top(towers: Floats, top: Floats) -> Floats:
    return np.concatenate([towers, top[:, None]], axis=1)


def _scene_moves(scene: Scene) -> list[int]:
    (x, _, mass), wide, side = tower_arrays(scene), width_cm(scene), scene.body("side")
    return working_moves(x / (wide / 100), side.position[0] / (wide / 100), mass, side.mass, wide)


def _exact_height_cm(scene: Scene) -> float:
    return 100 * sum(b.size[2] for b in tower_blocks(scene))


def _height_cm(scene: Scene) -> int:
    """The first whole centimetre at which the red block is clear of the tower."""
    return math.ceil(round(_exact_height_cm(scene), 3))


def _left_place(moved: Scene, drop_cm: float) -> Any:
    """Stop when a block of the tower has sunk, or the red one has by more than its drop and a quarter of its height."""
    side = moved.body("side")
    settled = replace(side, position=(side.position[0], 0.0, side.position[2] - drop_cm / 100))
    return fallen(replace(moved, bodies=tuple(settled if b is side else b for b in moved.bodies)))


def _onto_top(scene: Scene) -> tuple[int, int]:
    x, _, _ = tower_arrays(scene)
    return round(100 * (x[-1] - scene.body("side").position[0])), _height_cm(scene)
