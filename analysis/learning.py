"""Learning curves and sample efficiency: area under the curve, samples to criterion, and comparisons between runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind
from statsmodels.stats.multitest import multipletests

from vlm_probe.analysis.pooling import mean_over_runs
from vlm_probe.analysis.result import Result, plain
from vlm_probe.analysis.selection import Floats, cells, need, plain_trials, present
from vlm_probe.stimuli.errors import InvalidInput

KIND = ("model", "train_tasks", "method", "regime")
"""What is learned by whom, and how. Kinds of one model and task are compared with each other."""
TEST = ("test_task", "shift", "shift_level")
"""What checkpoints of a training are tested on."""
EXACT = 20_000
"""Permutations up to which all are counted; beyond them so many are drawn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Learning(Result):
    """Learning by kind of training. The table has one row per kind.

    Attributes:
        runs: Area, samples to criterion and final value of every run.
        comparisons: Every two kinds that learned the same task.
        means: The mean curve of every kind with its band, on a common grid of samples.
    """

    runs: pd.DataFrame
    comparisons: pd.DataFrame
    means: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """As `Result.to_dict`, with runs and comparisons."""
        tables = {"runs": self.runs, "comparisons": self.comparisons}
        return {**super().to_dict(), **{k: [plain(row) for row in t.to_dict("records")] for k, t in tables.items()}}


def curves_from_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Learning curves from runs of the checkpoints of training runs: success on a test set over samples seen.

    Args:
        trials: A trial table with `samples`; all checkpoints of one training (same seed) become one curve per test.

    Raises:
        ValueError: If the table has no samples, seeds or successes.
    """
    need(trials, "samples", "seed", "success")
    table = plain_trials(trials)
    test = present(table, TEST)
    keys = [*present(table, KIND), "seed", *test]
    found = table.groupby([*keys, "samples"], observed=True)["success"].agg(["mean", "size"]).reset_index()
    names = [found[name].astype(str) for name in keys if name not in test]
    run = [" ".join(filter(None, parts)) for parts in zip(*names, strict=True)]
    return found.rename(columns={"mean": "success", "size": "n_trials"}).assign(run=run)


def learning(
    curves: pd.DataFrame,
    criterion: float = 0.8,
    measure: str = "success",
    by: Sequence[str] = KIND,
    window: int = 1,
    seed: int = 0,
) -> Learning:
    """Area under the learning curve and samples to criterion of every run, and what kinds of training make of them.

    Runs are cut at the sample count that all runs of a task have reached, so that longer training runs have no advantage. The area is
    divided by the range: the mean of the measure over training. Samples to criterion are those at which the curve, linear
    between its points, first reaches it; a run that never does is censored, and kinds with such runs have a restricted mean
    (area under the Kaplan-Meier curve, Royston & Parmar, 2013), which stays an honest lower bound of the mean.

    Args:
        curves: `run`, `samples` and the measure, and columns of `by`; one row per logged point.
        criterion: Level to be reached.
        measure: Column of the curve.
        by: Columns that make a kind of training; those but "method" and "regime" say what is learned.
        window: Points over which a trailing mean is taken first, for curves of single training batches.
        seed: Of the permutations, where there are too many to count.

    Raises:
        ValueError: If there is no curve with two points.
    """
    need(curves, "run", "samples", measure)
    columns = present(curves, by)
    task = [name for name in columns if name not in ("method", "regime")]
    known = curves[np.isfinite(curves["samples"].to_numpy(float)) & np.isfinite(curves[measure].to_numpy(float))]
    long = known.groupby([*task, "run"], observed=True, dropna=False)["samples"].transform("nunique") > 1
    short = known.loc[~long, "run"].nunique()
    known = known[long]
    if known.empty:
        raise InvalidInput(
            f"no run has two points of {measure}: learning curves need trainings that were evaluated on the way"
        )
    rows, means, comparisons, apart = [], [], [], []
    for _, of_task in cells(known, task) if task else [((), known)]:
        smooth = {str(run): _curve(own, measure, window) for (run,), own in cells(of_task, ["run"])}
        start, end = max(x[0] for x, _ in smooth.values()), min(x[-1] for x, _ in smooth.values())
        if not end > start:
            what = ", ".join(str(level) for level in of_task[task].iloc[0] if str(level))
            apart.append(f"the curves of {what} share no range of samples, and are left out: train them equally long")
            continue
        grid = np.linspace(start, end, 101)
        of_kind: dict[tuple[object, ...], pd.DataFrame] = {}
        for key, own in cells(of_task, columns) if columns else [((), of_task)]:
            cell = dict(zip(columns, key, strict=True))
            names = [str(run) for run in dict.fromkeys(own["run"])]
            values = np.array([np.interp(grid, *smooth[name]) for name in names])
            single = pd.DataFrame(
                [
                    cell
                    | {"run": name, "area": float(np.trapezoid(curve, grid)) / (end - start), "final": float(curve[-1])}
                    | dict(zip(("samples_to_criterion", "reached"), _first(*smooth[name], criterion, end), strict=True))
                    for name, curve in zip(names, values, strict=True)
                ]
            )
            rows.append(single)
            of_kind[key] = single
            band = np.array([mean_over_runs(column) for column in values.T])
            means.append(
                pd.DataFrame({**cell, "samples": grid, "mean": band[:, 0], "low": band[:, 1], "high": band[:, 2]})
            )
        for (a, one), (b, other) in itertools.combinations(of_kind.items(), 2):
            comparisons.append(_comparison(columns, a, one, b, other, seed))
    if not rows:
        raise InvalidInput(apart[0])
    runs = pd.concat(rows, ignore_index=True)
    compared = pd.DataFrame(comparisons)
    if len(compared):
        for name in ("area_p", "samples_p"):
            compared[f"{name}_holm"] = _holm(compared[name].to_numpy(float))
    notes = [*([f"{short} runs with a single point are left out"] if short else []), *apart]
    if not runs["reached"].all():
        notes.append(
            f"{int((~runs['reached']).sum())} of {len(runs)} runs never reached {criterion:g}: they are censored, and means of samples"
            " restricted to the common range are lower bounds"
        )
    smallest = runs.groupby(columns, observed=True).size().min() if columns else len(runs)
    if len(compared) and smallest < 4:
        notes.append("permutation tests of three against three runs cannot give p below .1, of four against four .029")
    return Learning(
        title=f"Learning by kind of training, with 95 % intervals between runs (criterion: {measure} {criterion:g})",
        table=_by_kind(runs, columns, is_share=bool(known[measure].between(0, 1).all())),
        how=(
            "area: mean of the curve over the range of samples that all runs of the task share; samples: first reach of the criterion,"
            " mean restricted to that range, median by Kaplan-Meier; t intervals with runs - 1 df; comparisons: Welch t of areas,"
            f" permutation test of restricted samples (exact up to {EXACT} permutations, else seed {seed}), Holm over comparisons"
            + (f"; trailing mean of {window} points" if window > 1 else "")
        ),
        notes=tuple(notes),
        runs=runs,
        comparisons=compared,
        means=pd.concat(means, ignore_index=True),
    )


def _curve(own: pd.DataFrame, measure: str, window: int) -> tuple[Floats, Floats]:
    points = own.groupby("samples")[measure].mean().sort_index()
    if window > 1:
        points = points.rolling(window, min_periods=1).mean()
    return points.index.to_numpy(float), points.to_numpy(float)


def _first(x: Floats, y: Floats, criterion: float, end: float) -> tuple[float, bool]:
    """Samples at which the curve first reaches the criterion, and whether it does so before the end."""
    above = np.flatnonzero(y >= criterion)
    if not len(above):
        return end, False
    i = int(above[0])
    reached = x[0] if i == 0 else x[i - 1] + (criterion - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1])
    return (float(reached), True) if reached <= end else (end, False)


def _by_kind(runs: pd.DataFrame, columns: Sequence[str], *, is_share: bool) -> pd.DataFrame:
    """Means of the runs of every kind; those of what is a share have intervals within 0 and 1."""
    rows = []
    for key, own in cells(runs, columns) if columns else [((), runs)]:
        row: dict[str, Any] = dict(zip(columns, key, strict=True))
        for name in ("area", "final", "samples_to_criterion"):
            mean, low, high = mean_over_runs(own[name].to_numpy(float))
            # A t interval of a few runs knows no bounds of what it is about.
            if name == "samples_to_criterion" or is_share:
                low, high = max(low, 0.0), high if name == "samples_to_criterion" else min(high, 1.0)
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        reached = own["reached"].to_numpy(bool)
        row |= {
            # Below half of the runs the median is beyond the range.
            "samples_median": _median(own["samples_to_criterion"].to_numpy(float), reached),
            "n_reached": int(reached.sum()),
            "n_runs": len(own),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _median(times: Floats, reached: Any) -> float:
    """Kaplan-Meier median. All censoring is at the common end, so that it is the median with the censored ones last."""
    ordered = np.sort(np.where(reached, times, np.inf))
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return float(middle) if math.isfinite(middle) else math.nan


def _comparison(
    columns: Sequence[str],
    a: tuple[object, ...],
    one: pd.DataFrame,
    b: tuple[object, ...],
    other: pd.DataFrame,
    seed: int,
) -> dict[str, Any]:
    kinds = [name for name in columns if name in ("method", "regime")]
    labels = [" ".join(str(v) for n, v in zip(columns, key, strict=True) if n in kinds and str(v)) for key in (a, b)]
    x, y = one["area"].to_numpy(float), other["area"].to_numpy(float)
    row: dict[str, Any] = {n: v for n, v in zip(columns, a, strict=True) if n not in kinds}
    row |= {"first": labels[0], "second": labels[1], "area_difference": float(x.mean() - y.mean())}
    row |= {"area_low": math.nan, "area_high": math.nan, "area_df": math.nan, "area_p": math.nan}
    if min(len(x), len(y)) > 1 and x.var() + y.var() > 0:
        test = ttest_ind(x, y, equal_var=False)
        low, high = test.confidence_interval()
        row |= {
            "area_low": float(low),
            "area_high": float(high),
            "area_df": float(test.df),
            "area_p": float(test.pvalue),
        }
    s, t = one["samples_to_criterion"].to_numpy(float), other["samples_to_criterion"].to_numpy(float)
    all_reached = bool(one["reached"].all() and other["reached"].all()) and bool((np.r_[s, t] > 0).all())
    row |= {
        "samples_difference": float(s.mean() - t.mean()),
        "samples_p": permutation_p(s, t, seed),
        # A ratio of means would hang on the slowest run; with censored runs there is none.
        "samples_ratio": float(np.exp(np.log(s).mean() - np.log(t).mean())) if all_reached else math.nan,
        "n_first": len(x),
        "n_second": len(y),
    }
    return row


def permutation_p(x: Floats, y: Floats, seed: int = 0) -> float:
    """Two-sided permutation test of a difference of means: exact where the permutations can be counted.

    Args:
        x, y: The two samples, one number per run.
        seed: Of the permutations that are drawn, where there are more than `EXACT`.

    Returns:
        The p-value; nan if a sample is empty, or nothing varies.
    """
    values, n = np.r_[x, y], len(x)
    if n == 0 or n == len(values) or values.std() == 0:
        return math.nan
    observed, total = abs(x.mean() - y.mean()), values.sum()
    if math.comb(len(values), n) <= EXACT:
        sums = np.array([values[list(chosen)].sum() for chosen in itertools.combinations(range(len(values)), n)])
        extra = 0
    else:
        rng = np.random.default_rng(seed)
        sums = rng.permuted(np.tile(values, (EXACT, 1)), axis=1)[:, :n].sum(1)
        extra = 1  # the observed assignment belongs to the set
    differences = np.abs(sums / n - (total - sums) / (len(values) - n))
    return float(((differences >= observed - 1e-9 * max(1.0, observed)).sum() + extra) / (len(sums) + extra))


def _holm(p: Floats) -> Floats:
    adjusted = np.full(len(p), math.nan)
    known = np.isfinite(p)
    if known.any():
        adjusted[known] = multipletests(p[known], method="holm")[1]
    return adjusted
