"""Degrees of freedom of tests of fixed effects.

Linear models: Satterthwaite's approximation, as in lmerTest. Generalised linear models have no exact theory, but z tests
reject far too often with few runs, so that a t distribution is used whose degrees of freedom are counted in the units
between which the effect varies: the between-within rule, as for a balanced analysis of variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.design import Design
from vlm_probe.analysis.mixed_effects.solution import Solution
from vlm_probe.analysis.mixed_effects.terms import RandomTerm

Array = NDArray[Any]


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


@dataclass(frozen=True)
class Stratum:
    """Where a fixed effect varies.

    Attributes:
        group: The grouping factor between whose levels it does, or "" if it varies within all of them.
        effect: The random effect of that group which it is compared with: the intercept, or a slope.
        df: Degrees of freedom; infinite within all groups.
    """

    group: str
    effect: str
    df: float


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
