"""collision-outcome: through which of three gates does the struck ball go?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from vlm_probe.stimuli import kinematics
from vlm_probe.stimuli.condition import Condition, in_bin
from vlm_probe.stimuli.question import THINK, Answer, ChoiceFormat, Option, Question, Variant, named_options, wordings
from vlm_probe.stimuli.scene import Body, Scene
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.tasks import SamplingFailed, Task, simulator_or_default
from vlm_probe.stimuli.tasks.collision.table import (
    ARROW_TIME,
    GATES,
    LARGEST,
    MOMENTS,
    SHOWN,
    Floats,
    Look,
    Point,
    Way,
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
    struck_crossing,
    touch,
)

MARGIN_BINS = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.7))
"""|margin| of the designed sets, half widths of a gate: near, middle and far from the boundary."""
BUILDS = ("slid", "turned", "aimed")
"""How the moving ball of a foil differs: it starts next to the other, it comes from another side, it moves elsewhere."""
SMALLEST_ANGLE, WIDEST_ANGLE = 4.0, 54.0
"""Degrees by which the struck ball leaves the moving ball's path: on average at least, and at most. Beyond, a graze decides."""

SEEN = {
    "arrow": "The arrow shows how the {a} ball moves.",
    "ghost": "The pale balls show where the {a} ball was at equal intervals of time before now.",
    "strip": "The four pictures show the table at equal intervals of time, from upper left to lower right.",
}
TEXTS = (
    "The {a} ball strikes the {b} ball. Through which gate does the {b} ball go?",
    "The {a} ball is about to hit the {b} ball. Which gate will the {b} ball pass through?",
    "The {b} ball lies still until the {a} ball strikes it. Between which posts does it go then: which gate?",
    "After the {a} ball has hit it, through which of the three gates does the {b} ball roll?",
)
SIDES = " Left and right are as seen in the picture."


class CollisionOutcome(Task):
    """Through which of the three gates does the struck ball go?

    Items come in threes: the same image except for the moving ball, one for each gate. In a third of them the moving balls move
    alike but start side by side ("slid"), so that only the place of the impact differs; in a third they strike the same spot,
    seen along their path, but come from different sides ("turned"); in a third they start at the same place and move in
    different directions ("aimed"). Whatever looks at one of these alone is right on one member of three where it does not vary.

    The margin is the distance of the place where the struck ball crosses the line of the gates from the nearer boundary of
    the middle gate, in half widths of that gate: positive in an outer gate, negative in the middle one.
    """

    name: ClassVar[str] = "collision-outcome"
    family: ClassVar[str] = "collision"
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    facts: ClassVar[str] = (
        "The balls are smooth and slide without friction. When one ball strikes another, the struck ball leaves along the"
        " straight line from the centre of the striking ball to its own centre at the moment of touch, whatever the masses."
    )

    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "impact offset": "this is half of the physics: without the direction of the motion it leaves the gate open",
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Number of balls x |margin| bin x what differs in the foils x how the motion is shown."""
        return tuple(
            Condition(count, (-high, -low), build, shown=shown)
            for count in (2, 3)
            for low, high in MARGIN_BINS
            for build in BUILDS
            for shown in SHOWN
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """The same cell on the other side of the boundary: the foils of the middle gate are the two outer ones."""
        low, high = condition.margin_bin
        return replace(condition, margin_bin=(-high, -low))

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene, Scene, Scene]:
        """A scene for the middle gate (if the bin is negative; else for an outer one), then one for each other gate."""
        low, high = condition.margin_bin
        if low < 0 < high or (low, high) == (0.0, 0.0):
            raise SamplingFailed(f"{self.name} needs a margin bin on one side of 0, got ({low}, {high})")
        if condition.build not in BUILDS or condition.shown not in SHOWN or not 2 <= condition.count <= LARGEST:
            raise SamplingFailed(
                f"{self.name} has 2 to {LARGEST} balls, builds {BUILDS} and ways to show {SHOWN}, got {condition.code}"
            )
        size = (low, high) if low > 0 else (-high, -low)
        for _ in range(40):
            scenes = _draw(rng, condition, size)
            if scenes is not None:
                left, middle, right = scenes
                if low < 0:
                    return middle, left, right
                # The nearest other gate first, so that `foil_condition` is that of the first foil.
                return (left, middle, right) if rng.random() < 0.5 else (right, middle, left)
        raise SamplingFailed(f"found no three {condition.build} scenes with |margin| in {size}")

    def margin(self, scene: Scene) -> float:
        """Distance from the nearer boundary of the middle gate, in its half widths; positive in an outer gate."""
        x = struck_crossing(scene)
        return float(gate_margin(np.array(x), gate_edges(scene)[0])) if not math.isnan(x) else -1.0

    def critical(self, scene: Scene) -> Mapping[str, str | int]:
        """On which side of the other ball the moving one is, which decides on which side it strikes."""
        cue, target = scene.body("cue"), scene.body("target")
        return {"ask": "left-right", "a": cue.colour, "b": target.colour} if scene.shown != "strip" else {}

    def margin_length(self, scene: Scene) -> float:
        """Half the width of the middle gate."""
        return float(np.ptp(gate_edges(scene)[0][1:3])) / 2

    def question(self, scene: Scene, variant: Variant) -> Question:
        """Left, middle or right, as seen in the image. Polarity does not apply."""
        options, clause = named_options([Option(gate, gate) for gate in GATES], variant.order)
        colours = {"a": scene.body("cue").colour, "b": scene.body("target").colour}
        seen = SEEN[scene.shown] + " " if scene.shown in SEEN else ""
        text = (seen + TEXTS[variant.paraphrase]).format(**colours)
        prompt = f"{text}{SIDES} Answer with one word: {clause}."
        return Question(prompt + (THINK if variant.style == "think" else ""), ChoiceFormat(options), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The gate, by simulation. A struck ball that never crosses the line counts where its path would."""
        outcome = simulator_or_default(simulator).simulate(scene, stop=settled(scene))
        x = crossed(scene, outcome)
        if math.isnan(x):
            x = float(outcome.positions[-1, outcome.names.index("target"), 0])
        return gate_at(x, gate_edges(scene)[0])

    def variants(self) -> tuple[Variant, ...]:
        """Paraphrase x order."""
        return wordings(polarities=1)

    def statics_answer(self, scene: Scene) -> Answer:
        """The gate on the line of centres at the moment of touch."""
        return gate_at(struck_crossing(scene), gate_edges(scene)[0])

    def cues(self) -> Mapping[str, Callable[[Scene], float]]:
        """Numbers that are not the physics, but go with it in badly designed sets."""
        return {
            "direction of the arrow": lambda s: float(kinematics.degrees(plane(s.body("cue").velocity))),
            "impact offset": _offset,
            "place of the start": lambda s: s.body("cue").position[0],
            "start beside the struck ball": lambda s: s.body("cue").position[0] - s.body("target").position[0],
            "place of the struck ball": lambda s: s.body("target").position[0] - _middle(s),
            "straight on": lambda s: _straight(s) - _middle(s),
            "speed": lambda s: math.hypot(*s.body("cue").velocity),
            "ball count": lambda s: len(s.bodies),
        }

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """What the struck ball would do if the impact were simpler than it is."""

        def at(x: Callable[[Scene], float]) -> Callable[[Scene], Answer]:
            return lambda scene: gate_at(x(scene), gate_edges(scene)[0])

        def side(right: Callable[[Scene], bool]) -> Callable[[Scene], Answer]:
            return lambda scene: "right" if right(scene) else "left"

        return {
            "straight on along the arrow": at(_straight),
            "as the arrow, from the struck ball": at(_parallel),
            "from the start through the struck ball": at(_through),
            "gate ahead of the struck ball": at(lambda s: s.body("target").position[0]),
            "gate ahead of the start": at(lambda s: s.body("cue").position[0]),
            "side of the start": side(lambda s: s.body("cue").position[0] > s.body("target").position[0]),
            "opposite side of the start": side(lambda s: s.body("cue").position[0] < s.body("target").position[0]),
            "sideways part of the arrow": side(lambda s: s.body("cue").velocity[0] > 0),
            "away from the side that is hit": side(lambda s: _offset(s) > 0),
            "offset as if the arrow pointed straight up": at(_as_if_upwards),
        }


def gate_at(x: float, edges: Floats) -> str:
    """The gate at `x` metres, between four posts; the outer gates are open to their sides.

    Args:
        x: Metres.
        edges: (4,) the x of the posts from left to right, metres.
    """
    return GATES[int(np.searchsorted(edges[1:3], x))]


def gate_margin(x: Floats, edges: Floats) -> Floats:
    """Distance (...,) of `x` (...,) metres from the nearer inner post, in half widths; positive outside the middle gate.

    Args:
        edges: (..., 4) the x of the posts from left to right, metres.
    """
    middle, half = (edges[..., 1] + edges[..., 2]) / 2, (edges[..., 2] - edges[..., 1]) / 2
    return np.asarray(np.abs(x - middle) / half - 1)


def _draw(rng: np.random.Generator, condition: Condition, size: tuple[float, float]) -> list[Scene] | None:
    """Scenes for the left, the middle and the right gate, or None if none of a batch will do."""
    n = 64
    stuff, look = draw_stuff(rng, condition.count), Look(rng, condition.count)
    radius, other = stuff.radii[:2]
    distance = float(kinematics.reach(radius, other))
    place = np.round(rng.uniform((-0.1, 0.0), (0.1, 0.05), (n, 2)), 3)
    line = np.round(rng.uniform(0.29, 0.33, n), 3)
    half = np.round(rng.uniform(0.050, 0.058, n), 3)
    middle = np.round(rng.uniform(-0.03, 0.03, n), 3)
    speed = rng.uniform(0.5, 0.85, n)
    edges = np.round(middle[:, None] + half[:, None] * np.array([-3, -1, 1, 3]), 3)
    # Where the struck ball is to cross the line, for each of the three gates (n, 3).
    sizes = rng.uniform(*size, (n, 3))
    inner = rng.choice((-1, 1), n) * (1 - sizes[:, 1])
    x = middle[:, None] + half[:, None] * np.stack([-1 - sizes[:, 0], inner, 1 + sizes[:, 2]], axis=1)
    ahead = (line - place[:, 1])[:, None]
    leaves = np.stack([x - place[:, :1], np.broadcast_to(ahead, x.shape)], axis=-1)
    leaves /= np.linalg.norm(leaves, axis=-1, keepdims=True)
    meets = place[:, None] - distance * leaves
    # Room for the arrow between the ball and the impact, or for the ghosts behind it.
    way = radius + speed * ARROW_TIME + rng.uniform(0.005, 0.06, n)
    start, direction = _approaches(rng, condition.build, meets, leaves, way)
    start = np.round(start, 3)
    velocity = np.round(speed[:, None, None] * direction, 3)
    still = np.broadcast_to(place[:, None], start.shape)
    aside = np.abs(kinematics.offset(start, velocity, still)) / distance
    actual = kinematics.crossing(still, kinematics.struck_direction(start, velocity, still, distance), line[:, None])
    margin = gate_margin(actual, edges[:, None]) * np.array([1, -1, 1])
    right_gate = np.sign(actual - middle[:, None])[:, [0, 2]] == np.array([-1, 1])
    # The foils' moving balls must be told apart by eye.
    apart = np.linalg.norm(start[:, 1:] - start[:, :-1], axis=-1) + np.linalg.norm(
        direction[:, 1:] - direction[:, :-1], axis=-1
    )
    good = (
        in_bin(margin, size).all(axis=1)
        & right_gate.all(axis=1)
        & (aside < math.sin(math.radians(WIDEST_ANGLE))).all(axis=1)
        & (np.linalg.norm(start - meets, axis=-1) > (radius + speed * ARROW_TIME)[:, None]).all(axis=1)
        & (direction[..., 1] > 0.3).all(axis=1)
        & (apart > 0.002).all(axis=1)
    )
    for i in np.flatnonzero(good):
        target = ball("target", place[i], other, look.colours[1], stuff.masses[1], stuff.restitution, look.shades[1])
        cues = [
            moving(
                ball("cue", s, radius, look.colours[0], stuff.masses[0], stuff.restitution, look.shades[0]),
                v,
            )
            for s, v in zip(start[i], velocity[i], strict=True)
        ]
        ways = [
            leg
            for cue, v, m, goal in zip(cues, velocity[i], meets[i], x[i], strict=True)
            for leg in _ways(cue, target, v, m, (float(goal), float(line[i])))
        ]
        rest = bystanders(rng, ways, stuff, look)
        if rest is None:
            continue
        signs = gates(edges[i].tolist(), float(line[i]))
        scenes = [look.scene((cue, target, *rest), signs, condition.shown) for cue in cues]
        if all(in_picture(scene) for scene in scenes):
            return scenes
    return None


def _approaches(
    rng: np.random.Generator, build: str, meets: Floats, leaves: Floats, way: Floats
) -> tuple[Floats, Floats]:
    """Starts and unit directions, each (n, 3, 2), of moving balls that touch at `meets` so that the struck ball `leaves`.

    Args:
        way: (n,) metres from the start to the place of touch, in the middle one of the three.
    """
    n = len(meets)
    # By this angle the struck ball leaves to the right of the moving ball's path: never about head-on, so that neither the
    # side that is hit nor the side from which the ball comes differs much among the three.
    angle = rng.choice((-1, 1), n) * rng.uniform(SMALLEST_ANGLE, WIDEST_ANGLE - 2, n)
    if build == "turned":
        # The same spot is hit in all three, seen along the path.
        direction = kinematics.heading(kinematics.degrees(leaves) - angle[:, None])
        return meets - way[:, None, None] * direction, direction
    course = kinematics.heading(kinematics.degrees(leaves[:, 1]) - angle)
    if build == "slid":
        # All three start at the same distance from the viewer.
        behind = (meets[:, 1, 1] - way * course[:, 1])[:, None]
        with np.errstate(divide="ignore"):
            back = (meets[..., 1] - behind) / course[:, None, 1]
        return meets - back[..., None] * course[:, None], np.broadcast_to(course[:, None], meets.shape)
    start = np.broadcast_to((meets[:, 1] - way[:, None] * course)[:, None], meets.shape)
    direction = meets - np.round(start, 3)
    return start, direction / np.linalg.norm(direction, axis=-1, keepdims=True)


def _ways(cue: Body, target: Body, velocity: Floats, meets: Floats, goal: Point) -> list[Way]:
    """The paths of both balls, before and after the impact."""
    place = plane(target.position)
    normal = (place - meets) / np.linalg.norm(place - meets)
    after, _ = kinematics.impact(
        velocity, np.zeros(2), normal, cue.mass, target.mass, cue.restitution * target.restitution
    )
    earliest = plane(cue.position) + MOMENTS[0] * velocity
    # What becomes of the moving ball after a second no longer matters: the struck one is gone.
    legs = ((earliest, meets, cue), (meets, meets + after, cue), (place, goal, target))
    return [((float(a[0]), float(a[1])), (float(b[0]), float(b[1])), body.size[0] / 2) for a, b, body in legs]


def _middle(scene: Scene) -> float:
    return float(gate_edges(scene)[0][1:3].mean())


def _offset(scene: Scene) -> float:
    """How far to the right of the moving ball's path the struck ball lies, as a share of the distance of touch."""
    cue, target = scene.body("cue"), scene.body("target")
    aside = kinematics.offset(plane(cue.position), plane(cue.velocity), plane(target.position))
    return float(aside / touch(scene))


def _straight(scene: Scene) -> float:
    """Where the path of the moving ball, continued, crosses the line of the gates."""
    cue = scene.body("cue")
    return float(kinematics.crossing(plane(cue.position), plane(cue.velocity), gate_edges(scene)[1]))


def _parallel(scene: Scene) -> float:
    """Where the struck ball would cross if it went on as the moving ball came: a head-on impact."""
    velocity = plane(scene.body("cue").velocity)
    return float(kinematics.crossing(plane(scene.body("target").position), velocity, gate_edges(scene)[1]))


def _through(scene: Scene) -> float:
    """Where the line from the start of the moving ball through the struck ball crosses the line of the gates."""
    start, place = plane(scene.body("cue").position), plane(scene.body("target").position)
    return float(kinematics.crossing(place, place - start, gate_edges(scene)[1]))


def _as_if_upwards(scene: Scene) -> float:
    """Where the struck ball would cross if the moving ball, with the offset that it has, came straight from below."""
    angle = math.asin(float(np.clip(_offset(scene), -1, 1)))
    x, y, _ = scene.body("target").position
    return x + (gate_edges(scene)[1] - y) * math.tan(angle)
