"""What a rollout of PPO costs beside one of GRPO, what share the simulator has in it, and how much memory training takes.

Baseline: TRL's GRPO trainer on the same model, the same task, as many samples, and as many passes over them. Each method
trains in a process of its own; the two take turns, so that a busy machine is busy for both.

    python benchmarks/training.py [--model tiny] [--task towers-topblock] [--rollouts 6] [--rounds 2]

Prints, in CPU time: seconds per rollout, the ratio of PPO to GRPO (target <= 1.2), the share of the simulator and the reward in
a rollout (target <= 0.25), and the peak of the memory that the process takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SKIPPED = 1
"""Rollouts at the beginning that are not counted: what is done once is done in them."""


def measure(method: str, model: str, task: str, rollouts: int) -> dict[str, float]:
    """Train in this process; CPU seconds per rollout, the simulator's part of them, and the peak of memory (GB)."""
    from vlm_probe.finetune.config import make_config
    from vlm_probe.finetune.train import train

    given: dict[str, Any] = {
        "model": model,
        "tasks": (task,),
        "method": method,
        "items": 256,
        "rollout": 128,
        "batch": 32,
        "epochs": 2,
        "beta": 0.01,
        "entropy_bonus": 0.0,
        "generations": 1 if method == "ppo" else 4,
        "budget": f"samples={128 * rollouts}",
        "save_every": 10**9,
    }
    clock: list[float] = []

    def tick(done: int, total: int) -> None:
        clock.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        # Made beforehand, so that the clock ticks for steps alone.
        from vlm_probe.finetune.data import training_set

        config = make_config(given, "tiny")
        training_set(config)
        result = train(config, Path(folder) / "run", progress=tick)
    steps = result["budget"]["steps"] // rollouts
    ends = clock[-result["budget"]["steps"] :][steps - 1 :: steps]
    each = [after - before for before, after in itertools.pairwise(ends)][SKIPPED - 1 :]
    simulator = [row["simulator_s"] for row in result["curves"]][SKIPPED:]
    return {
        "rollout_s": statistics.median(each),
        "simulator_s": statistics.median(simulator),
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    """Measure both methods in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--task", default="towers-topblock")
    parser.add_argument("--rollouts", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.method:
        print(json.dumps(measure(given.method, given.model, given.task, given.rollouts)))
        return
    found: dict[str, list[dict[str, float]]] = {"ppo": [], "grpo": []}
    for _ in range(given.rounds):
        for method, measured in found.items():
            command = [sys.executable, __file__, "--method", method, "--model", given.model, "--task", given.task]
            run = subprocess.run(
                [*command, "--rollouts", str(given.rollouts)], capture_output=True, text=True, check=True
            )
            measured.append(json.loads(run.stdout.splitlines()[-1]))
    seconds = {m: statistics.median(r["rollout_s"] for r in rounds) for m, rounds in found.items()}
    for method, rounds in found.items():
        simulator = statistics.median(r["simulator_s"] / r["rollout_s"] for r in rounds)
        memory = max(r["memory_gb"] for r in rounds)
        print(
            f"{method:5} {seconds[method]:6.2f} CPU-s per rollout of 128, simulator and reward {simulator:.1%} of it,"
            f" {memory:.2f} GB"
        )
    print(f"PPO / GRPO {seconds['ppo'] / seconds['grpo']:.2f} (target <= 1.2)")


if __name__ == "__main__":
    main()
