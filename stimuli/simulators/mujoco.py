"""The second engine: MuJoCo, written independently of Bullet, to cross-check outcomes and to serve where Bullet is missing.

Its pictures come from OpenGL (EGL or OSMesa) and differ from Bullet's in their pixels, so one set is never drawn by both.
"""

from __future__ import annotations

from importlib.metadata import version
from xml.sax.saxutils import quoteattr

import mujoco
import numpy as np

from stimuli.scene import COLOURS, Body, Scene
from stimuli.simulators import (
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

STEP = 1 / 480
"""Integration step, seconds."""
CONTACT = 'solref="0.0045 1" solimp="0.99 0.999 0.0001"'
"""Contacts about as stiff as the step allows: soft ones let a tower near its boundary tilt and fall."""
REST_SPEED = 2e-3
"""Metres per second (and radians per second / 10) below which a body counts as at rest."""


class MuJoCoSimulator:
    """MuJoCo physics and its OpenGL renderer. Implements `stimuli.simulators.Simulator`."""

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
        """Run until `stop` is met, until everything rests (but at least `min_duration`), or for `max_duration` seconds.

        `stop` is asked every `FRAME_INTERVAL`.
        """
        model = mujoco.MjModel.from_xml_string(model_xml(scene))
        data = mujoco.MjData(model)
        for body in scene.bodies:
            if not body.fixed:
                address = model.jnt_dofadr[model.body(body.name).jntadr[0]]
                data.qvel[address : address + 3] = body.velocity
        mujoco.mj_forward(model, data)
        ids = [model.body(body.name).id for body in scene.bodies]
        per_frame = round(FRAME_INTERVAL / STEP)
        positions, turns = [data.xpos[ids].copy()], [data.xquat[ids].copy()]
        steps, decided, at_rest = 0, False, False
        while steps * STEP < max_duration - 1e-9:
            for _ in range(per_frame):
                data.xfrc_applied[:] = 0.0
                for push in scene.pushes:
                    if push.start <= steps * STEP < push.start + push.duration:
                        index = model.body(push.body).id
                        arm = np.subtract(push.point, data.xipos[index])
                        data.xfrc_applied[index, :3] += push.force
                        data.xfrc_applied[index, 3:] += np.cross(arm, push.force)
                mujoco.mj_step(model, data)
                steps += 1
            positions.append(data.xpos[ids].copy())
            turns.append(data.xquat[ids].copy())
            if stop is not None and stop(positions[-1]):
                decided = True
                break
            if steps * STEP >= min_duration - 1e-9 and _resting(data):
                at_rest = True
                break
        pairs = {tuple(sorted((contact.geom1, contact.geom2))) for contact in data.contact[: data.ncon]}
        floor = model.geom("floor").id
        touching = {
            name for name in (b.name for b in scene.bodies) if tuple(sorted((floor, model.geom(name).id))) in pairs
        }
        return Outcome(
            names=tuple(body.name for body in scene.bodies),
            times=np.arange(len(positions), dtype=np.float64) * (per_frame * STEP),
            positions=np.stack(positions),
            orientations=np.stack(turns)[..., [1, 2, 3, 0]],  # MuJoCo puts w first
            on_floor=frozenset(touching),
            at_rest=at_rest,
            decided=decided,
        )

    def render(self, scene: Scene, size: int, poses: Poses | None = None) -> Frame:
        """A square picture of the scene at its start, or with the bodies at `poses`.

        Raises:
            RuntimeError: If no OpenGL is to be had; the message says what to install.
        """
        model = mujoco.MjModel.from_xml_string(model_xml(scene, size))
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
            raise RuntimeError(
                f"MuJoCo found no OpenGL to draw with ({error}): install EGL or OSMesa and set MUJOCO_GL=egl or osmesa,"
                " or draw with pybullet"
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
        for index, body in enumerate(scene.bodies):
            segmentation[geoms == model.geom(body.name).id] = index
        rgb[segmentation == BACKGROUND] = np.round(np.array(scene.background.sky) * 255)
        return Frame(rgb, segmentation, depth)


def model_xml(scene: Scene, size: int = 64) -> str:
    """The scene in MuJoCo's own format (MJCF)."""
    light = scene.light
    bodies = "".join(_body_xml(body) for body in scene.bodies)
    floor = " ".join(map(str, scene.background.floor))
    toward = " ".join(str(-v) for v in light.direction)
    return f"""<mujoco>
  <option timestep="{STEP!r}" gravity="0 0 {-scene.gravity!r}" cone="elliptic" impratio="10" integrator="implicitfast"/>
  <visual>
    <global offwidth="{size}" offheight="{size}" fovy="{scene.camera.fov!r}"/>
    <headlight ambient="{light.ambient} {light.ambient} {light.ambient}" diffuse="0 0 0" specular="0 0 0"/>
  </visual>
  <worldbody>
    <light directional="true" dir="{toward}" diffuse="{light.diffuse} {light.diffuse} {light.diffuse}"
      specular="0 0 0" castshadow="{str(light.shadow).lower()}"/>
    <geom name="floor" type="plane" size="4 4 0.1" rgba="{floor} 1" friction="{scene.floor_friction!r} 0.005 0.0001" {CONTACT}/>
    {bodies}
  </worldbody>
</mujoco>"""


def _body_xml(body: Body) -> str:
    half = [extent / 2 for extent in body.size]
    sizes = {"box": half, "sphere": half[:1], "cylinder": [half[0], half[2]]}[body.shape]
    x, y, z, w = body.orientation
    colour = " ".join(f"{min(1.0, channel * body.shade):.4f}" for channel in COLOURS[body.colour])
    name = quoteattr(body.name)
    return (
        f'<body name={name} pos="{" ".join(map(repr, body.position))}" quat="{w!r} {x!r} {y!r} {z!r}">'
        + ("" if body.fixed else "<freejoint/>")
        + f'<geom name={name} type="{body.shape}" size="{" ".join(map(repr, sizes))}" mass="{body.mass!r}"'
        # Of two surfaces in contact the larger friction counts; a higher priority would hide the floor's.
        + f' rgba="{colour} 1" friction="{body.friction!r} 0.005 0.0001" {CONTACT}/></body>'
    )


def _camera(scene: Scene) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = scene.camera.target
    camera.distance = scene.camera.distance
    # Bullet looks along +y at yaw 0 and turns the camera; MuJoCo's azimuth 90 looks along +y.
    camera.azimuth, camera.elevation = 90.0 + scene.camera.yaw, scene.camera.pitch
    return camera


def _resting(data: mujoco.MjData) -> bool:
    speeds = data.qvel.reshape(-1, 6)
    return bool((np.abs(speeds[:, :3]) < REST_SPEED).all() and (np.abs(speeds[:, 3:]) < 10 * REST_SPEED).all())
