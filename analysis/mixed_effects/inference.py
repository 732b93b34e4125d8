"""Wald tests and intervals of linear combinations of fixed effects, and their degrees of freedom.

Linear models: Satterthwaite's approximation, as in lmerTest. Generalised linear models have no exact theory, but z tests
reject far too often with few runs, so that a t distribution is used whose degrees of freedom are counted in the units
between which the effect varies: the between-within rule, as for a balanced analysis of variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.design import Design
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.fitted import FittedModel, Solution, Stratum
from vlm_probe.analysis.mixed_effects.terms import RandomTerm

Array = NDArray[Any]

METHODS = ("satterthwaite", "between-within", "asymptotic", "residual")


def satterthwaite(solution: Solution, weights: Array) -> float:
    """Degrees of freedom of one linear combination `weights @ beta` of a linear mixed model.

    `2 v^2 / Var(v)`, where `v` is the variance of the combination and `Var(v)` follows from the uncertainty of the variance
    parameters by the delta method (Giesbrecht & Burns, 1985).

    Args:
        solution: Of a linear mixed model.
        weights: Of the fixed effects, (p,).
    """
    variance = float(weights @ solution.covariance @ weights)
    gradient = np.einsum("i,dij,j->d", weights, solution.derivatives, weights)
    uncertainty = float(gradient @ solution.parameter_covariance @ gradient)
    return float("inf") if uncertainty <= 0 else 2 * variance**2 / uncertainty


def strata(design: Design) -> tuple[Stratum, ...]:
    """The stratum of every column of the fixed-effect design.

    A column belongs to a grouping factor if, within each of its levels, it is a multiple of one of the factor's random
    effects: constant for the intercept (method within run), proportional to the margin for its slope (method x margin
    where the slope of the margin varies by run). Of several such factors, the one with the fewest levels counts. Its degrees of freedom are
    its number of levels, less the number of independent fixed effects in the same stratum, less the levels of
    the factors that it is nested in.
    """
    found: list[tuple[int, int, Array] | None] = []
    terms = sorted(design.terms, key=lambda term: term.q)
    for column in design.x.T:
        found.append(_place(terms, column))
    result = []
    known: dict[tuple[int, int], Stratum] = {}
    for here in found:
        if here is None:
            result.append(Stratum("", "", float("inf")))
            continue
        t, effect, _ = here
        if (t, effect) not in known:
            members = np.column_stack([other[2] for other in found if other is not None and other[:2] == (t, effect)])
            term = terms[t]
            outer = [other for other in terms if _nested(term, other) and _has(other, term.names[effect])]
            rank = _rank(members, term, outer)
            known[t, effect] = Stratum(term.group, term.names[effect], float(term.q - rank))
        result.append(known[t, effect])
    return tuple(result)


def _rank(members: Array, inner: RandomTerm, outer: list[RandomTerm]) -> int:
    """Rank of columns (q, m) together with the indicators of the factors that their own is nested in.

    The indicators of a factor are contained in those of one that is nested in it, and those of a single factor are orthogonal:
    only what columns have within its levels is left to count.
    """
    finest = [term for term in outer if not any(_nested(other, term) for other in outer if other is not term)]
    tolerance = 1e-9 * max(float(np.abs(members).max()), 1.0) * len(members) ** 0.5
    if not finest:
        return int(np.linalg.matrix_rank(members, tol=tolerance))
    first = max(finest, key=lambda term: term.q)
    columns = np.column_stack([members, *(_indicators(inner, term) for term in finest if term is not first)])
    level = np.empty(inner.q, dtype=np.int64)
    level[inner.codes] = first.codes
    counts = np.bincount(level, minlength=first.q)[:, None]
    means = np.column_stack([np.bincount(level, column, first.q) for column in columns.T]) / np.maximum(counts, 1)
    return int(first.q + np.linalg.matrix_rank(columns - means[level], tol=tolerance))


def _place(terms: list[RandomTerm], column: Array) -> tuple[int, int, Array] | None:
    """The first term and effect that a column is a multiple of within each level, with the multiples (q,)."""
    for t, term in enumerate(terms):
        for effect in range(term.k):
            multiples = term.multiples(effect, column)
            if multiples is not None:
                return t, effect, multiples
    return None


def _nested(inner: RandomTerm, outer: RandomTerm) -> bool:
    """Whether every level of one factor lies within one level of another, larger one."""
    if outer.q >= inner.q:
        return False
    pairs = np.unique(inner.codes * outer.q + outer.codes)
    return len(pairs) == inner.q


def _has(term: RandomTerm, effect: str) -> bool:
    return effect in term.names


def _indicators(inner: RandomTerm, outer: RandomTerm) -> Array:
    """Which level of the outer factor each level of the inner one lies in, (q_inner, q_outer)."""
    matrix = np.zeros((inner.q, outer.q))
    matrix[inner.codes, outer.codes] = 1.0
    return matrix


def between_within(columns: tuple[Stratum, ...], weights: Array) -> float:
    """Degrees of freedom of a linear combination: the fewest of the columns that it takes.

    Args:
        columns: The stratum of each fixed effect.
        weights: Of the fixed effects, (p,).
    """
    used = np.abs(weights) > 1e-9 * max(float(np.abs(weights).max()), 1e-300)
    return min((stratum.df for stratum, use in zip(columns, used, strict=True) if use), default=float("inf"))


def degrees_of_freedom(result: FittedModel, weights: Array, method: str) -> float:
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
    result: FittedModel, weights: Array, *, level: float = 0.95, df: str | None = None, offset: float = 0.0
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


def coefficient_table(result: FittedModel, level: float = 0.95, df: str | None = None) -> pd.DataFrame:
    """Fixed effects by term, as `FitResult.coefficient_table`."""
    table = estimates(result, np.eye(len(result.design.names)), level=level, df=df)
    table.index = pd.Index(result.design.names, name="term")
    return with_odds_ratios(table, result.family)


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
