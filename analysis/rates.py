"""Success rates of runs, and of cells of runs, with intervals that hold near 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from vlm_probe.analysis.pooling import pool
from vlm_probe.analysis.proportions import wilson
from vlm_probe.analysis.selection import Floats, cells, present

HOW = (
    "rate: successes of trials, unread replies being wrong, trials that failed left out. One run: 95 % Wilson interval, which"
    " covers the sampling of items. Several runs: the mean of their log odds ((successes + .5) / (failures + .5)), random"
    " effects by REML, with a 95 % t interval, runs - 1 df (Hartung & Knapp), never narrower than the z interval of runs that do not differ"
)


@dataclass(frozen=True)
class Rate:
    """A rate with its 95 % interval, over runs where there are several.

    Attributes:
        value, low, high: The rate and its interval; nan where there are no trials.
        n_runs: Runs with trials.
        n_trials: Trials of all of them.
    """

    value: float
    low: float
    high: float
    n_runs: int
    n_trials: int


def rate_over_runs(successes: Sequence[int] | Floats, trials: Sequence[int] | Floats) -> Rate:
    """The rate of a kind of run, from counts of its runs; see `HOW`.

    Args:
        successes: Of every run.
        trials: Of every run; runs with none are left out.
    """
    s, n = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    s, n = s[n > 0], n[n > 0]
    if len(n) == 0:
        return Rate(math.nan, math.nan, math.nan, 0, 0)
    total = int(n.sum())
    if len(n) == 1:
        single = wilson(float(s[0]), total)
        return Rate(single.value, single.low, single.high, 1, total)
    log_odds = np.log((s + 0.5) / (n - s + 0.5))
    variance = 1 / (s + 0.5) + 1 / (n - s + 0.5)
    pooled = pool(log_odds, variance)
    low, high = float(expit(pooled.low)), float(expit(pooled.high))
    mean = float((s / n).mean())
    # The mean of the rates is what readers expect, and near 0 and 1 it can lie outside an interval of log odds.
    return Rate(mean, min(low, mean), max(high, mean), len(n), total)


def by_run(trials: pd.DataFrame, by: Sequence[str], outcome: str = "success") -> pd.DataFrame:
    """One row per run and cell: successes, trials, rate with its Wilson interval.

    Args:
        trials: A trial table.
        by: Columns that make a cell; those that the table lacks are left out.
        outcome: Column that is counted, 0 or 1.
    """
    rows = []
    for key, members in cells(trials, [*present(trials, by), "run"]):
        n, s = len(members), int(members[outcome].sum())
        single = wilson(s, n)
        names = [*present(trials, by), "run"]
        rows.append(
            dict(zip(names, key, strict=True))
            | {"successes": s, "n_trials": n, "rate": single.value, "rate_low": single.low, "rate_high": single.high}
        )
    return _with_levels(pd.DataFrame(rows), trials)


def by_cell(trials: pd.DataFrame, by: Sequence[str], outcome: str = "success") -> pd.DataFrame:
    """One row per cell: the rate over its runs.

    Args:
        trials: A trial table.
        by: Columns that make a cell; those that the table lacks are left out.
        outcome: Column that is counted, 0 or 1.
    """
    rows = []
    names = present(trials, by)
    for key, runs in cells(by_run(trials, names, outcome), names):
        rate = rate_over_runs(runs["successes"].to_numpy(float), runs["n_trials"].to_numpy(float))
        rows.append(
            dict(zip(names, key, strict=True))
            | {
                "rate": rate.value,
                "rate_low": rate.low,
                "rate_high": rate.high,
                "n_runs": rate.n_runs,
                "n_trials": rate.n_trials,
            }
        )
    return _with_levels(pd.DataFrame(rows), trials)


def _with_levels(table: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Factors keep the order of their levels, so that tables and figures are sorted by it and not by the alphabet."""
    for name in table.columns:
        if name in trials and isinstance(trials[name].dtype, pd.CategoricalDtype):
            table[name] = table[name].astype(trials[name].dtype)
    return table
