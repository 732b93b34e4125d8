"""What the toolkit costs around the bare engine and the bare renderer when a stimulus set is made, for every family.

Baseline: pybullet alone, doing for every item what the physics and the image need: build the same bodies and markers with the
same contact settings, push what is pushed, draw with the same renderer at the same size as often as the image has panels,
and take as many steps as the outcome took. Nothing is sampled, looked at, checked, hashed, encoded or written.

    python benchmarks/stimuli.py [--families towers ...] [-n 240] [--renderer engine] [--size 0] [--rounds 3] [--memory] [--images]

Prints per family, for its headline judgement, as ratios within one run: CPU time per item on one process to the bare engine
(target <= 1.2); the speed-up of two processes over one, start-up included (target >= 1.8), once by the wall clock and once by
CPU time, one process's over that of the busier of two, which is what the wall clock shows where nothing else runs; and the
simulated time per item as a share of a fixed simulation of two seconds (target < 0.5). With --memory, peak memory of 10,000
small items against 1,000. With --images, how long the ray-casting renderer takes for an image (target <= 60 ms at 448 pixels), and
its ratio to pybullet's own renderer on the same scenes at the same size.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.palettes import paint
from vlm_probe.stimuli.picture import GAP, RENDERERS, find_renderer, painter, panel_poses
from vlm_probe.stimuli.scene import Body, Marker, Scene
from vlm_probe.stimuli.shapes import cradle_boards, mesh
from vlm_probe.stimuli.simulators import FRAME_INTERVAL, Outcome, Poses, Simulator, get_simulator
from vlm_probe.stimuli.simulators.loop import steps_per_frame
from vlm_probe.stimuli.simulators.pybullet import (
    CAREFUL_ITERATIONS,
    FAR,
    NEAR,
    ROLLING,
    SLOWEST_BOUNCE,
    SOLVER_ITERATIONS,
    STEP,
    bullet,
)
from vlm_probe.stimuli.tasks import FAMILIES, get_task

FIXED_SECONDS = 2.0
"""Simulated seconds of a simulation that does not stop early."""


class Recorder:
    """The engine of this process, with a note of every simulation that is asked of it."""

    def __init__(self, engine: Simulator) -> None:
        self._engine = engine
        self.name, self.renderer = engine.name, engine.renderer
        self.version, self.render = engine.version, engine.render
        self.seconds: list[float] = []

    def simulate(self, scene: Scene, **settings: Any) -> Outcome:
        """Simulate, and note for how long."""
        outcome = self._engine.simulate(scene, **settings)
        self.seconds.append(outcome.duration)
        return outcome


class Work:
    """What one item asks of an engine: a scene, the poses to draw, and for how long to simulate."""

    def __init__(self, scene: Scene, seconds: float) -> None:
        self.scene, self.seconds = scene, seconds
        self.steps = round(seconds / FRAME_INTERVAL * steps_per_frame(scene, STEP))
        self.poses: list[Poses | None] = [*panel_poses(get_simulator(), scene)] if scene.panels else [None]


def work_of(stimuli: StimulusSet) -> list[Work]:
    """The engine's part of a set of judgements: one simulation per item, until the outcome is decided."""
    task, recorder, found = get_task(stimuli.card["task"]), Recorder(get_simulator()), []
    for item in stimuli.items:
        assert item.scene is not None
        recorder.seconds.clear()
        task.solve(item.scene, item.question, recorder)
        found.append(Work(item.scene, sum(recorder.seconds)))
    return found


def bare_engine(work: list[Work], size: int, renderer: str) -> float:
    """CPU seconds that pybullet alone takes to build and step every scene, and the renderer to draw it."""
    draws = painter(renderer)
    client = bullet.connect(bullet.DIRECT)
    start = time.process_time()
    for one in work:
        scene = one.scene
        bodies = _build(scene, client)
        edge = size if len(one.poses) == 1 else (size - GAP) // 2
        for poses in one.poses:
            if poses is not None:
                for index, place, turn in zip(bodies, poses.positions, poses.orientations, strict=True):
                    bullet.resetBasePositionAndOrientation(index, place, turn, physicsClientId=client)
            if renderer == "engine":
                _photograph(scene, edge, client)
            else:
                draws.render(scene, edge, poses)
        if one.poses != [None]:  # back to the start
            for index, body in zip(bodies, scene.bodies, strict=True):
                bullet.resetBasePositionAndOrientation(index, body.position, body.orientation, physicsClientId=client)
        pushes = [(push, bodies[[body.name for body in scene.bodies].index(push.body)]) for push in scene.pushes]
        step = FRAME_INTERVAL / steps_per_frame(scene, STEP)
        for number in range(one.steps):
            for push, index in pushes:
                if push.acts_at(number * step):
                    bullet.applyExternalForce(index, -1, push.force, push.point, bullet.WORLD_FRAME, client)
            bullet.stepSimulation(client)
    seconds = time.process_time() - start
    bullet.disconnect(client)
    return seconds


def _build(scene: Scene, client: int) -> list[int]:
    """The world of a scene, with all that decides what its contacts cost: see `vlm_probe.stimuli.simulators.pybullet`."""
    bullet.resetSimulation(physicsClientId=client)
    bullet.setGravity(0, 0, -scene.gravity, physicsClientId=client)
    careful = bool(scene.pushes) or any(body.fixed for body in scene.bodies)
    bullet.setPhysicsEngineParameter(
        fixedTimeStep=FRAME_INTERVAL / steps_per_frame(scene, STEP),
        numSolverIterations=CAREFUL_ITERATIONS if careful else SOLVER_ITERATIONS,
        restitutionVelocityThreshold=SLOWEST_BOUNCE,
        physicsClientId=client,
    )
    rolling = ROLLING if any(body.shape == "cradle" for body in scene.bodies) else 0.0
    floor = {"halfExtents": (4.0, 4.0, 0.05), "physicsClientId": client}
    shape = bullet.createCollisionShape(bullet.GEOM_BOX, **floor)
    look = bullet.createVisualShape(bullet.GEOM_BOX, rgbaColor=(*scene.background.floor, 1), **floor)
    ground = bullet.createMultiBody(0, shape, look, (0, 0, -0.05), physicsClientId=client)
    bullet.changeDynamics(ground, -1, lateralFriction=scene.floor_friction, physicsClientId=client)
    indices = []
    for body in scene.bodies:
        index = bullet.createMultiBody(
            0.0 if body.fixed else body.mass,
            _shape(body, client, solid=True),
            _shape(body, client, solid=False, colour=paint(body, scene.palette)),
            body.position,
            body.orientation,
            physicsClientId=client,
        )
        bullet.changeDynamics(
            index,
            -1,
            lateralFriction=body.friction,
            restitution=body.restitution,
            linearDamping=0.0,
            angularDamping=0.0,
            rollingFriction=rolling if body.shape == "sphere" else 0.0,
            spinningFriction=rolling if body.shape == "sphere" else 0.0,
            physicsClientId=client,
        )
        bullet.resetBaseVelocity(index, body.velocity, physicsClientId=client)
        indices.append(index)
    for marker in scene.markers:
        look = _shape(marker, client, solid=False, colour=paint(marker, scene.palette))
        bullet.createMultiBody(0, -1, look, marker.position, marker.orientation, physicsClientId=client)
    return indices


def _shape(thing: Body | Marker, client: int, solid: bool, colour: tuple[float, ...] = ()) -> int:
    half = [extent / 2 for extent in thing.size]
    make = bullet.createCollisionShape if solid else bullet.createVisualShape
    common: dict[str, Any] = {"physicsClientId": client} | ({} if solid else {"rgbaColor": (*colour, 1.0)})
    if thing.shape == "box":
        return int(make(bullet.GEOM_BOX, halfExtents=half, **common))
    if thing.shape == "sphere":
        return int(make(bullet.GEOM_SPHERE, radius=half[0], **common))
    if thing.shape == "cylinder":
        height = {"height": thing.size[2]} if solid else {"length": thing.size[2]}
        return int(make(bullet.GEOM_CYLINDER, radius=half[0], **height, **common))
    if thing.shape == "cradle":
        boards = cradle_boards(thing.size)
        shapes = {"shapeTypes": [bullet.GEOM_BOX] * len(boards), "physicsClientId": client}
        halves = [[extent / 2 for extent in extents] for _, extents in boards]
        centres = [centre for centre, _ in boards]
        if solid:
            return int(bullet.createCollisionShapeArray(halfExtents=halves, collisionFramePositions=centres, **shapes))
        colours = [(*colour, 1.0)] * len(boards)
        return int(
            bullet.createVisualShapeArray(
                halfExtents=halves, visualFramePositions=centres, rgbaColors=colours, **shapes
            )
        )
    vertices, triangles = mesh(thing.shape, thing.size)
    if solid:
        return int(make(bullet.GEOM_MESH, vertices=vertices.tolist(), **common))
    points = vertices[np.array(triangles).ravel()].tolist()
    return int(
        make(
            bullet.GEOM_MESH,
            vertices=points,
            indices=list(range(len(points))),
            normals=[[0, -1, 0]] * len(points),
            **common,
        )
    )


def _photograph(scene: Scene, size: int, client: int) -> None:
    camera, light = scene.camera, scene.light
    bullet.getCameraImage(
        size,
        size,
        bullet.computeViewMatrixFromYawPitchRoll(camera.target, camera.distance, camera.yaw, camera.pitch, 0, 2),
        bullet.computeProjectionMatrixFOV(camera.fov, 1.0, NEAR, FAR),
        lightDirection=light.direction,
        lightDistance=10.0,
        lightAmbientCoeff=light.ambient,
        lightDiffuseCoeff=light.diffuse,
        lightSpecularCoeff=light.specular,
        shadow=int(light.shadow),
        renderer=bullet.ER_TINY_RENDERER,
        physicsClientId=client,
    )


@dataclass(frozen=True)
class Cost:
    """Of making a set: wall seconds, and CPU seconds of the busiest process."""

    wall: float
    cpu: float


def made(task: str, n: int, size: int, jobs: int, renderer: str) -> Cost:
    """Make a set of n items in this process, and in another one where there are two jobs."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu, others = time.perf_counter(), time.process_time(), _children()
        make_set(task, n, 0, Path(folder) / "set", size=size, jobs=jobs, renderer=renderer)
        return Cost(time.perf_counter() - wall, max(time.process_time() - cpu, _children() - others))


def _children() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_memory(task: str, n: int) -> int:
    """Peak resident memory (kB) of a fresh process that makes n small items."""
    code = (
        "import resource, tempfile; from vlm_probe.stimuli.generate import make_set\n"
        f"with tempfile.TemporaryDirectory() as folder: make_set({task!r}, {n}, 0, folder + '/set', size=32)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def compare(family: str, n: int, size: int, rounds: int, memory: bool, renderer: str) -> None:
    """Print one family's row."""
    task = FAMILIES[family]
    with tempfile.TemporaryDirectory() as folder:
        work = work_of(make_set(task, n, 0, Path(folder) / "set", size=size, renderer=renderer))
    overhead, walls, cpus = [], [], []
    for _ in range(rounds):
        bare = bare_engine(work, size, renderer)
        one, two = made(task, n, size, 1, renderer), made(task, n, size, 2, renderer)
        overhead.append(one.cpu / bare)  # CPU time: on a shared machine wall time says more about the neighbours
        walls.append(one.wall / two.wall)
        cpus.append(one.cpu / two.cpu)
    share = statistics.mean(one_item.seconds for one_item in work) / FIXED_SECONDS
    columns = [f"{statistics.median(ratios):>15.3f}" for ratios in (overhead, walls, cpus)]
    text = f"{task:20} {' '.join(columns)} {share:>16.2f}"
    if memory:
        text += f" {peak_memory(task, 10_000) / peak_memory(task, 1_000):>14.3f}"
    print(text, flush=True)


def images(family: str, n: int, size: int, rounds: int) -> None:
    """Print how long images of a family take: milliseconds of CPU time by the ray-casting renderer, and the ratio to pybullet's own."""
    with tempfile.TemporaryDirectory() as folder:
        items = make_set(FAMILIES[family], n, 0, Path(folder) / "set", size=64, renderer="raycast").items
    scenes = [item.scene for item in items if item.scene is not None]
    seconds: dict[str, list[float]] = {}
    for renderer in ("raycast", "engine"):
        draws = painter(renderer)
        for scene in scenes:
            taken = []
            for _ in range(rounds):
                start = time.process_time()
                draws.render(scene, size)
                taken.append(time.process_time() - start)
            seconds.setdefault(renderer, []).append(statistics.median(taken))
    ours, theirs = (np.array(seconds[name]) for name in ("raycast", "engine"))
    ratio = ours.mean() / theirs.mean()
    print(f"{FAMILIES[family]:20} {1000 * ours.mean():>15.1f} {1000 * ours.max():>15.1f} {ratio:>15.2f}", flush=True)


def main() -> None:
    """Run the benchmark and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("-n", type=int, default=240)
    parser.add_argument("--renderer", choices=[name for name in RENDERERS if name != "photoreal"], default="engine")
    parser.add_argument("--size", type=int, default=0, help="pixels; 0: that of the renderer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--images", action="store_true")
    arguments = parser.parse_args()
    if arguments.images:
        size = arguments.size or find_renderer("raycast").size
        print(f"{arguments.n} images of {size} px, load {os.getloadavg()[0]:.1f}")
        print(f"{'':20} {'mean ms, CPU':>15} {'largest':>15} {'/ pybullet':>15}")
        for family in arguments.families:
            images(family, arguments.n, size, arguments.rounds)
        return
    renderer, size = arguments.renderer, arguments.size or find_renderer(arguments.renderer).size
    print(
        f"{arguments.n} items, {renderer}, {size} px, median of {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}"
    )
    heads = ("CPU / bare", "2 / 1, wall", "2 / 1, CPU"), ("<= 1.2", ">= 1.8", ">= 1.8")
    for name, columns, share, memory in zip(
        ("", "target"), heads, ("simulated / 2 s", "< 0.5"), ("memory 10k/1k", "about 1"), strict=True
    ):
        text = f"{name:20} {' '.join(f'{column:>15}' for column in columns)} {share:>16}"
        print(text + (f" {memory:>14}" if arguments.memory else ""))
    for family in arguments.families:
        compare(family, arguments.n, size, arguments.rounds, arguments.memory, renderer)


if __name__ == "__main__":
    main()
