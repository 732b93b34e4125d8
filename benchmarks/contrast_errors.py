"""Error rates of the planned contrasts, in the kinds of data that make mixed models falter: how often true nulls are rejected.

    python benchmarks/contrast_errors.py [--replications 200] [--runs 3] [--kinds usual settled ...] [--markdown]

One run of an untrained model and some of SFT and of GRPO, all on the same items, with the same expected rate: every rejection of
`planned_contrasts` (SFT - base, GRPO - base, RL - SFT) is wrong, and intervals should contain 0.

- usual: standard deviations in log-odds of .7 (items), .3 (runs), .2 (items by training).
- wide: 2 for items and 1 for items by training.
- items: 4 for items, which nothing else moves.
- near: 4 for items and 3 for items by training, so that the answers of the runs of a training largely repeat.
- settled: 8 and 4, as at temperature 0: nearly all of them do.
- identical: the runs of a training answer all items alike.
- ceiling: rates of about .97, so that many cells are without an error.
- collapse: every other run answers all items with one option, and the rest guess.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from vlm_probe.analysis.contrasts import planned_contrasts
from vlm_probe.analysis.frame import from_table

TASK = "towers-stability"
ALPHA = 0.05
Answers = Callable[[np.random.Generator, int, int], list[NDArray[np.bool_]]]


def normal(level: float, items: float, runs: float, both: float) -> Answers:
    """Answers of normal effects of items, of runs, and of items by training, around a level in log-odds.

    Args:
        level: Mean log odds.
        items, runs, both: Standard deviations of items, of runs, and of items for one training alone.
    """

    def draw(rng: np.random.Generator, n_runs: int, n_items: int) -> list[NDArray[np.bool_]]:
        of_item, found = rng.normal(0, items, n_items), []
        for count, of_run in ((1, 0.0), (n_runs, runs), (n_runs, runs)):
            own = level + of_item + rng.normal(0, both, n_items)
            found += [rng.random(n_items) < expit(own + rng.normal(0, of_run)) for _ in range(count)]
        return found

    return draw


def identical(rng: np.random.Generator, n_runs: int, n_items: int) -> list[NDArray[np.bool_]]:
    """All runs of a training with the same answers, right in .7 of the items."""
    return [answers for count in (1, n_runs, n_runs) for answers in [rng.random(n_items) < 0.7] * count]


def collapse(rng: np.random.Generator, n_runs: int, n_items: int) -> list[NDArray[np.bool_]]:
    """Guesses, or one option for all items, of which half are right."""
    one_option = np.arange(n_items) % 2 == 0
    found = []
    for _ in range(1 + 2 * n_runs):
        guesses, option = rng.random(n_items) < 0.5, one_option ^ (rng.random() < 0.5)
        found.append(option if rng.random() < 0.5 else guesses)
    return found


KINDS: dict[str, Answers] = {
    "usual": normal(0.5, 0.7, 0.3, 0.2),
    "wide": normal(0.7, 2.0, 0.3, 1.0),
    "items": normal(1.0, 4.0, 0.3, 0.0),
    "near": normal(1.0, 4.0, 0.5, 3.0),
    "settled": normal(1.0, 8.0, 0.5, 4.0),
    "identical": identical,
    "ceiling": normal(5.0, 2.0, 0.5, 0.5),
    "collapse": collapse,
}


def simulate(kind: str, n_runs: int, n_items: int, rng: np.random.Generator) -> pd.DataFrame:
    """The trials of one study."""
    names = ["none", *["sft"] * n_runs, *["grpo"] * n_runs]
    runs = [f"{method}-{number}" for number, method in enumerate(names)]
    answers = np.concatenate(KINDS[kind](rng, n_runs, n_items)).astype(int)
    methods = np.repeat(names, n_items)
    items = np.tile([f"i{number}" for number in range(n_items)], len(runs))
    about = {"run": np.repeat(runs, n_items), "method": methods, "training": methods, "test": TASK, "item": items}
    return pd.DataFrame(about | {"success": answers})


def as_logged(trials: pd.DataFrame) -> pd.DataFrame:
    """Such trials as a trial table."""
    trained = trials["method"] != "none"
    about = trials[["run", "method"]].assign(item_id=trials["item"], correct=trials["success"], model="simulated")
    about = about.assign(seed=pd.factorize(about["run"])[0], test_task=TASK)
    about["train_tasks"] = np.where(trained, TASK, "none")
    about["transfer"] = pd.Series("within", about.index).where(trained)
    return from_table(about).table


def study(kind: str, n_runs: int, n_items: int, number: int) -> pd.DataFrame:
    """The planned contrasts of one simulated study."""
    with warnings.catch_warnings(action="ignore"):
        trials = simulate(kind, n_runs, n_items, np.random.default_rng([n_runs, number, 17]))
        return planned_contrasts(as_logged(trials)).table


def summarise(kind: str, n_runs: int, n_items: int, replications: int) -> pd.DataFrame:
    """Rejections and coverage of one kind of data, by contrast."""
    table = pd.concat(map(partial(study, kind, n_runs, n_items), range(replications)), ignore_index=True)
    low, high = table["difference_low"], table["difference_high"]
    shown = {
        "rejects": table["p"] < ALPHA,
        "interval covers 0": (low <= 0) & (high >= 0),
        "its width": high - low,
        "equivalent within .1": table["p_equivalence"] < ALPHA,
        "means: rejects": table["p_means"] < ALPHA,
        "these items: rejects": table["p_runs"] < ALPHA,
    }
    rows = table[["contrast"]].assign(**shown).groupby("contrast", sort=False)
    size = rows.size()
    about = {"data": kind, "runs": n_runs, "contrast": list(size.index), "studies": size.to_numpy()}
    return pd.DataFrame(about | {name: rows[name].mean().to_numpy(float) for name in shown})


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
    parser.add_argument("--runs", type=int, nargs="+", default=[3], help="runs per method")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    a = arguments
    sizes = [(kind, runs) for kind in a.kinds for runs in a.runs]
    table = pd.concat([summarise(kind, runs, a.items, a.replications) for kind, runs in sizes])
    print(markdown(table) if arguments.markdown else table.to_string(index=False))


if __name__ == "__main__":
    main()
