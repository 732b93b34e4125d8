"""collision-launch: did the one ball make the other move? Michotte's launching, with gaps and delays. Held out: never trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from vlm_probe.stimuli import kinematics
from vlm_probe.stimuli.condition import Condition, in_bin
from vlm_probe.stimuli.question import THINK, Answer, ChoiceFormat, Option, Question, Variant, named_options
from vlm_probe.stimuli.scene import PANELS, Body, Push, Scene
from vlm_probe.stimuli.simulators import FRAME_INTERVAL, Simulator
from vlm_probe.stimuli.tasks import SamplingFailed, Task, simulator_or_default
from vlm_probe.stimuli.tasks.collision.table import (
    LARGEST,
    Floats,
    Look,
    Materials,
    Way,
    ball,
    bystanders,
    draw_stuff,
    in_picture,
    moving,
    plane,
    touch,
)

MARGIN_BINS = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.7))
"""|margin| of the designed sets: faint, middling and plain."""
BUILDS = ("gap", "delay", "both")
"""What is wrong with the foil: a gap in space, a delay in time, or both."""
INTERVALS = (8, 14)
"""Shortest and longest time between two images of a strip, in `FRAME_INTERVAL`s."""
AFTER_SECOND = (2, 5)
"""How many frames after the second image the second ball sets off, at least and at most."""
GAP_UNIT = 2.0
"""Ball diameters of gap that make a margin of -1."""
DELAY_UNIT = 0.6
"""Seconds of delay that make a margin of -1."""
SHORTEST_DELAY = 3
"""Frames: with less, no departure would leave the first ball stopped by the second image."""
CLOSEST = 0.0005
"""Metres left between the balls of a delay, so that stopping next to a ball never pushes it."""

OVERLAP = 2e-5
"""Metres by which the balls of a launch overlap on the step of the engine on which they meet. Engines only notice a touch on a
step, and then push apart what overlaps: were it more, the first ball would rebound."""

STRIP = (
    "The four pictures show the same table at equal intervals of time, from upper left to lower right. At first the {a} ball"
    " moves and the {b} ball lies still; in the end the {b} ball moves. "
)
# Wordings by polarity: whether "yes" means that the first ball was the cause, or that it was not.
CAUSED = (
    "Does the {a} ball make the {b} ball move?",
    "Did the {a} ball launch the {b} ball by hitting it?",
    "Is the {b} ball set in motion by the {a} ball?",
    "Would the {b} ball have stayed where it was without the {a} ball?",
)
ALONE = (
    "Does the {b} ball set off for a reason other than the {a} ball?",
    "Did the {b} ball start without being launched by the {a} ball?",
    "Is the {b} ball set in motion by something other than the {a} ball?",
    "Would the {b} ball have moved in the same way without the {a} ball?",
)


class CollisionLaunch(Task):
    """Does the first ball make the second one move?

    In a launch the first ball strikes the second, stops dead and the second sets off at once. In the foils the second ball
    sets off at the same moment and moves in the same way, but by a hidden push of its own; the first is stopped by another
    hidden push, short of the second (a gap), next to it but too early (a delay), or both. Only the place at which the first
    ball starts differs within a pair, so that the motion of the second tells nothing.

    The margin of a launch is the share of the first ball's speed that the second one gets, which is 0 where the first moves
    nothing; the restitution equals the ratio of the masses, so that the first always stops. The margin of the others is
    negative: the gap in `GAP_UNIT` diameters and the delay in `DELAY_UNIT` seconds, added as at right angles. Both balls of a pair
    are in the same bin of |margin|.
    """

    name: ClassVar[str] = "collision-launch"
    family: ClassVar[str] = "collision"
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    held_out: ClassVar[bool] = True
    facts: ClassVar[str] = (
        "A ball that is struck sets off at the moment at which it is touched. A ball that sets off before it is touched, or some"
        " time after, is moved by something else."
    )
    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "comes as far as the other ball": "this is half of what there is to see: it tells gaps, but not delays",
        "distance in the first picture": "a ball that arrives early, by a delay, has less far to go",
        "distance in the second picture": "this is half of what there is to see: balls that touch there show a delay",
        "distance left where it stopped": "this is half of what there is to see: it tells gaps, but not delays",
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Number of balls x |margin| bin x what is wrong with the foil."""
        return tuple(
            Condition(count, margin_bin, build, shown="strip")
            for count in (2, 3)
            for margin_bin in MARGIN_BINS
            for build in BUILDS
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """The same cell on the other side: no launch."""
        low, high = condition.margin_bin
        return replace(condition, margin_bin=(-high, -low))

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene, Scene]:
        """A launch and its foil (the other way round if the bin is negative)."""
        low, high = condition.margin_bin
        if low < 0 < high or (low, high) == (0.0, 0.0):
            raise SamplingFailed(f"{self.name} needs a margin bin on one side of 0, got ({low}, {high})")
        if condition.build not in BUILDS or not 2 <= condition.count <= LARGEST:
            raise SamplingFailed(f"{self.name} has 2 to {LARGEST} balls and builds {BUILDS}, got {condition.code}")
        size = (low, high) if low > 0 else (-high, -low)
        for _ in range(200):
            pair = _draw(rng, condition, size)
            if pair is not None:
                return pair if low > 0 else (pair[1], pair[0])
        raise SamplingFailed(f"found no launch with a foil by {condition.build} with |margin| in {size}")

    def margin(self, scene: Scene) -> float:
        """Share of its speed that the first ball gives the second; or minus the size of gap and delay (see the class)."""
        event = event_of(scene)
        if event.pushed:
            return -math.hypot(event.gap / (GAP_UNIT * scene.body("target").size[0]), event.delay / DELAY_UNIT)
        return event.share

    def question(self, scene: Scene, variant: Variant) -> Question:
        """A yes/no question; polarity 0 asks whether the first ball was the cause, 1 whether it was not."""
        yes, no = ("caused", "alone") if variant.polarity == 0 else ("alone", "caused")
        options, clause = named_options((Option("yes", yes), Option("no", no)), variant.order)
        text = STRIP + (CAUSED, ALONE)[variant.polarity][variant.paraphrase]
        text = text.format(a=scene.body("cue").colour, b=scene.body("target").colour)
        prompt = f"{text} Answer with one word: {clause}."
        return Question(prompt + (THINK if variant.style == "think" else ""), ChoiceFormat(options), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """ "caused" or "alone": whether the second ball moves otherwise, by the last image, when the first is taken away."""
        simulator = simulator_or_default(simulator)
        actual, without = _simulated_way(scene, simulator), _simulated_way(_without_cue(scene), simulator)
        changed = float(np.linalg.norm(actual - without))
        return "caused" if changed > 0.5 * float(np.linalg.norm(actual)) else "alone"

    def statics_answer(self, scene: Scene) -> Answer:
        """ "caused" or "alone", by the sign of the margin."""
        return "caused" if self.margin(scene) > 0 else "alone"

    def cues(self) -> Mapping[str, Callable[[Scene], float]]:
        """Numbers that can be read from single images, or from the motion of one ball."""
        return {
            "distance in the first picture": lambda s: _distance(s, 0),
            "distance in the second picture": lambda s: _distance(s, 1),
            "distance in the last picture": lambda s: _distance(s, 3),
            "distance left where it stopped": lambda s: round(event_of(s).gap / s.body("target").size[0], 1),
            "way of the second ball": _way_of_second,
            "speed of the first ball": lambda s: math.hypot(*s.body("cue").velocity),
            "ball count": lambda s: len(s.bodies),
        }

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Looks at one image or one ball."""

        def caused(test: Callable[[Scene], bool]) -> Callable[[Scene], Answer]:
            return lambda scene: "caused" if test(scene) else "alone"

        return {
            "some picture shows them touching": caused(lambda s: min(_distance(s, i) for i in range(4)) < 0.1),
            "comes as far as the other ball": caused(lambda s: event_of(s).gap < 0.1 * s.body("target").size[0]),
            "they come from the same side of the picture": caused(lambda s: s.body("cue").position[0] < 0),
        }


@dataclass(frozen=True)
class Event:
    """What happens between the two balls, in closed form.

    Attributes:
        pushed: Whether the second ball is moved by a push of its own.
        gap: Metres between the surfaces, seen from above, when the second ball sets off.
        delay: Seconds from the stop of the first ball to the start of the second.
        share: Speed of the second ball after an impact, as a share of the first one's before; 0 if it is missed.
    """

    pushed: bool
    gap: float
    delay: float
    share: float


def event_of(scene: Scene) -> Event:
    """Gap, delay and share of a launch or a foil. Pushes are short and count as blows in the middle of their time."""
    cue, target = scene.body("cue"), scene.body("target")
    own = [push for push in scene.pushes if push.body == "target"]
    brakes = [push for push in scene.pushes if push.body == "cue"]
    start, place, velocity = plane(cue.position), plane(target.position), plane(cue.velocity)
    meets = kinematics.meeting(start, velocity, place, touch(scene))
    if not own:
        if np.isnan(meets).any():
            return Event(False, math.nan, 0.0, 0.0)
        normal = (place - meets) / np.linalg.norm(place - meets)
        _, after = kinematics.impact(
            velocity, np.zeros(2), normal, cue.mass, target.mass, cue.restitution * target.restitution
        )
        return Event(False, 0.0, 0.0, float(np.linalg.norm(after) / np.linalg.norm(velocity)))
    departs = min(_middle(push) for push in own)
    stops = min((_middle(push) for push in brakes), default=departs)
    place_then = _cue_at(scene, departs)
    return Event(True, max(0.0, float(np.linalg.norm(place - place_then)) - touch(scene)), departs - stops, 0.0)


def _middle(push: Push) -> float:
    return push.start + push.duration / 2


def _cue_at(scene: Scene, time: float) -> Floats:
    """Where (2,) the first ball is at a time if it touches nothing, with pushes as blows in the middle of their time."""
    cue = scene.body("cue")
    place = plane(cue.position) + time * plane(cue.velocity)
    for push in scene.pushes:
        if push.body == "cue" and time > _middle(push):
            place = place + (time - _middle(push)) * push.duration / cue.mass * plane(push.force)
    return place


def _target_at(scene: Scene, time: float) -> Floats:
    """Where (2,) the second ball is at a time, by the closed form."""
    cue, target = scene.body("cue"), scene.body("target")
    start, place, velocity = plane(cue.position), plane(target.position), plane(cue.velocity)
    own = [push for push in scene.pushes if push.body == "target"]
    for push in own:
        place = place + max(0.0, time - _middle(push)) * push.duration / target.mass * plane(push.force)
    if own:
        return place
    meets = kinematics.meeting(start, velocity, place, touch(scene))
    met = float(np.linalg.norm(meets - start) / np.linalg.norm(velocity))
    return place + max(0.0, time - met) * event_of(scene).share * velocity


def _distance(scene: Scene, picture: int) -> float:
    """Distance between the surfaces of the balls in one of the images, in diameters of the second ball."""
    time = scene.panels[picture]
    cue = _cue_at(scene, time)
    if not event_of(scene).pushed:
        # After the impact the first ball stays where it was.
        body, target = scene.body("cue"), scene.body("target")
        start, velocity, place = plane(body.position), plane(body.velocity), plane(target.position)
        meets = kinematics.meeting(start, velocity, place, touch(scene))
        if float((cue - meets) @ velocity) > 0:
            cue = meets
    apart = float(np.linalg.norm(_target_at(scene, time) - cue)) - touch(scene)
    return apart / scene.body("target").size[0]


def _way_of_second(scene: Scene) -> float:
    """How far the second ball goes between the first image and the last, in its diameters."""
    moved = _target_at(scene, scene.panels[-1]) - _target_at(scene, scene.panels[0])
    return float(np.linalg.norm(moved)) / scene.body("target").size[0]


def _without_cue(scene: Scene) -> Scene:
    """The counterfactual: the first ball, and what pushes it, taken away."""
    return replace(
        scene,
        bodies=tuple(body for body in scene.bodies if body.name != "cue"),
        pushes=tuple(push for push in scene.pushes if push.body != "cue"),
    )


def _simulated_way(scene: Scene, simulator: Simulator) -> Floats:
    """How far (2,) the second ball has come by the last image, metres."""
    last = max(scene.panels)
    outcome = simulator.simulate(scene, min_duration=last, max_duration=last)
    return np.array(outcome.displacement()[outcome.names.index("target"), :2])


def _draw(rng: np.random.Generator, condition: Condition, size: tuple[float, float]) -> tuple[Scene, Scene] | None:
    """A launch and its foil, or None if the draw does not fit."""
    share = float(rng.uniform(*size))
    gap, delay = _flaw(rng, condition.build, size)
    drawn, look = draw_stuff(rng, condition.count), Look(rng, condition.count)
    radius, mass = drawn.radii[0], round(drawn.masses[0] / 2, 2)
    # With this ratio of the masses the first ball stops dead when it strikes.
    stuff = Materials(
        (radius, radius, *drawn.radii[2:]),
        (mass, round(mass / share, 4), *drawn.masses[2:]),
        round(math.sqrt(share), 5),
    )
    speed = float(rng.uniform(0.35, 0.65))
    course = kinematics.heading(90 + float(np.round(rng.uniform(-25, 25))))
    velocity = np.round(speed * course, 3)
    # A first ball that arrives early must have stopped by the second image, so that the delay shows; and it must move in the
    # first. Strips of different pace make it start near and far in launches as in delays.
    pace = int(rng.integers(max(INTERVALS[0], delay), INTERVALS[1] + 1))
    latest = min(AFTER_SECOND[1], delay - 1) if delay else AFTER_SECOND[1]
    departs = (pace + int(rng.integers(AFTER_SECOND[0], latest + 1)) + 0.5) * FRAME_INTERVAL
    moments = tuple(round(picture * pace * FRAME_INTERVAL, 6) for picture in range(PANELS))
    last = moments[-1] - departs
    distance = 2 * radius
    approach = distance + speed * departs
    # The whole event is somewhere about the middle of the image.
    middle = rng.uniform((-0.05, -0.15), (0.05, 0.15))
    place = np.round(middle + (approach - share * speed * last) / 2 * course, 3)
    target = _ball("target", 1, place, stuff, look)
    pairs: list[tuple[Body, tuple[Push, ...]]] = []
    early = departs - delay * FRAME_INTERVAL
    short = max(CLOSEST, gap * GAP_UNIT * 2 * radius)
    starts = (
        place - ((distance - OVERLAP) * course + departs * velocity),
        place - ((distance + short) * course + early * velocity),
    )
    for start, flawed in zip(starts, (False, True), strict=True):
        cue = moving(replace(_ball("cue", 0, place, stuff, look), position=(*_exact(start), radius)), velocity)
        pushes: tuple[Push, ...] = ()
        if flawed:
            pushes = (
                _blow(cue, -velocity, early, early),
                _blow(target, share * velocity, departs, 0.0),
            )
        pairs.append((cue, pushes))
    after = place + share * last * velocity
    ways: list[Way] = [
        (_point(plane(pairs[0][0].position)), _point(place), radius),
        (_point(plane(pairs[1][0].position)), _point(place), radius),
        (_point(place), _point(after), radius),
    ]
    rest = bystanders(rng, ways, stuff, look)
    if rest is None:
        return None
    scenes = [
        replace(
            look.scene((cue, target, *rest)),
            pushes=pushes,
            panels=moments,
            shown="strip",
        )
        for cue, pushes in pairs
    ]
    task = CollisionLaunch()
    fits = in_bin(task.margin(scenes[0]), size) and in_bin(-task.margin(scenes[1]), size)
    end = replace(scenes[0], bodies=(replace(target, position=(*_point(after), target.position[2])),))
    if fits and all(in_picture(scene) for scene in (*scenes, end)):
        return scenes[0], scenes[1]
    return None


def _flaw(rng: np.random.Generator, build: str, size: tuple[float, float]) -> tuple[float, int]:
    """Gap (in `GAP_UNIT` diameters) and delay (in frames) of a foil whose |margin| lies in the bin."""
    whole = float(rng.uniform(*size))
    if build == "gap":
        return whole, 0
    step = FRAME_INTERVAL / DELAY_UNIT
    if build == "delay":
        return 0.0, max(SHORTEST_DELAY, round(whole / step))
    delay = max(SHORTEST_DELAY, round(whole * float(rng.uniform(0.5, 0.85)) / step))
    return math.sqrt(max(0.0, whole**2 - (delay * step) ** 2)), delay


def _ball(name: str, index: int, place: Floats, stuff: Materials, look: Look) -> Body:
    return ball(
        name,
        _point(place),
        stuff.radii[index],
        look.colours[index],
        stuff.masses[index],
        stuff.restitution,
        look.shades[index],
    )


def _blow(body: Body, change: Floats, time: float, travelled: float) -> Push:
    """The push of one frame about `time` that changes the velocity of a body by `change` (2,), metres per second.

    Args:
        travelled: Seconds that the body has moved with its first velocity by then.
    """
    x, y = (plane(body.position) + travelled * plane(body.velocity)).tolist()
    fx, fy = (body.mass * change / FRAME_INTERVAL).tolist()
    start = round(time / FRAME_INTERVAL - 0.5) * FRAME_INTERVAL
    return Push(
        body.name,
        (round(fx, 6) + 0.0, round(fy, 6) + 0.0, 0.0),
        (round(x, 6), round(y, 6), body.position[2]),
        round(start, 9),
        round(FRAME_INTERVAL, 9),
    )


def _exact(v: Floats) -> tuple[float, float]:
    """On a grid of a micrometre, not of a millimetre: the place decides on which step of the engine the balls meet."""
    return round(float(v[0]), 6), round(float(v[1]), 6)


def _point(v: Floats) -> tuple[float, float]:
    return float(v[0]), float(v[1])
