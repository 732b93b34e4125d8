"""The second engine: MuJoCo, written independently of Bullet, to cross-check outcomes and to serve where Bullet is missing.

Its images come from OpenGL (without a screen EGL or OSMesa, whichever is there) and differ from Bullet's in their pixels, so one set is never drawn by both.
"""

from __future__ import annotations

import math
import os
import sys
from ctypes.util import find_library
from importlib.metadata import version
from xml.sax.saxutils import quoteattr

if sys.platform == "linux" and not any(os.environ.get(name) for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")):
    # Without a screen MuJoCo's own choice, GLFW, draws nothing; it reads this when it is imported, so it is decided before.
    for _library in ("EGL", "OSMesa"):
        if find_library(_library) is not None:
            os.environ["MUJOCO_GL"] = _library.lower()
            break

import mujoco
import numpy as np

from vlm_probe.stimuli.errors import NotInstalled
from vlm_probe.stimuli.palettes import paint
from vlm_probe.stimuli.scene import Body, Marker, Scene
from vlm_probe.stimuli.shapes import cradle_boards, mesh
from vlm_probe.stimuli.simulators import (
    BACKGROUND,
    FLOOR,
    FRAME_INTERVAL,
    MAX_DURATION,
    MIN_DURATION,
    Frame,
    Outcome,
    Poses,
    Stop,
)
from vlm_probe.stimuli.simulators.loop import REST_SPEED, Floats, run, steps_per_frame
from vlm_probe.stimuli.viewing import things

STEP = 1 / 480
"""Coarsest integration step, seconds."""
CONTACT = 'solref="0.0045 1" solimp="0.99 0.999 0.0001"'
"""Contacts about as stiff as the step allows: soft ones let a tower near its boundary tilt and fall."""
BOUNCE_STEPS = 10
"""Steps that an elastic contact lasts: fewer, and the integrator loses or adds energy."""


class MuJoCoSimulator:
    """MuJoCo physics and its OpenGL renderer. Implements `vlm_probe.stimuli.simulators.Simulator`."""

    name = "mujoco"
    renderer = "OpenGL"

    def version(self) -> str:
        """Engine and version."""
        return f"mujoco {version('mujoco')}"

    def simulate(
        self,
        scene: Scene,
        *,
        stop: Stop | None = None,
        min_duration: float = MIN_DURATION,
        max_duration: float = MAX_DURATION,
    ) -> Outcome:
        """See `vlm_probe.stimuli.simulators.Simulator`."""
        per_frame = steps_per_frame(scene, STEP)
        model = mujoco.MjModel.from_xml_string(model_xml(scene, step=FRAME_INTERVAL / per_frame))
        return run(_World(model, scene), scene, per_frame, stop, min_duration, max_duration)

    def render(self, scene: Scene, size: int, poses: Poses | None = None) -> Frame:
        """A square image of the scene at its start, or with the bodies at `poses`.

        Raises:
            NotInstalled: If no OpenGL is to be had; the message says what to install.
        """
        model = mujoco.MjModel.from_xml_string(model_xml(scene, size=size))
        data = mujoco.MjData(model)
        if poses is not None:
            free = [body for body in scene.bodies if not body.fixed]
            order = [i for i, body in enumerate(scene.bodies) if not body.fixed]
            for body, index in zip(free, order, strict=True):
                address = model.jnt_qposadr[model.body(body.name).jntadr[0]]
                data.qpos[address : address + 3] = poses.positions[index]
                data.qpos[address + 3 : address + 7] = poses.orientations[index][[3, 0, 1, 2]]
        mujoco.mj_forward(model, data)
        try:
            renderer = mujoco.Renderer(model, size, size)
        except Exception as error:
            raise NotInstalled(
                f"MuJoCo found no OpenGL to draw with ({error}): install EGL or OSMesa (Debian: libegl1 libegl-mesa0), or draw"
                " with pybullet"
            ) from error
        with renderer:
            camera = _camera(scene)
            renderer.update_scene(data, camera)
            rgb = renderer.render().copy()
            renderer.enable_depth_rendering()
            renderer.update_scene(data, camera)
            depth = renderer.render().astype(np.float32)
            renderer.disable_depth_rendering()
            renderer.enable_segmentation_rendering()
            renderer.update_scene(data, camera)
            geoms = renderer.render()[..., 0]
        segmentation = np.full(geoms.shape, BACKGROUND, dtype=np.int32)
        segmentation[geoms == model.geom("floor").id] = FLOOR
        for index, thing in enumerate(things(scene)):
            address, count = model.body(thing.name).geomadr[0], model.body(thing.name).geomnum[0]
            segmentation[(geoms >= address) & (geoms < address + count)] = index
        rgb[segmentation == BACKGROUND] = np.round(np.array(scene.background.sky) * 255)
        return Frame(rgb, segmentation, depth)


def model_xml(scene: Scene, *, size: int = 64, step: float = STEP) -> str:
    """The scene in MuJoCo's own format (MJCF), for images of `size` pixels and steps of `step` seconds.

    Args:
        scene: The scene.
        size: Edge of its images, pixels.
        step: Of the integration, seconds.
    """
    light = scene.light
    everything = things(scene)
    meshes = "".join(_mesh_xml(thing) for thing in everything if thing.shape in ("wedge", "arrow"))
    bodies = "".join(_body_xml(thing, scene.palette) for thing in everything)
    floor = " ".join(map(str, scene.background.floor))
    toward = " ".join(str(-v) for v in light.direction)
    return f"""<mujoco>
  <option timestep="{step!r}" gravity="0 0 {-scene.gravity!r}" cone="elliptic" impratio="10" integrator="implicitfast"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <visual>
    <global offwidth="{size}" offheight="{size}" fovy="{scene.camera.fov!r}"/>
    <headlight ambient="{light.ambient} {light.ambient} {light.ambient}" diffuse="0 0 0" specular="0 0 0"/>
  </visual>
  <asset>{meshes}</asset>
  <worldbody>
    <light directional="true" dir="{toward}" diffuse="{light.diffuse} {light.diffuse} {light.diffuse}"
      specular="0 0 0" castshadow="{str(light.shadow).lower()}"/>
    <geom name="floor" type="plane" size="4 4 0.1" rgba="{floor} 1"/>
    {bodies}
  </worldbody>
  <contact>{_pairs_xml(scene, step)}</contact>
</mujoco>"""


def _body_xml(thing: Body | Marker, palette: str) -> str:
    """A body, or a marker, which has no mass and touches nothing."""
    x, y, z, w = thing.orientation
    colour = " ".join(f"{channel:.4f}" for channel in paint(thing, palette))
    free = isinstance(thing, Body) and not thing.fixed
    pieces = cradle_boards(thing.size) if thing.shape == "cradle" else [((0.0, 0.0, 0.0), thing.size)]
    whole = sum(extents[0] * extents[1] * extents[2] for _, extents in pieces)
    geoms = []
    for number, (centre, extents) in enumerate(pieces):
        half = [extent / 2 for extent in extents]
        if thing.shape in ("wedge", "arrow"):
            form = f'type="mesh" mesh={quoteattr(thing.name)}'
        else:
            kind = "box" if thing.shape == "cradle" else thing.shape
            sizes = {"box": half, "sphere": half[:1], "cylinder": [half[0], half[2]]}[kind]
            form = f'type="{kind}" size="{" ".join(map(repr, sizes))}"'
        share = extents[0] * extents[1] * extents[2] / whole
        mass = f'mass="{thing.mass * share!r}"' if isinstance(thing, Body) else 'mass="0"'
        place = " ".join(map(repr, centre))
        geoms.append(
            f'<geom name={quoteattr(_geom_name(thing.name, number))} {form} pos="{place}" {mass} rgba="{colour} 1"/>'
        )
    place = " ".join(map(repr, thing.position))
    return (
        f'<body name={quoteattr(thing.name)} pos="{place}" quat="{w!r} {x!r} {y!r} {z!r}">'
        + ("<freejoint/>" if free else "")
        + "".join(geoms)
        + "</body>"
    )


def _mesh_xml(thing: Body | Marker) -> str:
    vertices, triangles = mesh(thing.shape, thing.size)
    points = " ".join(repr(float(v)) for v in vertices.ravel())
    faces = " ".join(str(i) for triangle in triangles for i in triangle)
    # That of the solid: a shell of the same form has its centre of mass elsewhere. Arrows have no mass, and are not convex.
    inertia = "convex" if thing.shape == "wedge" else "shell"
    return f'<mesh name={quoteattr(thing.name)} vertex="{points}" face="{faces}" inertia="{inertia}"/>'


def _pairs_xml(scene: Scene, step: float) -> str:
    """Every pair that can touch, with the product of its frictions and restitutions, as in Bullet.

    Left to itself MuJoCo takes the larger friction of two surfaces, and knows no restitution.
    """
    pieces = [
        (body, _geom_name(body.name, number))
        for body in scene.bodies
        for number in range(len(cradle_boards(body.size)) if body.shape == "cradle" else 1)
    ]
    pairs = []
    for index, (body, name) in enumerate(pieces):
        if not body.fixed:
            pairs.append((name, "floor", body.friction * scene.floor_friction, 0.0))
        for other, other_name in pieces[index + 1 :]:
            if other is not body and not (body.fixed and other.fixed):
                friction, restitution = body.friction * other.friction, body.restitution * other.restitution
                pairs.append((name, other_name, friction, restitution))
    return "".join(
        f'<pair geom1={quoteattr(a)} geom2={quoteattr(b)} condim="{3 if friction > 0 else 1}"'
        f' friction="{friction!r} {friction!r} 0.005 0.0001 0.0001" {_contact(restitution, step)}/>'
        for a, b, friction, restitution in pairs
    )


def _contact(restitution: float, step: float) -> str:
    """Parameters of a contact that gives back that share of the speed of approach.

    A bounce is half a period of a damped spring, from the two parameters of MuJoCo's reference acceleration: with damping
    ratio d, exp(-d pi / sqrt(1 - d^2)) of the speed is left. It is made to last `BOUNCE_STEPS` steps.
    """
    if restitution <= 0:
        return CONTACT
    log_share = math.log(min(restitution, 0.999))
    ratio = -log_share / math.hypot(math.pi, log_share)
    frequency = math.pi / (BOUNCE_STEPS * step * math.sqrt(1 - ratio**2))
    return f'solref="{-(frequency**2)!r} {-2 * ratio * frequency!r}" solimp="0.99 0.999 0.0001"'


def _geom_name(body: str, number: int) -> str:
    return body if number == 0 else f"{body}/{number}"


class _World:
    """A compiled model in motion. Implements `vlm_probe.stimuli.simulators.loop.World`."""

    def __init__(self, model: mujoco.MjModel, scene: Scene) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        self._scene = scene
        self._ids = [model.body(body.name).id for body in scene.bodies]
        self._pushes = [(push, model.body(push.body).id) for push in scene.pushes]
        for body in scene.bodies:
            if not body.fixed:
                address = model.jnt_dofadr[model.body(body.name).jntadr[0]]
                self._data.qvel[address : address + 3] = body.velocity
        mujoco.mj_forward(model, self._data)

    def advance(self, frame: int, steps: int) -> None:
        if not self._pushes:
            mujoco.mj_step(self._model, self._data, steps)
            return
        for step in range(steps):
            self._push((frame + step / steps) * FRAME_INTERVAL)
            mujoco.mj_step(self._model, self._data)

    def _push(self, time: float) -> None:
        """Apply the pushes that act at `time` seconds, and no others."""
        data = self._data
        data.xfrc_applied[:] = 0.0
        for push, index in self._pushes:
            if push.acts_at(time):
                arm = np.subtract(push.point, data.xipos[index])
                data.xfrc_applied[index, :3] += push.force
                data.xfrc_applied[index, 3:] += np.cross(arm, push.force)

    def state(self) -> tuple[Floats, Floats]:
        # MuJoCo puts w first.
        return self._data.xpos[self._ids].copy(), self._data.xquat[self._ids][:, [1, 2, 3, 0]]

    def resting(self) -> bool:
        speeds = self._data.qvel.reshape(-1, 6)
        return bool((np.abs(speeds[:, :3]) < REST_SPEED).all() and (np.abs(speeds[:, 3:]) < 10 * REST_SPEED).all())

    def on_floor(self) -> frozenset[str]:
        model, data = self._model, self._data
        floor = model.geom("floor").id
        touching = {
            int(model.geom_bodyid[a if b == floor else b])
            for a, b in ((contact.geom1, contact.geom2) for contact in data.contact[: data.ncon])
            if floor in (a, b)
        }
        return frozenset(b.name for b, index in zip(self._scene.bodies, self._ids, strict=True) if index in touching)


def _camera(scene: Scene) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = scene.camera.target
    camera.distance = scene.camera.distance
    # Bullet looks along +y at yaw 0 and turns the camera; MuJoCo's azimuth 90 looks along +y.
    camera.azimuth, camera.elevation = 90.0 + scene.camera.yaw, scene.camera.pitch
    return camera
