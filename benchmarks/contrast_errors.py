"""Error rates of the planned contrasts, in the kinds of data that make mixed models falter: how often true nulls are rejected.

    python benchmarks/contrast_errors.py [--replications 200] [--runs 3] [--kinds usual settled ...] [--markdown]

One run of an untrained model and some of SFT and of GRPO, all on the same 100 items, with the same expected rate: every rejection of
`planned_contrasts` (SFT - base, GRPO - base, RL - SFT) is wrong, and intervals should contain 0.

- usual: standard deviations in log-odds of .7 (items), .3 (runs), .2 (items by training).
- near: 4 for items and 3 for items by training, so that the answers of the runs of a training largely repeat.
- settled: 8 and 4, as at temperature 0: nearly all of them do.
- identical: the runs of a training answer all items alike.
- ceiling: rates of about .97, so that many cells are without an error.
- collapse: every other run answers all items with one option, and the rest guess.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).parent.parent))

from analysis.contrasts import planned_contrasts
from analysis.frame import from_table

ITEMS, TASK = 100, "towers-stability"
Answers = Callable[[np.random.Generator, int], list[NDArray[np.bool_]]]


def normal(level: float, items: float, runs: float, both: float) -> Answers:
    """Answers of normal effects of items, of runs, and of items by training, around a level in log-odds."""

    def draw(rng: np.random.Generator, n_runs: int) -> list[NDArray[np.bool_]]:
        of_item, found = rng.normal(0, items, ITEMS), []
        for count, of_run in ((1, 0.0), (n_runs, runs), (n_runs, runs)):
            own = level + of_item + rng.normal(0, both, ITEMS)
            found += [rng.random(ITEMS) < expit(own + rng.normal(0, of_run)) for _ in range(count)]
        return found

    return draw


def identical(rng: np.random.Generator, n_runs: int) -> list[NDArray[np.bool_]]:
    """All runs of a training with the same answers, right in .7 of the items."""
    return [answers for count in (1, n_runs, n_runs) for answers in [rng.random(ITEMS) < 0.7] * count]


def collapse(rng: np.random.Generator, n_runs: int) -> list[NDArray[np.bool_]]:
    """Guesses, or one option for all items, of which half are right."""
    one_option = np.arange(ITEMS) % 2 == 0
    found = []
    for _ in range(1 + 2 * n_runs):
        guesses, option = rng.random(ITEMS) < 0.5, one_option ^ (rng.random() < 0.5)
        found.append(option if rng.random() < 0.5 else guesses)
    return found


KINDS: dict[str, Answers] = {
    "usual": normal(0.5, 0.7, 0.3, 0.2),
    "near": normal(1.0, 4.0, 0.5, 3.0),
    "settled": normal(1.0, 8.0, 0.5, 4.0),
    "identical": identical,
    "ceiling": normal(5.0, 2.0, 0.5, 0.5),
    "collapse": collapse,
}


def simulate(kind: str, n_runs: int, rng: np.random.Generator) -> pd.DataFrame:
    """A trial table of one study."""
    names = [("none", 0), *(("sft", seed) for seed in range(n_runs)), *(("grpo", seed) for seed in range(n_runs))]
    rows = []
    for (method, seed), answers in zip(names, KINDS[kind](rng, n_runs), strict=True):
        trained = method != "none"
        about: dict[str, Any] = {
            "run": f"{method}-{seed}",
            "method": method,
            "seed": seed,
            "model": "simulated",
            "test_task": TASK,
        }
        about |= {"train_tasks": TASK if trained else "none", "transfer": "within" if trained else None}
        items = [f"i{number}" for number in range(ITEMS)]
        rows.append(pd.DataFrame({"item_id": items, "correct": answers.astype(int)}).assign(**about))
    return from_table(pd.concat(rows, ignore_index=True)).table


def study(kind: str, n_runs: int, number: int) -> pd.DataFrame:
    """The planned contrasts of one simulated study."""
    with warnings.catch_warnings(action="ignore"):
        return planned_contrasts(simulate(kind, n_runs, np.random.default_rng([n_runs, number, 17]))).table


def summarise(kind: str, n_runs: int, replications: int) -> pd.DataFrame:
    """Rejections and coverage of one kind of data, by contrast."""
    found = pd.concat(map(partial(study, kind, n_runs), range(replications)), ignore_index=True)
    covered = (found["difference_low"] <= 0) & (found["difference_high"] >= 0)
    table = found.assign(rejects=found["p"] < 0.05, rejects_runs=found["p_runs"] < 0.05, covers=covered)
    table["equivalent"] = table["verdict"].isin(["equivalent", "trivial"])
    rows = table.groupby("contrast", sort=False)
    return pd.DataFrame(
        {
            "data": kind,
            "contrast": list(rows.groups),
            "studies": rows.size().to_numpy(),
            "rejects": rows["rejects"].mean().to_numpy(),
            "interval covers 0": rows["covers"].mean().to_numpy(),
            "equivalent within .1": rows["equivalent"].mean().to_numpy(),
            "run means reject": rows["rejects_runs"].mean().to_numpy(),
        }
    )


def markdown(table: pd.DataFrame) -> str:
    """The table of the documentation."""
    lines = ["| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Simulate studies and print how often their tests err."""
    parser = argparse.ArgumentParser(description="Error rates of the planned contrasts.")
    parser.add_argument("--replications", type=int, default=200, help="studies per kind of data")
    parser.add_argument("--runs", type=int, default=3, help="runs per method")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    table = pd.concat([summarise(kind, arguments.runs, arguments.replications) for kind in arguments.kinds])
    print(markdown(table) if arguments.markdown else table.to_string(index=False))


if __name__ == "__main__":
    main()
