"""balance-place: where must the counterweight be put so that the plank balances?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.question import THINK, Answer, IntegerFormat, Question, Variant, wordings
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.shapes import bottom
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.statics import seesaw_margin
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND, SamplingFailed, Score, Task, simulator_or_default
from vlm_probe.stimuli.tasks.balance.seesaw import (
    SHAPE_WORDS,
    SHOWN,
    Layout,
    Load,
    Look,
    arrays,
    half_width,
    load_bodies,
    scene_margin,
    standing,
    tilted,
)
from vlm_probe.stimuli.tasks.balance.weights import draw_layout, draw_load, load_colours, weight_sentences

STRATA = ((3, 5), (6, 8), (9, 11), (12, 14))
"""Whole centimetres from the fulcrum's middle at which the counterweight balances the plank best."""
WORKING = (2, 6)
"""Least and greatest number of answers that work."""
HALF_WIDTHS = (8, 11)
"""Least and greatest half width of the fulcrum's top, millimetres: narrow, so that few answers work."""
LARGEST_OFFSET = 0.07
"""Metres between the middles of plank and fulcrum at most."""
CLEAR_MARGIN = 0.3
"""Half widths by which the best answer balances at least."""
REWARD_WIDTH = 0.6
"""Distance from the nearest working answer at which the partial reward has fallen to 0, in half lengths of the plank."""
BESIDE = -0.13
"""Metres in front of the plank (y) where the counterweight waits on the floor."""
TALLEST = 0.065
"""Metres of the counterweight's height at most, so that it does not stand before the plank."""
TRIES = 3000
"""Planks drawn before a condition counts as impossible."""

TEXTS = (
    "The {thing} on the floor is to be put on the plank as a counterweight. Where must its middle be so that the plank stays "
    "balanced on the grey support?",
    "At which place on the plank does the {thing}, which still stands on the floor, balance it on the grey support?",
    "Without the {thing} that stands on the floor, the plank tips over. How far from the middle of the grey support must it "
    "be put on the plank to keep it level?",
    "The {thing} in front of the plank is lifted onto it. For which place of its middle does the plank stay level on the grey "
    "support?",
)


class BalancePlace(Task):
    """Where must the counterweight be put so that the plank balances?

    Without it the plank tilts. Items are stratified by the distance and the side that are needed; putting it as far out as
    the other objects are on the other side fails.
    """

    name: ClassVar[str] = "balance-place"
    family: ClassVar[str] = "balance"
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "action"
    facts: ClassVar[str] = (
        "The plank balances if the sum of all weights times their distances from the middle of the support is the same on "
        "both sides, the plank's own weight counting at the plank's middle; the width of the support leaves a little room."
    )

    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "weight times distance, without the plank": "It is the physics but for the weight of the plank, which matters less the "
        "heavier the objects are.",
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Number of objects on the plank x distance that is needed (`build`) x how weight is shown."""
        return tuple(
            Condition(count, (-14.0, -AMBIGUITY_BAND), f"{low}to{high}cm", shown=shown)
            for count in (1, 2, 3)
            for low, high in STRATA
            for shown in SHOWN
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """Actions have no foils but their mirror images, whose answers have the other sign."""
        return condition

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene]:
        """A plank that tilts, and balances with the counterweight at a place of that stratum."""
        low, high = (int(part) for part in condition.build.removesuffix("cm").split("to"))
        for _ in range(TRIES):
            drawn = draw_layout(rng, condition.count, condition.shown, HALF_WIDTHS)
            weight = draw_load(rng, condition.shown)
            needed = int(rng.integers(low, high + 1)) * (1 if rng.random() < 0.5 else -1)
            if drawn is None or weight.shape not in ("box", "cylinder") or weight.size[2] > TALLEST:
                continue
            mass = np.array([drawn.plank_mass, *(load.mass for load in drawn.loads)])
            x = np.array([0.0, *(p + load.offset for load, p in zip(drawn.loads, drawn.places, strict=True))])
            # The fulcrum goes where the counterweight is needed just there.
            fulcrum = round(float((mass @ x + weight.mass * needed / 100) / mass.sum()), 3)
            if abs(fulcrum) > LARGEST_OFFSET:
                continue
            scene = _scene(rng, drawn.about(fulcrum), weight, condition.shown)
            margins = working(scene)
            low_margin, high_margin = condition.margin_bin
            if (
                WORKING[0] <= len(margins) <= WORKING[1]
                and _best(margins) == needed
                and margins[needed] > CLEAR_MARGIN
                and -needed not in margins
                and _mirror_image(scene) not in _near(margins)
                and low_margin < self.margin(scene) < high_margin
            ):
                return (scene,)
        raise SamplingFailed(
            f"found no plank with {condition.count} object(s) that a counterweight {condition.build} out balances (weight"
            f" shown by {condition.shown})"
        )

    def margin(self, scene: Scene) -> float:
        """Margin of the plank as shown, without the counterweight, half widths of the fulcrum; negative, since it tilts."""
        return scene_margin(scene)

    def margin_length(self, scene: Scene) -> float:
        """Half the width of the fulcrum's top."""
        return half_width(scene)

    def question(self, scene: Scene, variant: Variant) -> Question:
        """One whole number of centimetres. Polarity and order do not apply."""
        weight, plank = scene.body("counterweight"), scene.body("plank")
        text = TEXTS[variant.paraphrase].format(thing=f"{weight.colour} {SHAPE_WORDS[weight.shape]}")
        low, high = answer_range(scene)
        ask = (
            f" The plank is {100 * plank.size[0]:.3g} cm long. Places are counted from the middle of the grey support: right is"
            f" positive, left is negative. Answer with one whole number of centimetres from {low} to {high}."
        )
        prompt = text + weight_sentences(scene) + ask + (THINK if variant.style == "think" else "")
        return Question(prompt, IntegerFormat(((low, high),)), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The place at which the plank is balanced best, centimetres."""
        margins = working(scene)
        return _best(margins) if margins else 0

    def score(self, scene: Scene, question: Question, answer: Answer, simulator: Simulator | None = None) -> Score:
        """Reward 1 if the plank stays balanced, in simulation; otherwise up to 0.5 for coming close.

        Partial reward: 0.5 (1 - d / `REWARD_WIDTH`)^2, d being the distance to the nearest working answer in half lengths of
        the plank. Where another object stands, or beyond the ends of the plank, nothing can be put: that fails without a
        simulation, and `detail` names what is in the way.
        """
        if not isinstance(answer, int):
            return Score(False, 0.0, {"truth": None})
        distance = min((abs(answer - a) for a in working(scene)), default=99)
        share = distance / (50 * scene.body("plank").size[0] * REWARD_WIDTH)
        partial = 0.5 * max(0.0, 1 - share) ** 2
        obstacle = in_the_way(scene, answer)
        if obstacle:
            return Score(False, partial, {"distance_cm": distance, "in_the_way": obstacle})
        after = self.apply(scene, answer)
        outcome = simulator_or_default(simulator).simulate(after, stop=tilted(after))
        if not outcome.decided:
            return Score(True, 1.0, {"distance_cm": 0}, outcome)
        return Score(False, partial, {"distance_cm": distance}, outcome)

    def apply(self, scene: Scene, answer: Answer) -> Scene:
        """The scene with the counterweight on the plank, its middle `answer` centimetres right of the fulcrum's."""
        if not isinstance(answer, int):
            raise TypeError(f"an answer is one whole number of centimetres, got {answer!r}")
        plank, weight = scene.body("plank"), scene.body("counterweight")
        x = round(scene.body("fulcrum").position[0] + answer / 100, 6)
        top = plank.position[2] + plank.size[2] / 2
        put = replace(weight, position=(x, plank.position[1], round(top + bottom(weight.shape, weight.size), 6)))
        return replace(scene, bodies=tuple(put if body is weight else body for body in scene.bodies))

    def variants(self) -> tuple[Variant, ...]:
        """One per paraphrase."""
        return wordings(polarities=1, orders=1)

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Whole centimetres that need no physics, then two that have some of it."""
        return {
            "mirror image of the objects": _mirror_image,
            "mirror image of the heaviest object": _mirror_heaviest,
            "weight times distance, without the plank": _without_plank,
            "all weights equal": _unweighted,
        }

    def certify(self, scene: Scene, question: Question) -> dict[str, Any]:
        """Which answers work, in simulation: those that statics names, and their neighbours."""
        low, high = answer_range(scene)
        tried = sorted(a for a in _near(working(scene)) if low <= a <= high)
        return {"working": [a for a in tried if self.score(scene, question, a).success]}


def answer_range(scene: Scene) -> tuple[int, int]:
    """Whole centimetres from the fulcrum's middle to the farther end of the plank, to either side alike."""
    plank = scene.body("plank")
    end = abs(plank.position[0] - scene.body("fulcrum").position[0]) + plank.size[0] / 2
    whole = math.floor(100 * end + 1e-6)
    return -whole, whole


def in_the_way(scene: Scene, answer: int) -> str:
    """What keeps the counterweight from being put there: the name of an object, "end of the plank", or nothing.

    Args:
        scene: The scene.
        answer: Centimetres to the right of the fulcrum's middle.
    """
    plank, weight = scene.body("plank"), scene.body("counterweight")
    x, half = scene.body("fulcrum").position[0] + answer / 100, weight.size[0] / 2
    if abs(x - plank.position[0]) + half > plank.size[0] / 2 + 1e-9:
        return "end of the plank"
    for thing in standing(scene):
        left, right = thing.span
        if x + half > left + 1e-9 and x - half < right - 1e-9:
            return thing.body.name
    return ""


def working(scene: Scene) -> dict[int, float]:
    """Every answer with which statics lets the plank stay level, and the margin that it gives, half widths."""
    low, high = answer_range(scene)
    answers = np.arange(low, high + 1)
    (x, mass), weight = arrays(scene), scene.body("counterweight").mass
    centres = (x @ mass + weight * answers / 100) / (mass.sum() + weight)
    margins = seesaw_margin(centres, half_width(scene))
    return {
        int(a): float(m) for a, m in zip(answers, margins, strict=True) if m > 1e-9 and not in_the_way(scene, int(a))
    }


def _best(margins: Mapping[int, float]) -> int:
    # Of two that are equally good the one nearer the fulcrum, so that the mirror image has the mirrored answer.
    return max(margins, key=lambda a: (round(margins[a], 9), -abs(a)))


def _near(answers: Mapping[int, float]) -> set[int]:
    """The answers and their neighbours."""
    return {a + d for a in answers for d in (-1, 0, 1)}


def _scene(rng: np.random.Generator, layout: Layout, weight: Load, shown: str) -> Scene:
    """The scene of a layout with the counterweight on the floor in front of it."""
    look = Look(rng)
    joined = replace(layout, loads=(*layout.loads, weight))
    colours = load_colours(joined, look, shown)
    scene = look.scene(layout, shown, colours)
    # Next to the fulcrum, on a side that tells nothing.
    aside = int(rng.integers(60, 121)) / 1000 * (1 if rng.random() < 0.5 else -1)
    x = float(np.clip(scene.body("fulcrum").position[0] + aside, -0.14, 0.14))
    body = load_bodies(weight, "", (round(x, 3), BESIDE, 0.0), colours[-1], look.shades[-2])[0]
    return replace(scene, bodies=(*scene.bodies, replace(body, name="counterweight")))


def _mirror_image(scene: Scene) -> int:
    return round(-100 * float(np.mean([t.x for t in standing(scene)])))


def _mirror_heaviest(scene: Scene) -> int:
    return round(-100 * max(standing(scene), key=lambda t: t.mass).x)


def _without_plank(scene: Scene) -> int:
    low, high = answer_range(scene)
    needed = -100 * sum(t.mass * t.x for t in standing(scene)) / scene.body("counterweight").mass
    return int(np.clip(round(needed), low, high))


def _unweighted(scene: Scene) -> int:
    low, high = answer_range(scene)
    return int(np.clip(round(-100 * sum(t.x for t in standing(scene))), low, high))
