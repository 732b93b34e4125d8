"""Error rates of the whole way from trial logs to the planned contrasts: simulated studies with and without transfer.

    python benchmarks/pipeline_error.py [--studies 200] [--runs 5] [--jobs 2] [--rows FILE]

A study is an untrained model and `--runs` PPO adapters that learned their own task, all asked the same 60 items of another task of the
family. What is written is what `probe run` writes, `run.json` and `trials.jsonl`; what is read is `vlm_probe.analysis.frame.load` and then the
planned contrast PPO - untrained at the level cross-task, as `probe analyze` reports it. Success has a logit of 0 in the untrained model;
standard deviations of 0.3 (runs) and 0.7 (items). Without transfer the adapters have the same mean; with transfer 0.6 more.
Every study has a seed of its own; with `--rows` each goes into a file as soon as it is done, and what is there is not done again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
from scipy.special import expit
from scipy.stats import binomtest

from vlm_probe.analysis.contrasts import planned_contrasts
from vlm_probe.analysis.frame import load
from vlm_probe.analysis.material import Settings, select
from vlm_probe.probes.trials import COLUMNS, TrialLog, trials_hash

ITEMS, SD_RUN, SD_ITEM, TRANSFER = 60, 0.3, 0.7, 0.6
TRAINED, TESTED = "towers-topblock", "towers-stability"
ALPHA = 0.05


def write_log(folder: Path, success: list[bool], run: int | None) -> None:
    """The log of one run: of the untrained model, or of the adapter of a seed.

    Args:
        folder: Of the run.
        success: Of every item.
        run: Seed of the adapter; None for the untrained model.
    """
    task, adapter = TESTED, "" if run is None else hashlib.sha256(f"adapter {run}".encode()).hexdigest()
    facts = {"method": "ppo", "tasks": [TRAINED], "seed": run, "budget": {"samples": 6400}}
    record: dict[str, Any] = {
        "format": 1,
        "status": "running",
        "config": {"model": "simulated", "temperature": 0.0},
        "seed": 0,
        "n": len(success),
        "n_errors": 0,
        "model": {"name": "simulated", "revision": "", "weights_sha256": "0" * 64, "adapter_sha256": adapter},
        "training": None if run is None else facts,
        "stimuli": {
            "path": "sets/simulated",
            "content_sha256": hashlib.sha256(task.encode()).hexdigest(),
            "task": task,
        },
        "fingerprint": {"adapter": adapter},
        "resumed": 0,
    }
    with TrialLog(folder, record) as log:
        for number, right in enumerate(success):
            truth, other = ("stands", "falls") if number % 2 else ("falls", "stands")
            margin = (0.1 + 0.6 * number / ITEMS) * (1 if number % 2 else -1)
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            row |= {
                "key": hashlib.sha256(f"{adapter} {task} {number}".encode()).hexdigest(),
                "item_id": f"{task}_{number:03d}",
                "task": task,
                "model": "simulated",
                "readout": "generate",
                "prompt": "?",
                "status": "ok",
                "truth": truth,
                "answer": truth if right else other,
                "options": ["stands", "falls"],
                "correct": right,
                "success": right,
                "reward": float(right),
                "chance": 0.5,
                "margin": margin,
                "condition": {"count": 3, "build": "plain", "mirrored": False, "shifts": []},
                "variant": {"polarity": 0, "order": 0},
                "pair_id": f"{task}_{number // 2:03d}",
                "group_id": f"{task}_{number // 2:03d}",
                "role": "base",
            }
            log.append(row)
        log.update(status="finished", trials_sha256=trials_hash(folder))


@functools.cache
def true_difference(effect: float) -> float:
    """Of the success rates over runs and items, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    weights = weights / weights.sum()

    def rate(logit: float, sd: float) -> float:
        return float(weights @ expit(logit + sd * nodes))

    return rate(effect, float(np.hypot(SD_RUN, SD_ITEM))) - rate(0.0, SD_ITEM)


def study(number: int, runs: int) -> dict[str, float]:
    """One simulated study: written, read, and its planned contrast. Every other one has transfer."""
    rng, effect = np.random.default_rng([number, runs]), TRANSFER * (number % 2)
    items = rng.normal(0, SD_ITEM, ITEMS)
    with tempfile.TemporaryDirectory() as home:
        for run in (None, *range(runs)):
            own = 0.0 if run is None else float(rng.normal(0, SD_RUN))
            gain = 0.0 if run is None else effect
            success = (rng.random(ITEMS) < expit(gain + own + items)).tolist()
            write_log(Path(home) / str(run), success, run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = planned_contrasts(select(load([home]), Settings()).plain).table
    (row,) = table[table["transfer"] == "cross-task"].to_dict("records")
    truth = true_difference(effect)
    return {
        "number": number,
        "runs": runs,
        "effect": effect,
        "model": float(row["p"] < ALPHA),
        "means": float(row["p_means"] < ALPHA),
        "run_means": float(row["p_runs"] < ALPHA),
        "covers": float(row["difference_low"] <= truth <= row["difference_high"]),
        "difference": float(row["difference"]) - truth,
        "equivalent": float(row["verdict"] == "equivalent"),
        "failed": float(np.isnan(row["p"])),
    }


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--studies", type=int, default=200, help="with transfer, and as many without")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="file for one JSON object per study")
    options = parser.parse_args()
    rows = simulate(options.studies, options.runs, options.jobs, options.rows)
    print(f"| {options.runs} runs | studies | rejected, model | means | run means | coverage | bias | no fit |")
    print("|---|---|---|---|---|---|---|---|")
    for effect, name in ((0.0, "no transfer"), (TRANSFER, f"transfer of {true_difference(TRANSFER):.3f}")):
        own = [row for row in rows if row["effect"] == effect]
        keys = ("model", "means", "run_means", "covers")
        cells = [_share([row[key] for row in own if not row["failed"]]) for key in keys]
        bias = float(np.nanmean([row["difference"] for row in own]))
        print(f"| {name} | {len(own)} | {' | '.join(cells)} | {bias:+.3f} | {sum(r['failed'] for r in own):.0f} |")


def simulate(studies: int, runs: int, jobs: int, kept: Path | None) -> list[dict[str, float]]:
    """All studies, with transfer and without: read from a file as far as they are there, else done now.

    Args:
        studies: How many of each kind.
        runs: Trained runs per study.
        jobs: Processes.
        kept: The file; None keeps nothing.
    """
    rows: dict[int, dict[str, float]] = {}
    if kept is not None and kept.exists():
        found = [json.loads(line) for line in kept.read_text().splitlines() if line.endswith("}")]
        rows = {row["number"]: row for row in found if row["runs"] == runs}
    left = [number for number in range(2 * studies) if number not in rows]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for row in pool.imap_unordered(functools.partial(study, runs=runs), left):
            rows[int(row["number"])] = row
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return [row for number, row in sorted(rows.items()) if number < 2 * studies]


def _share(values: list[float]) -> str:
    """A share with its Wilson interval."""
    interval = binomtest(int(sum(values)), len(values)).proportion_ci(method="wilson")
    return f"{np.mean(values):.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    main()
