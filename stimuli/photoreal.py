"""Photoreal pictures: a scene drawn by Blender (Cycles, on the processor), with soft shadows and light that bounces.

Physics, segmentation and depth come from the engine, whose camera is the same. Needs the extra `photoreal` (Blender's module
`bpy`, which exists for few versions of Python); a picture takes seconds, and its pixels may differ between machines.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm_probe.stimuli.errors import NotInstalled
from vlm_probe.stimuli.palettes import paint
from vlm_probe.stimuli.scene import Body, Marker, Scene, Vec3
from vlm_probe.stimuli.shapes import cradle_boards, mesh
from vlm_probe.stimuli.simulators import (
    MAX_DURATION,
    MIN_DURATION,
    Frame,
    Outcome,
    Poses,
    Simulator,
    Stop,
    get_simulator,
)
from vlm_probe.stimuli.viewing import axes, things

SAMPLES = 48
"""Light paths per pixel; the picture is denoised."""
FLOOR_HALF = 6.0
"""Half the width of the floor, metres."""
ROUND = 64
"""Sides of a drawn cylinder."""


class Photoreal:
    """An engine whose pictures are drawn by Blender. Implements `vlm_probe.stimuli.simulators.Simulator`.

    Args:
        engine: Simulates, and sees where things are.
        bpy: Blender's module.
    """

    renderer = "Blender Cycles"

    def __init__(self, engine: Simulator, bpy: Any) -> None:
        self._engine, self._bpy, self.name = engine, bpy, engine.name

    def version(self) -> str:
        """Engine and version, and Blender's."""
        return f"{self._engine.version()}, bpy {self._bpy.app.version_string}"

    def simulate(
        self,
        scene: Scene,
        *,
        stop: Stop | None = None,
        min_duration: float = MIN_DURATION,
        max_duration: float = MAX_DURATION,
    ) -> Outcome:
        """The engine's outcome."""
        return self._engine.simulate(scene, stop=stop, min_duration=min_duration, max_duration=max_duration)

    def render(self, scene: Scene, size: int, poses: Poses | None = None) -> Frame:
        """Blender's colours with the engine's segmentation and depth."""
        return replace(self._engine.render(scene, size, poses), rgb=self._draw(scene, size, poses))

    def _draw(self, scene: Scene, size: int, poses: Poses | None) -> npt.NDArray[np.uint8]:
        bpy = self._bpy
        bpy.ops.wm.read_factory_settings(use_empty=True)
        stage = bpy.context.scene
        stage.render.engine = "CYCLES"
        stage.cycles.device, stage.cycles.samples, stage.cycles.use_denoising = "CPU", SAMPLES, True
        stage.cycles.seed = 0
        stage.render.resolution_x = stage.render.resolution_y = size
        stage.render.resolution_percentage = 100
        # Blender's default view transform turns saturated colours pale; the names of colours must hold.
        stage.view_settings.view_transform = "Standard"
        stage.render.image_settings.file_format = "PNG"
        self._light(scene)
        self._view(scene)
        floor = [(-FLOOR_HALF, -FLOOR_HALF, 0), (FLOOR_HALF, -FLOOR_HALF, 0), (FLOOR_HALF, FLOOR_HALF, 0)]
        self._add("floor", [*floor, (-FLOOR_HALF, FLOOR_HALF, 0)], [(0, 1, 2, 3)], scene.background.floor, rough=0.9)
        for index, thing in enumerate(things(scene)):
            place, turn = np.array(thing.position), thing.orientation
            if poses is not None and index < len(scene.bodies):
                x, y, z, w = poses.orientations[index].tolist()
                place, turn = poses.positions[index], (x, y, z, w)
            for number, (points, faces) in enumerate(_surfaces(thing)):
                made = self._add(f"{thing.name}/{number}", points, faces, paint(thing, scene.palette))
                made.rotation_mode = "QUATERNION"
                made.rotation_quaternion = (turn[3], turn[0], turn[1], turn[2])
                made.location = tuple(float(v) for v in place)
                if thing.shape in ("sphere", "cylinder"):
                    made.data.shade_smooth()
                    if thing.shape == "cylinder":
                        made.data.set_sharp_from_angle(angle=math.radians(40))
        with tempfile.TemporaryDirectory() as folder:
            stage.render.filepath = str(Path(folder) / "picture.png")
            with _silence():
                bpy.ops.render.render(write_still=True)
            with Image.open(stage.render.filepath) as picture:
                return np.asarray(picture.convert("RGB"), dtype=np.uint8)

    def _add(self, name: str, points: Any, faces: Any, colour: Vec3, rough: float = 0.45) -> Any:
        bpy = self._bpy
        shape = bpy.data.meshes.new(name)
        shape.from_pydata([tuple(map(float, p)) for p in points], [], [tuple(map(int, f)) for f in faces])
        material = bpy.data.materials.new(name)
        material.use_nodes = True
        surface = next(node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED")
        surface.inputs["Base Color"].default_value = (*(_linear(channel) for channel in colour), 1.0)
        surface.inputs["Roughness"].default_value = rough
        shape.materials.append(material)
        made = bpy.data.objects.new(name, shape)
        bpy.context.scene.collection.objects.link(made)
        return made

    def _light(self, scene: Scene) -> None:
        bpy, light = self._bpy, scene.light
        sun = bpy.data.lights.new("sun", "SUN")
        sun.energy, sun.angle = 3.0 * light.diffuse, math.radians(6)
        made = bpy.data.objects.new("sun", sun)
        # A Blender sun shines along its own -z.
        back = np.array(light.direction) / np.linalg.norm(light.direction)
        across = np.cross((0.0, 1.0, 0.0), back) / np.linalg.norm(np.cross((0.0, 1.0, 0.0), back))
        made.matrix_world = type(made.matrix_world)(_placed(across, np.cross(back, across), back, np.zeros(3)))
        bpy.context.scene.collection.objects.link(made)
        world = bpy.data.worlds.new("sky")
        bpy.context.scene.world = world
        world.use_nodes = True
        behind = next(node for node in world.node_tree.nodes if node.type == "BACKGROUND")
        behind.inputs["Color"].default_value = (*(_linear(channel) for channel in scene.background.sky), 1.0)
        behind.inputs["Strength"].default_value = light.ambient + 0.3

    def _view(self, scene: Scene) -> None:
        bpy, camera = self._bpy, scene.camera
        data = bpy.data.cameras.new("camera")
        data.sensor_fit, data.angle = "VERTICAL", math.radians(camera.fov)
        made = bpy.data.objects.new("camera", data)
        eye, right, up, into = axes(camera)
        # A Blender camera looks along its own -z.
        made.matrix_world = type(made.matrix_world)(_placed(right, up, -into, eye))
        bpy.context.scene.collection.objects.link(made)
        bpy.context.scene.camera = made


@lru_cache(maxsize=1)
def get_photoreal() -> Photoreal:
    """Blender's renderer on top of the default engine, started once per process.

    Raises:
        ModuleNotFoundError: If `bpy` is not installed; the message says how to install it.
    """
    try:
        with _silence():
            import bpy
    except ModuleNotFoundError as error:
        raise NotInstalled(
            "photoreal pictures are drawn by Blender's module bpy, which is not installed: pip install 'vlm-probe[photoreal]'"
            " (bpy has wheels for one version of Python at a time: bpy 4.2 to 5.0 for Python 3.11)"
        ) from error
    return Photoreal(get_simulator(), bpy)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what Blender prints, below Python, off the process's output, which belongs to results."""
    saved, null = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    sys.stdout.flush()
    try:
        os.dup2(null, 1)
        os.dup2(null, 2)
        yield
    finally:
        for number, file in enumerate(saved, 1):
            os.dup2(file, number)
            os.close(file)
        os.close(null)


def _placed(x: Any, y: Any, z: Any, origin: Any) -> list[list[float]]:
    """A 4 x 4 matrix, as Blender places things, from the directions of the own axes and the place."""
    frame = np.eye(4)
    frame[:3] = np.stack([x, y, z, origin], axis=1)
    rows: list[list[float]] = frame.tolist()
    return rows


def _linear(channel: float) -> float:
    """A channel of sRGB as linear light, as Blender takes colours."""
    return float(channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4)


def _surfaces(thing: Body | Marker) -> list[tuple[Any, Any]]:
    """Closed surfaces (vertices, faces) of a body or marker in its own coordinates, metres."""
    if thing.shape in ("wedge", "arrow"):
        return [mesh(thing.shape, thing.size)]
    if thing.shape == "cradle":
        return [_box(extents, centre) for centre, extents in cradle_boards(thing.size)]
    if thing.shape == "box":
        return [_box(thing.size)]
    half = np.array(thing.size) / 2
    turn = 2 * math.pi * np.arange(ROUND) / ROUND
    if thing.shape == "cylinder":
        ring = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        points = [(*(ring[i] * half[:2]), z) for z in (-half[2], half[2]) for i in range(ROUND)]
        sides = [(i, (i + 1) % ROUND, ROUND + (i + 1) % ROUND, ROUND + i) for i in range(ROUND)]
        return [(points, [*sides, tuple(range(ROUND))[::-1], tuple(range(ROUND, 2 * ROUND))])]
    rings = ROUND // 2
    down = math.pi * np.arange(1, rings) / rings
    points = [
        (half[0] * math.sin(d) * math.cos(a), half[0] * math.sin(d) * math.sin(a), half[0] * math.cos(d))
        for d in down
        for a in turn
    ]
    top, last = len(points), len(points) - ROUND
    points += [(0.0, 0.0, half[0]), (0.0, 0.0, -half[0])]
    faces: list[tuple[int, ...]] = []
    for i in range(ROUND):
        j = (i + 1) % ROUND
        faces += [(top, i, j), (last + j, last + i, top + 1)]
        faces += [(r * ROUND + i, (r + 1) * ROUND + i, (r + 1) * ROUND + j, r * ROUND + j) for r in range(rings - 2)]
    return [(points, faces)]


def _box(size: Vec3, centre: Vec3 = (0.0, 0.0, 0.0)) -> tuple[Any, Any]:
    points = [
        tuple(c + s * e / 2 for c, s, e in zip(centre, signs, size, strict=True))
        for signs in ((x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1))
    ]
    return points, [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
