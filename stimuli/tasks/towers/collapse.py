"""towers-direction and towers-count: how does the tower come down? Held out: never trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.condition import Condition, in_bin
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.question import (
    THINK,
    Answer,
    ChoiceFormat,
    IntegerFormat,
    Option,
    Question,
    Variant,
    named_options,
    wordings,
)
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.statics import stack_margin, stack_overshoot
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND, SamplingFailed, Task, simulator_or_default
from vlm_probe.stimuli.tasks.towers.tower import (
    FALLEN,
    MARGIN_BINS,
    MAX_STEP,
    SMALL_STEP,
    Floats,
    Look,
    fall_side,
    first_tower,
    framed,
    largest_step,
    stacked,
    tower_arrays,
    tower_margin,
    weakest_step,
    width_cm,
)

Mask = npt.NDArray[np.bool_]

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


@dataclass(frozen=True, slots=True)
class Profile:
    """Where single looks point in a tower that falls to the right: 1 to the right, -1 to the left.

    Attributes:
        place: The middle of all blocks, the top block and the outermost block, all seen from the bottom block.
        step: The largest step from one block to the next.
        first: The second block, seen from the bottom one.
        last: The top block, seen from the one below.
        share: How many of sixteen towers are built so.
    """

    place: int
    step: int
    first: int
    last: int
    share: int


BUILDS = {
    "plain": Profile(place=1, step=1, first=1, last=1, share=7),
    "against": Profile(place=-1, step=1, first=-1, last=-1, share=7),
    "held": Profile(place=1, step=-1, first=-1, last=1, share=2),
}
"""Where all looks are right; where only the largest step is; and where others hold what hangs over to the wrong side."""
LEAN = (0.03, 0.11)
"""Blocks by which the middle of all blocks is off the bottom one."""
OUT = (0.46, 0.54)
"""The same for the outermost block, where towers fall narrowly; where they fall clearly, it has to be `FURTHER` out."""
FURTHER = 0.02
WINDOWS = (
    {"top": (0.13, 0.17), "last": (0.05, 0.15), "first": (0.07, 0.11)},
    {"top": (0.17, 0.22), "last": (0.15, 0.25), "first": (0.07, 0.11)},
    {"top": (0.22, 0.28), "last": (0.25, 0.35), "first": (0.07, 0.11)},
)
"""The same for the other looks. One of the three is drawn alike for all builds, so that how far off they are tells nothing either."""
HELD = {"top": (0.13, 0.4), "last": (0.05, 0.5), "first": (0.06, 0.5)}
"""Towers that others hold need more room; they are few."""
Windows = dict[str, tuple[float, float]]


class TowersDirection(Task):
    """Does the falling tower fall to the left or to the right?

    In towers drawn at random one look gives the side: where the top block is, where the tower leans as a whole, where its lowest or its
    uppermost step goes. Here each of these misleads on nearly half of the set, and how far it is off the middle tells nothing either
    (`BUILDS`, `WINDOWS`). This takes six blocks: of three, none can fall away from its top block unless all of it falls apart.
    """

    name: ClassVar[str] = "towers-direction"
    version: ClassVar[int] = 2
    family: ClassVar[str] = "towers"
    facts: ClassVar[str] = (
        "A stack of blocks gives way at a level where the centre of mass of all blocks above lies beyond the "
        "area where they touch the block below, and falls to that side."
    )
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    held_out: ClassVar[bool] = True
    signed_side: ClassVar[bool] = True
    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "side of the largest step": "a block that hangs over by more than half falls unless others hold it: this is half of the physics, "
        "and misleads where it is held, in one tower of eight",
        "largest step": "the same, with a fitted threshold",
        "outermost block": "its side tells nothing, but it is further out by some millimetres where the looks mislead: a fitted threshold",
        "second block from the bottom one": "the same",
        "linear classifier on 16x16 pixels": "weighs where the blocks are, row by row: fitted to hundreds of towers this comes near the "
        "physics",
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Number of blocks x |overshoot| bin x side x which looks mislead, as often as `BUILDS` says."""
        return tuple(
            Condition(count, (low, high) if side > 0 else (-high, -low), build)
            for count in (7, 8)
            for low, high in MARGIN_BINS[:2]
            for side in (1, -1)
            for build, profile in BUILDS.items()
            for _ in range(profile.share)
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """The mirror image is the foil: it falls to the other side."""
        return condition

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene]:
        """A tower that falls to the side of the bin's sign."""
        if condition.build not in BUILDS:
            raise InvalidInput(f"{self.name} has no build {condition.build!r}: use one of {', '.join(BUILDS)}")
        low, high = condition.margin_bin
        size, side = ((low, high), 1) if low >= 0 else ((-high, -low), -1)
        tower = side * profiled_tower(rng, condition, BUILDS[condition.build], size)
        look = Look(rng, condition.count)
        return (framed(look.scene(look.centred(tower))),)

    def margin(self, scene: Scene) -> float:
        """Signed overshoot of the centre of mass at the weakest interface, half widths; positive falls to the right."""
        return fall_side(scene)

    def margin_length(self, scene: Scene) -> float:
        """Half the width of a block."""
        return width_cm(scene) / 200

    def critical(self, scene: Scene) -> Mapping[str, str | int]:
        """How far the block above the weakest contact is displaced from the one below."""
        return weakest_step(scene)

    def question(self, scene: Scene, variant: Variant) -> Question:
        """Left or right, as seen in the image. Polarity does not apply."""
        options, clause = named_options((Option("left", "left"), Option("right", "right")), variant.order)
        prompt = f"{DIRECTION_TEXTS[variant.paraphrase]} Answer with one word: {clause}."
        return Question(prompt + (THINK if variant.style == "think" else ""), ChoiceFormat(options), variant.style)

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
        return {
            "lean": _of_tower(lean_of),
            "place of the top block": _of_tower(top_place),
            "top block from the one below": _of_tower(lambda x: x[:, -1] - x[:, -2]),
            "second block from the bottom one": _of_tower(lambda x: x[:, 1] - x[:, 0]),
            "outermost block": _of_tower(outermost),
            "largest step": _of_tower(signed_step),
            "centroid in the picture": lambda scene: float(tower_arrays(scene)[0].mean()),
        }

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """It falls to the side to which something lies: the whole, its top block, its outermost block, its largest step."""
        names = {
            "lean": "lean of the whole",
            "place of the top block": "side of the top block",
            "top block from the one below": "side of the top block on the one below",
            "outermost block": "side of the outermost block",
            "largest step": "side of the largest step",
        }
        cues = self.cues()
        return {rule: partial(_side, cues[cue]) for cue, rule in names.items()}


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
        raise SamplingFailed(f"found no tower of {count} blocks that leaves {target} on the floor")

    def margin(self, scene: Scene) -> float:
        """Signed stability margin of the tower, half widths."""
        return tower_margin(scene)

    def margin_length(self, scene: Scene) -> float:
        """Half the width of a block."""
        return width_cm(scene) / 200

    def critical(self, scene: Scene) -> Mapping[str, str | int]:
        """How far the block above the weakest contact is displaced from the one below."""
        return weakest_step(scene)

    def question(self, scene: Scene, variant: Variant) -> Question:
        """A number from 1 to 4, or to the number of blocks where there are more. Polarity and order do not apply."""
        most = max(MOST, len(scene.bodies))
        prompt = f"{COUNT_TEXTS[variant.paraphrase]} Answer with a number from 1 to {most}."
        return Question(
            prompt + (THINK if variant.style == "think" else ""), IntegerFormat(((1, most),), ""), variant.style
        )

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


def _of_tower(look: Callable[[Floats], Floats]) -> Callable[[Scene], float]:
    """What a look at centres (batch, n) says of a scene."""
    return lambda scene: float(look(tower_arrays(scene)[0][None])[0])


def _side(cue: Callable[[Scene], float], scene: Scene) -> str:
    return "right" if cue(scene) > 0 else "left"


def lean_of(x: Floats) -> Floats:
    """(batch,) how far the middle of all blocks lies to the right of the bottom one, from centres (batch, n)."""
    return np.asarray(x.mean(axis=1) - x[:, 0])


def top_place(x: Floats) -> Floats:
    """(batch,) how far the top block lies to the right of the bottom one."""
    return np.asarray(x[:, -1] - x[:, 0])


def outermost(x: Floats) -> Floats:
    """(batch,) how far the block that is furthest from the bottom one lies to its right."""
    return _largest(x - x[:, :1])


def signed_step(x: Floats) -> Floats:
    """(batch,) the largest step from a block to the next, positive to the right."""
    return _largest(np.diff(x, axis=1))


def _largest(values: Floats) -> Floats:
    """(batch,) of every row the value of largest magnitude."""
    return np.asarray(values[np.arange(len(values)), np.abs(values).argmax(axis=1)])


def falls_right(x: Floats, size: tuple[float, float]) -> Mask:
    """(batch,) whether towers of blocks of width 1 fall to the right, and to nowhere else, with an overshoot of that size.

    Args:
        x: (batch, n) centres.
        size: Smallest and largest overshoot, half widths.
    """
    left, right = stack_overshoot(x, 1.0)
    # Only one side may give way anywhere in the tower: otherwise the direction is a race between two falls.
    good = in_bin(right.max(axis=1), size) & (left.max(axis=1) < -AMBIGUITY_BAND)
    # What stays behind must stand without what fell: otherwise a second fall may go the other way.
    weakest = right.argmax(axis=1)
    rest = [np.ones(len(x)), *(stack_margin(x[:, :k], 1.0) for k in range(2, x.shape[1]))]
    return np.asarray(good & (np.stack(rest, axis=1)[np.arange(len(x)), weakest] > AMBIGUITY_BAND))


def profiled_tower(
    rng: np.random.Generator, condition: Condition, profile: Profile, size: tuple[float, float]
) -> Floats:
    """(n,) centres, in blocks, of a tower that falls to the right with an overshoot of that size, and looks as the profile says.

    Args:
        rng: Draws it.
        condition: Of the scene.
        profile: One of `BUILDS`.
        size: Smallest and largest overshoot, half widths.

    Raises:
        Unsatisfiable: If none was found.
    """
    further = FURTHER if size[0] >= MARGIN_BINS[1][0] else 0.0
    out = {"out": (OUT[0] + further, OUT[1] + further)}
    failed = SamplingFailed(f"found no tower of {condition.count} blocks: {condition.code}")
    for _ in range(8):  # some windows leave little room
        windows = (WINDOWS[rng.integers(len(WINDOWS))] if profile.step > 0 else HELD) | out

        def accept(towers: Floats, windows: Windows = windows) -> Mask:
            good = fits(towers, profile, windows)
            chosen = np.flatnonzero(good)
            good[chosen] = falls_right(towers[chosen], size)
            return good

        draw = partial(draw_profile, profile=profile, windows=windows)
        try:
            return first_tower(rng, condition.count, accept, condition.code, 16384, draw)
        except SamplingFailed as error:
            failed = error
    raise failed


def fits(x: Floats, profile: Profile, windows: Windows) -> Mask:
    """(batch,) in which towers all looks point where the profile says, and are as far off the middle as the windows say.

    Args:
        x: (batch, n) centres, in blocks.
        profile: Of towers that fall to the right.
        windows: One of `WINDOWS` or `HELD`, with that of the outermost block.
    """
    steps = np.diff(x, axis=1)
    good: Mask = (profile.step * signed_step(x) > SMALL_STEP) & (np.abs(steps).max(axis=1) <= MAX_STEP)
    good &= in_bin(profile.place * lean_of(x), LEAN) & in_bin(profile.place * top_place(x), windows["top"])
    good &= in_bin(profile.first * steps[:, 0], windows["first"]) & in_bin(profile.last * steps[:, -1], windows["last"])
    return np.asarray(good & in_bin(profile.place * outermost(x), windows["out"]))


def draw_profile(rng: np.random.Generator, count: int, batch: int, *, profile: Profile, windows: Windows) -> Floats:
    """(batch, count) centres of towers whose lowest, uppermost and largest step are those of a profile, the others small.

    Args:
        rng: Draws them.
        count: Blocks of each.
        batch: How many.
        profile: Of towers that fall to the right.
        windows: One of `WINDOWS` or `HELD`, with that of the outermost block.
    """
    steps = rng.uniform(-SMALL_STEP, SMALL_STEP, (batch, count - 1))
    steps[:, 0] = profile.first * rng.uniform(*windows["first"], batch)
    steps[:, -1] = profile.last * rng.uniform(*windows["last"], batch)
    large = rng.integers(1, count - 2, batch)
    steps[np.arange(batch), large] = profile.step * rng.uniform(SMALL_STEP, MAX_STEP, batch)
    return stacked(steps)
