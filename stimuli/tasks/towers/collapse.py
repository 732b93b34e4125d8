"""towers-direction and towers-count: how does the tower come down? Held out: never trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_probe.stimuli.condition import Condition, in_bin
from vlm_probe.stimuli.question import (
    THINK,
    Answer,
    Integers,
    Option,
    Options,
    Question,
    Variant,
    named_options,
    wordings,
)
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.statics import stack_margin, stack_overshoot
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND, Task, Unsatisfiable, simulator_or_default
from vlm_probe.stimuli.tasks.towers.tower import (
    FALLEN,
    MARGIN_BINS,
    SMALL_STEP,
    Floats,
    Look,
    fall_side,
    first_tower,
    largest_step,
    tower_arrays,
    tower_margin,
    width_cm,
)

DIRECTION_TEXTS = (
    "This tower falls. To which side of the picture does it fall?",
    "The tower is going to collapse. Does it topple to the left or to the right?",
    "The blocks are let go and the tower falls over. In which direction does it go?",
    "Towards which side does this tower come down, as seen in the picture?",
)
COUNT_TEXTS = (
    "The blocks are let go. How many of them touch the floor when everything has come to rest?",
    "Once nothing moves any more, how many blocks will lie on the floor?",
    "The tower is left to itself. In the end, how many blocks are in contact with the floor?",
    "How many blocks will rest directly on the floor after the tower has been released?",
)
MOST = 4
"""Blocks in the largest tower of towers-count; larger ones come with the shift `count`."""
JITTER = 0.001
"""Metres by which every block of an item of towers-count may be displaced without changing the answer."""


class TowersDirection(Task):
    """Does the falling tower fall to the left or to the right?

    From three blocks on, half the towers lean to one side as a whole and fall to the other.
    """

    name: ClassVar[str] = "towers-direction"
    family: ClassVar[str] = "towers"
    facts: ClassVar[str] = (
        "A stack of blocks gives way at a level where the centre of mass of all blocks above lies beyond the "
        "area where they touch the block below, and falls to that side."
    )
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    held_out: ClassVar[bool] = True
    signed_side: ClassVar[bool] = True
    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "side of the top block": "what falls is what hangs over, and with few blocks the top one is nearly always part of it",
        "place of the top block": "the same, with a fitted threshold",
        "lean of the whole": "with two blocks the lean is the physics; with more it misleads on half the items",
        "lean": "the same, with a fitted threshold",
        "centroid in the picture": "the same, blurred by the place of the tower",
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Number of blocks x |overshoot| bin x side x whether the lean is misleading."""
        return tuple(
            Condition(count, (low, high) if side > 0 else (-high, -low), build)
            for count in (2, 3, 4)
            for low, high in MARGIN_BINS
            for side in (1, -1)
            for build in (("plain", "tricky") if count > 2 else ("plain", "plain"))
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """The mirror image is the foil: it falls to the other side."""
        return condition

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene]:
        """A tower that falls to the side of the bin's sign."""

        def accept(towers: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
            left, right = stack_overshoot(towers, 1.0)
            worst_left, worst_right = left.max(axis=1), right.max(axis=1)
            # Only one side may give way anywhere in the tower: otherwise the direction is a race between two falls.
            sided = np.where(worst_right > worst_left, worst_right, -worst_left)
            clear = (np.minimum(worst_left, worst_right) < -AMBIGUITY_BAND) & (np.maximum(worst_left, worst_right) > 0)
            # What stays behind must stand without what fell: otherwise a second fall may go the other way.
            weakest = np.maximum(left, right).argmax(axis=1)
            rest = [np.ones(len(towers)), *(stack_margin(towers[:, :k], 1.0) for k in range(2, towers.shape[1]))]
            clear &= np.stack(rest, axis=1)[np.arange(len(towers)), weakest] > AMBIGUITY_BAND
            lean = towers.mean(axis=1) - towers[:, 0]
            misled = np.sign(lean) == -np.sign(sided)
            visible = np.abs(lean) > 0.05
            return in_bin(sided, condition.margin_bin) & clear & visible & (misled == (condition.build == "tricky"))

        tower = first_tower(rng, condition.count, accept, f"falling with overshoot in {condition.margin_bin}")
        look = Look(rng, condition.count)
        return (look.scene(look.centred(tower)),)

    def margin(self, scene: Scene) -> float:
        """Signed overshoot of the centre of mass at the weakest interface, half widths; positive falls to the right."""
        return fall_side(scene)

    def margin_length(self, scene: Scene) -> float:
        """Half the width of a block."""
        return width_cm(scene) / 200

    def question(self, scene: Scene, variant: Variant) -> Question:
        """Left or right, as seen in the picture. Polarity does not apply."""
        options, clause = named_options((Option("left", "left"), Option("right", "right")), variant.order)
        prompt = f"{DIRECTION_TEXTS[variant.paraphrase]} Answer with one word: {clause}."
        return Question(prompt + (THINK if variant.style == "think" else ""), Options(options), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The side to which the blocks that sank have moved, on average, when everything has come to rest."""
        moved = simulator_or_default(simulator).simulate(scene).displacement()
        sank = -moved[:, 2] > FALLEN * np.array([body.size[2] for body in scene.bodies])
        return "right" if moved[sank, 0].sum() > 0 else "left"

    def variants(self) -> tuple[Variant, ...]:
        """Paraphrase x order."""
        return wordings(polarities=1)

    def statics_answer(self, scene: Scene) -> Answer:
        """The side of the larger overshoot."""
        return "right" if self.margin(scene) > 0 else "left"

    def cues(self) -> Mapping[str, Callable[[Scene], float]]:
        """Sideways measures; positive means right."""
        return {"lean": _lean, "place of the top block": _top_place, "centroid in the picture": _centroid}

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """It falls to the side to which the whole leans, or to which its top block lies."""
        return {
            "lean of the whole": lambda scene: "right" if _lean(scene) > 0 else "left",
            "side of the top block": lambda scene: "right" if _top_place(scene) > 0 else "left",
        }


class TowersCount(Task):
    """How many blocks end up on the floor?"""

    name: ClassVar[str] = "towers-count"
    family: ClassVar[str] = "towers"
    facts: ClassVar[str] = (
        "A stack of blocks gives way at a level where the centre of mass of all blocks above lies beyond the "
        "area where they touch the block below; the blocks above that level fall to the floor."
    )
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    held_out: ClassVar[bool] = True
    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "block count": "a tower cannot leave more blocks on the floor than it has",
        "largest step": "towers without a large step stand more often, and a fall of all blocks takes a large lowest step",
        "neighbour rule": "the same, as a rule",
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Number of blocks x number that end up on the floor (`build`)."""
        return tuple(Condition(n, (-2.0, 1.0), f"floor{k}") for n in (2, 3, MOST) for k in range(1, n + 1))

    def foil_condition(self, condition: Condition) -> Condition:
        """The mirror image has the same answer; there is no foil."""
        return condition

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene]:
        """A tower that leaves that many blocks on the floor, also when every block is displaced by `JITTER`."""
        count, target = condition.count, int(condition.build.removeprefix("floor"))

        def accept(towers: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
            margin = stack_margin(towers, 1.0)
            if target == 1:
                return margin > AMBIGUITY_BAND
            left, right = stack_overshoot(towers, 1.0)
            # Most often the blocks above the weakest interface fall and the others stay.
            weakest = np.maximum(left, right).argmax(axis=1)
            return (margin < -AMBIGUITY_BAND) & (weakest == count - target)

        for _ in range(60):
            look = Look(rng, count)
            scene = look.scene(look.centred(first_tower(rng, count, accept, condition.build)))
            nudges = [np.zeros(count), *(rng.choice((-JITTER, JITTER), count) for _ in range(2))]
            if all(_on_floor(_nudged(scene, nudge)) == target for nudge in nudges):
                return (scene,)
        raise Unsatisfiable(f"found no tower of {count} blocks that leaves {target} on the floor")

    def margin(self, scene: Scene) -> float:
        """Signed stability margin of the tower, half widths."""
        return tower_margin(scene)

    def margin_length(self, scene: Scene) -> float:
        """Half the width of a block."""
        return width_cm(scene) / 200

    def question(self, scene: Scene, variant: Variant) -> Question:
        """A number from 1 to 4, or to the number of blocks where there are more. Polarity and order do not apply."""
        most = max(MOST, len(scene.bodies))
        prompt = f"{COUNT_TEXTS[variant.paraphrase]} Answer with a number from 1 to {most}."
        return Question(prompt + (THINK if variant.style == "think" else ""), Integers(((1, most),), ""), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """Number of blocks in contact with the floor at rest, by simulation."""
        return _on_floor(scene, simulator)

    def variants(self) -> tuple[Variant, ...]:
        """One per paraphrase."""
        return wordings(polarities=1, orders=1)

    def cues(self) -> Mapping[str, Callable[[Scene], float]]:
        """Numbers that go with the answer."""
        return {"block count": lambda scene: len(scene.bodies), "largest step": largest_step}

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Everything falls, or nothing does, by the neighbour rule."""
        return {"neighbour rule": lambda s: len(s.bodies) if largest_step(s) > SMALL_STEP + 1e-9 else 1}


def _on_floor(scene: Scene, simulator: Simulator | None = None) -> int:
    """Number of blocks in contact with the floor when everything has come to rest."""
    return len(simulator_or_default(simulator).simulate(scene).on_floor)


def _nudged(scene: Scene, dx: Floats) -> Scene:
    for body, step in zip(scene.bodies, dx, strict=True):
        if step:
            scene = scene.moved(body.name, dx=float(step))
    return scene


def _lean(scene: Scene) -> float:
    x, _, _ = tower_arrays(scene)
    return float(x.mean() - x[0])


def _top_place(scene: Scene) -> float:
    x, _, _ = tower_arrays(scene)
    return float(x[-1] - x[0])


def _centroid(scene: Scene) -> float:
    return float(tower_arrays(scene)[0].mean())
