"""What the toolkit costs around the bare engine when a stimulus set is made.

Baseline: pybullet alone, doing for every item what the physics and the picture need: build the same bodies, draw with the
same renderer at the same size, take the same number of steps. Nothing is sampled, checked, hashed, encoded or written.

    python benchmarks/stimuli.py [-n 400] [--size 224] [--rounds 5] [--memory]

Prints, as ratios within one run: CPU time per item on one process to the bare engine (target <= 1.15), and the speed-up of
two processes over one, start-up included (target >= 1.8); with --memory, peak memory of 2,000 items against 200.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Run as a script, this file would hide the package of the same name.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from stimuli.dataset import StimulusSet
from stimuli.generate import make_set
from stimuli.scene import COLOURS, Scene
from stimuli.simulators import get_simulator
from stimuli.simulators.pybullet import FAR, NEAR, SOLVER_ITERATIONS, STEP, bullet
from stimuli.tasks.towers.tower import fallen

TASK = "towers-stability"


def bare_engine(work: list[tuple[Scene, int]], size: int) -> float:
    """CPU seconds that pybullet alone takes to build, draw and step every scene."""
    client = bullet.connect(bullet.DIRECT)
    start = time.process_time()
    for scene, steps in work:
        bullet.resetSimulation(physicsClientId=client)
        bullet.setGravity(0, 0, -scene.gravity, physicsClientId=client)
        bullet.setPhysicsEngineParameter(
            fixedTimeStep=STEP, numSolverIterations=SOLVER_ITERATIONS, physicsClientId=client
        )
        floor = (4.0, 4.0, 0.05)
        shape = bullet.createCollisionShape(bullet.GEOM_BOX, halfExtents=floor, physicsClientId=client)
        look = bullet.createVisualShape(
            bullet.GEOM_BOX, halfExtents=floor, rgbaColor=(*scene.background.floor, 1), physicsClientId=client
        )
        ground = bullet.createMultiBody(0, shape, look, (0, 0, -0.05), physicsClientId=client)
        bullet.changeDynamics(ground, -1, lateralFriction=scene.floor_friction, physicsClientId=client)
        for body in scene.bodies:
            half = [extent / 2 for extent in body.size]
            shape = bullet.createCollisionShape(bullet.GEOM_BOX, halfExtents=half, physicsClientId=client)
            look = bullet.createVisualShape(
                bullet.GEOM_BOX, halfExtents=half, rgbaColor=(*COLOURS[body.colour], 1), physicsClientId=client
            )
            index = bullet.createMultiBody(body.mass, shape, look, body.position, physicsClientId=client)
            bullet.changeDynamics(index, -1, lateralFriction=body.friction, restitution=0.0, physicsClientId=client)
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
            shadow=0,
            renderer=bullet.ER_TINY_RENDERER,
            physicsClientId=client,
        )
        for _ in range(steps):
            bullet.stepSimulation(client)
    seconds = time.process_time() - start
    bullet.disconnect(client)
    return seconds


def made(n: int, size: int, jobs: int) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process, to make a set of n items."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        make_set(TASK, n, 0, Path(folder) / "set", size=size, jobs=jobs)
        return time.perf_counter() - wall, time.process_time() - cpu


def steps_of(scene: Scene) -> int:
    """Engine steps until the outcome of a scene is decided."""
    return round(get_simulator().simulate(scene, stop=fallen(scene)).duration / STEP)


def peak_memory(n: int) -> int:
    """Peak resident memory (kB) of a fresh process that makes n small items."""
    code = (
        "import resource, tempfile; from stimuli.generate import make_set\n"
        f"make_set({TASK!r}, {n}, 0, tempfile.mkdtemp() + '/set', size=64)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Run the benchmark and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stimuli: StimulusSet = make_set(TASK, arguments.n, 0, Path(folder) / "set", size=arguments.size)
        work = [(item.scene, steps_of(item.scene)) for item in stimuli.items if item.scene is not None]
    one, two = [], []
    for _ in range(arguments.rounds):
        bare = bare_engine(work, arguments.size)
        wall, cpu = made(arguments.n, arguments.size, 1)
        one.append(cpu / bare)  # CPU time: on a shared machine wall time says more about the neighbours
        two.append(wall / made(arguments.n, arguments.size, 2)[0])
    print(f"{TASK}, {arguments.n} items, {arguments.size} px, median of {arguments.rounds} rounds")
    print(f"CPU time per item / bare engine           {statistics.median(one):.3f}   (target <= 1.15)")
    print(f"speed-up of two processes over one        {statistics.median(two):.3f}   (target >= 1.8)")
    if arguments.memory:
        print(f"peak memory, 2000 items / 200 items       {peak_memory(2000) / peak_memory(200):.3f}   (flat: about 1)")


if __name__ == "__main__":
    main()
