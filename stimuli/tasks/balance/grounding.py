"""balance-grounding: what is in the image? Counting, colours, shapes, sides, arms and tilts: perception, no physics."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import numpy as np

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.question import Grammar, IntegerFormat
from vlm_probe.stimuli.scene import Body, Scene
from vlm_probe.stimuli.tasks import SamplingFailed
from vlm_probe.stimuli.tasks.balance.pose import come_down, end_down, levelled
from vlm_probe.stimuli.tasks.balance.seesaw import SHAPE_WORDS, Look, Standing, standing
from vlm_probe.stimuli.tasks.balance.weights import draw_layout
from vlm_probe.stimuli.tasks.grounding import (
    About,
    GroundingTask,
    TrialSpec,
    count,
    exists,
    left_right,
    nth_colour,
    shape,
    words,
)

CLEAR_OF_MIDDLE = 0.02
"""Metres from the fulcrum's middle before an object is asked about as left or right of it."""
CLEAR_ORDER = 0.01
"""Metres by which two distances from the fulcrum differ before it is asked which is the n-th nearest."""
CLEAR_ARM = 0.015
"""Metres between the middles of plank and fulcrum before the longer arm is asked about."""
LARGEST_OFFSET = 0.07
"""Metres between the two at most."""
TOLERANCE = 0.05
"""Share of the plank's length by which a stated distance may be off."""


def objects(scene: Scene) -> list[Body]:
    """What stands on the plank, in scene order, which is the same in the mirror image."""
    on_plank = {thing.body.name for thing in standing(levelled(scene))}
    return [body for body in scene.bodies if body.name in on_plank]


def _outwards(scene: Scene) -> list[Body]:
    """What stands on the plank, the nearest to the fulcrum first."""
    return [scene.body(thing.body.name) for thing in _by_distance(scene)]


def _ordered(scene: Scene) -> bool:
    """Whether no two things are about equally near to the fulcrum."""
    far = [abs(thing.x) for thing in _by_distance(scene)]
    return all(b - a >= CLEAR_ORDER for a, b in pairwise(far))


def _by_distance(scene: Scene) -> list[Standing]:
    return sorted(standing(levelled(scene)), key=lambda thing: abs(thing.x))


def _place(scene: Scene, colour: object) -> float:
    """Of the object of that colour along the plank, from the fulcrum's middle, metres."""
    return next(thing.x for thing in standing(levelled(scene)) if thing.body.colour == colour)


def _offset(scene: Scene) -> float:
    level = levelled(scene)
    return level.body("plank").position[0] - level.body("fulcrum").position[0]


def _side(value: float) -> str:
    return "right" if value > 0 else "left"


def _asked_of_all(scene: Scene) -> list[About]:
    return [{"a": body.colour} for body in objects(scene)]


def _asked_of_sides(scene: Scene) -> list[About]:
    return [{"a": b.colour} for b in objects(scene) if abs(_place(scene, b.colour)) >= CLEAR_OF_MIDDLE]


def _distance_grammar(scene: Scene, order: int) -> tuple[Grammar, str]:
    """Whole centimetres up to the length of the plank, which the prompt states."""
    length = 100 * scene.body("plank").size[0]
    sentence = f" The plank is {length:.3g} cm long. Answer with one whole number of centimetres."
    return IntegerFormat(((0, round(length)),)), sentence


SIDE = TrialSpec(
    (
        "Is the {a} object on the left or on the right of the grey support?",
        "On which side of the grey support does the {a} object stand?",
        "Seen from the grey support, where on the plank is the {a} object: left or right?",
        "Which side of the plank, as seen from the grey support, is the {a} object on?",
    ),
    _asked_of_sides,
    lambda scene, about: _side(_place(scene, about["a"])),
    words("left", "right"),
)
ARM = TrialSpec(
    (
        "On which side of the grey support is the plank longer?",
        "The plank sticks out on both sides of the grey support. On which side further?",
        "Which arm of the plank is the longer one, as seen from the grey support?",
        "To which side does more of the plank reach beyond the grey support?",
    ),
    lambda scene: [{}] if abs(_offset(scene)) >= CLEAR_ARM else [],
    lambda scene, about: _side(_offset(scene)),
    words("left", "right"),
)
POSE = TrialSpec(
    (
        "Which end of the plank is down, the left or the right one, or is the plank level?",
        "How does the plank lie: with its left end down, with its right end down, or level?",
        "Is the plank level, or is its left or its right end on the floor?",
        "Does the plank slope down to the left, slope down to the right, or lie level?",
    ),
    lambda scene: [{}],
    lambda scene, about: {-1: "left", 0: "level", 1: "right"}[end_down(scene)],
    words("left", "level", "right"),
)
DISTANCE = TrialSpec(
    (
        "How many centimetres along the plank is the {a} object from the middle of the grey support?",
        "The {a} object stands on the plank. How far is it from the middle of the grey support?",
        "What is the distance between the {a} object and the middle of the grey support, along the plank?",
        "Measured along the plank, how far from the middle of the grey support does the {a} object stand?",
    ),
    _asked_of_all,
    lambda scene, about: round(100 * abs(_place(scene, about["a"]))),
    _distance_grammar,
    tolerance=lambda scene: TOLERANCE * 100 * scene.body("plank").size[0],
)


class BalanceGrounding(GroundingTask):
    """What is in the image?

    The condition's `build` is the kind of question; ":down" after it shows the plank with one end on the floor.
    """

    name: ClassVar[str] = "balance-grounding"
    family: ClassVar[str] = "balance"
    asks: ClassVar[Mapping[str, TrialSpec]] = {
        "count": count("object", objects),
        "exists": exists("object", objects),
        "left-right": left_right("object", objects),
        "nth-colour": nth_colour("object", _outwards, "from the grey support, nearest first", _ordered),
        "shape": shape("object", objects, lambda body: SHAPE_WORDS[body.shape], tuple(SHAPE_WORDS.values())),
        "side": SIDE,
        "arm": ARM,
        "pose": POSE,
        "distance": DISTANCE,
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Question x number of objects; which end is down is asked twice as often with one end down, since there are two."""
        plain = [Condition(c, build=ask) for ask in self.asks for c in (1, 2, 3, 4) if ask != "left-right" or c > 1]
        down = [Condition(c, build="pose:down") for c in (1, 2, 3, 4)] * 2
        return (*plain, *down)

    def sample_scene(self, rng: np.random.Generator, condition: Condition) -> Scene:
        """Any objects on a plank, without regard to where it would tilt.

        Args:
            rng: Draws it.
            condition: Its count, and its layout.

        Raises:
            Unsatisfiable: If that many objects do not fit.
            ValueError: If there is no such layout.
        """
        layout_name = condition.build.partition(":")[2]
        if layout_name not in ("", "down"):
            raise InvalidInput(f"{self.name} knows no layout {layout_name!r}; use down, or none")
        for _ in range(100):
            layout = draw_layout(rng, condition.count, "size")
            if layout is None:
                continue
            fulcrum = round(float(rng.uniform(-LARGEST_OFFSET, LARGEST_OFFSET)), 3)
            scene = Look(rng).scene(layout.about(fulcrum), "")
            return come_down(scene, 1 if rng.random() < 0.5 else -1) if layout_name else scene
        raise SamplingFailed(f"{condition.count} objects do not fit on the plank")
