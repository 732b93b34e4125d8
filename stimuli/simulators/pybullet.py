"""The default engine: Bullet in DIRECT mode, with its software renderer, so that pictures are the same on every machine.

The world is rebuilt for every scene. Bullet keeps contact caches between simulations, so this is what makes an outcome
depend on the scene alone.
"""

from __future__ import annotations

import math
import os
from importlib.metadata import version

import numpy as np

from stimuli.scene import COLOURS, Body, Scene
from stimuli.simulators import (
    BACKGROUND,
    FRAME_INTERVAL,
    MAX_DURATION,
    MIN_DURATION,
    Frame,
    Outcome,
    Poses,
    Stop,
)


def _import_pybullet():  # type: ignore[no-untyped-def]
    """Import it in silence: pybullet prints its build time to the process's stderr, below Python's."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        import pybullet
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
    return pybullet


bullet = _import_pybullet()

STEP = 1 / 240
"""Integration step, seconds."""
SOLVER_ITERATIONS = 50
REST_SPEED = 2e-3
"""Metres per second (and radians per second / 10) below which a body counts as at rest."""
NEAR, FAR = 0.05, 10.0
"""Clipping planes of the camera, metres."""


class PyBulletSimulator:
    """Bullet physics and the TinyRenderer. Implements `stimuli.simulators.Simulator`."""

    name = "pybullet"
    renderer = "TinyRenderer"

    def __init__(self) -> None:
        self._client = bullet.connect(bullet.DIRECT)
        self._loaded: Scene | None = None  # the scene the world was built for, as long as nothing has moved
        self._ids: list[int] = []
        self._floor = -1

    def version(self) -> str:
        """Engine and version."""
        return f"pybullet {version('pybullet')}"

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
        self._load(scene)
        self._loaded = None
        client, ids = self._client, self._ids
        per_frame = round(FRAME_INTERVAL / STEP)
        poses = [bullet.getBasePositionAndOrientation(i, client) for i in ids]
        positions, turns = [np.array([p for p, _ in poses])], [[turn for _, turn in poses]]
        steps, decided, at_rest = 0, False, False
        while steps * STEP < max_duration - 1e-9:
            for _ in range(per_frame):
                for push in scene.pushes:
                    # Bullet clears applied forces after every step.
                    if push.start <= steps * STEP < push.start + push.duration:
                        index = ids[[b.name for b in scene.bodies].index(push.body)]
                        bullet.applyExternalForce(
                            index, -1, push.force, push.point, bullet.WORLD_FRAME, physicsClientId=client
                        )
                bullet.stepSimulation(client)
                steps += 1
            poses = [bullet.getBasePositionAndOrientation(i, client) for i in ids]
            positions.append(np.array([p for p, _ in poses]))
            turns.append([turn for _, turn in poses])
            if stop is not None and stop(positions[-1]):
                decided = True
                break
            if steps * STEP >= min_duration - 1e-9 and self._resting():
                at_rest = True
                break
        touching = {contact[2] for contact in bullet.getContactPoints(self._floor, physicsClientId=client)}
        return Outcome(
            names=tuple(body.name for body in scene.bodies),
            times=np.arange(len(positions), dtype=np.float64) * (per_frame * STEP),
            positions=np.stack(positions).reshape(len(positions), -1, 3),
            orientations=np.array(turns).reshape(len(turns), -1, 4),
            on_floor=frozenset(b.name for b, i in zip(scene.bodies, ids, strict=True) if i in touching),
            at_rest=at_rest,
            decided=decided,
        )

    def render(self, scene: Scene, size: int, poses: Poses | None = None) -> Frame:
        """A square picture of the scene at its start, or with the bodies at `poses`."""
        self._load(scene)
        client = self._client
        if poses is not None:
            self._loaded = None
            for index, position, turn in zip(self._ids, poses.positions, poses.orientations, strict=True):
                bullet.resetBasePositionAndOrientation(index, position, turn, physicsClientId=client)
        camera, light = scene.camera, scene.light
        view = bullet.computeViewMatrixFromYawPitchRoll(camera.target, camera.distance, camera.yaw, camera.pitch, 0, 2)
        projection = bullet.computeProjectionMatrixFOV(camera.fov, 1.0, NEAR, FAR)
        _, _, rgba, depth, mask = bullet.getCameraImage(
            size,
            size,
            view,
            projection,
            lightDirection=light.direction,
            lightDistance=10.0,
            lightAmbientCoeff=light.ambient,
            lightDiffuseCoeff=light.diffuse,
            lightSpecularCoeff=light.specular,
            lightColor=(1.0, 1.0, 1.0),
            shadow=int(light.shadow),
            renderer=bullet.ER_TINY_RENDERER,
            physicsClientId=client,
        )
        # Bullet numbers the floor 0 and the bodies 1, 2, ... in the order in which `_load` makes them, and nothing is -1:
        # one less is just FLOOR, the index of the body, and BACKGROUND.
        segmentation = np.asarray(mask, dtype=np.int32).reshape(size, size) - np.int32(1)
        # Pixels as whole words: painting the sky channel by channel takes as long as a sixth of the rendering.
        pixels = np.ascontiguousarray(rgba, dtype=np.uint8).reshape(size, size, 4).view(np.uint32)[..., 0]
        sky = np.round(np.array((*scene.background.sky, 1.0)) * 255).astype(np.uint8).view(np.uint32)[0]
        painted = np.where(segmentation == BACKGROUND, sky, pixels).view(np.uint8).reshape(size, size, 4)
        rgb = painted[..., :3].copy()
        metres = np.asarray(depth, dtype=np.float32).reshape(size, size) * np.float32(NEAR - FAR)
        metres += np.float32(FAR)
        np.divide(np.float32(FAR * NEAR), metres, out=metres)
        return Frame(rgb, segmentation, metres)

    def _load(self, scene: Scene) -> None:
        """Build the world of a scene, unless it is already there and untouched."""
        if self._loaded is scene:
            return
        client = self._client
        bullet.resetSimulation(physicsClientId=client)
        bullet.setGravity(0, 0, -scene.gravity, physicsClientId=client)
        bullet.setPhysicsEngineParameter(
            fixedTimeStep=STEP, numSolverIterations=SOLVER_ITERATIONS, physicsClientId=client
        )
        half = (4.0, 4.0, 0.05)
        shape = bullet.createCollisionShape(bullet.GEOM_BOX, halfExtents=half, physicsClientId=client)
        colour = (*scene.background.floor, 1.0)
        look = bullet.createVisualShape(bullet.GEOM_BOX, halfExtents=half, rgbaColor=colour, physicsClientId=client)
        self._floor = bullet.createMultiBody(0, shape, look, (0, 0, -half[2]), physicsClientId=client)
        bullet.changeDynamics(self._floor, -1, lateralFriction=scene.floor_friction, physicsClientId=client)
        self._ids = [self._add(body) for body in scene.bodies]
        self._loaded = scene

    def _add(self, body: Body) -> int:
        client = self._client
        half = [extent / 2 for extent in body.size]
        if body.shape == "box":
            solid = {"shapeType": bullet.GEOM_BOX, "halfExtents": half}
            visible = solid
        elif body.shape == "sphere":
            solid = {"shapeType": bullet.GEOM_SPHERE, "radius": half[0]}
            visible = solid
        else:
            solid = {"shapeType": bullet.GEOM_CYLINDER, "radius": half[0], "height": body.size[2]}
            visible = {"shapeType": bullet.GEOM_CYLINDER, "radius": half[0], "length": body.size[2]}
        rgba = [min(1.0, channel * body.shade) for channel in COLOURS[body.colour]] + [1.0]
        index = bullet.createMultiBody(
            0.0 if body.fixed else body.mass,
            bullet.createCollisionShape(**solid, physicsClientId=client),
            bullet.createVisualShape(**visible, rgbaColor=rgba, physicsClientId=client),
            body.position,
            body.orientation,
            physicsClientId=client,
        )
        bullet.changeDynamics(
            index, -1, lateralFriction=body.friction, restitution=body.restitution, physicsClientId=client
        )
        if any(body.velocity):
            bullet.resetBaseVelocity(index, body.velocity, physicsClientId=client)
        return int(index)

    def _resting(self) -> bool:
        for index in self._ids:
            linear, angular = bullet.getBaseVelocity(index, self._client)
            if math.hypot(*linear) > REST_SPEED or math.hypot(*angular) > 10 * REST_SPEED:
                return False
        return True
