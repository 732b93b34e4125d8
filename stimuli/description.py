"""A scene in words: what an observer with perfect perception would see, and nothing that follows from it."""

from __future__ import annotations

import math

from vlm_probe.stimuli.scene import Body, Marker, Scene
from vlm_probe.stimuli.shapes import rotation

KINDS = {"box": "box", "cylinder": "cylinder", "sphere": "ball", "wedge": "wedge", "cradle": "cradle"}
STILL = 1e-6
"""Metres per second, or metres, below which something counts as none."""


def describe(scene: Scene) -> str:
    """The bodies of a scene with their shapes, colours, sizes, places, tilts and motions, in plain English.

    Centimetres; x runs to the right of the image from its middle, z upwards from the floor, y (where it matters) away from
    the viewer. Masses are left out, as in the image: where a question states them, it does so itself. Markers are
    described only where they carry something that is not a property of a body (lines on the floor, gates).
    """
    deep = any(abs(body.position[1]) > STILL or abs(body.velocity[1]) > STILL for body in scene.bodies)
    axes = "x is centimetres to the right of the middle of the picture, z centimetres above the floor"
    if deep:
        axes += ", y centimetres away from the viewer"
    sentences = [_body(body, scene, deep) for body in scene.bodies]
    sentences += [_marker(marker, scene, deep) for marker in scene.markers if _says_something(marker)]
    return f"Here is an exact description of the scene ({axes}). " + " ".join(sentences)


def _body(body: Body, scene: Scene, deep: bool) -> str:
    size = _size(body.shape, body.size)
    text = f"A {body.colour} {KINDS[body.shape]}, {size}, has its centre of mass at {_place(body, scene, deep)}"
    tilt = _tilt(body)
    if tilt:
        text += f", and is tilted by {abs(tilt):.0f} degrees {'clockwise' if tilt > 0 else 'counter-clockwise'}"
    if body.shape == "wedge":
        upright = "left" if rotation(body.orientation)[0, 0] > 0 else "right"
        text += f"; its upright side is on the {upright}"
    if body.fixed:
        text += "; it cannot move"
    if any(abs(v) > STILL for v in body.velocity):
        x, y, z = (100 * v for v in body.velocity)
        parts = [f"{abs(x):.0f} cm/s to the {'right' if x > 0 else 'left'}"] if abs(x) >= 0.5 else []
        if abs(y) >= 0.5:
            parts.append(f"{abs(y):.0f} cm/s {'away from' if y > 0 else 'towards'} the viewer")
        if abs(z) >= 0.5:
            parts.append(f"{abs(z):.0f} cm/s {'up' if z > 0 else 'down'}")
        text += "; it moves at " + " and ".join(parts)
    return text + "."


def _marker(marker: Marker, scene: Scene, deep: bool) -> str:
    return f"A {marker.colour} mark, {_size(marker.shape, marker.size)}, lies at {_place(marker, scene, deep)}."


def _says_something(marker: Marker) -> bool:
    """Arrows and ghosts repeat a motion that is described with its body; distractors are not part of the scene."""
    return marker.shape == "box" and marker.fade == 0 and not marker.name.startswith("distractor")


def _place(thing: Body | Marker, scene: Scene, deep: bool) -> str:
    x, y, z = thing.position
    parts = [f"x = {100 * (x - scene.camera.target[0]) + 0.0:.1f}"]
    if deep:
        parts.append(f"y = {100 * y + 0.0:.1f}")
    return ", ".join([*parts, f"z = {100 * z + 0.0:.1f}"])


def _size(shape: str, size: tuple[float, float, float]) -> str:
    if shape == "sphere":
        return f"{100 * size[0]:.1f} cm in diameter"
    x, _, z = (100 * extent for extent in size)
    return f"{x:.1f} cm wide and {z:.1f} cm high"


def _tilt(body: Body) -> float:
    """Degrees by which a body is turned in the image plane, clockwise; 0 for what does not look turned."""
    if body.shape == "sphere":
        return 0.0
    turn = rotation(body.orientation)
    # A wedge that points to the left is turned half about z, which is no tilt.
    degrees = math.degrees(math.atan2(turn[0, 2], turn[2, 2]))
    return 0.0 if abs(degrees) < 0.5 else degrees
