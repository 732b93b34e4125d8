"""What the embedded model learns by each method, on two CPU cores: the runs of docs/learning.md, made and measured.

    python benchmarks/learning.py --out DIR              # all of it: trains what is not there yet (hours), asks, reports
    python benchmarks/learning.py --out DIR --report     # from the runs that are there
    python benchmarks/learning.py --out DIR --only topblock-ppo-0

Every run is `probe train --preset tiny`, and every test `probe run` with greedy replies on a set of new items. Writes
results.json and learning.png into DIR. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Run as a script, this file would be found before the package's modules of the same name.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.style import MM, NAMES, PAGE_MM, STYLE, look, proportions, save

CRITERION = 0.6
WINDOW = 5
"""Rollouts whose mean success has to reach the criterion."""
TEST_SEED = 77


@dataclass(frozen=True)
class Run:
    """One training: its name, task, method and seed, and what differs from the preset."""

    name: str
    task: str
    method: str
    seed: int
    options: tuple[str, ...] = field(default=())


TOPBLOCK = tuple(
    Run(f"topblock-{method}-{seed}", "towers-topblock", method, seed)
    for seed in range(3)
    for method in ("ppo", "grpo", "rloo")
)
OTHERS = (
    Run("stability-sft-1", "towers-stability", "sft", 1),
    Run("stability-ppo-1", "towers-stability", "ppo", 1),
    Run("place-ppo-0", "balance-place", "ppo", 0),
    Run("aim-ppo-0", "collision-aim", "ppo", 0),
    Run("brace-ppo-0", "support-brace", "ppo", 0),
)
TESTS = {
    "towers-topblock": 300,
    "towers-stability": 600,
    "balance-place": 200,
    "collision-aim": 200,
    "support-brace": 200,
}
"""Task -> items of its test set."""


def probe(*arguments: str) -> dict[str, Any]:
    """Run a command of `probe` with --json, and give what it prints."""
    command = [sys.executable, "-m", "probes", *arguments]
    run = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {run.returncode}")
    found: dict[str, Any] = json.loads(run.stdout) if run.stdout.startswith("{") else {}
    return found


def train(run: Run, folder: Path, model: str) -> None:
    """Train, unless that is done."""
    if not (folder / run.name / "training.json").is_file():
        given = ("--tasks", run.task, "--method", run.method, "--seed", str(run.seed), *run.options)
        where = ("--avoid", str(test_set(run.task, folder)), "--out", str(folder / run.name))
        probe("train", "--model", model, "--preset", "tiny", *given, *where, "--json")


def test_set(task: str, folder: Path) -> Path:
    """The test set of a task, made when it is first asked for."""
    path = folder / "sets" / task
    if not path.is_dir():
        probe("stimuli", "make", task, "-n", str(TESTS[task]), "--seed", str(TEST_SEED), "--out", str(path))
    return path


def ask(task: str, folder: Path, model: str, adapter: Path | None) -> dict[str, Any]:
    """The summary of the model's greedy replies to the test set."""
    name = adapter.name if adapter is not None else f"base-{task}"
    out = folder / "tests" / name
    if not (out / "summary.json").is_file():
        given = ("--adapter", str(adapter)) if adapter is not None else ()
        where = ("--stimuli", str(test_set(task, folder)), "--out", str(out))
        probe("run", "--model", model, *where, *given, "--no-references", "--json")
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def measure(run: Run, folder: Path, model: str) -> dict[str, Any]:
    """What a finished run has cost and learned."""
    training = json.loads((folder / run.name / "training.json").read_text())
    after, before = ask(run.task, folder, model, folder / run.name), ask(run.task, folder, model, None)
    return {
        "name": run.name,
        "task": run.task,
        "method": run.method,
        "seed": run.seed,
        "samples": training["budget"]["samples"],
        "tokens": training["budget"]["tokens"],
        "steps": training["budget"]["steps"],
        "cpu_seconds": training["cpu_seconds"],
        "samples_to_criterion": samples_to(training["curves"]),
        "success": after["accuracy"],
        "interval": after["accuracy_ci"],
        "pairs": after["pair_accuracy"],
        "parse_rate": after["parse_rate"],
        "base": before["accuracy"],
        "constant": after["baselines"]["constant"]["score"],
        "shortcuts": after["baselines"]["shortcuts"],
        "n": after["n"],
        "data_sha256": training["data_sha256"],
        "adapter_sha256": training["adapter_sha256"],
        "curve": [[row["samples"], row["success"], row["entropy"]] for row in training["curves"] if "success" in row],
    }


def samples_to(rows: list[dict[str, Any]]) -> int | None:
    """Samples after which sampled success, as a mean over `WINDOW` rollouts, has reached the criterion."""
    successes = [row["success"] for row in rows if "success" in row]
    for i in range(WINDOW - 1, len(successes)):
        if sum(successes[i - WINDOW + 1 : i + 1]) / WINDOW >= CRITERION:
            return int(rows[i]["samples"])
    return None


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """Sampled success over samples: every run of towers-topblock on the left, PPO on the other tasks on the right."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(PAGE_MM * MM, 62 * MM), layout="constrained", sharey=True)
        shown: set[str] = set()
        for run in found:
            if not run["curve"]:
                continue
            samples, success = zip(*((x, y) for x, y, _ in run["curve"]), strict=True)
            smooth = [
                sum(success[max(0, i - WINDOW + 1) : i + 1]) / len(success[max(0, i - WINDOW + 1) : i + 1])
                for i in range(len(success))
            ]
            if run["task"] == "towers-topblock":
                label = NAMES[run["method"]]
                colour, _ = look(run["method"])
                axes[0].plot(samples, smooth, color=colour, label=None if label in shown else label, linewidth=1)
                shown.add(label)
            else:
                (line,) = axes[1].plot(samples, smooth, label=run["task"], linewidth=1)
                axes[1].axhline(run["constant"], color=line.get_color(), linewidth=0.6, linestyle=":")
        constants = [run["constant"] for run in found if run["task"] == "towers-topblock"]
        if constants:
            axes[0].axhline(constants[0], color="#5A5A5A", linewidth=0.6, linestyle=":")
        axes[0].set_title("towers-topblock, three seeds each")
        axes[1].set_title("PPO on other tasks")
        for panel in axes:
            panel.set_xlabel("samples")
            panel.legend(loc="lower right")
            proportions(panel)
        axes[0].set_ylabel("success of sampled replies")
        save(figure, file)
        plt.close(figure)


def table(found: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| Run | success, greedy [95 %] | base | best constant | samples | to .60 | CPU-s |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in found:
        low, high = run["interval"]
        reached = run["samples_to_criterion"]
        cells = (
            run["name"],
            f"{run['success']:.3f} [{low:.3f}, {high:.3f}]",
            f"{run['base']:.3f}",
            f"{run['constant']:.3f}",
            f"{run['samples']}",
            "" if not run["curve"] else "not reached" if reached is None else str(reached),
            f"{run['cpu_seconds']:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, test, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--only", nargs="*", help="names of runs")
    parser.add_argument("--report", action="store_true", help="train nothing")
    given = parser.parse_args()
    runs = [run for run in (*TOPBLOCK, *OTHERS) if not given.only or run.name in given.only]
    if not given.report:
        for run in runs:
            train(run, given.out, given.model)
    finished = [run for run in runs if (given.out / run.name / "training.json").is_file()]
    found = [measure(run, given.out, given.model) for run in finished]
    (given.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, given.out / "learning.png")
    print(table(found))


if __name__ == "__main__":
    main()
