"""What the embedded model learns by each method, on two CPU cores: the runs of docs/learning.md, made and measured.

    python benchmarks/learning.py --out DIR              # all of it: trains what is not there yet (hours), asks, reports
    python benchmarks/learning.py --out DIR --report     # from the runs that are there
    python benchmarks/learning.py --out DIR --only topblock-ppo-exploring-0

Every run is `probe train --preset tiny`, and every test `probe run` with greedy replies on a set of new items. Writes
results.json and learning.png into DIR. The same command goes on where it was stopped; a run that was stopped and has not gone
on is reported as far as it came.
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

from vlm_probe.analysis.style import MM, NAMES, PAGE_MM, STYLE, look, proportions, save

CRITERION = 0.6
WINDOW = 5
"""Rollouts whose mean success has to reach the criterion."""


@dataclass(frozen=True)
class Run:
    """One training: its name, task, method and seed, and what differs from the preset."""

    name: str
    task: str
    method: str
    seed: int
    options: tuple[str, ...] = field(default=())


EXPLORING = (
    *("--temperature", "1.4", "--entropy-bonus", "0.05", "--beta", "0"),
    *("--value-learning-rate", "3e-3", "--value-clip", "0"),
)
"""Of PPO: replies that stay varied as long as those of the other methods, no pull to the base model, and a quicker critic."""
SAMPLES = ("--budget", "samples=8960")
"""What PPO sees in ten minutes of a processor without a reference model."""
ACTING = (
    *(Run(f"topblock-{m}-{seed}", "towers-topblock", m, seed) for m in ("grpo", "rloo") for seed in range(3)),
    *(Run(f"topblock-ppo-exploring-{s}", "towers-topblock", "ppo", s, (*EXPLORING, *SAMPLES)) for s in range(3)),
)
UNSURE = ("--entropy-bonus", "0.05")
VARIANTS = (
    Run("topblock-ppo-0", "towers-topblock", "ppo", 0),
    *(Run(f"topblock-ppo-unsure-{seed}", "towers-topblock", "ppo", seed, UNSURE) for seed in range(3)),
    Run(
        *("topblock-ppo-quick-1", "towers-topblock", "ppo", 1),
        (*UNSURE, "--beta", "0", "--value-learning-rate", "5e-3", "--value-clip", "0", *SAMPLES),
    ),
    Run("topblock-rloo-sure-1", "towers-topblock", "rloo", 1, ("--temperature", "1")),
    Run(
        *("topblock-rloo-more-1", "towers-topblock", "rloo", 1),
        ("--temperature", "1", "--entropy-bonus", "0.1", "--budget", "samples=9216"),
    ),
)
"""Other settings at the same task, in the table and not in the figure: the presets of the registered study, and what was changed."""
SHORT = ("--budget", "samples=4096")
"""Of the tasks on which a run is only to show that something is learned."""
SHORTER = ("--budget", "samples=2560", "--items", "1024")
MEDIUM = ("--budget", "samples=6144")
OTHERS = (
    Run("stability-sft-1", "towers-stability", "sft", 1),
    Run("stability-ppo-1", "towers-stability", "ppo", 1, SHORT),
    Run("place-ppo-0", "balance-place", "ppo", 0, SHORT),
    Run("aim-ppo-0", "collision-aim", "ppo", 0, SHORTER),
    Run("aim-ppo-exploring-0", "collision-aim", "ppo", 0, (*EXPLORING, *MEDIUM)),
    Run("brace-ppo-exploring-0", "support-brace", "ppo", 0, (*EXPLORING, *MEDIUM)),
)
TESTS = {
    "towers-topblock": (600, 101),
    "towers-stability": (600, 77),
    "balance-place": (200, 77),
    "collision-aim": (200, 77),
    "support-brace": (200, 77),
}
"""Task -> items and seed of its test set. The settings of acting were chosen with sets of the seed 77, so another one tells how good they are."""


def probe(*arguments: str) -> dict[str, Any]:
    """Run a command of `probe` with --json, and give what it prints."""
    command = [sys.executable, "-m", "vlm_probe", *arguments]
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
    n, seed = TESTS[task]
    path = folder / "sets" / f"{task}-{seed}"
    if not path.is_dir():
        probe("stimuli", "make", task, "-n", str(n), "--seed", str(seed), "--out", str(path))
    return path


def ask(task: str, folder: Path, model: str, adapter: Path | None) -> dict[str, Any]:
    """The summary of the model's greedy replies to the test set."""
    name = adapter.name if adapter is not None else f"base-{task}"
    out = folder / "tests" / f"{name}-{TESTS[task][1]}"
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
        "weights": training["base"]["weights_sha256"][:12],
        "task": run.task,
        "method": run.method,
        "seed": run.seed,
        "options": list(run.options),
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
        "curve": curve(training["curves"]),
    }


def so_far(run: Run, folder: Path) -> dict[str, Any] | None:
    """What is known of a run that was stopped: no test, and no more than its curve; None if it has not begun."""
    file = folder / run.name / "checkpoints" / "curves.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    if not rows:
        return None
    return {
        "name": run.name,
        "task": run.task,
        "method": run.method,
        "seed": run.seed,
        "options": list(run.options),
        "stopped_at": rows[-1]["samples"],
        "samples_to_criterion": samples_to(rows),
        "curve": curve(rows),
    }


def curve(rows: list[dict[str, Any]]) -> list[list[float]]:
    """(samples, sampled success, entropy) of every step that generated; no row for supervised steps."""
    return [[row["samples"], row["success"], row["entropy"]] for row in rows if "success" in row and "reward" in row]


def samples_to(rows: list[dict[str, Any]]) -> int | None:
    """Samples after which sampled success, as a mean over `WINDOW` rollouts, has reached the criterion."""
    successes = [row["success"] for row in rows if "success" in row]
    for i in range(WINDOW - 1, len(successes)):
        if sum(successes[i - WINDOW + 1 : i + 1]) / WINDOW >= CRITERION:
            return int(rows[i]["samples"])
    return None


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """Sampled success over samples: a panel for towers-topblock, one for other tasks; dashed: stopped."""
    import matplotlib.pyplot as plt

    apart = {run.name for run in VARIANTS}
    drawn = [run for run in found if run["curve"] and run["name"] not in apart]
    first = [run for run in drawn if run["task"] == "towers-topblock"]
    panels = {"towers-topblock": first, "PPO on other tasks": [run for run in drawn if run not in first]}
    panels = {title: runs for title, runs in panels.items() if runs}
    if not panels:
        return
    with plt.rc_context(STYLE):
        size = (PAGE_MM * MM * len(panels) / 2, 78 * MM)
        figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)
        for panel, (title, runs) in zip(axes[0], panels.items(), strict=True):
            colours: dict[str, Any] = {}
            for run in runs:
                label, colour, style = run["task"], None, "-"
                if title == run["task"]:
                    label, (colour, _) = NAMES[run["method"]], look(run["method"])
                if "stopped_at" in run:
                    label, style = f"{label}, stopped", "--"
                samples, success = [x for x, _, _ in run["curve"]], smoothed([y for _, y, _ in run["curve"]])
                shown, colour = None if label in colours else label, colours.get(label, colour)
                (line,) = panel.plot(samples, success, linestyle=style, color=colour, label=shown, linewidth=1)
                colours[label] = line.get_color()
                if "constant" in run:
                    grey = "#5A5A5A" if title == run["task"] else line.get_color()
                    panel.axhline(run["constant"], color=grey, linewidth=0.6, linestyle=":")
            panel.set_title(title)
            panel.set_xlabel("samples")
            panel.set_ylim(0, 1)
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
            proportions(panel)
        axes[0][0].set_ylabel("success of sampled replies")
        save(figure, file)
        plt.close(figure)


def smoothed(values: list[float]) -> list[float]:
    """Means over the last `WINDOW` values, fewer at the beginning."""
    windows = [values[max(0, i - WINDOW + 1) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def table(found: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| Run | success, greedy [95 %] | base | best constant | samples | to .60 | CPU-s |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in found:
        reached = run["samples_to_criterion"]
        if "stopped_at" in run:
            lines.append(f"| {run['name']} | stopped, not tested |  |  | {run['stopped_at']} | {reached or ''} |  |")
            continue
        low, high = run["interval"]
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
    runs = [run for run in (*ACTING, *VARIANTS, *OTHERS) if not given.only or run.name in given.only]
    if not given.report:
        for run in runs:
            train(run, given.out, given.model)
    finished = {run.name for run in runs if (given.out / run.name / "training.json").is_file()}
    each = [measure(r, given.out, given.model) if r.name in finished else so_far(r, given.out) for r in runs]
    found = [one for one in each if one is not None]
    (given.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, given.out / "learning.png")
    print(table(found))


if __name__ == "__main__":
    main()
