"""towers-grounding: what is in the picture? Counting, colours, left and right, existence, shifts: perception, no physics."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from stimuli.condition import Condition
from stimuli.question import THINK, Answer, Grammar, Integers, Option, Options, Question, Variant, named_options
from stimuli.scene import COLOURS, Body, Scene
from stimuli.simulators import Simulator
from stimuli.tasks import Score, Task, Unsatisfiable
from stimuli.tasks.towers.tower import BLOCK, Look, draw_towers, tower_blocks

ASKS = ("count", "nth-colour", "left-right", "exists", "shift")
"""The questions of the standard set."""
STEPPING_STONES = ("which-number", "position", "above-colour", "shift-between")
"""Easier or denser questions about the same pictures, asked in pretraining only."""

TEXTS: dict[str, tuple[str, str, str, str]] = {
    "count": (
        "How many blocks are there?",
        "Count the blocks in the picture.",
        "What is the number of blocks?",
        "How many blocks do you see?",
    ),
    "nth-colour": (
        "What colour is block {n} from the bottom?",
        "Counting from the bottom, what is the colour of block {n}?",
        "Which colour does block {n} of the tower have, counted from the floor?",
        "Name the colour of block number {n} from the bottom.",
    ),
    "left-right": (
        "Is the {a} block left or right of the {b} block?",
        "Seen in the picture, where is the {a} block: left or right of the {b} block?",
        "On which side of the {b} block is the {a} block?",
        "Compared with the {b} block, is the {a} block further left or further right?",
    ),
    "exists": (
        "Is there a {a} block?",
        "Does the picture show a {a} block?",
        "Can you see a {a} block?",
        "Is any of the blocks {a}?",
    ),
    "shift": (
        "How far is the top block shifted from the block below it?",
        "By how many centimetres is the top block displaced from the block under it?",
        "What is the sideways shift of the top block relative to the block below?",
        "How far to the side of the block below does the top block sit?",
    ),
    "which-number": (
        "Which number from the bottom is the {a} block?",
        "Counting from the bottom, which block is {a}?",
        "What is the position of the {a} block, counted from the floor?",
        "The {a} block is which number from the bottom?",
    ),
    "position": (
        "How far is the {a} block from the middle of the picture?",
        "Where is the {a} block, in centimetres from the middle?",
        "What is the sideways position of the {a} block?",
        "How far to the side of the middle is the {a} block?",
    ),
    "above-colour": (
        "What colour is the block above the {a} block?",
        "Which colour does the block on top of the {a} block have?",
        "What is the colour of the block that rests on the {a} block?",
        "Name the colour of the block above the {a} one.",
    ),
    "shift-between": (
        "How far is the {a} block shifted from the {b} block?",
        "By how many centimetres is the {a} block displaced from the {b} block?",
        "What is the sideways shift of the {a} block relative to the {b} block?",
        "How far to the side of the {b} block does the {a} block sit?",
    ),
}
SCALE = " Each block is 10 cm wide; right is positive, left is negative."
TOLERANCE_CM = 1
"""A stated shift within a tenth of a block is right."""
MIN_SEPARATION = 0.015
"""Metres between the centres of two blocks before left and right of each other are asked about."""
SHIFT_RANGE, PLACE_RANGE = (-10, 10), (-30, 30)


class TowersGrounding(Task):
    """What is in the picture?

    The condition's `build` is "ASK" or "ASK:scattered", where ASK is one of `ASKS` or `STEPPING_STONES` and "scattered"
    puts the blocks side by side on the floor instead of on top of each other.
    """

    name: ClassVar[str] = "towers-grounding"
    family: ClassVar[str] = "towers"
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "grounding"

    def conditions(self) -> tuple[Condition, ...]:
        """Question x number of blocks; existence and left/right also among scattered blocks."""
        towers = [Condition(count, build=ask) for ask in ASKS for count in (2, 3, 4)]
        scattered = [Condition(c, build=f"{a}:scattered") for a in ("count", "left-right", "exists") for c in (2, 3, 4)]
        return (*towers, *scattered)

    def foil_condition(self, condition: Condition) -> Condition:
        """Grounding items have no foils but their mirror images."""
        return condition

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene]:
        """One tower, standing or not, or blocks scattered on the floor, about which the question can be asked."""
        ask, _, layout = condition.build.partition(":")
        if ask not in TEXTS or layout not in ("", "scattered"):
            raise ValueError(f"grounding knows no build {condition.build!r}; use one of {', '.join(TEXTS)}")
        for _ in range(100):
            scene = scattered_blocks(rng, condition.count) if layout else any_tower(rng, condition.count)
            if ask in possible_asks(scene):
                return (scene,)
        raise Unsatisfiable(
            f"{ask} cannot be asked about {condition.count} block(s){' on the floor' if layout else ''}"
        )

    def margin(self, scene: Scene) -> float:
        """Always 0: no physics is asked about."""
        return 0.0

    def variants(self) -> tuple[Variant, ...]:
        """The usual wordings; `ask` follows from the condition and `detail` picks the blocks asked about."""
        return tuple(replace(v, detail=i) for i, v in enumerate(super().variants()))

    def question(self, scene: Scene, variant: Variant) -> Question:
        """A question of kind `variant.ask`; `variant.detail` picks what it is about. Raises ValueError if impossible."""
        ask = variant.ask or "count"
        about = _about(scene, ask, variant.detail)
        text = TEXTS[ask][variant.paraphrase].format(**about)
        grammar, clause = _grammar(ask, variant.order)
        prompt = f"{text}{clause}" + (THINK if variant.style == "think" else "")
        return Question(prompt, grammar, variant.style, {"ask": ask, **about})

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The answer, read from the scene."""
        about = question.about
        ask, tower = about["ask"], tower_blocks(scene)
        if ask == "count":
            return len(scene.bodies)
        if ask == "nth-colour":
            return tower[about["n"] - 1].colour
        if ask == "exists":
            return "yes" if any(b.colour == about["a"] for b in scene.bodies) else "no"
        if ask == "shift":
            return round(100 * (tower[-1].position[0] - tower[-2].position[0]))
        by_colour = {b.colour: b for b in scene.bodies}
        first = by_colour[about["a"]]
        if ask == "which-number":
            return tower.index(first) + 1
        if ask == "above-colour":
            return tower[tower.index(first) + 1].colour
        if ask == "position":
            return round(100 * first.position[0])
        gap = first.position[0] - by_colour[about["b"]].position[0]
        return round(100 * gap) if ask == "shift-between" else ("left" if gap < 0 else "right")

    def score(self, scene: Scene, question: Question, answer: Answer, simulator: Simulator | None = None) -> Score:
        """Reward 1 if right; a shift may be off by `TOLERANCE_CM` and loses a tenth for every centimetre beyond."""
        truth = self.solve(scene, question)
        if question.about["ask"] in ("shift", "position", "shift-between"):
            error = abs(int(answer) - int(truth)) if isinstance(answer, int) and isinstance(truth, int) else 99
            success = error <= TOLERANCE_CM
            return Score(success, 1.0 if success else max(0.0, 0.9 - error / 10), {"truth": truth, "error_cm": error})
        return Score(answer == truth, float(answer == truth), {"truth": truth})


def any_tower(rng: np.random.Generator, count: int) -> Scene:
    """A tower without regard to physics; every fifth has a further block on the floor beside it."""
    beside = rng.random() < 0.2 and count > 2
    look = Look(rng, count)
    x = draw_towers(rng, count - beside, 1)[0]
    if not beside:
        return look.scene(look.centred(x))
    # On a small tower, so that both fit the picture.
    x = x * min(1.0, 2.0 / max(1e-9, x.max() - x.min()))
    gap = float(rng.uniform(1.15, 2.0))
    side = x[0] + gap if rng.random() < 0.5 else x[0] - gap
    middle = look.offset(min(x.min(), side), max(x.max(), side))
    return look.scene(np.round(x - middle, 2), (look.colours[-1], round(float(side - middle), 2)))


def scattered_blocks(rng: np.random.Generator, count: int) -> Scene:
    """Blocks side by side on the floor, with gaps, in random order of colour."""
    look = Look(rng, count)
    free = max(0.2, 5.2 - 1.08 * count)
    gaps = rng.dirichlet(np.ones(count + 1)) * free
    x = -2.6 + 0.54 + np.cumsum(gaps[:count]) + 1.08 * np.arange(count, dtype=float)
    scene = look.scene(np.round(x, 2))
    bodies = tuple(
        replace(b, name=f"loose{i}", position=(b.position[0], 0.0, BLOCK / 2)) for i, b in enumerate(scene.bodies)
    )
    return replace(scene, bodies=bodies)


def possible_asks(scene: Scene) -> list[str]:
    """The kinds of question that can be asked about a scene."""
    tower, pairs = tower_blocks(scene), _pairs(scene)
    asks = ["count", "exists", "position"]
    if tower:
        asks += ["nth-colour", "which-number"]
    if len(tower) >= 2:
        asks += ["shift", "above-colour"]
    if pairs:
        asks.append("left-right")
    if any(_gap_cm(a, b) <= PLACE_RANGE[1] for a, b in pairs):
        asks.append("shift-between")
    return asks


def _pairs(scene: Scene) -> list[tuple[Body, Body]]:
    return [(a, b) for a in scene.bodies for b in scene.bodies if abs(a.position[0] - b.position[0]) >= MIN_SEPARATION]


def _gap_cm(a: Body, b: Body) -> float:
    return 100 * abs(a.position[0] - b.position[0])


def _about(scene: Scene, ask: str, detail: int) -> dict[str, str | int]:
    """What the question is about, picked by `detail`; every possible object is picked equally often."""
    if ask not in possible_asks(scene):
        raise ValueError(f"{ask} cannot be asked about this scene; it allows {', '.join(possible_asks(scene))}")
    tower = tower_blocks(scene)
    if ask == "nth-colour":
        return {"n": 1 + detail % len(tower)}
    if ask == "exists":
        here = [b.colour for b in scene.bodies]
        absent = [c for c in COLOURS if c not in here]
        pool = here if detail % 2 or not absent else absent
        return {"a": pool[detail // 2 % len(pool)]}
    if ask in ("left-right", "shift-between"):
        within = PLACE_RANGE[1] if ask == "shift-between" else np.inf
        pairs = [(a, b) for a, b in _pairs(scene) if _gap_cm(a, b) <= within]
        a, b = pairs[detail % len(pairs)]
        return {"a": a.colour, "b": b.colour}
    if ask == "above-colour":
        return {"a": tower[detail % (len(tower) - 1)].colour}
    if ask == "which-number":
        return {"a": tower[detail % len(tower)].colour}
    if ask == "position":
        return {"a": scene.bodies[detail % len(scene.bodies)].colour}
    return {}


def _grammar(ask: str, order: int) -> tuple[Grammar, str]:
    """The answer grammar of a kind of question, and the sentence of the prompt that states it."""
    if ask in ("count", "which-number"):
        return Integers(((1, 6),), ""), " Answer with a number."
    if ask in ("nth-colour", "above-colour"):
        options, clause = named_options([Option(c, c) for c in COLOURS], order)
        return Options(options), f" Answer with one word: {clause}."
    if ask == "exists":
        options, clause = named_options([Option("yes", "yes"), Option("no", "no")], order)
        return Options(options), f" Answer with one word: {clause}."
    if ask == "left-right":
        options, clause = named_options([Option("left", "left"), Option("right", "right")], order)
        return Options(options), f" Answer with one word: {clause}."
    low, high = SHIFT_RANGE if ask == "shift" else PLACE_RANGE
    return Integers(((low, high),)), f"{SCALE} Answer with one whole number of centimetres from {low} to {high}."
