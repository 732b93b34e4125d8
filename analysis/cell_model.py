"""The model behind transfer matrix and planned contrasts: one mean per cell, runs and items at random, t between runs.

    success ~ 0 + cell + (0 + trained | run) + (0 + trained | run:test) + (1 | item) + (1 | item:training)

Runs differ by the seed of their training. The untrained model has none: it is one fixed thing that all are compared with, so
that it takes no part in the variance between runs. Tests of few seeds reject far too often with z; so contrasts have a t distribution with the
degrees of freedom that there are between runs, or more by Satterthwaite's rule where much of the variance is not between runs (as
it is against the untrained model, whose own error is one of items alone):

    df = df between runs x (variance of the contrast / its part between runs)^2
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import t as student

from analysis.effect_sizes import log_odds_of, rate_of, rate_slope
from analysis.mixed_effects import FitResult
from analysis.mixed_effects.fitting import solve
from analysis.random_effects import choose, standard_deviation
from analysis.selection import Floats

TERMS = ("(0 + trained | run)", "(0 + trained | run:test)", "(1 | item)", "(1 | item:training)")
UNTRAINED = "none"


@dataclass(frozen=True)
class Estimate:
    """A number with its t test against 0 and its 95 % interval."""

    value: float
    se: float
    df: float
    low: float
    high: float
    p: float


def estimate(value: float, se: float, df: float) -> Estimate:
    """An estimate with everything that follows from its standard error."""
    if not (math.isfinite(value) and math.isfinite(se) and se > 0 and df > 0):
        return Estimate(value, se, df, math.nan, math.nan, math.nan)
    half = float(student.ppf(0.975, df)) * se
    return Estimate(value, se, df, value - half, value + half, 2 * float(student.sf(abs(value / se), df)))


@dataclass(frozen=True)
class CellModel:
    """Log odds of success by cell, with everything that contrasts of them need.

    Attributes:
        fit: The mixed-effects model.
        cells: Names of the cells.
        trained: Whether each cell belongs to trained runs.
        df: Degrees of freedom between trained runs, the least of a contrast; inf if there are none, and tests are about
            items alone.
        steps: How the random effects were reduced.
        regularised: Whether estimates are drawn to 0 by a weak prior.
        shares: Which part of a cell's trials is from which trained run (runs, cells).
        counts: Trials of every cell (cells,).
    """

    fit: FitResult
    cells: tuple[str, ...]
    trained: dict[str, bool]
    df: float
    steps: tuple[str, ...]
    regularised: bool
    shares: Floats
    counts: Floats

    @property
    def log_odds(self) -> Floats:
        """Of every cell, for a run and an item in the middle."""
        return np.asarray(self.fit.solution.beta, dtype=float)

    def contrast(self, weights: Mapping[str, float]) -> Estimate:
        """A weighted sum of log odds."""
        vector = self._vector(weights)
        variance = float(vector @ self.fit.solution.covariance @ vector)
        return estimate(float(vector @ self.log_odds), math.sqrt(max(variance, 0.0)), self._df(vector, variance))

    def rate(self, cell: str) -> Estimate:
        """Success rate of a cell over runs and items; the interval is that of the log odds, carried over."""
        own, sd = self.contrast({cell: 1.0}), self._sd(cell)
        low, high = (float(rate_of(end, sd)) for end in (own.low, own.high))
        return Estimate(float(rate_of(own.value, sd)), own.se * rate_slope(own.value, sd), own.df, low, high, math.nan)

    def rate_contrast(self, weights: Mapping[str, float]) -> Estimate:
        """A weighted sum of success rates, by the delta method."""
        place = {name: i for i, name in enumerate(self.cells)}
        value, gradient = 0.0, np.zeros(len(self.cells))
        for name, weight in weights.items():
            eta, sd = self.log_odds[place[name]], self._sd(name)
            value += weight * float(rate_of(eta, sd))
            gradient[place[name]] = weight * rate_slope(eta, sd)
        variance = float(gradient @ self.fit.solution.covariance @ gradient)
        return estimate(value, math.sqrt(max(variance, 0.0)), self._df(gradient, variance))

    def against_rate(self, cell: str, rate: float) -> Estimate:
        """Log odds of a cell minus those at which its rate over runs and items would be `rate`."""
        own = self.contrast({cell: 1.0})
        return estimate(own.value - log_odds_of(rate, self._sd(cell)), own.se, own.df)

    def restricted(self, basis: Floats) -> float:
        """Log-likelihood with the log odds of cells confined to the columns of `basis` (cells, k), the random effects alike."""
        design = self.fit.design
        return solve(replace(design, x=design.x @ basis), reml=False).log_likelihood

    def _vector(self, weights: Mapping[str, float]) -> Floats:
        unknown = set(weights) - set(self.cells)
        if unknown:
            raise KeyError(f"there are no cells {sorted(unknown)}; there are {list(self.cells)}")
        return np.array([weights.get(name, 0.0) for name in self.cells])

    def _df(self, weights: Floats, variance: float) -> float:
        """Satterthwaite's degrees of freedom of a sum of log odds: of its variance, only the part between runs is uncertain."""
        trained = np.array([self.trained[name] for name in self.cells])
        if not np.any(weights[trained]) or math.isinf(self.df):
            return math.inf
        p = expit(self.log_odds)
        of_run = standard_deviation(self.fit, ["run"]) ** 2 * float(((self.shares @ weights) ** 2).sum())
        of_test = standard_deviation(self.fit, ["run:test"]) ** 2 * float(((self.shares * weights) ** 2).sum())
        chance = float((weights**2 / (self.counts * p * (1 - p)))[trained].sum())
        between = of_run + of_test + chance
        return self.df * max(1.0, variance / between) ** 2

    def _sd(self, cell: str) -> float:
        groups = ["item", "item:training", *(["run", "run:test"] if self.trained[cell] else [])]
        return standard_deviation(self.fit, groups)


def fit_cells(
    trials: pd.DataFrame, cell: Sequence[str], outcome: str = "success", allowed: Sequence[str] = ()
) -> CellModel:
    """Fit the model of this module.

    Args:
        trials: `run`, `method`, `test`, `item`, `training` (names of what was tested and trained) and the outcome, 0 or 1.
        cell: Columns whose combinations are the cells.
        outcome: Column of the outcome.
        allowed: Random terms of `TERMS` that may be in the model; all of them by default.

    Raises:
        FitError: If it cannot be fitted.
    """
    names = trials[cell[0]].astype(str)
    for name in cell[1:]:
        names = names + " | " + trials[name].astype(str)
    trained = (trials["method"].astype(str) != UNTRAINED).to_numpy()
    data = pd.DataFrame(
        {
            "success": trials[outcome].to_numpy(float),
            "cell": pd.Categorical(names, list(dict.fromkeys(names))),
            "trained": trained.astype(float),
            **{name: trials[name].astype(str).to_numpy() for name in ("run", "test", "item", "training")},
        }
    )
    df = _between(data[data["trained"] == 1])
    terms, keep = list(TERMS), [TERMS[0]]
    if not df >= 1:
        # One run per training: what runs have in common and what they do not cannot be told apart.
        terms, keep, df = terms[2:], [], math.inf
    elif data[data["trained"] == 1].groupby("run")["test"].nunique().max() == 1:
        terms.remove(TERMS[1])
    terms = [term for term in terms if not allowed or term in allowed]
    fixed = "success ~ 0 + cell" if data["cell"].nunique() > 1 else "success ~ 1"
    chosen = choose(fixed, terms, data, keep)
    order = tuple(data["cell"].cat.categories)
    of_cell = data.groupby("cell", observed=True)["trained"].max()
    counts: Floats = np.asarray(data["cell"].value_counts().reindex(list(order)), dtype=float)
    runs = data[data["trained"] == 1]
    shares = pd.crosstab(runs["run"], runs["cell"], dropna=False).reindex(columns=list(order)).to_numpy(float) / counts
    return CellModel(
        chosen.fit,
        order,
        {name: bool(of_cell[name]) for name in order},
        df,
        chosen.steps,
        chosen.regularised,
        shares,
        counts,
    )


def _between(data: pd.DataFrame) -> float:
    """Runs minus the independent combinations of cells that runs can have: degrees of freedom between runs."""
    if data.empty:
        return math.nan
    counts = pd.crosstab(data["run"], data["cell"]).to_numpy(float)
    shares = counts / counts.sum(1, keepdims=True)
    return float(len(shares) - np.linalg.matrix_rank(shares, tol=1e-6))
