"""The model behind transfer matrix and planned contrasts: one mean per cell, runs and items at random, t between runs.

    success ~ 0 + cell + (0 + trained | run) + (0 + trained | run:test) + (1 | item) + (1 | item:training)

Runs differ by the seed of their training. The untrained model has none: it is one fixed thing that all are compared with, so
that it takes no part in the variance between runs. Tests of few seeds reject far too often with z; so contrasts have a t distribution with the
degrees of freedom that there are between runs, at most as many as runs carry the contrast, or more by Satterthwaite's rule where much of the
variance is one of items (as it is against the untrained model):

    df = variance^2 / (part between runs^2 / df between runs + part of items^2 / (items - 1))

Deterministic items. Where items are (quasi-)separated, as at temperature 0 when runs of a training answer alike, the variance of items has no
estimate on the scale of log odds that the Laplace approximation would hold for, and three equal runs must not count as three. The log odds of
cells are then those of their rates over all items, and their covariance is that of the rates over crossed items and runs (as
`vlm_probe.analysis.run_means`, for all cells at once):

- items: from what every item adds to the rate of each cell (a sandwich with items as clusters; Liang & Zeger, 1986, Biometrika
  73:13-22), so that cells with the same items are compared item by item, with half an observation added to each cell of such
  a comparison (Agresti & Min, 2005, Stat Med 24:729-740): items that all agree leave some doubt;
- runs: what they vary by beyond chance, in log odds, pooled over cells by least squares; 0 at least.

In cells without variation, to which this does not apply, standard errors are multiplied by the root of the design effect of answers that
repeat, 1 + (runs - 1) x their intraclass correlation (Kish, 1965, Survey sampling).

Where a cell has nothing but right or nothing but wrong answers, as at the ceiling, its standard error says next to nothing. Contrasts with such
cells are tested by the signed root of the likelihood ratio at the variances that were estimated, and have profile intervals; the
root is divided by what the standard error is multiplied by (Rao & Scott, 1984, Ann Stat 12:46-60). All others are Wald's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import t as student

from vlm_probe.analysis.effect_sizes import log_odds_of, rate_of, rate_slope
from vlm_probe.analysis.mixed_effects import FitResult
from vlm_probe.analysis.mixed_effects.estimation import solve
from vlm_probe.analysis.mixed_effects.profile import Profile, ProfiledModel
from vlm_probe.analysis.random_effects import Chosen, choose, standard_deviation
from vlm_probe.analysis.selection import Floats

TERMS = ("(0 + trained | run)", "(0 + trained | run:test)", "(1 | item)", "(1 | item:training)")
UNTRAINED = "none"
FEW = 10
"""Independent answers of a cell below which a likelihood ratio is too sure of itself, and Wald's test stays."""
ADDED = 0.5
"""Observations added to each of the four cells of a comparison of two cells by item."""
INTERVALS = (
    "intervals and tests of log odds: Wald's, or, where all answers of a cell are alike, those of the profile likelihood (interval"
    " says which)"
)


@dataclass(frozen=True)
class Estimate:
    """A number with its t test against 0 and its 95 % interval.

    Attributes:
        value, se, df: Estimate, standard error, degrees of freedom.
        low, high: The interval.
        p: Of the two-sided test.
        statistic: What was compared with t: estimate over standard error, or the signed root of the likelihood ratio.
        interval: What the interval is: "Wald", "profile", or "Zou–Donner".
    """

    value: float
    se: float
    df: float
    low: float
    high: float
    p: float
    statistic: float = math.nan
    interval: str = "Wald"

    @property
    def sides(self) -> tuple[float, float]:
        """Standard errors downwards and upwards, which the interval implies."""
        critical = float(student.ppf(0.975, self.df)) if self.df > 0 else math.nan
        return (self.value - self.low) / critical, (self.high - self.value) / critical


def estimate(value: float, se: float, df: float) -> Estimate:
    """An estimate with everything that follows from its standard error.

    Args:
        value: The estimate.
        se: Its standard error.
        df: Degrees of freedom of the t distribution; inf for z.

    Returns:
        The estimate with its test and interval; both nan where there is no standard error or no degree of freedom.
    """
    if not (math.isfinite(value) and math.isfinite(se) and se > 0 and df > 0):
        return Estimate(value, se, df, math.nan, math.nan, math.nan)
    half, statistic = float(student.ppf(0.975, df)) * se, value / se
    return Estimate(value, se, df, value - half, value + half, 2 * float(student.sf(abs(statistic), df)), statistic)


@dataclass(frozen=True)
class Cells:
    """The cells of a design, one entry each.

    Attributes:
        names: Their names.
        trained: Whether they belong to trained runs, (cells,).
        counts: Their trials, (cells,).
        rates: Their success rates, (cells,).
        run_proportions: Which part of their trials is from which trained run, (runs, cells).
        items: Which items they have, (cells, items).
        design_effects: By how much answers that repeat make their variance larger, (cells,); 1 as a rule.
    """

    names: tuple[str, ...]
    trained: NDArray[np.bool_]
    counts: Floats
    rates: Floats
    run_proportions: Floats
    items: NDArray[np.bool_]
    design_effects: Floats

    @property
    def all_alike(self) -> NDArray[np.bool_]:
        """Whether all answers are right or all wrong, (cells,)."""
        return np.isin(self.rates, (0.0, 1.0))

    @property
    def profiled(self) -> NDArray[np.bool_]:
        """Whether they are, and there are enough of them for a likelihood ratio: at least `FEW` independent ones, (cells,)."""
        return np.asarray(self.all_alike & (self.counts / self.design_effects >= FEW))


@dataclass(frozen=True)
class RateVariance:
    """How rates of cells vary where items are deterministic.

    Attributes:
        items: Covariance of the cells' rates over items, (cells, cells).
        run_sd: Standard deviation of runs in log odds.
    """

    items: Floats
    run_sd: float


@dataclass(frozen=True)
class CellModel:
    """Log odds of success by cell, with everything that contrasts of them need.

    Attributes:
        chosen: The mixed-effects model, and how its random effects were chosen.
        table: The cells.
        df: Degrees of freedom between trained runs, the least of a contrast; inf if there are none, and tests are about
            items alone.
        rate_variance: How rates vary, where items are deterministic; None as a rule.
    """

    chosen: Chosen
    table: Cells
    df: float
    rate_variance: RateVariance | None = None

    @property
    def fit(self) -> FitResult:
        """The mixed-effects model."""
        return self.chosen.fit

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the cells."""
        return self.table.names

    @cached_property
    def covariance(self) -> Floats:
        """Of the log odds (cells, cells)."""
        roots = np.sqrt(self.table.design_effects)
        own: Floats = np.asarray(self.fit.solution.covariance * np.outer(roots, roots))
        if self.rate_variance is None:
            return own
        slopes = [rate_slope(eta, self._sd(name)) for name, eta in zip(self.cells, self.log_odds, strict=True)]
        found: Floats = self.rate_variance.items / np.outer(slopes, slopes)
        found += self.rate_variance.run_sd**2 * self.table.run_proportions.T @ self.table.run_proportions
        # Answers that never vary say nothing of how they would: the fit does, or its prior.
        alike = self.table.all_alike
        found[alike, :] = found[:, alike] = 0.0
        found[alike, alike] = np.diag(own)[alike]
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know: how random effects were chosen, and those warnings of the fit that this does not settle."""
        doubts = (
            "the fit did not converge",
            "the standard deviation of",
            "no variance between levels of run",
            "answers repeat:",
        )
        steps = list(self.chosen.steps)
        if self.rate_variance is not None:
            steps.append(
                "most items are (quasi-)separated: log odds are those of the rates over these items, not of an item in the middle, and"
                " standard errors are those of rates over items and runs"
            )
        return (*steps, *(text for text in self.fit.warnings if text.startswith(doubts)))

    @property
    def log_odds(self) -> Floats:
        """Of every cell, for a run and an item in the middle."""
        return np.asarray(self.fit.solution.beta, dtype=float)

    def contrast(self, weights: Mapping[str, float]) -> Estimate:
        """A weighted sum of log odds.

        Args:
            weights: Cell -> weight; cells that are not named have none.

        Raises:
            KeyError: If there is no such cell.
        """
        return self._estimate(self._vector(weights))

    def _estimate(self, vector: Floats, null: float = 0.0) -> Estimate:
        """A weighted sum of log odds less `null`."""
        variance = float(vector @ self.covariance @ vector)
        value, df = float(vector @ self.log_odds) - null, self._df(vector, variance)
        found = estimate(value, math.sqrt(max(variance, 0.0)), df)
        if not self.table.profiled[vector != 0].any() or not math.isfinite(found.p):
            return found
        profile = self._profile(vector)
        stretch = math.sqrt(variance / float(vector @ self.fit.solution.covariance @ vector))
        statistic = profile.root(null) / stretch
        low, high = profile.interval(float(student.ppf(0.975, df)) * stretch)
        p = 2 * float(student.sf(abs(statistic), df))
        return Estimate(value, found.se, df, low - null, high - null, p, statistic, "profile")

    def _profile(self, vector: Floats) -> Profile:
        """The profile likelihood of a weighted sum; one that was asked for before knows its values still."""
        key = vector.tobytes()
        if key not in self._profiles:
            self._profiles[key] = self._profiled_model.along(vector)
        return self._profiles[key]

    @cached_property
    def _profiles(self) -> dict[bytes, Profile]:
        return {}

    @cached_property
    def _profiled_model(self) -> ProfiledModel:
        return ProfiledModel(self.fit, free=False)

    def rate(self, cell: str) -> Estimate:
        """Success rate of a cell over runs and items; the interval is that of the log odds, carried over."""
        own, sd = self.contrast({cell: 1.0}), self._sd(cell)
        low, high = (float(rate_of(end, sd)) for end in (own.low, own.high))
        return replace(
            own,
            value=float(rate_of(own.value, sd)),
            se=own.se * rate_slope(own.value, sd),
            low=low,
            high=high,
            p=math.nan,
        )

    def rate_contrast(self, weights: Mapping[str, float]) -> Estimate:
        """A weighted sum of success rates: its standard error by the delta method, its interval from those of the rates.

        Near 0 and 1, where the delta method knows no bounds, the interval of the sum follows from how far each rate may lie on
        either side (Zou & Donner, 2008, Stat Med 27:1693-1702, for correlated estimates). The test is that of the log odds.

        Args:
            weights: Cell -> weight; cells that are not named have none.

        Raises:
            KeyError: If there is no such cell.
        """
        own = {name: weight for name, weight in weights.items() if weight}
        rates = [self.rate(name) for name in own]
        place = [self.cells.index(name) for name in own]
        weight = np.array(list(own.values()))
        gradient = np.zeros(len(self.cells))
        gradient[place] = weight * [
            rate_slope(self.log_odds[i], self._sd(name)) for i, name in zip(place, own, strict=True)
        ]
        variance = float(gradient @ self.covariance @ gradient)
        value, df = float(weight @ [rate.value for rate in rates]), self._df(gradient, variance)
        covariance = self.covariance[np.ix_(place, place)]
        ses, signs = np.sqrt(np.diag(covariance)), np.sign(weight)
        correlation = covariance / np.outer(ses, ses) * np.outer(signs, signs)
        ends = np.array([[rate.value - rate.low, rate.high - rate.value] for rate in rates])
        down = np.where(signs > 0, ends[:, 0], ends[:, 1]) * np.abs(weight)
        up = np.where(signs > 0, ends[:, 1], ends[:, 0]) * np.abs(weight)
        low, high = (math.sqrt(max(float(side @ correlation @ side), 0.0)) for side in (down, up))
        test = self.contrast(weights)
        found = Estimate(value, math.sqrt(max(variance, 0.0)), df, value - low, value + high, test.p, test.statistic)
        return replace(found, interval="Zou–Donner")

    def against_rate(self, cell: str, rate: float) -> Estimate:
        """Log odds of a cell minus those at which its rate over runs and items would be `rate`.

        Args:
            cell: The cell.
            rate: What it is compared with, inside (0, 1): the score of a shortcut, say.
        """
        return self._estimate(self._vector({cell: 1.0}), log_odds_of(rate, self._sd(cell)))

    def restricted(self, basis: Floats) -> float:
        """Log-likelihood with the log odds of cells confined to the columns of `basis` (cells, k), the random effects alike."""
        design = self.fit.design
        return solve(replace(design, x=design.x @ basis), reml=False, derivatives=False).log_likelihood

    def _vector(self, weights: Mapping[str, float]) -> Floats:
        unknown = set(weights) - set(self.cells)
        if unknown:
            raise KeyError(f"there are no cells {sorted(unknown)}; there are {list(self.cells)}")
        return np.array([weights.get(name, 0.0) for name in self.cells])

    def _df(self, weights: Floats, variance: float) -> float:
        """Satterthwaite's degrees of freedom of a sum of log odds."""
        trained, proportions = self.table.trained, self.table.run_proportions
        if not np.any(weights[trained]) or math.isinf(self.df):
            return math.inf
        p = expit(self.log_odds)
        run_sd, test_sd = self._run_sds
        of_run = run_sd**2 * float(((proportions @ weights) ** 2).sum())
        of_test = test_sd**2 * float(((proportions * weights) ** 2).sum())
        chance = float((weights**2 / (self.table.counts * p * (1 - p)))[trained].sum())
        between = of_run + of_test + chance
        carrying = int((proportions @ np.abs(weights) > 0).sum())
        n_items = int(self.table.items[weights != 0].any(0).sum())
        df, rest = min(self.df, float(carrying)), max(variance - between, 0.0)
        if not rest:
            return df
        return variance**2 / (between**2 / df + rest**2 / max(n_items - 1, 1))

    @cached_property
    def _run_sds(self) -> tuple[float, float]:
        """Standard deviations of runs, and of runs by tests."""
        of_runs = standard_deviation(self.fit, ["run"]) if self.rate_variance is None else self.rate_variance.run_sd
        return of_runs, standard_deviation(self.fit, ["run:test"])

    @cached_property
    def _sds(self) -> tuple[float, float]:
        """Standard deviations of all random effects, for cells of the untrained model and for others."""
        items, runs = ["item", "item:training"], ["run", "run:test"]
        return standard_deviation(self.fit, items), standard_deviation(self.fit, [*items, *runs])

    def _sd(self, cell: str) -> float:
        return self._sds[int(self.table.trained[self.cells.index(cell)])]


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
    if "item:training" in chosen.separated and "item" in chosen.fit.n_groups:
        # What repeats within a training would pass for a variance of items, and make contrasts over the same items certain.
        without = choose(fixed, [term for term in terms if term not in TERMS[2:]], data, keep)
        steps = (
            *chosen.steps,
            f"{TERMS[2]} dropped: answers that repeat within a training would pass for its variance",
        )
        chosen = replace(without, steps=(*steps, *without.steps), separated=chosen.separated)
    deterministic = bool(set(chosen.separated) & {"item", "item:training"})
    return CellModel(chosen, _cells(data, deterministic), df, _rate_variance(data) if deterministic else None)


def _cells(data: pd.DataFrame, deterministic: bool) -> Cells:
    """The cells of the data, in the order of their categories."""
    names = list(data["cell"].cat.categories)
    by_cell = data.groupby("cell", observed=True)
    counts: Floats = np.asarray(by_cell.size().reindex(names), dtype=float)
    runs = data[data["trained"] == 1]
    of_runs = pd.crosstab(runs["run"], runs["cell"].astype(str)).reindex(columns=names, fill_value=0).to_numpy(float)
    effects = [_design_effect(own) if deterministic else 1.0 for _, own in by_cell]
    return Cells(
        names=tuple(names),
        trained=by_cell["trained"].max().reindex(names).to_numpy(bool),
        counts=counts,
        rates=by_cell["success"].mean().reindex(names).to_numpy(float),
        run_proportions=of_runs / counts,
        items=pd.crosstab(data["cell"].astype(str), data["item"]).reindex(names).to_numpy() > 0,
        design_effects=np.array(effects),
    )


def _design_effect(own: pd.DataFrame) -> float:
    """Of one cell, with the intraclass correlation of an analysis of variance; answers that never vary are all repetitions."""
    groups = own.groupby("item", observed=True)["success"]
    sizes, means = groups.size().to_numpy(float), groups.mean().to_numpy(float)
    n, q = sizes.sum(), len(sizes)
    size = float((sizes**2).sum() / n)
    within = float((sizes * means * (1 - means)).sum())
    between = float((sizes * (means - own["success"].mean()) ** 2).sum())
    if n == q or within == 0 or q < 2:
        return size
    typical = (n - size) / (q - 1)
    of_groups, of_rows = between / (q - 1), within / (n - q)
    correlation = (of_groups - of_rows) / (of_groups + (typical - 1) * of_rows)
    return 1 + (size - 1) * min(max(correlation, 0.0), 1.0)


def _rate_variance(data: pd.DataFrame) -> RateVariance:
    """How rates of cells vary over items and runs.

    Args:
        data: `success`, `cell` (a categorical), `trained`, `run`, `test`, `item` and `training`, one row per trial.
    """
    order = list(data["cell"].cat.categories)
    of_cell = data.groupby("cell", observed=True)["success"]
    moved = (data["success"] - of_cell.transform("mean")) / of_cell.transform("size")
    table = moved.groupby([data["test"], data["item"], data["cell"]], observed=True).sum().unstack("cell")
    asked = table.notna().sum().reindex(order).to_numpy(float)
    added = table.fillna(0.0).reindex(columns=order)
    n = added.groupby(level="test").transform("size").to_numpy(float)
    u = added.to_numpy(float) * np.sqrt(n / np.maximum(n - 1, 1))[:, None]
    covariance: Floats = u.T @ u + np.diag(ADDED / asked**2)
    return RateVariance(covariance, _run_sd(data[data["trained"] == 1]))


def _run_sd(trained: pd.DataFrame) -> float:
    """Standard deviation of runs of a training run in log odds, beyond chance in single answers."""
    cell = ["training", "cell"]
    numerator = denominator = 0.0
    for _, own in trained.groupby(cell, observed=True):
        answers = own.pivot_table(index="item", columns="run", values="success", observed=True).dropna()
        items, runs = answers.shape
        if runs < 2 or items < 2:
            continue
        y = answers.to_numpy(float)
        of_run, of_item = y.mean(0), y.mean(1, keepdims=True)
        chance = float(((y - of_run - of_item + y.mean()) ** 2).sum()) / ((runs - 1) * (items - 1))
        excess = float(of_run.var(ddof=1)) - chance / items
        slope = float(y.mean() * (1 - y.mean())) ** 2
        numerator += (runs - 1) * slope * excess
        denominator += (runs - 1) * slope**2
    return float(np.sqrt(max(numerator / denominator, 0.0))) if denominator > 0 else 0.0


def _between(data: pd.DataFrame) -> float:
    """Runs minus the independent combinations of cells that runs can have: degrees of freedom between runs."""
    if data.empty:
        return math.nan
    counts = pd.crosstab(data["run"], data["cell"]).to_numpy(float)
    shares = counts / counts.sum(1, keepdims=True)
    return float(len(shares) - np.linalg.matrix_rank(shares, tol=1e-6))
