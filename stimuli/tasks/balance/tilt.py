"""balance-tilt: does the plank tilt to the left, to the right, or stay balanced?"""

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
from vlm_probe.stimuli.statics import seesaw_margin
from vlm_probe.stimuli.tasks import SamplingFailed, Task, simulator_or_default
from vlm_probe.stimuli.tasks.balance.rules import cues, objects_alone, sides, sign_rules, torque_side
from vlm_probe.stimuli.tasks.balance.seesaw import (
    LENGTH,
    MARGIN_BINS,
    SIDES,
    SIZES,
    Floats,
    Layout,
    Load,
    Look,
    half_width,
    load_volume,
    outcome_side,
    scene_margin,
    side_of,
    standing,
    tilted,
    whole,
)
from vlm_probe.stimuli.tasks.balance.weights import STATED, draw_layout, load_colours, weight_sentences

TEXTS = (
    "The plank lies loosely on the grey support and is let go. Does it tilt to the left, tilt to the right, or stay balanced?",
    "Nothing but the grey support holds the plank. Which way will it tip: left or right, or will it stay balanced?",
    "Look at the plank on its grey support. When it is released, does its left end go down, its right end, or is it balanced?",
    "The objects rest on a plank that rests on the grey support. Will the plank tip over to the left, to the right, or "
    "remain balanced?",
)
BUILDS = (("size", "place"), ("size", "weight"), ("colour", "place"), ("text", "weight"))
"""How weight is shown, and what of one object differs within a group. A colour stands for one weight within a prompt, and
where weights are stated the image stays the same."""
MOVED = (
    "Where one object is moved, it has to move by centimetres to carry the common centre of mass across the support, and it can "
    "only move one way for each outcome; where its weight differs instead, this tells little or nothing."
)
TRIES = 3000
"""Planks drawn before a condition counts as impossible."""
PLACES_TRIED = 3
"""Places of the fulcrum under each of them."""
CROWDED = 4
"""Objects on the plank beyond which (in the shift of the count) foils need not leave the rules without physics as they are."""
LARGEST_OFFSET = 0.07
"""Metres between the middles of plank and fulcrum at most."""


class BalanceTilt(Task):
    """Does the plank tilt to the left, to the right, or stay balanced?

    A group is a balanced plank and two foils, in which one object stands elsewhere or has another weight: one tilts to the
    left, one to the right. Whatever each of `SIGN_RULES` says is the same on all three, so that each of these rules is
    right on exactly one of them.
    """

    name: ClassVar[str] = "balance-tilt"
    family: ClassVar[str] = "balance"
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    facts: ClassVar[str] = (
        "A plank on a flat-topped support stays balanced as long as the common centre of mass of the plank and everything "
        "on it lies above the top of the support. If it lies further to the left or to the right, the plank tilts to that "
        "side. Each weight counts in proportion to its distance from the support, and the plank's own weight counts at the "
        "plank's middle. A wedge's weight acts a third of its length from its upright side."
    )
    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "side of the common centre of mass": "It is the physics but for the width of the support, and so right whenever the "
        "plank tilts.",
        "centre of mass of the objects alone": "It is the physics but for the weight of the plank.",
        "mean place of the objects": MOVED,
        "place of the heaviest object": MOVED,
        "linear classifier on 16x16 pixels": MOVED,
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Number of objects x |margin| bin x how weight is shown and what differs within a group."""
        return tuple(
            Condition(count, margin_bin, build, shown=shown)
            for count in (1, 2, 3, 4)
            for margin_bin in MARGIN_BINS
            for shown, build in BUILDS
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """The same cell on the other side of the boundary: both foils tilt, one to each side."""
        low, high = condition.margin_bin
        return replace(condition, margin_bin=(-high, -low))

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene, Scene, Scene]:
        """A balanced plank, and planks that tilt to the left and to the right, which differ from it in one object."""
        low, high = condition.margin_bin
        if not 0 <= low < high <= 1:
            raise SamplingFailed(
                f"{self.name} samples from balanced planks: give a margin bin within 0 to 1, not ({low}, {high})"
            )
        layouts = _triple(rng, condition)
        look = Look(rng)
        scenes = tuple(look.scene(x, condition.shown, load_colours(x, look, condition.shown)) for x in layouts)
        return (scenes[0], scenes[1], scenes[2])

    def margin(self, scene: Scene) -> float:
        """How far inside the edges of the fulcrum's top the common centre of mass lies, half widths; negative: it tilts."""
        return scene_margin(scene)

    def margin_length(self, scene: Scene) -> float:
        """Half the width of the fulcrum's top."""
        return half_width(scene)

    def critical(self, scene: Scene) -> Mapping[str, str | int]:
        """How far the object that turns the plank most is from the support."""
        turning = max(standing(scene), key=lambda thing: abs(thing.x) * thing.mass)
        return {"ask": "distance", "a": turning.body.colour}

    def question(self, scene: Scene, variant: Variant) -> Question:
        """Left, right or balanced, after what is to be known of the weights. Polarity does not apply."""
        options, clause = named_options([Option(word, word) for word in SIDES.values()], variant.order)
        prompt = f"{TEXTS[variant.paraphrase]}{weight_sentences(scene)} Answer with one word: {clause}."
        return Question(prompt + (THINK if variant.style == "think" else ""), ChoiceFormat(options), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """ "left", "right" or "balanced", by simulation."""
        return outcome_side(scene, simulator_or_default(simulator).simulate(scene, stop=tilted(scene)))

    def variants(self) -> tuple[Variant, ...]:
        """Paraphrase x order."""
        return wordings(polarities=1)

    def statics_answer(self, scene: Scene) -> Answer:
        """The side on which the common centre of mass lies beyond the fulcrum's edge."""
        return side_of(scene)

    def cues(self) -> Mapping[str, Callable[[Scene], float]]:
        """Numbers that go with the outcome."""
        return cues()

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Rules without physics, then two that have most of it."""
        return {
            **sign_rules(),
            "centre of mass of the objects alone": objects_alone,
            "side of the common centre of mass": torque_side,
        }


def _triple(rng: np.random.Generator, condition: Condition) -> tuple[Layout, Layout, Layout]:
    """A balanced plank in the bin, one that tilts to the left and one that tilts to the right, in the mirrored bin."""
    low, high = condition.margin_bin
    for _ in range(TRIES if condition.count <= CROWDED else 4 * TRIES):
        drawn = draw_layout(rng, condition.count, condition.shown)
        if drawn is None:
            continue
        index = int(rng.integers(condition.count))
        loads, places = _alternatives(drawn, index, condition)
        if not loads:
            continue
        x, mass, size = _arrays(drawn, index, loads, places)
        centre = (x * mass).sum(axis=1) / mass.sum(axis=1)
        # The fulcrum goes where this object can tilt the plank both ways.
        room = (1 + low) * drawn.half_width
        least, most = max(centre.min() + room, -LARGEST_OFFSET), min(centre.max() - room, LARGEST_OFFSET)
        if least >= most:
            continue
        for fulcrum in np.round(rng.uniform(least, most, PLACES_TRIED), 3).tolist():
            margin = seesaw_margin(centre - fulcrum, drawn.half_width)
            falls = in_bin(margin, (-high, -low))
            masks = [in_bin(margin, (low, high)), falls & (centre < fulcrum), falls & (centre > fulcrum)]
            if not all(mask.any() for mask in masks):
                continue
            among = np.flatnonzero(masks[0] | falls)
            code = np.full(len(centre), -1)
            if condition.count <= CROWDED:
                code[among] = _code(x[among, 1:] - fulcrum, mass[among, 1:], size[among], -fulcrum)
            shared = sorted(set.intersection(*({*code[mask].tolist()} for mask in masks)))
            if not shared:
                continue
            alike = code == shared[int(rng.integers(len(shared)))]
            layout = drawn.about(fulcrum)
            first, left, right = (
                layout.with_load(index, loads[k], round(places[k] - fulcrum, 6))
                for k in (int(rng.choice(np.flatnonzero(mask & alike))) for mask in masks)
            )
            return first, left, right
    raise SamplingFailed(
        f"found no planks with {condition.count} object(s), |margin| in {condition.margin_bin}, that differ in one object's"
        f" {condition.build} (weight shown by {condition.shown})"
    )


def _alternatives(layout: Layout, index: int, condition: Condition) -> tuple[list[Load], list[float]]:
    """What load `index` could be instead, and where: other places on a millimetre grid, other sizes, or other weights."""
    load, place = layout.loads[index], layout.places[index]
    if condition.build == "weight" and condition.shown == "text":
        return [replace(load, mass=mass) for mass in STATED], [place] * len(STATED)
    if load.shape == "sphere":
        return [], []  # a ball and its cradle are two bodies
    if condition.build == "weight":
        sizes = [whole(load.shape, size, load.facing) for size in SIZES[load.shape]]
        free = layout.free(index, np.array([other.width for other in sizes]), place)
        return [other for other, is_free in zip(sizes, free, strict=True) if is_free], [place] * int(free.sum())
    half = round(500 * LENGTH)
    grid = np.arange(-half, half + 1) / 1000
    places: list[float] = grid[layout.free(index, load.width, grid)].tolist()
    return [load] * len(places), places


def _arrays(layout: Layout, index: int, loads: list[Load], places: list[float]) -> tuple[Floats, Floats, Floats]:
    """For k alternatives of one load: (k, 1 + n) centres of mass (m) and masses (kg), the plank first; (k, n) volumes (m3)."""
    k, column = len(loads), index + 1
    centres = [layout.offset, *(place + load.offset for load, place in zip(layout.loads, layout.places, strict=True))]
    x = np.tile(centres, (k, 1))
    mass = np.tile([layout.plank_mass, *(load.mass for load in layout.loads)], (k, 1))
    size = np.tile([load_volume(load.shape, load.size) for load in layout.loads], (k, 1))
    if loads[0] is loads[-1]:
        x[:, column] = np.array(places) + loads[0].offset
    else:
        x[:, column] = np.array(places) + [load.offset for load in loads]
        mass[:, column] = [load.mass for load in loads]
        size[:, index] = [load_volume(load.shape, load.size) for load in loads]
    return x, mass, size


def _code(x: Floats, mass: Floats, size: Floats, offset: float) -> npt.NDArray[np.int64]:
    """(k,) a number that says what all of `SIGN_RULES` say about each alternative."""
    code = np.zeros(len(x), dtype=np.int64)
    for sign in sides(x, mass, size, offset).values():
        code = 3 * code + sign + 1
    return code
