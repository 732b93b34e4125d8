"""balance-heavier: which of two objects must be heavier, given how the plank lies? Held out: never trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.condition import Condition, in_bin
from vlm_probe.stimuli.question import THINK, Answer, ChoiceFormat, Option, Question, Variant, named_options, wordings
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.tasks import SamplingFailed, Task, simulator_or_default
from vlm_probe.stimuli.tasks.balance.pose import come_down, end_down, levelled
from vlm_probe.stimuli.tasks.balance.seesaw import (
    MARGIN_BINS,
    SIDES,
    SIZES,
    Floats,
    Layout,
    Load,
    Look,
    half_width,
    outcome_side,
    side_of,
    standing,
    tilted,
)

HEAVIEST = 3.0
"""An object weighs at least as much as the plank and at most this many times as much, which the prompt says."""
MASSES = np.arange(1.0, HEAVIEST + 0.05, 0.1)
"""What an object may weigh, in plank masses."""
UNEQUAL = 1.1
"""Least ratio of the two weights where one must be heavier."""
CLEAR = 0.2
"""Half widths of the fulcrum by which the plank lies as it does."""
PLANK = 1.0
"""Kilograms of the plank."""
NEAREST, FARTHEST = 0.04, 0.17
"""Metres of the objects from the fulcrum's middle."""
HALF_WIDTHS = (10, 14)
"""Least and greatest half width of the fulcrum's top, millimetres."""
COLOURS = ("red", "blue")
"""Of the two objects, in random order: always the same two, so that no prompt names a colour that others do not."""
SHAPES = ("box", "cylinder", "wedge")
BUILDS = {"level": 0, "left-down": -1, "right-down": 1}
PLACES_TRIED = 20
"""New places tried for the object that moves."""
TRIES = 4000
"""Pairs of places drawn before a condition counts as impossible."""

TEXTS = (
    "The plank rests on the grey support and no longer moves. Which object must be heavier, the {left} one or the {right} "
    "one, or can it not be told?",
    "This is how the plank has come to rest on the grey support. Does it show that the {left} object is heavier, that the "
    "{right} object is heavier, or is that unclear?",
    "Nothing moves any more. From how the plank lies and where the objects are: is the {left} object the heavier one, is the "
    "{right} object, or is it unclear?",
    "The plank lies loosely on the grey support and is at rest. Which one certainly weighs more: the {left} object, the "
    "{right} object, or is it unclear?",
)
ASSUMED = " Size says nothing about weight here: each object weighs at least as much as the plank and at most three times as much."


class BalanceHeavier(Task):
    """Which of two objects must be heavier, given how the plank lies?

    The answer is "left" or "right", the object that is heavier in every case that the image allows, or "unclear" if both
    could be. A level plank shows that the nearer object is heavier, if the distances differ enough. A tilted one shows that
    the lower object is heavier, unless it also stands so much farther out that a lighter one could have done the same.
    A group has an unclear scene and two foils in which one object stands elsewhere (and weighs what fits the plank as it
    lies), so that one must be heavier: one foil for each on level planks, and the lower one twice on tilted ones.
    """

    name: ClassVar[str] = "balance-heavier"
    family: ClassVar[str] = "balance"
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    held_out: ClassVar[bool] = True
    facts: ClassVar[str] = (
        "What turns the plank to a side is weight times distance from the support. On a level plank the object that is nearer "
        "to the support is heavier. On a tilted plank the lower object is heavier, unless it is also farther out, so that its "
        "distance could be the reason. The width of the support lets the plank stay level for small differences."
    )
    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "lower object, or nearer if level": "It is the physics but for the cases in which nothing can be told.",
        "lower object": "No tilted plank can show that the higher object is heavier: weight and distance are all that pulls "
        "an end down.",
        "nearer object if level": "It is right on level planks whenever anything can be told, for the same reason.",
        "end that is down": "It is the rule of the lower object.",
        "difference of distances": "It is what decides, together with how the plank lies and the width of the support.",
        "linear classifier on 16x16 pixels": "It sees the difference of the distances, which is what decides.",
    }

    def conditions(self) -> tuple[Condition, ...]:
        """|margin| bin x how the plank lies; level ones twice, so that labels balance in every bin."""
        return tuple(
            Condition(2, (-high, -low), build)
            for low, high in MARGIN_BINS
            for build in ("level", "level", "left-down", "right-down")
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """The same cell on the other side of the boundary: both foils show which object is heavier."""
        low, high = condition.margin_bin
        return replace(condition, margin_bin=(-high, -low))

    def with_more_objects(self, condition: Condition, level: int) -> Condition:
        """Raises `SamplingFailed`: it is a question about two objects."""
        raise SamplingFailed(f"{self.name} compares two objects: there are no scenes with more")

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene, Scene, Scene]:
        """An unclear scene and two in which one object must be heavier, which differ from it in one object each."""
        low, high = condition.margin_bin
        if condition.build not in BUILDS or not -1 <= low < high <= 0:
            raise SamplingFailed(
                f"{self.name} samples from unclear scenes: give a margin bin within -1 to 0 and a build out of {', '.join(BUILDS)}"
            )
        down, half = BUILDS[condition.build], int(rng.integers(HALF_WIDTHS[0], HALF_WIDTHS[1] + 1)) / 1000
        loads = [_load(rng), _load(rng)]
        look = Look(rng)
        colours = [COLOURS[i] for i in rng.permutation(2)]
        for _ in range(TRIES):
            first = _first(rng, half, down, condition.margin_bin)
            if first is None:
                continue
            # On tilted planks each of the two objects is the one that moves in one of the foils.
            wanted = (("left", int(rng.integers(2))), ("right", int(rng.integers(2))))
            if down:
                wanted = ((SIDES[down], 0), (SIDES[down], 1))
            foils = [_foil(rng, first, moved, half, down, (-high, -low), answer) for answer, moved in wanted]
            found = [first, *(foil for foil in foils if foil is not None)]
            if len(found) < 3:
                continue
            scenes = []
            for x, mass in found:
                weighed = tuple(replace(o, mass=round(PLANK * float(m), 6)) for o, m in zip(loads, mass, strict=True))
                places = tuple(round(float(v) - o.offset, 6) for v, o in zip(x, loads, strict=True))
                scene = look.scene(Layout(half, 0.0, PLANK, weighed, places), "", colours)
                scenes.append(come_down(scene, down) if down else scene)
            return scenes[0], scenes[1], scenes[2]
        raise SamplingFailed(f"found no scenes with |margin| in {condition.margin_bin} on the build {condition.build}")

    def margin(self, scene: Scene) -> float:
        """How far the difference of the distances lies from where it becomes clear which object is heavier, as a share of it.

        Positive if it can be told, negative if it cannot. On a level plank it can be told if the distances differ by more than
        2 w + w, on a tilted one if the lower object is farther out by less than 2 w + w / 3, w being half the width of the
        fulcrum: with two equal weights the plank could not lie so, whether they are the lightest or the heaviest possible.
        """
        level = levelled(scene)
        left, right = (thing.x for thing in standing(level))
        return _margin(np.array([left, right]), half_width(level), end_down(scene))

    def question(self, scene: Scene, variant: Variant) -> Question:
        """The colours of the two objects, whose values are their sides, or "unclear". Polarity does not apply."""
        left, right = (thing.body.colour for thing in standing(levelled(scene)))
        named = [Option(left, "left"), Option(right, "right"), Option("unclear", "unclear")]
        options, clause = named_options(named, variant.order)
        prompt = f"{TEXTS[variant.paraphrase].format(left=left, right=right)}{ASSUMED} Answer with one word: {clause}."
        return Question(prompt + (THINK if variant.style == "think" else ""), ChoiceFormat(options), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """What two equal weights would do, in simulation: if the plank could lie as it does with them, it is unclear."""
        equal = equalised(scene)
        outcome = simulator_or_default(simulator).simulate(equal, stop=tilted(equal))
        return _concluded(end_down(scene), outcome_side(equal, outcome))

    def variants(self) -> tuple[Variant, ...]:
        """Paraphrase x order."""
        return wordings(polarities=1)

    def statics_answer(self, scene: Scene) -> Answer:
        """What follows from where the common centre of mass of two equal weights would be."""
        return _concluded(end_down(scene), side_of(equalised(scene)))

    def cues(self) -> Mapping[str, Callable[[Scene], float]]:
        """Numbers that go with the answer; positive ones mean right."""
        return {
            "end that is down": end_down,
            "difference of distances": _difference,
            "sum of distances": lambda scene: sum(abs(t.x) for t in standing(levelled(scene))),
            "difference of sizes": _larger,
            "width of the fulcrum": half_width,
        }

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Each looks at one thing; the last two have most of the physics."""
        return {
            "nearer object": lambda scene: "left" if _difference(scene) > 0 else "right",
            "object farther out": lambda scene: "right" if _difference(scene) > 0 else "left",
            "larger object": lambda scene: "right" if _larger(scene) > 0 else "left",
            "lower object": lambda scene: {-1: "left", 0: "unclear", 1: "right"}[end_down(scene)],
            "nearer object if level": lambda s: (
                "unclear" if end_down(s) else ("left" if _difference(s) > 0 else "right")
            ),
            "lower object, or nearer if level": _lower_or_nearer,
        }


def equalised(scene: Scene) -> Scene:
    """The scene with its plank level and two equal weights: the lightest possible if it is shown level, else the heaviest.

    If the plank does not lie as shown with these two, it does so with no two equal weights, and with none that differ in the
    other direction.
    """
    level = levelled(scene)
    mass = level.body("plank").mass * (1.0 if end_down(scene) == 0 else HEAVIEST)
    bodies = tuple(replace(b, mass=mass) if b.name.startswith("load") else b for b in level.bodies)
    return replace(level, bodies=bodies)


def _concluded(shown: int, equal: str) -> str:
    """Which object must be heavier, from how the plank lies and what it would do with equal weights."""
    if SIDES[shown] == equal:
        return "unclear"
    if shown:
        return SIDES[shown]
    return "left" if equal == "right" else "right"


def _margin(x: Floats, half: float, down: int) -> float:
    """See `BalanceHeavier.margin`; `x` are the places of the left and the right object, metres."""
    farther = -x[0] - x[1]  # how much farther out the left object stands
    if down == 0:
        return float(abs(farther) / (3 * half) - 1)
    return float(1 - -down * farther / ((2 + 1 / HEAVIEST) * half))


def _shows(x: Floats, half: float, down: int) -> str:
    """The answer for objects at `x` (left, right; metres)."""
    if _margin(x, half, down) < 0:
        return "unclear"
    if down:
        return SIDES[down]
    return "right" if -x[0] > x[1] else "left"


def _first(
    rng: np.random.Generator, half: float, down: int, margin_bin: tuple[float, float]
) -> tuple[Floats, Floats] | None:
    """Places (m) and weights (in planks) of two objects that leave it unclear which is heavier; None if the draw failed."""
    x = np.round(rng.uniform(NEAREST, FARTHEST, 2), 3) * (-1, 1)
    if not in_bin(_margin(x, half, down), margin_bin):
        return None
    mass = np.stack(np.meshgrid(MASSES, MASSES), axis=-1).reshape(-1, 2)
    good = np.flatnonzero(_lies(np.broadcast_to(x, mass.shape), mass, half, down))
    return (x, mass[int(rng.choice(good))]) if len(good) else None


def _foil(
    rng: np.random.Generator,
    first: tuple[Floats, Floats],
    moved: int,
    half: float,
    down: int,
    margin_bin: tuple[float, float],
    answer: str,
) -> tuple[Floats, Floats] | None:
    """The same with object `moved` (0 left, 1 right) at another place and of another weight, so that `answer` must be heavier."""
    x, mass = np.repeat(first[0][None], PLACES_TRIED, axis=0), first[1]
    x[:, moved] = np.round(rng.uniform(NEAREST, FARTHEST, PLACES_TRIED), 3) * (-1, 1)[moved]
    x = x[[bool(in_bin(_margin(row, half, down), margin_bin)) and _shows(row, half, down) == answer for row in x]]
    place, weight = (index.ravel() for index in np.indices((len(x), len(MASSES))))
    x, mass = x[place], np.repeat(mass[None], len(weight), axis=0)
    mass[:, moved] = MASSES[weight]
    heavier, lighter = (0, 1) if answer == "left" else (1, 0)
    good = np.flatnonzero(_lies(x, mass, half, down) & (mass[:, heavier] >= UNEQUAL * mass[:, lighter]))
    if not len(good):
        return None
    chosen = int(rng.choice(good))
    return x[chosen], mass[chosen]


def _lies(x: Floats, mass: Floats, half: float, down: int) -> npt.NDArray[np.bool_]:
    """(k,) whether the plank clearly lies that way with objects at (k, 2) places that weigh (k, 2) planks."""
    centre = (x * mass).sum(axis=1) / (mass.sum(axis=1) + 1) / half
    return np.asarray(np.abs(centre) < 1 - CLEAR if down == 0 else down * centre > 1 + CLEAR)


def _load(rng: np.random.Generator) -> Load:
    """An object of random shape and size; its weight comes later."""
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    sizes = SIZES[shape][len(SIZES[shape]) // 4 :]
    return Load(shape, sizes[int(rng.integers(len(sizes)))], PLANK, 1 if rng.random() < 0.5 else -1)


def _difference(scene: Scene) -> float:
    """By how much farther out the right object stands than the left one, metres."""
    return sum(thing.x for thing in standing(levelled(scene)))


def _larger(scene: Scene) -> float:
    """By how much larger the right object is than the left one, cubic metres."""
    left, right = standing(levelled(scene))
    return right.volume - left.volume


def _lower_or_nearer(scene: Scene) -> str:
    down = end_down(scene)
    return SIDES[down] if down else ("left" if _difference(scene) > 0 else "right")
