"""The plank that has come down on one side: scenes turned about the fulcrum's edge, and turned back."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from vlm_probe.stimuli.scene import Body, Quaternion, Scene
from vlm_probe.stimuli.shapes import about_y


def come_down(scene: Scene, side: int) -> Scene:
    """A level scene as it rests after the plank has tilted: its left (-1) or right (1) end on the floor.

    The plank turns about the edge of the fulcrum on that side until its lower corner touches the floor; friction keeps
    everything where it is on the plank.

    Args:
        scene: With its plank level.
        side: -1 or 1.
    """
    fulcrum, plank = scene.body("fulcrum"), scene.body("plank")
    edge = fulcrum.position[0] + side * fulcrum.size[0] / 2
    end = plank.position[0] + side * plank.size[0] / 2
    return _turned(scene, edge, side * math.degrees(math.asin(fulcrum.size[2] / abs(end - edge))))


def levelled(scene: Scene) -> Scene:
    """The inverse of `come_down`: the scene with its plank level. A level scene is returned as it is."""
    side, fulcrum = end_down(scene), scene.body("fulcrum")
    if side == 0:
        return scene
    return _turned(scene, fulcrum.position[0] + side * fulcrum.size[0] / 2, -plank_angle(scene))


def plank_angle(scene: Scene) -> float:
    """By how much the plank has turned, degrees; positive where its right end is down."""
    _, y, _, w = scene.body("plank").orientation
    return math.degrees(2 * math.atan2(y, w))


def end_down(scene: Scene) -> int:
    """Which end of the plank is down: -1 the left one, 1 the right one, 0 neither."""
    angle = plank_angle(scene)
    return 0 if abs(angle) < 1 else (1 if angle > 0 else -1)


def _turned(scene: Scene, edge: float, degrees: float) -> Scene:
    """Everything but the fulcrum turned about its upper edge at `edge` (x, metres), clockwise as seen."""
    fulcrum = scene.body("fulcrum")
    top = fulcrum.position[2] + fulcrum.size[2] / 2
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def turn(body: Body) -> Body:
        x, y, z = body.position[0] - edge, body.position[1], body.position[2] - top
        # To a hundredth of a micrometre, so that turning back gives the scene it came from.
        position = (round(edge + x * cosine + z * sine, 8), y, round(top - x * sine + z * cosine, 8))
        orientation = tuple(float(np.round(v, 12)) + 0.0 for v in _product(about_y(degrees), body.orientation))
        return replace(body, position=position, orientation=orientation)  # type: ignore[arg-type]

    return replace(scene, bodies=tuple(body if body is fulcrum else turn(body) for body in scene.bodies))


def _product(p: Quaternion, q: Quaternion) -> Quaternion:
    """The turn q followed by the turn p."""
    x1, y1, z1, w1 = p
    x2, y2, z2, w2 = q
    return (
        w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
        w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
        w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
    )
