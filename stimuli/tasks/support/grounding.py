"""support-grounding: what is in the image? Posts, loads, colours, shapes and the arrow: perception, no physics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.scene import Body, Scene, mirror
from vlm_probe.stimuli.tasks.grounding import (
    GroundingTask,
    TrialSpec,
    count,
    exists,
    left_right,
    nth_colour,
    shape,
    words,
)
from vlm_probe.stimuli.tasks.support.structure import (
    THICKNESS,
    Floats,
    Load,
    Look,
    Post,
    Structure,
    direction,
    loads,
    posts,
)

GAP = 0.012
"""Metres between two things side by side."""


def _things(scene: Scene) -> Sequence[Body]:
    return [*posts(scene), *loads(scene)]


def _posts_by_place(scene: Scene) -> Sequence[Body]:
    return sorted(posts(scene), key=lambda b: b.position[0])


def _shape_word(body: Body) -> str:
    return "cylinder" if body.shape == "cylinder" else "box"


def _pushed(scene: Scene) -> str:
    body = scene.pushes[0].body
    return body if body == "plank" else "post" if body.startswith("post") else "load"


ARROW_SIDE = TrialSpec(
    (
        "To which side does the arrow point?",
        "In which direction does the arrow push?",
        "Seen in the picture, does the arrow point to the left or to the right?",
        "Which way does the arrow go?",
    ),
    lambda scene: [{}] if scene.pushes else [],
    lambda scene, about: "right" if direction(scene) > 0 else "left",
    words("left", "right"),
)
ARROW_TARGET = TrialSpec(
    (
        "What does the tip of the arrow touch: the plank, a post under it or a load on it?",
        "At what does the arrow point: at the plank, at a post below it or at a load above it?",
        "Which part is pushed by the arrow: the plank, a post below it or a load on top of it?",
        "Is the arrow aimed at the plank, at a post that carries it or at a load that lies on it?",
    ),
    lambda scene: [{}] if scene.pushes else [],
    lambda scene, about: _pushed(scene),
    words("plank", "post", "load"),
)
ABOVE = TrialSpec(
    (
        "Is the {a} object above or below the plank?",
        "Where is the {a} object: above or below the plank?",
        "Does the {a} object lie above the plank or stand below it?",
        "Look at the {a} object. Is it above the plank or below the plank?",
    ),
    lambda scene: [{"a": b.colour} for pair in _paired(scene) for b in pair],
    lambda scene, about: "above" if any(b.colour == about["a"] for b in loads(scene)) else "below",
    words("above", "below"),
)


def _paired(scene: Scene) -> list[tuple[Body, Body]]:
    """Every post with every load, so that above and below are asked for equally often."""
    return [(post, load) for post in posts(scene) for load in loads(scene)]


class SupportGrounding(GroundingTask):
    """What is in the image? The condition's `build` names the kind of question."""

    name: ClassVar[str] = "support-grounding"
    family: ClassVar[str] = "support"
    asks: ClassVar[Mapping[str, TrialSpec]] = {
        "count": count("coloured object", _things),
        "posts": count("post", posts),
        "exists": exists("object", _things),
        "left-right": left_right("object", _things),
        "nth-colour": nth_colour("post", _posts_by_place),
        "shape": shape("load", loads, _shape_word, ("box", "cylinder")),
        "above": ABOVE,
        "arrow-side": ARROW_SIDE,
        "arrow-target": ARROW_TARGET,
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Question x number of posts and loads together."""
        return tuple(Condition(number, build=ask) for ask in self.asks for number in (2, 3, 4, 5))

    def sample_scene(self, rng: np.random.Generator, condition: Condition) -> Scene:
        """One to three posts, a plank, one to three loads on it, and an arrow at one of them; pushed from either side.

        Raises:
            ValueError: If there are to be fewer than two or more than five posts and loads.
        """
        if not 2 <= condition.count <= 5:
            raise InvalidInput(f"{self.name} has 2 to 5 posts and loads, not {condition.count}")
        standing = int(rng.integers(max(1, condition.count - 3), min(3, condition.count - 1) + 1))
        number = condition.count - standing
        height, length = np.round(rng.uniform((0.12, 0.28), (0.18, 0.34)), 2).tolist()
        post_widths, load_widths = (
            np.round(rng.uniform(0.03, high, n), 3) for high, n in ((0.07, standing), (0.08, number))
        )
        heights = np.round(rng.uniform(0.04, 0.08, number), 3)
        weights = np.round(rng.uniform(4, 12, standing + number), 1).tolist()
        shapes = [("box", "cylinder")[int(rng.integers(2))] for _ in range(number)]
        post_places, load_places = (_spread(rng, w, length) for w in (post_widths, load_widths))
        pushed = ("plank", "load1", "post1")[int(rng.integers(3))]
        first = int(np.argmin(load_places))
        # The load and the post behind all others are the ones at which an arrow can point.
        order = [first, *(i for i in range(number) if i != first)]
        share = float(rng.uniform(0.25, 0.75))
        push = {
            "plank": height + THICKNESS / 2,
            "load1": height + THICKNESS + share * heights[first],
            "post1": share * height,
        }
        structure = Structure(
            posts=tuple(Post(x, w, n) for x, w, n in zip(post_places, post_widths.tolist(), weights, strict=False)),
            height=height,
            length=length,
            plank_weight=3.0,
            loads=tuple(
                Load(load_places[i], float(load_widths[i]), float(heights[i]), weights[standing + i], shapes[i])
                for i in order
            ),
            pushed=pushed,
            push_height=round(float(push[pushed]), 3),
            force=float(np.round(rng.uniform(1, 6), 1)),
        )
        scene = Look(rng, condition.count).scene(structure, [f"load{i + 1}" for i in range(number)])
        return mirror(scene) if rng.random() < 0.5 else scene


def _spread(rng: np.random.Generator, widths: Floats, length: float) -> list[float]:
    """Places of things of these widths side by side within a length, from left to right, metres."""
    free = length - float(widths.sum()) - GAP * (len(widths) - 1)
    gaps = rng.dirichlet(np.ones(len(widths) + 1)) * free
    left = -length / 2 + np.cumsum(gaps[:-1]) + np.concatenate([[0.0], np.cumsum(widths[:-1] + GAP)])
    return [float(x) for x in np.round(left + widths / 2, 3)]
