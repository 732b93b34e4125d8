"""The default engine: Bullet in DIRECT mode, with its software renderer, so that images are the same on every machine.

The world is rebuilt for every scene. Bullet keeps contact caches between simulations, so this is what makes an outcome
depend on the scene alone.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np

from vlm_probe.stimuli.palettes import paint
from vlm_probe.stimuli.scene import Body, Marker, Scene, Vec3
from vlm_probe.stimuli.shapes import cradle_boards, mesh
from vlm_probe.stimuli.simulators import (
    BACKGROUND,
    FRAME_INTERVAL,
    MAX_DURATION,
    MIN_DURATION,
    Frame,
    Outcome,
    Poses,
    Stop,
    get_simulator,
)
from vlm_probe.stimuli.simulators.loop import REST_SPEED, Floats, run, steps_per_frame


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
"""Coarsest integration step, seconds."""
SOLVER_ITERATIONS = 50
CAREFUL_ITERATIONS = 200
"""Iterations per step where something is pushed or fixed: the reaction has to find its way through several contacts at once,
and an unfinished solution lets what holds creep and fall. (On a fixed support lies what is as light as what it carries.)"""
SLOWEST_BOUNCE = 0.05
"""Metres per second of approach below which nothing bounces."""
ROLLING = 0.002
"""Metres of rolling friction of a ball in a scene with cradles: rounding alone would roll it out of an open end."""
NEAR, FAR = 0.05, 10.0
"""Clipping planes of the camera, metres."""


class PyBulletSimulator:
    """Bullet physics and the TinyRenderer. Implements `vlm_probe.stimuli.simulators.Simulator`."""

    name = "pybullet"
    renderer = "TinyRenderer"

    def __init__(self) -> None:
        self._client = bullet.connect(bullet.DIRECT)
        self._built: Scene | None = None  # the scene the world was built for
        self._untouched = False  # whether nothing has been simulated or moved since
        self._ids: list[int] = []
        self._floor = -1
        self._lent: dict[tuple[str, int], list[list[float]]] = {}

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # Its world belongs to this process and this object: two of them that take it for theirs would disturb each other.
        return get_simulator, ("pybullet",)

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
        """See `vlm_probe.stimuli.simulators.Simulator`."""
        if self._built is not scene or not self._untouched:
            self._build(scene)
        self._untouched = False
        per_frame = steps_per_frame(scene, STEP)
        bullet.setTimeStep(FRAME_INTERVAL / per_frame, physicsClientId=self._client)
        world = _World(scene, self._client, self._ids[: len(scene.bodies)], self._floor)
        return run(world, scene, per_frame, stop, min_duration, max_duration)

    def render(self, scene: Scene, size: int, poses: Poses | None = None) -> Frame:
        """A square image of the scene at its start, or with the bodies at `poses`."""
        if self._built is not scene:
            self._build(scene)
        client = self._client
        if poses is not None or not self._untouched:
            # Several images of one scene take one world.
            places = [b.position for b in scene.bodies] if poses is None else poses.positions
            turns = [b.orientation for b in scene.bodies] if poses is None else poses.orientations
            for index, place, turn in zip(self._ids[: len(scene.bodies)], places, turns, strict=True):
                bullet.resetBasePositionAndOrientation(index, place, turn, physicsClientId=client)
            self._untouched = False
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
        # Bullet numbers the floor 0 and then bodies and markers in the order in which `_build` makes them, and nothing
        # is -1: one less is just FLOOR, the index of the body or marker, and BACKGROUND.
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

    def _build(self, scene: Scene) -> None:
        """Build the world of a scene."""
        client = self._client
        bullet.resetSimulation(physicsClientId=client)
        bullet.setGravity(0, 0, -scene.gravity, physicsClientId=client)
        careful = bool(scene.pushes) or any(body.fixed for body in scene.bodies)
        bullet.setPhysicsEngineParameter(
            fixedTimeStep=STEP,
            numSolverIterations=CAREFUL_ITERATIONS if careful else SOLVER_ITERATIONS,
            restitutionVelocityThreshold=SLOWEST_BOUNCE,
            physicsClientId=client,
        )
        half = (4.0, 4.0, 0.05)
        shape = bullet.createCollisionShape(bullet.GEOM_BOX, halfExtents=half, physicsClientId=client)
        colour = (*scene.background.floor, 1.0)
        look = bullet.createVisualShape(bullet.GEOM_BOX, halfExtents=half, rgbaColor=colour, physicsClientId=client)
        self._floor = bullet.createMultiBody(0, shape, look, (0, 0, -half[2]), physicsClientId=client)
        bullet.changeDynamics(self._floor, -1, lateralFriction=scene.floor_friction, physicsClientId=client)
        rolling = ROLLING if any(body.shape == "cradle" for body in scene.bodies) else 0.0
        self._ids = [self._add(body, scene.palette, rolling) for body in scene.bodies]
        self._ids += [self._add_marker(marker, scene.palette) for marker in scene.markers]
        self._built, self._untouched = scene, True

    def _add(self, body: Body, palette: str, rolling: float) -> int:
        client = self._client
        index = bullet.createMultiBody(
            0.0 if body.fixed else body.mass,
            self._solid(body.shape, body.size),
            self._visible(body.shape, body.size, paint(body, palette)),
            body.position,
            body.orientation,
            physicsClientId=client,
        )
        bullet.changeDynamics(
            index,
            -1,
            lateralFriction=body.friction,
            restitution=body.restitution,
            # Bullet slows everything down a little by default, as if in thick air.
            linearDamping=0.0,
            angularDamping=0.0,
            rollingFriction=rolling if body.shape == "sphere" else 0.0,
            spinningFriction=rolling if body.shape == "sphere" else 0.0,
            physicsClientId=client,
        )
        if any(body.velocity):
            bullet.resetBaseVelocity(index, body.velocity, physicsClientId=client)
        return int(index)

    def _add_marker(self, marker: Marker, palette: str) -> int:
        visible = self._visible(marker.shape, marker.size, paint(marker, palette))
        return int(
            bullet.createMultiBody(0, -1, visible, marker.position, marker.orientation, physicsClientId=self._client)
        )

    def _solid(self, shape: str, size: Vec3) -> int:
        """Collision shape."""
        client, half = self._client, [extent / 2 for extent in size]
        if shape == "box":
            return int(bullet.createCollisionShape(bullet.GEOM_BOX, halfExtents=half, physicsClientId=client))
        if shape == "sphere":
            return int(bullet.createCollisionShape(bullet.GEOM_SPHERE, radius=half[0], physicsClientId=client))
        if shape == "cylinder":
            return int(
                bullet.createCollisionShape(
                    bullet.GEOM_CYLINDER, radius=half[0], height=size[2], physicsClientId=client
                )
            )
        if shape == "wedge":
            vertices = self._lend("solid", mesh(shape, size)[0])
            return int(bullet.createCollisionShape(bullet.GEOM_MESH, vertices=vertices, physicsClientId=client))
        boards = cradle_boards(size)
        return int(
            bullet.createCollisionShapeArray(
                shapeTypes=[bullet.GEOM_BOX] * len(boards),
                halfExtents=[[extent / 2 for extent in extents] for _, extents in boards],
                collisionFramePositions=[centre for centre, _ in boards],
                physicsClientId=client,
            )
        )

    def _visible(self, shape: str, size: Vec3, colour: Vec3) -> int:
        """Visual shape."""
        client, half, rgba = self._client, [extent / 2 for extent in size], (*colour, 1.0)
        if shape == "box":
            found = bullet.createVisualShape(bullet.GEOM_BOX, halfExtents=half, rgbaColor=rgba, physicsClientId=client)
        elif shape == "sphere":
            found = bullet.createVisualShape(bullet.GEOM_SPHERE, radius=half[0], rgbaColor=rgba, physicsClientId=client)
        elif shape == "cylinder":
            found = bullet.createVisualShape(
                bullet.GEOM_CYLINDER, radius=half[0], length=size[2], rgbaColor=rgba, physicsClientId=client
            )
        elif shape == "cradle":
            boards = cradle_boards(size)
            found = bullet.createVisualShapeArray(
                shapeTypes=[bullet.GEOM_BOX] * len(boards),
                halfExtents=[[extent / 2 for extent in extents] for _, extents in boards],
                visualFramePositions=[centre for centre, _ in boards],
                rgbaColors=[rgba] * len(boards),
                physicsClientId=client,
            )
        else:
            vertices, normals = _flat_shaded(shape, size)
            found = bullet.createVisualShape(
                bullet.GEOM_MESH,
                vertices=self._lend("vertices", vertices),
                indices=_numbers(len(vertices)),
                normals=self._lend("normals", normals),
                rgbaColor=rgba,
                physicsClientId=client,
            )
        return int(found)

    def _lend(self, purpose: str, rows: Floats) -> list[list[float]]:
        """Points (n, 3) as lists, always the same ones: pybullet never lets go of lists of points that it was given."""
        lists = self._lent.setdefault((purpose, len(rows)), [[] for _ in rows])
        for point, row in zip(lists, rows.tolist(), strict=True):
            point[:] = row
        return lists


class _World:
    """A loaded scene in motion. Implements `vlm_probe.stimuli.simulators.loop.World`."""

    def __init__(self, scene: Scene, client: int, ids: list[int], floor: int) -> None:
        self._client, self._ids, self._floor = client, ids, floor
        self._names = [body.name for body in scene.bodies]
        self._pushes = [(push, ids[self._names.index(push.body)]) for push in scene.pushes]

    def advance(self, frame: int, steps: int) -> None:
        take, client = bullet.stepSimulation, self._client
        for step in range(steps):
            for push, index in self._pushes:
                # Bullet clears applied forces after every step.
                if push.acts_at((frame + step / steps) * FRAME_INTERVAL):
                    bullet.applyExternalForce(
                        index, -1, push.force, push.point, bullet.WORLD_FRAME, physicsClientId=client
                    )
            take(client)

    def state(self) -> tuple[Floats, Floats]:
        poses = [bullet.getBasePositionAndOrientation(i, self._client) for i in self._ids]
        return np.array([p for p, _ in poses]).reshape(-1, 3), np.array([turn for _, turn in poses]).reshape(-1, 4)

    def resting(self) -> bool:
        for index in self._ids:
            linear, angular = bullet.getBaseVelocity(index, self._client)
            if math.hypot(*linear) > REST_SPEED or math.hypot(*angular) > 10 * REST_SPEED:
                return False
        return True

    def on_floor(self) -> frozenset[str]:
        contacts = bullet.getContactPoints(self._floor, physicsClientId=self._client)
        touching = {contact[2] for contact in contacts}
        return frozenset(name for name, index in zip(self._names, self._ids, strict=True) if index in touching)


@lru_cache(maxsize=64)
def _numbers(n: int) -> list[int]:
    """0 to n - 1: always the same list, for the reason that `PyBulletSimulator._lend` gives."""
    return list(range(n))


def _flat_shaded(shape: str, size: Vec3) -> tuple[Floats, Floats]:
    """Vertices (n, 3) and normals (n, 3) of a mesh whose faces share no vertex, so that every face has its own shade."""
    points, triangles = mesh(shape, size)
    faces = points[np.array(triangles)]
    across = np.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0])
    normals = np.repeat(across / np.linalg.norm(across, axis=1, keepdims=True), 3, axis=0)
    return faces.reshape(-1, 3), normals
