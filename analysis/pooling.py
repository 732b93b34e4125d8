"""From runs to what runs of that kind do: estimates of single runs, pooled with the spread between runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from scipy.stats import t as student

from vlm_probe.analysis.selection import Floats

OVER_RUNS = (
    "runs pooled by random effects (REML, Hartung-Knapp t interval); one run: z interval from its groups of items"
)
"""What `pool` does, for the notes of tables whose runs have standard errors from groups of items."""


@dataclass(frozen=True)
class Pooled:
    """The mean over all runs that could have been made, estimated from those that were.

    Attributes:
        mean: Estimate.
        se: Standard error.
        df: Runs - 1; inf for a single run, whose interval covers the sampling of items alone.
        low, high: 95 % interval.
        tau: Standard deviation between runs beyond the sampling error of each; nan for a single run.
        n: Runs.
        shrunken: The runs' own values, drawn to the mean by how little is known of each (empirical Bayes).
        sampling: Standard error of the mean if runs did not differ, from the items alone.
    """

    mean: float
    se: float
    df: float
    low: float
    high: float
    tau: float
    n: int
    shrunken: Floats
    sampling: float

    @property
    def p(self) -> float:
        """Of the two-sided test against 0; as the interval, never surer than the sampling of items allows."""
        if not self.se > 0:
            return math.nan
        return max(
            2 * float(student.sf(abs(self.mean) / self.se, self.df)), 2 * float(norm.sf(abs(self.mean) / self.sampling))
        )


def pool(estimates: Sequence[float] | Floats, variances: Sequence[float] | Floats) -> Pooled:
    """Random-effects mean: tau by REML, standard error and t interval of Hartung and Knapp (2001, Stat Med 20:3875).

    The interval needs no assumption about tau, which few runs say little about, and its standard error comes from how
    the runs differ; so two runs give a very wide one, as they should. With runs of equal precision it is the t interval of the
    run means. Two runs that happen to agree would give next to none: it is never narrower than the z interval of runs that do not differ
    (Wiksten, Ruecker & Schwarzer, 2016, Stat Med 35:2503).

    Args:
        estimates: One per run; runs without one (nan) are left out.
        variances: Their squared standard errors, from the items within the run.
    """
    y, v = np.asarray(estimates, dtype=float), np.asarray(variances, dtype=float)
    known = np.isfinite(y) & np.isfinite(v) & (v > 0)
    shrunken = np.full(len(y), math.nan)
    y, v = y[known], v[known]
    k = len(y)
    if k == 0:
        nan = math.nan
        return Pooled(nan, nan, nan, nan, nan, nan, 0, shrunken, nan)
    if k == 1:
        se = math.sqrt(v[0])
        half = float(norm.ppf(0.975)) * se
        shrunken[known] = y
        return Pooled(float(y[0]), se, math.inf, float(y[0]) - half, float(y[0]) + half, math.nan, 1, shrunken, se)

    def minus_log_likelihood(tau: float) -> float:
        w = 1 / (v + tau * tau)
        mu = (w * y).sum() / w.sum()
        return 0.5 * float(-np.log(w).sum() + math.log(w.sum()) + (w * (y - mu) ** 2).sum())

    # REML in tau is not always unimodal: the best of a grid, then refined between its neighbours.
    grid = np.linspace(0, 3 * (float(y.std(ddof=1)) + 1e-12), 40)
    best = int(np.argmin([minus_log_likelihood(tau) for tau in grid]))
    bounds = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)]))
    tau = float(minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x)
    if minus_log_likelihood(0.0) <= minus_log_likelihood(tau):
        tau = 0.0
    w = 1 / (v + tau * tau)
    mu = float((w * y).sum() / w.sum())
    se = math.sqrt(float((w * (y - mu) ** 2).sum()) / (k - 1) / float(w.sum()))
    sampling = math.sqrt(1 / float((1 / v).sum()))
    half = max(float(student.ppf(0.975, k - 1)) * se, float(norm.ppf(0.975)) * sampling)
    shrunken[known] = mu + (y - mu) * tau * tau / (tau * tau + v)
    return Pooled(mu, se, k - 1, mu - half, mu + half, tau, k, shrunken, sampling)


def mean_over_runs(
    values: Sequence[float] | Floats, widths: Sequence[float] | Floats = ()
) -> tuple[float, float, float]:
    """Mean and 95 % t interval of runs; those without a value (nan) are left out, and one run has no interval.

    Args:
        values: One per run.
        widths: Half widths of the runs' own 95 % intervals, where there are any: the mean's is never narrower than that of as many
            runs that do not differ.
    """
    y = np.asarray(values, dtype=float)
    known = np.isfinite(y)
    y = y[known]
    if len(y) == 0:
        return math.nan, math.nan, math.nan
    mean = float(y.mean())
    if len(y) == 1:
        return mean, math.nan, math.nan
    half = float(student.ppf(0.975, len(y) - 1) * y.std(ddof=1)) / math.sqrt(len(y))
    if len(widths):
        half = max(half, float(np.sqrt((np.asarray(widths, dtype=float)[known] ** 2).sum())) / len(y))
    return mean, mean - half, mean + half
