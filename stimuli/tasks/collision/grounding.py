"""collision-grounding: what is in the image, which ball moves, and where to? Perception, no physics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vlm_probe.stimuli import kinematics
from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.question import Answer, Question, Variant
from vlm_probe.stimuli.scene import COLOURS, Body, Scene
from vlm_probe.stimuli.tasks import SamplingFailed
from vlm_probe.stimuli.tasks.collision.table import (
    ARROW_TIME,
    MOMENTS,
    SHOWN,
    Floats,
    Look,
    ball,
    draw_stuff,
    in_picture,
    moving,
    plane,
)
from vlm_probe.stimuli.tasks.grounding import (
    About,
    GroundingTask,
    TrialSpec,
    count,
    exists,
    left_right,
    nth_colour,
    words,
)
from vlm_probe.stimuli.viewing import MIN_SEPARATION

APART = 0.13
"""Metres between the centres of any two balls at any moment shown."""
CLEAR_TURN = 20.0
"""Degrees from the boundary between two directions within which it is not asked which of them it is."""

SEEN = {
    "arrow": "An arrow shows how one of the balls moves.",
    "ghost": "Pale balls, which do not count, show where one of the balls was before.",
    "strip": "The four pictures show the same balls at four moments, from upper left to lower right.",
}


def _balls(scene: Scene) -> tuple[Body, ...]:
    return scene.bodies


def _in_order(scene: Scene) -> list[Body]:
    """The balls from left to right."""
    return sorted(scene.bodies, key=lambda body: body.position[0])


def _apart(scene: Scene) -> bool:
    """Whether no two balls are too close to tell which of them is farther left."""
    gaps = np.diff([body.position[0] for body in _in_order(scene)])
    return bool((gaps >= MIN_SEPARATION).all())


def _heading(scene: Scene) -> float:
    """Direction of the moving ball, degrees to the right of straight away from the viewer."""
    return float(kinematics.degrees(plane(scene.body("cue").velocity)))


def _aside(scene: Scene) -> list[About]:
    """Asked where the ball does not move straight away from or towards the viewer."""
    return [{}] if CLEAR_TURN <= abs(_heading(scene)) <= 180 - CLEAR_TURN else []


def _depthwise(scene: Scene) -> list[About]:
    """Asked where the ball does not move straight to a side."""
    return [{}] if abs(abs(_heading(scene)) - 90) >= CLEAR_TURN else []


def _side(scene: Scene, about: About) -> Answer:
    return "right" if _heading(scene) > 0 else "left"


def _upwards(scene: Scene, about: About) -> Answer:
    return "up" if abs(_heading(scene)) < 90 else "down"


class CollisionGrounding(GroundingTask):
    """What is in the image, which ball moves, and where to?"""

    name: ClassVar[str] = "collision-grounding"
    family: ClassVar[str] = "collision"
    asks: ClassVar[Mapping[str, TrialSpec]] = {
        "count": count("ball", _balls),
        "nth-colour": nth_colour("ball", _in_order, clear=_apart),
        "left-right": left_right("ball", _balls),
        "exists": exists("ball", _balls),
        "mover": TrialSpec(
            (
                "Which ball moves?",
                "What colour is the ball that moves?",
                "One ball is in motion. What is its colour?",
                "Name the colour of the moving ball.",
            ),
            lambda scene: [{}],
            lambda scene, about: scene.body("cue").colour,
            words(*COLOURS),
        ),
        "heading": TrialSpec(
            (
                "Does the moving ball move to the left or to the right?",
                "To which side of the picture does the moving ball go?",
                "Seen in the picture, does the ball in motion go left or right?",
                "Towards which side is the moving ball on its way?",
            ),
            _aside,
            _side,
            words("left", "right"),
        ),
        "up-down": TrialSpec(
            (
                "Does the moving ball move up or down in the picture?",
                "Seen in the picture, is the moving ball on its way up or down?",
                "Towards which edge of the picture does the moving ball go: up or down?",
                "Does the ball in motion get higher up or lower down in the picture?",
            ),
            _depthwise,
            _upwards,
            words("up", "down"),
        ),
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Kind of question x number of balls x how the motion is shown."""
        return tuple(
            Condition(number, build=ask, shown=shown) for ask in self.asks for number in (2, 3, 4) for shown in SHOWN
        )

    def ask_about(self, scene: Scene, about: Mapping[str, str | int], variant: Variant) -> Question:
        """As in every grounding task, with a sentence before it that says how the motion is shown."""
        found = super().ask_about(scene, about, variant)
        return Question(f"{SEEN[scene.shown]} {found.prompt}", found.grammar, found.style, found.about)

    def sample_scene(self, rng: np.random.Generator, condition: Condition) -> Scene:
        """Balls anywhere on the table, one of which moves to anywhere and meets nothing in what is shown."""
        if not 1 <= condition.count < len(COLOURS):
            raise SamplingFailed(f"{self.name} has 1 to {len(COLOURS) - 1} balls, got {condition.count}")
        if condition.shown not in SHOWN:
            raise SamplingFailed(f"{self.name} shows motion by one of {', '.join(SHOWN)}, got {condition.shown!r}")
        # Drawn once: trails of balls that move up leave the image more often, and directions must stay balanced.
        speed = rng.uniform(0.5, 0.85)
        velocity = speed * kinematics.heading(rng.uniform(-180, 180))
        for _ in range(300):
            places = np.round(rng.uniform((-0.28, -0.24), (0.28, 0.24), (condition.count, 2)), 3)
            # In a strip the ball moves past others, so what is left and right must hold at all its moments; and no other ball
            # may lie under the arrow.
            moments = (*MOMENTS, ARROW_TIME + 0.04 / speed)
            shown = [places + np.outer(np.arange(condition.count) == 0, moment * velocity) for moment in moments]
            if not all(_separate(p) for p in shown) or len({tuple(np.argsort(p[:, 0])) for p in shown}) > 1:
                continue
            stuff, look = draw_stuff(rng, condition.count), Look(rng, condition.count)
            balls = [
                ball(
                    "cue" if i == 0 else f"bystander{i}",
                    (float(x), float(y)),
                    stuff.radii[i],
                    look.colours[i],
                    stuff.masses[i],
                    stuff.restitution,
                    look.shades[i],
                )
                for i, (x, y) in enumerate(places)
            ]
            scene = look.scene([moving(balls[0], velocity), *balls[1:]], (), condition.shown)
            if in_picture(scene):
                return scene
        raise SamplingFailed(f"{self.name}: found no room for {condition.count} balls")


def _separate(places: Floats) -> bool:
    """Whether all balls at `places` (n, 2) are clear of each other."""
    gaps = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(len(places), 1)]
    return bool((gaps > APART).all())
