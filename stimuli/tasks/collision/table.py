"""What a table is: smooth balls, gates, how motion is shown, the closed form of the struck ball's path, and when it is decided.

Motion is in the plane of the table: +x is to the right of the image, +y away from the viewer. Balls have no friction, so
that the struck ball leaves along the line of centres. The moving ball is the body "cue", the one that it strikes "target"; further
ones, "bystander1" and so on, are in nobody's way. Gates stand between neighbouring posts (markers "post1", "post2", ...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli import kinematics
from vlm_probe.stimuli.look import draw_colours, draw_surroundings
from vlm_probe.stimuli.scene import COLOURS, Body, Camera, Marker, Quaternion, Scene, Vec3
from vlm_probe.stimuli.shapes import about_z
from vlm_probe.stimuli.simulators import Outcome, Stop
from vlm_probe.stimuli.viewing import extent, project

SHOWN = ("arrow", "ghost", "strip")
"""How the velocity of the moving ball is shown: by an arrow, by pale balls where it was, or by a strip of four moments."""
INTERVAL = 0.07
"""Seconds between two ghosts, and between two moments of a strip."""
MOMENTS = (-3 * INTERVAL, -2 * INTERVAL, -INTERVAL, 0.0)
"""The moments of a strip, seconds; ghosts stand at the first three of them."""
ARROW_TIME = 0.14
"""An arrow is as long as the way that the ball goes in this time, seconds."""
ARROW_WIDTH, ARROW_THICKNESS = 0.036, 0.006
"""Metres."""
GHOST_FADE = 0.62
POST, POST_HEIGHT = 0.016, 0.08
"""Diameter and height of a post, metres."""
CLEARANCE = 0.03
"""Metres between a bystander and anything that moves."""
MAT_DEPTH, MAT_THICKNESS = 0.05, 0.002
"""Extents of the mat that lies in a gate, along y and z, metres."""
FRAME_MARGIN = 0.93
"""Share of the half image within which everything must be."""
GATES = ("left", "middle", "right")
LARGEST = len(COLOURS)
"""Balls at most: each has a colour of its own."""

Floats = npt.NDArray[np.float64]
Point = tuple[float, float]
Way = tuple[Point, Point, float]
"""A straight path: from, to, and the radius of the ball that goes there, metres."""


def plane(v: Vec3) -> Floats:
    """The part (2,) of a vector that lies in the plane of the table."""
    return np.array(v[:2])


def gate_edges(scene: Scene) -> tuple[Floats, float]:
    """The x of the posts from left to right, and the y of the line on which they stand, metres."""
    posts = [m for m in scene.markers if m.name.startswith("post")]
    return np.array(sorted(post.position[0] for post in posts)), sum(post.position[1] for post in posts) / len(posts)


def touch(scene: Scene) -> float:
    """Horizontal distance between the centres of the moving ball and the one that it strikes when they touch, metres."""
    return float(kinematics.reach(scene.body("cue").size[0] / 2, scene.body("target").size[0] / 2))


def struck_crossing(scene: Scene) -> float:
    """Where the struck ball crosses the line of the gates by the closed form: x in metres; NaN if it never does."""
    cue, target = scene.body("cue"), scene.body("target")
    place = plane(target.position)
    leaves = kinematics.struck_direction(plane(cue.position), plane(cue.velocity), place, touch(scene))
    return float(kinematics.crossing(place, leaves, gate_edges(scene)[1]))


def crossed(scene: Scene, outcome: Outcome) -> float:
    """Where the struck ball crossed the line of the gates in a simulation: x in metres; NaN if it did not.

    Args:
        scene: As it was at the start.
        outcome: Of its simulation.
    """
    path = outcome.positions[:, outcome.names.index("target"), :2]
    line = gate_edges(scene)[1]
    beyond = np.flatnonzero(path[:, 1] >= line)
    if not len(beyond) or beyond[0] == 0:
        return math.nan
    before, after = path[beyond[0] - 1], path[beyond[0]]
    return float(kinematics.crossing(before, after - before, line))


def settled(scene: Scene) -> Stop:
    """A stop condition: the struck ball has crossed the line of the gates, or can no longer do so.

    It no longer can when it is further from where it was than any point between the outermost posts and moves elsewhere, or
    when the moving ball has gone past it.
    """
    names = [body.name for body in scene.bodies]
    cue, target = names.index("cue"), names.index("target")
    edges, line = gate_edges(scene)
    start, place = scene.bodies[cue].position[:2], scene.bodies[target].position[:2]
    furthest = 1.2 * max(math.dist((edge, line), place) for edge in edges)
    # Beyond this the moving ball has either struck or missed: the impact is nearer than the centre of the struck ball.
    past = math.dist(place, start) + touch(scene)
    still = 0.1 * scene.bodies[target].size[0]

    def stop(positions: Floats) -> bool:
        moved = math.dist(positions[target, :2], place)
        missed = moved < still and math.dist(positions[cue, :2], start) > past
        return bool(positions[target, 1] >= line or moved > furthest or missed)

    return stop


def in_picture(scene: Scene) -> bool:
    """Whether everything is in the image, the earlier places of moving balls in a strip included."""
    return bool(np.abs(project(scene.camera, extent(scene))[:, :2]).max() < FRAME_MARGIN)


def flat_arrow(direction: Floats) -> Quaternion:
    """Orientation of an arrow that points along `direction` (2,) on the table and is flat like it."""
    _, _, z, w = about_z(90 - float(kinematics.degrees(direction)))
    # After a quarter turn about its own axis, which lays the flat side down.
    half = math.sqrt(0.5)
    return (half * w, half * z, half * z, half * w)


def arrow(ball: Body) -> Marker:
    """The arrow that shows the velocity of a ball: from its front, at the height of its centre."""
    speed = float(np.linalg.norm(plane(ball.velocity)))
    direction = plane(ball.velocity) / speed
    length = speed * ARROW_TIME
    middle = plane(ball.position) + (ball.size[0] / 2 + length / 2) * direction
    return Marker(
        f"arrow of {ball.name}",
        "arrow",
        (round(length, 4), ARROW_THICKNESS, ARROW_WIDTH),
        (round(float(middle[0]), 5), round(float(middle[1]), 5), ball.position[2]),
        "black",
        flat_arrow(direction),
    )


def ghosts(ball: Body) -> tuple[Marker, ...]:
    """Pale balls where a ball was at the earlier moments of a strip, the oldest first."""
    x, y, z = ball.position
    vx, vy, _ = ball.velocity
    return tuple(
        Marker(
            f"ghost{i + 1} of {ball.name}",
            "sphere",
            ball.size,
            (round(x + moment * vx, 5), round(y + moment * vy, 5), z),
            ball.colour,
            fade=GHOST_FADE,
        )
        for i, moment in enumerate(MOMENTS[:-1])
    )


def gates(edges: Sequence[float], line: float) -> tuple[Marker, ...]:
    """Posts at the x of `edges` (metres, from left to right), and a mat in every gate between two neighbours.

    Args:
        edges: The x of the posts, metres, from left to right.
        line: The y on which they stand, metres.
    """
    posts = tuple(
        Marker(f"post{i + 1}", "cylinder", (POST, POST, POST_HEIGHT), (x, line, POST_HEIGHT / 2), "brown")
        for i, x in enumerate(edges)
    )
    mats = tuple(
        Marker(
            f"mat{i + 1}",
            "box",
            (round(b - a - POST, 4), MAT_DEPTH, MAT_THICKNESS),
            (round((a + b) / 2, 4), line, MAT_THICKNESS / 2),
            "grey" if i % 2 else "white",
        )
        for i, (a, b) in enumerate(pairwise(edges))
    )
    return posts + mats


def ball(name: str, place: Point, radius: float, colour: str, mass: float, restitution: float, shade: float) -> Body:
    """A smooth ball that lies still with its centre over `place`, metres.

    Args:
        name: Of the body.
        place: Of its centre on the table, metres.
        radius: Metres.
        colour: A key of `COLOURS`.
        mass: Kilograms.
        restitution: 0 to 1.
        shade: Brightness of the colour.
    """
    size = round(2 * radius, 4)
    return Body(
        name,
        "sphere",
        (size, size, size),
        (round(float(place[0]), 4), round(float(place[1]), 4), round(radius, 4)),
        colour,
        mass,
        friction=0.0,
        restitution=restitution,
        shade=shade,
    )


def moving(body: Body, velocity: Sequence[float] | Floats) -> Body:
    """The ball with a velocity (2,) on the table, metres per second, rounded to a millimetre per second.

    Args:
        body: The ball.
        velocity: (2,) metres per second.
    """
    return replace(body, velocity=(round(float(velocity[0]), 3) + 0.0, round(float(velocity[1]), 3) + 0.0, 0.0))


@dataclass(frozen=True)
class Materials:
    """What the balls of an image are made of: radii (metres), masses (kilograms) and the restitution of each."""

    radii: tuple[float, ...]
    masses: tuple[float, ...]
    restitution: float


def draw_stuff(rng: np.random.Generator, count: int) -> Materials:
    """Balls of 7 to 9 cm whose masses do not follow from their sizes, and give back half to all of an impact's speed.

    Args:
        rng: Draws it.
        count: How many balls.
    """
    radii = np.round(rng.uniform(0.036, 0.046, count), 3)
    masses = np.round(rng.uniform(0.3, 0.6, count), 2)
    return Materials(tuple(radii.tolist()), tuple(masses.tolist()), float(np.round(rng.uniform(0.72, 1.0), 2)))


class Look:
    """Everything about an image that is not physics: colours, camera, light. Drawn once, shared by foils.

    Args:
        rng: Draws it.
        colours: How many are needed.
    """

    def __init__(self, rng: np.random.Generator, colours: int) -> None:
        self.colours = draw_colours(rng, colours)
        self.shades = np.round(rng.uniform(0.9, 1.05, colours), 2).tolist()
        self.camera = Camera(
            target=(float(np.round(rng.uniform(-0.01, 0.01), 3)), float(np.round(rng.uniform(-0.03, -0.02), 3)), 0.0),
            distance=float(np.round(rng.uniform(1.16, 1.22), 3)),
            yaw=float(np.round(rng.uniform(-4, 4), 1)),
            pitch=float(np.round(rng.uniform(-53, -47), 1)),
        )
        surroundings = draw_surroundings(rng)
        self.light, self.background = surroundings.light, surroundings.background

    def scene(self, balls: Sequence[Body], markers: Sequence[Marker] = (), shown: str = "") -> Scene:
        """The scene of these balls and markers; the velocities of all moving balls are shown in the given way.

        Args:
            balls: From the moving one on.
            markers: Of the table, such as posts.
            shown: One of `SHOWN`, or empty.
        """
        signs: list[Marker] = []
        for body in balls:
            if any(body.velocity) and shown == "arrow":
                signs.append(arrow(body))
            elif any(body.velocity) and shown == "ghost":
                signs += ghosts(body)
        return Scene(
            tuple(balls),
            markers=(*markers, *signs),
            floor_friction=0.0,
            camera=self.camera,
            light=self.light,
            background=self.background,
            panels=MOMENTS if shown == "strip" else (),
            shown=shown,
        )


def bystanders(
    rng: np.random.Generator, ways: Sequence[Way], stuff: Materials, look: Look, first: int = 2, tries: int = 200
) -> list[Body] | None:
    """Still balls for which there is no part in what happens: in nobody's way, and clear of each other; None if there is no room.

    Args:
        rng: Draws their places.
        ways: What moves, or lies, where (see `Way`).
        stuff: What they are made of.
        look: Their colours.
        first: Index of the first bystander in `stuff` and `look`.
        tries: Places that are drawn for each.
    """
    taken, found = list(ways), []
    for index in range(first, len(stuff.radii)):
        radius = stuff.radii[index]
        places = np.round(rng.uniform((-0.32, -0.3), (0.32, 0.1), (tries, 2)), 3)
        free = np.ones(tries, dtype=bool)
        for start, end, width in taken:
            a, b = np.array(start), np.array(end)
            along = b - a
            share = np.clip((places - a) @ along / max(float(along @ along), 1e-12), 0, 1)
            free &= np.linalg.norm(places - (a + share[:, None] * along), axis=1) > radius + width + CLEARANCE
        chosen = np.flatnonzero(free)
        if not len(chosen):
            return None
        place = (float(places[chosen[0], 0]), float(places[chosen[0], 1]))
        taken.append((place, place, radius))
        name = f"bystander{index - first + 1}"
        found.append(
            ball(name, place, radius, look.colours[index], stuff.masses[index], stuff.restitution, look.shades[index])
        )
    return found
