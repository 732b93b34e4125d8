"""Type-I error and coverage with few runs: how often tests of a method effect reject a true null hypothesis.

    python benchmarks/type_one_error.py [--replications 400] [--out type_one_error.csv] [--seeds 3 5 10] [--markdown]

Two methods with S runs each (seeds of training), all runs on the same 40 items; standard deviations in log-odds: 0.4 between
runs, 0.7 between items. In every other replication there is no effect; in the others it is 0.5. Compared are, for the same
data, the z test of the logistic mixed model, its t test with between-run degrees of freedom, the t test on run means, the z test
of a model that forgets runs, and a linear mixed model of a response time with Satterthwaite's degrees of freedom and with z.

Every replication has a seed of its own and one line in the output, so that the script goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
from scipy.special import expit

from vlm_probe.analysis import FitError, FitResult, fit

ITEMS, SD_RUN, SD_ITEM, EFFECT = 40, 0.4, 0.7, 0.5
TESTS = {
    "glmm_z": "logistic mixed model, z",
    "glmm_t": "logistic mixed model, t between runs",
    "run_means_t": "t test on run means",
    "item_only_z": "logistic model with items alone, z",
    "lmm_z": "linear mixed model, z",
    "lmm_t": "linear mixed model, Satterthwaite",
}


def simulate(runs: int, effect: float, rng: np.random.Generator) -> pd.DataFrame:
    """Answers and response times of two methods with `runs` runs each."""
    run, item = (a.ravel() for a in np.meshgrid(np.arange(2 * runs), np.arange(ITEMS), indexing="ij"))
    method = run % 2
    predictor = 0.4 + effect * method + rng.normal(0, SD_RUN, 2 * runs)[run] + rng.normal(0, SD_ITEM, ITEMS)[item]
    return pd.DataFrame(
        {
            "correct": (rng.random(len(run)) < expit(predictor)).astype(int),
            "rt": predictor + rng.normal(0, 1.5, len(run)),
            "method": np.where(method, "ppo", "none"),
            "run": run,
            "item": item,
        }
    )


def replicate(runs: int, number: int) -> dict[str, float]:
    """One replication: for every test whether it rejects (p < .05), and whether its interval covers the effect."""
    rng = np.random.default_rng([runs, number])
    effect = EFFECT * (number % 2)
    data = simulate(runs, effect, rng)
    row: dict[str, float] = {"runs": runs, "number": number, "effect": effect}

    def note(test: str, result: FitResult | None, df: str | None = None) -> None:
        if result is None:
            row[f"{test}_p"] = row[f"{test}_covers"] = float("nan")
            return
        found = result.coefficient_table(df=df).loc[["method[T.ppo]"]]
        p, low, high = found[["p", "ci_low", "ci_high"]].to_numpy(dtype=float)[0]
        row[f"{test}_p"], row[f"{test}_covers"] = float(p), float(low <= effect <= high)

    logistic = _fit("correct ~ method + (1|run) + (1|item)", data, "binomial")
    note("glmm_z", logistic, "asymptotic")
    note("glmm_t", logistic)
    row["glmm_singular"] = float(logistic.singular) if logistic else float("nan")
    means = data.groupby(["method", "run"])["correct"].mean()
    test = scipy.stats.ttest_ind(means["ppo"], means["none"])
    # Its effect is a difference of proportions, so that it has no interval for the log-odds.
    row["run_means_t_p"] = test.pvalue
    note("item_only_z", _fit("correct ~ method + (1|item)", data, "binomial"), "asymptotic")
    linear = _fit("rt ~ method + (1|run) + (1|item)", data, "gaussian")
    note("lmm_z", linear, "asymptotic")
    note("lmm_t", linear)
    return row


def _fit(formula: str, data: pd.DataFrame, family: str) -> FitResult | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            return fit(formula, data, family=family)
    except FitError:
        return None


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Rejection rates of true nulls, coverage and power by number of runs and test, with Monte-Carlo standard errors."""
    rows = []
    for runs in sorted(set(table["runs"])):
        part = table[table["runs"] == runs]
        for test, label in TESTS.items():
            null = part.loc[part["effect"] == 0, f"{test}_p"].dropna()
            there = part.loc[part["effect"] != 0, f"{test}_p"].dropna()
            error = float((null < 0.05).mean())
            covers = part[f"{test}_covers"].dropna() if f"{test}_covers" in part else pd.Series(dtype=float)
            rows.append(
                {
                    "runs per method": int(runs),
                    "test": label,
                    "replications": len(null) + len(there),
                    "type-I error": error,
                    "its s.e.": float(np.sqrt(0.05 * 0.95 / len(null))),
                    "coverage": float(covers.mean()) if len(covers) else float("nan"),
                    "its s.e. ": float(np.sqrt(0.05 * 0.95 / len(covers))) if len(covers) else float("nan"),
                    "power at 0.5": float((there < 0.05).mean()),
                }
            )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """The table of the documentation."""
    lines = ["| " + " | ".join(map(str.strip, table.columns)) + " |", "|---" * len(table.columns) + "|"]
    for row in table.itertuples(index=False):
        cells = [f"{v:.3f}" if isinstance(v, float) and v == v else "" if isinstance(v, float) else str(v) for v in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Simulate what is missing from the output file, and summarise it."""
    parser = argparse.ArgumentParser(description="Type-I error and coverage with few runs.")
    parser.add_argument("--replications", type=int, default=400, help="per number of runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10], help="runs per method")
    parser.add_argument("--out", type=Path, default=Path("type_one_error.csv"))
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    done = set()
    if arguments.out.exists():
        known = pd.read_csv(arguments.out)
        done = set(zip(known["runs"], known["number"], strict=True))
    # Numbers outside, so that all sizes have about as many replications whenever the script is stopped.
    for number in range(arguments.replications):
        for runs in arguments.seeds:
            if (runs, number) in done:
                continue
            row = replicate(runs, number)
            new = not arguments.out.exists()
            with arguments.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if new:
                    writer.writeheader()
                writer.writerow(row)
    table = summarise(pd.read_csv(arguments.out))
    print(markdown(table) if arguments.markdown else table.to_string(index=False))


if __name__ == "__main__":
    main()
