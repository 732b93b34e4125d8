"""What the toolkit costs around the bare engine and the bare renderer.

python benchmarks/stimuli.py sets [--families towers ...] [-n 240] [--renderer engine] [--size 0] [--rounds 3] [--memory]
python benchmarks/stimuli.py images [--families towers ...] [-n 240] [--size 0] [--rounds 3]
python benchmarks/stimuli.py environment [--task towers-topblock] [-n 300] [--size 224] [--rounds 5]
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter

from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.environment import PhysicsEnv
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.outcomes import OutcomeCache
from vlm_probe.stimuli.palettes import paint
from vlm_probe.stimuli.picture import GAP, find_renderer, painter, panel_poses
from vlm_probe.stimuli.question import Answer, Question
from vlm_probe.stimuli.scene import Body, Marker, Scene
from vlm_probe.stimuli.shapes import cradle_boards, mesh
from vlm_probe.stimuli.simulators import FRAME_INTERVAL, Outcome, Poses, Simulator, Stop, get_simulator
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

app = App(
    help="What the toolkit costs around the bare engine.",
    default_parameter=Parameter(negative="", consume_multiple=True),
)
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


def made_set(task: str, n: int, size: int, jobs: int, renderer: str) -> Cost:
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
        one, two = made_set(task, n, size, 1, renderer), made_set(task, n, size, 2, renderer)
        overhead.append(one.cpu / bare)  # CPU time: on a shared machine wall time says more about the neighbours
        walls.append(one.wall / two.wall)
        cpus.append(one.cpu / two.cpu)
    share = statistics.mean(one_item.seconds for one_item in work) / FIXED_SECONDS
    columns = [f"{statistics.median(ratios):>15.3f}" for ratios in (overhead, walls, cpus)]
    text = f"{task:20} {' '.join(columns)} {share:>16.2f}"
    if memory:
        text += f" {peak_memory(task, 10_000) / peak_memory(task, 1_000):>14.3f}"
    print(text, flush=True)


@app.command
def sets(
    *,
    families: tuple[str, ...] = tuple(FAMILIES),
    n: Annotated[int, Parameter("-n")] = 240,
    renderer: Literal["engine", "raycast"] = "engine",
    size: int = 0,
    rounds: int = 3,
    memory: bool = False,
) -> None:
    """What the toolkit costs around the bare engine when a stimulus set is made, for every family.

    Baseline: pybullet alone, doing for every item what the physics and the image need: build the same bodies and markers with the
    same contact settings, push what is pushed, draw with the same renderer at the same size as often as the image has panels,
    and take as many steps as the outcome took. Nothing is sampled, looked at, checked, hashed, encoded or written.

    Prints per family, for its headline judgement, as ratios within one run: CPU time per item on one process to the bare engine
    (target <= 1.2); the speed-up of two processes over one, start-up included (target >= 1.8), once by the wall clock and once by
    CPU time, one process's over that of the busier of two, which is what the wall clock shows where nothing else runs; and the
    simulated time per item as a share of a fixed simulation of two seconds (target < 0.5).

    Args:
        families: Of tasks.
        n: Items.
        renderer: That draws them.
        size: Pixels of an image; 0 = that of the renderer.
        rounds: Timed.
        memory: Peak memory of 10,000 small items against 1,000, too.
    """
    size = size or find_renderer(renderer).size
    print(f"{n} items, {renderer}, {size} px, median of {rounds} rounds, load {os.getloadavg()[0]:.1f}")
    heads = ("CPU / bare", "2 / 1, wall", "2 / 1, CPU"), ("<= 1.2", ">= 1.8", ">= 1.8")
    for name, columns, share, of_memory in zip(
        ("", "target"), heads, ("simulated / 2 s", "< 0.5"), ("memory 10k/1k", "about 1"), strict=True
    ):
        text = f"{name:20} {' '.join(f'{column:>15}' for column in columns)} {share:>16}"
        print(text + (f" {of_memory:>14}" if memory else ""))
    for family in families:
        compare(family, n, size, rounds, memory, renderer)


@app.command
def images(
    *,
    families: tuple[str, ...] = tuple(FAMILIES),
    n: Annotated[int, Parameter("-n")] = 240,
    size: int = 0,
    rounds: int = 3,
) -> None:
    """How long the ray-casting renderer takes for an image (target <= 60 ms at 448 pixels), and its ratio to pybullet's own.

    Args:
        families: Of tasks.
        n: Images of each.
        size: Pixels of an image; 0 = the renderer's own.
        rounds: Timed.
    """
    size = size or find_renderer("raycast").size
    print(f"{n} images of {size} px, load {os.getloadavg()[0]:.1f}")
    print(f"{'':20} {'mean ms, CPU':>15} {'largest':>15} {'/ pybullet':>15}")
    for family in families:
        time_images(family, n, size, rounds)


def time_images(family: str, n: int, size: int, rounds: int) -> None:
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


@dataclass(frozen=True)
class Episode:
    """One scene, its question, and the answer that is tried."""

    scene: Scene
    question: Question
    answer: Answer


@dataclass(frozen=True)
class EpisodeWork:
    """What the engine had to do for one episode: simulations (with their limits) and the poses that were shown."""

    scene: Scene
    applied: Scene
    simulations: tuple[tuple[Scene, dict[str, Any]], ...]
    outcome: Outcome | None


class CallRecorder:
    """The engine, noting what it is asked to simulate."""

    def __init__(self, engine: Simulator) -> None:
        self._engine = engine
        self.name, self.renderer, self.version, self.render = (
            engine.name,
            engine.renderer,
            engine.version,
            engine.render,
        )
        self.asked: list[tuple[Scene, dict[str, Any]]] = []

    def simulate(self, scene: Scene, *, stop: Stop | None = None, **limits: float) -> Outcome:
        """Simulate, and remember the call."""
        self.asked.append((scene, {"stop": stop, **limits}))
        return self._engine.simulate(scene, stop=stop, **limits)


def episodes(task: str, n: int, size: int) -> list[Episode]:
    """Scenes of the task's own distribution; half the answers are the expert's, half are drawn at random."""
    env, rng, found = PhysicsEnv(task, size=size), np.random.default_rng(0), []
    for number in range(n):
        env.reset(seed=number)
        candidates = env.question.grammar.candidates()
        answer = candidates[int(rng.integers(len(candidates)))][1]
        if number % 2:
            answer = env.task.solve(env.scene, env.question)
        found.append(Episode(env.scene, env.question, answer))
    return found


def episode_work(task: str, played: list[Episode]) -> list[EpisodeWork]:
    """What the engine does for each episode."""
    env, found = PhysicsEnv(task, size=16), []
    for episode in played:
        recorder = CallRecorder(get_simulator())
        score = env.task.score(episode.scene, episode.question, episode.answer, recorder)
        applied = env.task.apply(episode.scene, episode.answer)
        found.append(EpisodeWork(episode.scene, replace(applied, panels=()), tuple(recorder.asked), score.outcome))
    return found


def bare_steps(work: list[EpisodeWork], size: int) -> tuple[float, float]:
    """Wall and CPU seconds of the engine alone: the first image, the simulation, the image of what happened."""
    engine = get_simulator()
    wall, cpu = time.perf_counter(), time.process_time()
    for one in work:
        engine.render(one.scene, size)
        for scene, limits in one.simulations:
            engine.simulate(scene, **limits)
        engine.render(one.applied, size, one.outcome.poses() if one.outcome is not None else None)
    return time.perf_counter() - wall, time.process_time() - cpu


def played(task: str, some: list[Episode], size: int, *, drawn: bool) -> tuple[float, float]:
    """Wall and CPU seconds of the environment on the same episodes; `drawn`: with a scene drawn again before each."""
    # A cache of its own: what an earlier round found out must not help this one.
    env = PhysicsEnv(task, size=size, cache=OutcomeCache())
    rng, conditions = np.random.default_rng(0), env.task.conditions()
    wall, cpu = time.perf_counter(), time.process_time()
    for number, episode in enumerate(some):
        if drawn:
            env.task.sample_matched(rng, conditions[number % len(conditions)])
        env.reset(options={"scene": episode.scene, "question": episode.question})
        env.step(env.action_of(episode.answer))
    return time.perf_counter() - wall, time.process_time() - cpu


def repeated(task: str, some: list[Episode], size: int) -> tuple[float, float]:
    """CPU seconds of 8 attempts at the same scenes without and with the cache."""
    seconds = []
    for cache in (OutcomeCache(0), OutcomeCache()):
        env = PhysicsEnv(task, size=size, cache=cache)
        cpu = time.process_time()
        for episode in some:
            for _ in range(8):
                env.reset(options={"scene": episode.scene, "question": episode.question})
                env.step(env.action_of(episode.answer))
        seconds.append(time.process_time() - cpu)
    return seconds[0], seconds[1]


@app.command
def environment(
    *, task: str = "towers-topblock", n: Annotated[int, Parameter("-n")] = 300, size: int = 224, rounds: int = 5
) -> None:
    """What the environment costs around the bare engine, per step.

    Baseline: the engine alone (`Simulator.simulate` and `Simulator.render`) on the very scenes, answers and stop conditions of the
    episodes that the environment played. Nothing is sampled, asked, parsed, scored, hashed or remembered.

    Prints, as ratios within one run, in CPU time and in wall time: steps per second of the environment to the bare engine
    (target >= 0.85), the same with a new scene drawn at every reset left out and counted, and how much of a step the drawing of
    a scene takes.

    Args:
        task: An action task.
        n: Episodes.
        size: Pixels of an image.
        rounds: Timed.
    """
    some = episodes(task, n, size)
    work = episode_work(task, some)
    given, fresh, rates = [], [], []
    for _ in range(rounds):
        alone = bare_steps(work, size)
        asked, drawn = played(task, some, size, drawn=False), played(task, some, size, drawn=True)
        given.append((alone[0] / asked[0], alone[1] / asked[1]))
        fresh.append((alone[0] / drawn[0], alone[1] / drawn[1]))
        rates.append(n / drawn[1])
    without, with_cache = repeated(task, some[:30], size)

    def median(pairs: list[tuple[float, float]], column: int) -> float:
        return statistics.median(pair[column] for pair in pairs)

    print(f"{task}, {n} episodes of one attempt, {size} px, median of {rounds} rounds")
    print("steps/s, environment / bare engine        CPU     wall")
    print(
        f"  scenes given (played from a set)        {median(given, 1):.3f}   {median(given, 0):.3f}   (target >= 0.85)"
    )
    print(f"  a new scene drawn at every reset        {median(fresh, 1):.3f}   {median(fresh, 0):.3f}")
    print(f"share of a step that drawing a scene takes {1 - median(fresh, 1) / median(given, 1):.3f}")
    print(f"8 attempts alike, with / without cache    {without / with_cache:.2f} times as fast")
    print(f"episodes per second of CPU time here      {statistics.median(rates):.0f}")


if __name__ == "__main__":
    app()
