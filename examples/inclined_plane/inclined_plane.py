"""An example family: a box on a ramp. Does it slide? The slope is to be seen; the friction is stated in the question.

A box stays on a slope of angle a if and only if tan a is at most the coefficient of friction (Coulomb).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.look import draw_colours, draw_surroundings
from vlm_probe.stimuli.question import THINK, Answer, ChoiceFormat, Option, Question, Variant, named_options
from vlm_probe.stimuli.scene import Body, Camera, Marker, Scene
from vlm_probe.stimuli.shapes import about_y, rotation
from vlm_probe.stimuli.simulators import Simulator, Stop
from vlm_probe.stimuli.tasks import Task, simulator_or_default

RAMP, BOX = (0.42, 0.12, 0.02), (0.08, 0.08, 0.06)
"""Full extents, metres."""
SLOPES = (6, 40)
"""Degrees. A wide range, and margins near the boundary, so that little can be told from the friction alone."""
SLID = 0.02
"""Metres that a box has moved when it counts as sliding."""
MARGIN_BINS = ((0.1, 0.15), (0.15, 0.2))

# Wordings by polarity: whether "yes" means that the box slides, or that it stays.
SLIDE = (
    "Will the box slide down the ramp?",
    "The box is let go on the ramp. Does it slide?",
    "Does the box start to move down the slope?",
    "Is the ramp so steep that the box slides?",
)
STAY = (
    "Will the box stay where it is on the ramp?",
    "The box is let go on the ramp. Does it stay there?",
    "Does the box keep its place on the slope?",
    "Is the ramp so flat that the box stays?",
)


class InclineSlide(Task):
    """Will the box slide down the ramp?

    Pairs have the same picture and differ in the friction, which the question states, so that the picture alone says
    nothing. The stated friction alone says something: a box with much of it stays on more of the slopes.
    """

    name: ClassVar[str] = "incline-slide"
    family: ClassVar[str] = "incline"
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "friction": "it is half of the physics: slopes range over 6 to 40 degrees, and no further",
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Bins of |margin|: near the boundary and a little further off."""
        return tuple(Condition(1, margin_bin, shown="text") for margin_bin in MARGIN_BINS)

    def foil_condition(self, condition: Condition) -> Condition:
        """The same bin on the other side of the boundary."""
        low, high = condition.margin_bin
        return replace(condition, margin_bin=(-high, -low))

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene, Scene]:
        """A ramp with a box that stays or slides, and the same with another friction, so that the outcome is the other."""
        foil = self.foil_condition(condition)
        # Evenly on the scale of the margin, which compares logarithms.
        low, high = (math.log(math.tan(math.radians(slope))) for slope in SLOPES)
        slope = round(math.degrees(math.atan(math.exp(rng.uniform(low, high)))), 1)
        frictions = [_friction(rng, slope, bounds) for bounds in (condition.margin_bin, foil.margin_bin)]
        scene = _scene(rng, slope, frictions[0])
        box = scene.body("box")
        other = replace(box, friction=frictions[1])
        return scene, replace(scene, bodies=tuple(other if body is box else body for body in scene.bodies))

    def margin(self, scene: Scene) -> float:
        """(friction - tan a) / (friction + tan a), -1 to 1: positive where the box stays."""
        friction, slope = scene.body("box").friction * scene.body("ramp").friction, _slope(scene)
        return (friction - slope) / (friction + slope)

    def question(self, scene: Scene, variant: Variant) -> Question:
        """A yes/no question with the friction stated; polarity 0 asks whether it slides, 1 whether it stays."""
        yes, no = ("slides", "stays") if variant.polarity == 0 else ("stays", "slides")
        options, clause = named_options((Option("yes", yes), Option("no", no)), variant.order)
        friction = scene.body("box").friction * scene.body("ramp").friction
        stated = f" The coefficient of friction between them is {friction:.3f}."
        prompt = f"{(SLIDE, STAY)[variant.polarity][variant.paraphrase]}{stated} Answer with one word: {clause}."
        return Question(prompt + (THINK if variant.style == "think" else ""), ChoiceFormat(options), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """ "slides" or "stays", by simulation."""
        outcome = simulator_or_default(simulator).simulate(scene, stop=_slid(scene))
        return "slides" if outcome.decided else "stays"

    def statics_answer(self, scene: Scene) -> Answer:
        """ "stays" or "slides", by the sign of the margin."""
        return "stays" if self.margin(scene) > 0 else "slides"

    def cues(self) -> Mapping[str, Callable[[Scene], float]]:
        """Half of the physics each."""
        return {"slope": _slope, "friction": lambda scene: scene.body("box").friction}

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """A ramp above 15 degrees is steep, and things slide on it."""
        return {"steep ramps": lambda scene: "slides" if _slope(scene) > math.tan(math.radians(15)) else "stays"}


def _slope(scene: Scene) -> float:
    """Tangent of the ramp's angle, from its orientation, whichever way it rises."""
    along = rotation(scene.body("ramp").orientation)[:, 0]
    return float(abs(along[2] / along[0]))


def _friction(rng: np.random.Generator, slope: float, bounds: tuple[float, float]) -> float:
    """A coefficient, in thousandths, that puts a box on that slope (degrees) inside the margin's bounds."""
    margin = rng.uniform(bounds[0] + 0.01, bounds[1] - 0.01)
    return round(math.tan(math.radians(slope)) * (1 + margin) / (1 - margin), 3)


def _slid(scene: Scene) -> Stop:
    """Stop when the box has moved by `SLID`."""
    index = [body.name for body in scene.bodies].index("box")
    start = np.array(scene.body("box").position)
    return lambda positions: bool(np.linalg.norm(positions[index] - start) > SLID)


def _scene(rng: np.random.Generator, slope: float, friction: float) -> Scene:
    """A ramp that rises to the left (its mirror image rises to the right), with a box on its upper half."""
    turn, place = about_y(slope), float(np.round(rng.uniform(-0.08, 0.0), 3))
    axes = rotation(turn)
    # The lowest edge of the ramp lies just above the floor.
    height = RAMP[0] / 2 * math.sin(math.radians(slope)) + RAMP[2] / 2 * math.cos(math.radians(slope)) + 0.001
    centre = np.array((0.0, 0.0, round(height, 6)))
    on_top = centre + axes @ np.array((place, 0.0, (RAMP[2] + BOX[2]) / 2))
    ramp = Body("ramp", "box", RAMP, tuple(centre.tolist()), "grey", friction=1.0, orientation=turn, fixed=True)
    x, y, z = np.round(on_top, 6).tolist()
    colour = draw_colours(rng, 1)[0]
    box = Body("box", "box", BOX, (x, y, z), colour, friction=friction, orientation=turn)
    # To be seen only: the ramp is fixed, but it should look as if something held it.
    top = np.round(centre + axes @ np.array((-0.15, 0.0, -RAMP[2] / 2)), 6).tolist()
    post = Marker("post", "box", (0.03, 0.08, top[2] - 0.006), (top[0], 0.0, (top[2] - 0.006) / 2), "brown")
    around = draw_surroundings(rng)
    camera = Camera((0.0, 0.0, 0.13), yaw=float(np.round(rng.uniform(-4, 4), 1)))
    return Scene(
        (ramp, box), (), (post,), camera=camera, light=around.light, background=around.background, shown="text"
    )
