"""What the environment costs around the bare engine, per step.

Baseline: the engine alone (`Simulator.simulate` and `Simulator.render`) on the very scenes, answers and stop conditions of the
episodes that the environment played. Nothing is sampled, asked, parsed, scored, hashed or remembered.

    python benchmarks/environment.py [--task towers-topblock] [-n 300] [--size 224] [--rounds 5]

Prints, as ratios within one run, in CPU time and in wall time: steps per second of the environment to the bare engine
(target >= 0.85), the same with a new scene drawn at every reset left out and counted, and how much of a step the drawing of
a scene takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlm_probe.stimuli.environment import PhysicsEnv
from vlm_probe.stimuli.outcomes import OutcomeCache
from vlm_probe.stimuli.question import Answer, Question
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import Outcome, Simulator, Stop, get_simulator


@dataclass(frozen=True)
class Episode:
    """One scene, its question, and the answer that is tried."""

    scene: Scene
    question: Question
    answer: Answer


@dataclass(frozen=True)
class Work:
    """What the engine had to do for one episode: simulations (with their limits) and the poses that were shown."""

    scene: Scene
    applied: Scene
    simulations: tuple[tuple[Scene, dict[str, Any]], ...]
    outcome: Outcome | None


class Recorder:
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


def work_of(task: str, played: list[Episode]) -> list[Work]:
    """What the engine does for each episode."""
    env, found = PhysicsEnv(task, size=16), []
    for episode in played:
        recorder = Recorder(get_simulator())
        score = env.task.score(episode.scene, episode.question, episode.answer, recorder)
        applied = env.task.apply(episode.scene, episode.answer)
        found.append(Work(episode.scene, replace(applied, panels=()), tuple(recorder.asked), score.outcome))
    return found


def bare(work: list[Work], size: int) -> tuple[float, float]:
    """Wall and CPU seconds of the engine alone: the first picture, the simulation, the picture of what happened."""
    engine = get_simulator()
    wall, cpu = time.perf_counter(), time.process_time()
    for one in work:
        engine.render(one.scene, size)
        for scene, limits in one.simulations:
            engine.simulate(scene, **limits)
        engine.render(one.applied, size, one.outcome.poses() if one.outcome is not None else None)
    return time.perf_counter() - wall, time.process_time() - cpu


def played(task: str, some: list[Episode], size: int, *, drawn: bool) -> tuple[float, float]:
    """Wall and CPU seconds of the environment on the same episodes; `drawn`: with a scene drawn anew before each."""
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


def main() -> None:
    """Run the benchmark and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="towers-topblock")
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    task, size = arguments.task, arguments.size
    some = episodes(task, arguments.n, size)
    work = work_of(task, some)
    given, fresh, rates = [], [], []
    for _ in range(arguments.rounds):
        alone = bare(work, size)
        asked, drawn = played(task, some, size, drawn=False), played(task, some, size, drawn=True)
        given.append((alone[0] / asked[0], alone[1] / asked[1]))
        fresh.append((alone[0] / drawn[0], alone[1] / drawn[1]))
        rates.append(arguments.n / drawn[1])
    without, with_cache = repeated(task, some[:30], size)

    def median(pairs: list[tuple[float, float]], column: int) -> float:
        return statistics.median(pair[column] for pair in pairs)

    print(f"{task}, {arguments.n} episodes of one attempt, {size} px, median of {arguments.rounds} rounds")
    print("steps/s, environment / bare engine        CPU     wall")
    print(
        f"  scenes given (played from a set)        {median(given, 1):.3f}   {median(given, 0):.3f}   (target >= 0.85)"
    )
    print(f"  a new scene drawn at every reset        {median(fresh, 1):.3f}   {median(fresh, 0):.3f}")
    print(f"share of a step that drawing a scene takes {1 - median(fresh, 1) / median(given, 1):.3f}")
    print(f"8 attempts alike, with / without cache    {without / with_cache:.2f} times as fast")
    print(f"episodes per second of CPU time here      {statistics.median(rates):.0f}")


if __name__ == "__main__":
    main()
