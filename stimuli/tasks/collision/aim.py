"""collision-aim: in which direction must the ball be shot so that the other one goes through the gate?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_probe.stimuli import kinematics
from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.question import THINK, Answer, IntegerFormat, Question, Variant, wordings
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND, SamplingFailed, Score, Task, simulator_or_default
from vlm_probe.stimuli.tasks.collision.table import (
    ARROW_TIME,
    LARGEST,
    Floats,
    Look,
    Point,
    Way,
    arrow,
    ball,
    bystanders,
    crossed,
    draw_stuff,
    gate_edges,
    gates,
    in_picture,
    moving,
    plane,
    settled,
    touch,
)

RANGE = (-60, 60)
"""Whole degrees that an answer may state."""
WORKING = (2, 8)
"""An item has at least and at most this many answers that work, out of 121."""
REWARD_WIDTH = 30
"""Degrees from the nearest working answer at which the partial reward has fallen to 0."""
STRATA = ((6, 14), (15, 23), (24, 32), (33, 41))
"""Degrees: size of the needed answer, by condition."""
WIDEST_ANGLE = 50.0
"""Degrees by which the struck ball leaves the moving ball's path at most."""
WORST = -10.0
"""Margin of a scene in which a shot straight at the struck ball sends it nowhere near the gate."""

TEXTS = (
    "The {a} ball will be shot at the {b} ball. In which direction must it go so that the {b} ball then rolls through the"
    " gate between the two posts?",
    "Shoot the {a} ball so that it strikes the {b} ball and the {b} ball goes between the two posts. At which angle?",
    "At what angle must the {a} ball be launched to send the {b} ball through the gate?",
    "The {b} ball has to pass between the posts after the {a} ball has hit it. How must the shot of the {a} ball be turned?",
)
ASK = (
    " The arrow shows a shot at 0 degrees, straight away from you; positive degrees turn the shot to the right, negative to the"
    " left, as measured from above on the table."
    f" Answer with one whole number of degrees from {RANGE[0]} to {RANGE[1]}."
)


class CollisionAim(Task):
    """At which angle must the ball be shot so that the ball that it strikes goes through the gate?

    A shot straight at the struck ball sends it past the gate: the moving ball has to touch it on the side that faces away
    from the gate. Items are stratified by the size and the sign of the angle that is needed.

    The margin is that of the shot straight at the struck ball: the distance by which it misses the gate, in half widths,
    negative since it misses; `WORST` at the lowest.
    """

    name: ClassVar[str] = "collision-aim"
    family: ClassVar[str] = "collision"
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "action"
    facts: ClassVar[str] = (
        "The balls are smooth and slide without friction. The struck ball leaves along the straight line from the centre of the"
        " striking ball to its own centre at the moment of touch."
    )

    def conditions(self) -> tuple[Condition, ...]:
        """Number of balls x size of the angle that is needed, in degrees (`build`)."""
        return tuple(
            Condition(count, (WORST, -AMBIGUITY_BAND), f"{low}to{high}deg", shown="arrow")
            for count in (2, 3)
            for low, high in STRATA
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """Actions have no foils but their mirror images, whose answers have the other sign."""
        return condition

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene]:
        """A table on which a shot of that size is needed, and one straight at the struck ball fails."""
        if not 2 <= condition.count <= LARGEST:
            raise SamplingFailed(f"{self.name} has 2 to {LARGEST} balls, got {condition.count}")
        low, high = (int(part) for part in condition.build.removesuffix("deg").split("to"))
        for _ in range(60):
            scene = _draw(rng, condition, low, high)
            if scene is not None:
                return (scene,)
        raise SamplingFailed(f"found no table on which a shot at {condition.build} is needed")

    def margin(self, scene: Scene) -> float:
        """By how much a shot straight at the struck ball misses the gate, in its half widths (negative: it misses)."""
        place = plane(scene.body("target").position)
        edges, line = gate_edges(scene)
        x = float(kinematics.crossing(place, place - plane(scene.body("cue").position), line))
        if math.isnan(x):
            return WORST
        return max(WORST, 1 - abs(x - float(edges.mean())) / (float(np.ptp(edges)) / 2))

    def margin_length(self, scene: Scene) -> float:
        """Half the width of the gate."""
        return float(np.ptp(gate_edges(scene)[0])) / 2

    def question(self, scene: Scene, variant: Variant) -> Question:
        """One whole number of degrees. Polarity and order do not apply."""
        text = TEXTS[variant.paraphrase].format(a=scene.body("cue").colour, b=scene.body("target").colour)
        return Question(
            text + ASK + (THINK if variant.style == "think" else ""), IntegerFormat((RANGE,), "degrees"), variant.style
        )

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The angle in the middle of those that work, degrees; 0 if none does."""
        answers = working_angles(scene)
        return answers[len(answers) // 2] if answers else 0

    def score(self, scene: Scene, question: Question, answer: Answer, simulator: Simulator | None = None) -> Score:
        """Reward 1 if the struck ball goes through the gate, in simulation; otherwise up to 0.5 for coming close.

        Partial reward: 0.5 (1 - d / `REWARD_WIDTH`)^2, d being the distance to the nearest working answer in degrees.
        """
        if not isinstance(answer, int):
            return Score(False, 0.0, {"truth": None})
        shot = self.apply(scene, answer)
        outcome = simulator_or_default(simulator).simulate(shot, stop=settled(shot))
        edges, _ = gate_edges(scene)
        x = crossed(shot, outcome)
        if edges[0] < x < edges[-1]:
            return Score(True, 1.0, {"distance_deg": 0}, outcome)
        distance = min((abs(answer - a) for a in working_angles(scene)), default=999)
        return Score(False, 0.5 * max(0.0, 1 - distance / REWARD_WIDTH) ** 2, {"distance_deg": distance}, outcome)

    def apply(self, scene: Scene, answer: Answer) -> Scene:
        """The scene with the shot, and its arrow, turned by `answer` degrees to the right."""
        if not isinstance(answer, int):
            raise TypeError(f"an answer is one whole number of degrees, got {answer!r}")
        cue = scene.body("cue")
        velocity = plane(cue.velocity)
        aim = float(kinematics.degrees(velocity)) + answer
        vx, vy = (float(np.linalg.norm(velocity)) * kinematics.heading(aim)).tolist()
        # Rounded to a nanometre per second, so that a turned scene hashes alike however the sum was formed.
        turned = replace(cue, velocity=(round(vx, 9) + 0.0, round(vy, 9) + 0.0, cue.velocity[2]))
        name = arrow(cue).name
        return replace(
            scene,
            bodies=tuple(turned if body is cue else body for body in scene.bodies),
            markers=tuple(
                replace(arrow(turned), size=m.size, colour=m.colour) if m.name == name else m for m in scene.markers
            ),
        )

    def variants(self) -> tuple[Variant, ...]:
        """One per paraphrase."""
        return wordings(polarities=1, orders=1)

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Whole degrees that need no physics of impacts."""

        def toward(x: Callable[[Scene], Floats]) -> Callable[[Scene], Answer]:
            return lambda scene: _whole(_relative(scene, x(scene)))

        return {
            "straight at the struck ball": toward(_to_target),
            "straight at the gate": toward(lambda s: _gate(s) - plane(s.body("cue").position)),
            "as the struck ball must go": toward(lambda s: _gate(s) - plane(s.body("target").position)),
            "at the side of the ball that faces the gate": toward(_wrong_side),
            "at the spot that must be hit": toward(_spot),
            "as far to the other side as the gate is": _bounced,
        }

    def certify(self, scene: Scene, question: Question) -> dict[str, Any]:
        """Which answers work, in simulation: those that the closed form names, and their neighbours."""
        near = {a + d for a in working_angles(scene) for d in (-1, 0, 1)}
        tried = sorted(a for a in near if RANGE[0] <= a <= RANGE[1])
        return {"working": [a for a in tried if self.score(scene, question, a).success]}


def shot_crossings(scene: Scene, angles: Floats) -> Floats:
    """Where the struck ball crosses the line of the gate, x in metres (...,), after shots at `angles` degrees (...,).

    NaN where the shot misses, or the struck ball goes elsewhere.

    Args:
        scene: The scene.
        angles: (...,) degrees by which the shot is turned to the right.
    """
    cue, target = scene.body("cue"), scene.body("target")
    start, place = plane(cue.position), plane(target.position)
    velocity = kinematics.heading(float(kinematics.degrees(plane(cue.velocity))) + np.asarray(angles, dtype=float))
    leaves = kinematics.struck_direction(start, velocity, place, touch(scene))
    return kinematics.crossing(place, leaves, gate_edges(scene)[1])


def working_angles(scene: Scene) -> list[int]:
    """Whole degrees at which the closed form sends the struck ball through the gate, ascending."""
    angles = np.arange(RANGE[0], RANGE[1] + 1, dtype=np.float64)
    x, edges = shot_crossings(scene, angles), gate_edges(scene)[0]
    return [int(a) for a in angles[(x > edges[0]) & (x < edges[-1])]]


def _draw(rng: np.random.Generator, condition: Condition, low: int, high: int) -> Scene | None:
    """A scene on the condition, or None if none of a batch will do."""
    n = 32
    stuff, look = draw_stuff(rng, condition.count), Look(rng, condition.count)
    radius, other = stuff.radii[:2]
    distance = float(kinematics.reach(radius, other))
    place = np.round(rng.uniform((-0.1, 0.0), (0.1, 0.05), (n, 2)), 3)
    line = np.round(rng.uniform(0.29, 0.33, n), 3)
    middle = np.round(rng.uniform(-0.16, 0.16, n), 3)
    half = np.round(rng.uniform(0.046, 0.056, n), 3)
    speed = float(np.round(rng.uniform(0.6, 0.85), 3))
    way = rng.uniform(radius + speed * ARROW_TIME, 0.24, n)
    shot = (rng.choice((-1, 1), n) * rng.integers(low, high + 1, n)).astype(np.float64)
    leaves = np.stack([middle - place[:, 0], line - place[:, 1]], axis=1)
    leaves /= np.linalg.norm(leaves, axis=1, keepdims=True)
    meets = place - distance * leaves
    start = np.round(meets - way[:, None] * kinematics.heading(shot), 3)
    bend = np.abs((kinematics.degrees(leaves) - shot + 180) % 360 - 180)
    for i in np.flatnonzero(bend < WIDEST_ANGLE):
        made = [
            ball(name, spot, stuff.radii[k], look.colours[k], stuff.masses[k], stuff.restitution, look.shades[k])
            for k, (name, spot) in enumerate((("cue", start[i]), ("target", place[i])))
        ]
        cue, target = moving(made[0], (0.0, speed)), made[1]
        signs = gates([float(middle[i] - half[i]), float(middle[i] + half[i])], float(line[i]))
        plain = look.scene((cue, target), signs, "arrow")
        answers = working_angles(plain)
        if not WORKING[0] <= len(answers) <= WORKING[1] or answers[len(answers) // 2] != shot[i]:
            continue
        if answers[0] * answers[-1] <= 0 or CollisionAim().margin(plain) > condition.margin_bin[1] - 1e-9:
            continue
        goal = (float(middle[i]), float(line[i]))
        rest = bystanders(rng, _ways(cue.position[:2], place[i], meets[i], goal, radius, other), stuff, look)
        if rest is None:
            continue
        scene = look.scene((cue, target, *rest), signs, "arrow")
        # The arrow must be on the way to nothing, so that it shows 0 degrees and no more.
        if in_picture(scene) and _straight_to_target_fails(scene):
            return scene
    return None


def _ways(start: Point, place: Floats, meets: Floats, goal: Point, radius: float, other: float) -> list[Way]:
    """The paths of both balls, with the moving ball's beyond the impact on either side of its course."""
    target: Point = (float(place[0]), float(place[1]))
    touch_at: Point = (float(meets[0]), float(meets[1]))
    direction = meets - np.array(start)
    beyond: Point = tuple((meets + 0.25 * direction / np.linalg.norm(direction)).tolist())
    # The arrow stands on the table too.
    arrow_end: Point = (start[0], start[1] + 0.14)
    return [(start, touch_at, radius), (touch_at, beyond, radius), (target, goal, other), (start, arrow_end, 0.02)]


def _straight_to_target_fails(scene: Scene) -> bool:
    """Whether neither the whole degree straight at the struck ball nor its neighbours work."""
    straight = _whole(_relative(scene, _to_target(scene)))
    return not set(working_angles(scene)) & {straight - 1, straight, straight + 1}


def _gate(scene: Scene) -> Floats:
    """The middle of the gate (2,), metres."""
    edges, line = gate_edges(scene)
    return np.array([float(edges.mean()), line])


def _to_target(scene: Scene) -> Floats:
    return plane(scene.body("target").position) - plane(scene.body("cue").position)


def _wrong_side(scene: Scene) -> Floats:
    """From the start to where the moving ball would touch if it came from the gate's side."""
    place = plane(scene.body("target").position)
    leaves = _gate(scene) - place
    return place + touch(scene) * leaves / np.linalg.norm(leaves) - plane(scene.body("cue").position)


def _spot(scene: Scene) -> Floats:
    """From the start to the spot on the struck ball that faces away from the gate: forgets that the moving ball has a size."""
    target = scene.body("target")
    leaves = _gate(scene) - plane(target.position)
    spot = plane(target.position) - target.size[0] / 2 * leaves / np.linalg.norm(leaves)
    return np.asarray(spot - plane(scene.body("cue").position))


def _bounced(scene: Scene) -> Answer:
    """As far from the line to the struck ball as its way to the gate is, on the other side: a mirror."""
    straight = _relative(scene, _to_target(scene))
    onward = _relative(scene, _gate(scene) - plane(scene.body("target").position))
    return _whole(2 * straight - onward)


def _relative(scene: Scene, direction: Floats) -> float:
    """Degrees by which `direction` (2,) lies to the right of the shot that the scene shows."""
    return float(kinematics.degrees(direction) - kinematics.degrees(plane(scene.body("cue").velocity)))


def _whole(angle: float) -> int:
    return max(RANGE[0], min(RANGE[1], round(angle)))
