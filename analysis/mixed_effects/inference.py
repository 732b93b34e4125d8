"""Tests and intervals of linear combinations of fixed effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.degrees_of_freedom import between_within, satterthwaite
from vlm_probe.analysis.mixed_effects.errors import FitError

if TYPE_CHECKING:
    from vlm_probe.analysis.mixed_effects.result import FitResult

Array = NDArray[Any]

METHODS = ("satterthwaite", "between-within", "asymptotic", "residual")


def degrees_of_freedom(result: FitResult, weights: Array, method: str) -> float:
    """Degrees of freedom of `weights @ beta` by one of `METHODS`.

    Args:
        result: The fit.
        weights: Of the fixed effects, (p,).
        method: One of `METHODS`.

    Raises:
        FitError: If there is no such method, or not for this model.
    """
    if method == "satterthwaite":
        if not len(result.solution.derivatives):
            raise FitError("Satterthwaite's degrees of freedom are for linear mixed models: use df='between-within'")
        return satterthwaite(result.solution, weights)
    if method == "between-within":
        return between_within(result.strata, weights)
    if method == "residual":
        return float(result.n_rows - len(result.solution.beta))
    if method == "asymptotic":
        return float("inf")
    raise FitError(f"there are no degrees of freedom {method!r}: use one of {', '.join(METHODS)}")


def estimates(
    result: FitResult, weights: Array, *, level: float = 0.95, df: str | None = None, offset: float = 0.0
) -> pd.DataFrame:
    """Estimates of linear combinations, with tests against 0 and Wald intervals.

    Args:
        result: The fit.
        weights: One combination per row, (m, p); a row with NaN cannot be estimated.
        level: Coverage of the intervals.
        df: Method of the degrees of freedom; None for the fit's own.
        offset: Added to the estimates.

    Returns:
        `estimate`, `se`, `df`, `statistic` (t, or z where df is infinite), `p`, `ci_low`, `ci_high`, (m, 7).

    Raises:
        FitError: If the level is no coverage, or there is no such method.
    """
    if not 0 < level < 1:
        raise FitError(f"level is {level}: give a coverage between 0 and 1, such as 0.95")
    method = df or result.df_method
    rows = []
    for row in weights:
        if not np.isfinite(row).all():
            rows.append([np.nan] * 7)
            continue
        estimate = float(row @ result.solution.beta) + offset
        se = float(np.sqrt(row @ result.solution.covariance @ row))
        freedom = degrees_of_freedom(result, row, method)
        statistic = estimate / se if se > 0 else np.nan
        half = float(scipy.stats.t.ppf(0.5 + level / 2, freedom)) * se
        p = float(2 * scipy.stats.t.sf(abs(statistic), freedom))
        rows.append([estimate, se, freedom, statistic, p, estimate - half, estimate + half])
    return pd.DataFrame(rows, columns=["estimate", "se", "df", "statistic", "p", "ci_low", "ci_high"])


def with_odds_ratios(table: pd.DataFrame, family: str) -> pd.DataFrame:
    """The table with exponentiated estimates and intervals: odds ratios, or rate ratios."""
    name = {"binomial": "odds_ratio", "poisson": "rate_ratio"}.get(family)
    if name:
        with np.errstate(over="ignore"):
            table[name] = np.exp(table["estimate"])
            table[f"{name}_low"], table[f"{name}_high"] = np.exp(table["ci_low"]), np.exp(table["ci_high"])
    return table


def adjusted(p: Sequence[float] | pd.Series, method: str) -> Array:
    """p values adjusted for the number of tests: "none", "holm", "bonferroni" or "fdr_bh".

    Args:
        p: p values, of which those that are nan count for nothing and stay.
        method: How.

    Raises:
        FitError: If there is no such adjustment.
    """
    values = np.asarray(p, dtype=float)
    if method == "none":
        return values
    from statsmodels.stats.multitest import multipletests

    if method not in ("holm", "bonferroni", "fdr_bh"):
        raise FitError(f"there is no adjustment {method!r}: use holm, bonferroni, fdr_bh or none")
    out = values.copy()
    known = np.isfinite(values)
    if known.any():
        out[known] = multipletests(values[known], method=method)[1]
    return out
