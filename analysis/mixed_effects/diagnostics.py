"""What is looked for before and after a fit, because its numbers would not mean what they seem to.

What makes estimates impossible is an error; what a reader has to know is a warning, in the result and in what it prints.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from vlm_probe.analysis.mixed_effects.design import Design
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.expressions import as_factor
from vlm_probe.analysis.mixed_effects.fitted import Solution, Stratum
from vlm_probe.analysis.mixed_effects.model_matrix import levels_in
from vlm_probe.analysis.mixed_effects.terms import RandomTerm

WIDE = 3.0
"""A standard deviation in log-odds beyond which most answers are settled by the level, and the Laplace approximation errs: the middle two
thirds of levels then have rates from below .05 to above .95."""


MOST_NODES = 100
"""Nodes of a quadrature, of which 25 are plenty."""
MANY = 1000
"""Levels of a factor beyond which they are not compared with each other."""
FEW_ANSWERS = 10
"""Answers below which two runs may well agree by chance."""
RARE = 3
"""Answers of the rarer kind below which levels agree because they are all but settled."""
BY_CHANCE = 0.01
"""Pairs of levels expected to agree in all answers by chance, from which it is no sign of repetition that some do."""
STIMULI = ("item", "stimulus", "scene", "image", "picture")
"""Words in the names of columns that identify stimuli."""


def check_design(design: Design, prior_sd: float | None = None) -> list[str]:
    """Look at rows and fixed effects of a design before it is fitted.

    Args:
        design: The design.
        prior_sd: Of the prior on the fixed effects, if there is one.

    Returns:
        Warnings.

    Raises:
        FitError: If there are too few rows, or responses do not vary.
    """
    found = [f"{_counted(count, 'row')} left out: {reason}" for reason, count in design.dropped.items()]
    found += design.remarks
    for column, reason in design.matrix.aliased.items():
        found.append(_alias(design, column, reason))
    many = [
        f"{name} is a factor with {len(levels):,} levels in {design.n:,} rows: is it meant as numbers?"
        for name, levels in design.matrix.factors.items()
        if 2 * len(levels) > design.n
    ]
    found += many
    if design.n <= design.x.shape[1]:
        raise FitError(
            f"{_counted(design.n, 'row')} cannot tell {_counted(design.x.shape[1], 'coefficient')}: take more rows or fewer"
            f" predictors{''.join(f' ({text})' for text in many)}"
        )
    drawn = prior_sd is not None and bool((design.x.std(axis=0) > 0).all())  # with a prior on each, all are finite
    share = design.y / design.trials
    # Counts out of several trials vary in themselves, unless all or none succeed.
    settled = design.family.name != "binomial" or share[0] in (0, 1)
    if np.ptp(share) == 0 and settled and not drawn:
        raise FitError(f"the response {design.formula.response_name!r} is {share[0]:g} in all rows")
    if design.family.name == "gaussian" and set(np.unique(design.y)) <= {0.0, 1.0}:
        found.append(
            f"the response {design.formula.response_name!r} is 0 and 1 only: family='binomial' is the model for it"
        )
    return found


def check_nodes(design: Design, n_nodes: int) -> None:
    """Whether a model's likelihood can be taken by quadrature with so many nodes.

    Raises:
        FitError: If it cannot.
    """
    if n_nodes == 1 and not isinstance(n_nodes, bool):
        return
    if isinstance(n_nodes, bool) or not isinstance(n_nodes, int) or not 1 <= n_nodes <= MOST_NODES:
        raise FitError(f"nAGQ is {n_nodes!r}: give a whole number of nodes from 1 (Laplace) to {MOST_NODES}")
    if design.family.name == "gaussian":
        raise FitError(
            "nAGQ is for family='binomial' and 'poisson': the likelihood of linear models is exact; leave it out"
        )
    if len(design.terms) != 1 or design.terms[0].k != 1:
        effects = ", ".join(f"{name} by {term.group}" for term in design.terms for name in term.names)
        raise FitError(
            f"nAGQ is for one effect of one grouping factor, such as (1 | item), and this model has"
            f" {effects or 'no random effects'}: leave it out for the Laplace approximation"
        )


def check_terms(design: Design) -> list[str]:
    """Look at the random effects of a design before it is fitted.

    Returns:
        Warnings.

    Raises:
        FitError: If a grouping factor cannot be one.
    """
    found = []
    for term in design.terms:
        found += _check_term(design, term)
    for first, second in itertools.combinations(design.terms, 2):
        if first.q == second.q == len(np.unique(first.codes * second.q + second.codes)):
            raise FitError(
                f"the grouping factors {first.group!r} and {second.group!r} have the same {first.q} levels: their variances"
                " cannot be told apart; leave one of them out"
            )
    return found


def _check_term(design: Design, term: RandomTerm) -> list[str]:
    if term.q < 2:
        raise FitError(
            f"the grouping factor {term.group!r} has one level only, {term.levels[0]!r}: there is no variance between"
            " levels; leave it out of the formula"
        )
    counts = np.bincount(term.codes, minlength=term.q)
    if design.family.name == "gaussian" and term.size >= design.n:
        raise FitError(
            f"the grouping factor {term.group!r} has {_counted(term.size, 'random effect')} for"
            f" {_counted(design.n, 'row')}: they cannot be told from the residuals; leave some out, or take repeated"
            " measures"
        )
    if counts.max() == 1 and design.family.name == "binomial" and design.trials.max() == 1:
        raise FitError(
            f"the grouping factor {term.group!r} has one row per level, each one answer: its variance cannot be told"
            " from chance; leave it out, or take repeated answers"
        )
    found = [text for pair in itertools.combinations(range(term.k), 2) if (text := _check_effects(term, *pair))]
    if counts.max() == 1 and design.family.name != "gaussian":
        found.append(
            f"{term.group} has one row per level: its variance is overdispersion, not a difference between levels"
        )
    if term.q < 5:
        found.append(f"{term.group} has {term.q} levels only: its variance is hardly known")
    _check_variation(design, term)
    return found


def _check_effects(term: RandomTerm, first: int, second: int) -> str:
    """Whether two effects of a term can be told apart: a warning if not within levels; refused if not at all."""
    names = term.names[first], term.names[second]
    there = [np.bincount(term.codes, term.values[:, place] ** 2, term.q) > 0 for place in (first, second)]
    both = there[0] & there[1]
    if not both.any():
        if (second, first) in term.free:
            raise FitError(
                f"no level of {term.group!r} has both {names[0]} and {names[1]}, so that their correlation cannot be estimated: write ||"
                f" for |, or leave one of them out of the random effects of {term.group}"
            )
        return ""
    multiples = term.multiples(first, term.values[:, second], both[term.codes])
    if multiples is None:
        return ""
    constant = term.constant(first)
    if both.all() and np.ptp(multiples) < 1e-8 * np.abs(multiples).max():
        value = float(multiples[0] * term.scale[second] / term.scale[first])
        is_like = f"is {value:.3g} in all rows" if constant else f"is a multiple of {names[0]}"
        raise FitError(
            f"{names[1]} {is_like}: its slope by {term.group!r} is {'the intercept' if constant else 'that of the other'}; leave it out of"
            f" the random effects of {term.group}"
        )
    is_like = "does not vary" if constant else f"is a multiple of {names[0]}"
    return (
        f"{names[1]} {is_like} within any level of {term.group}: a slope by {term.group} says that their variance changes with"
        f" {names[1]}, and not that levels differ in its effect; for effects that differ, vary {names[1]} within {term.group}"
    )


def _check_variation(design: Design, term: RandomTerm) -> None:
    """Whether responses vary within levels: if they never do, there are as many observations as levels, not as rows."""
    response = design.y / design.trials
    lowest, highest = np.full(term.q, np.inf), np.full(term.q, -np.inf)
    np.minimum.at(lowest, term.codes, response)
    np.maximum.at(highest, term.codes, response)
    several = np.bincount(term.codes, design.trials, term.q) > 1
    varies = highest > lowest
    if design.family.name == "binomial":  # counts out of several trials vary in themselves
        varies |= (highest > 0) & (lowest < 1)
    if several.any() and not varies[several].any():
        what = "answers" if design.family.name == "binomial" else "responses"
        raise FitError(
            f"all {what} within each level of {term.group!r} are the same ({int(several.sum())} levels with more than one"
            f" row): {design.n:,} rows are {term.q:,} independent {what}; keep one row per level and leave {term.group!r} out"
            " of the formula"
        )


def check_strata(design: Design, columns: Sequence[Stratum]) -> list[str]:
    """Whether there are enough levels of a grouping factor (runs) for the fixed effects that vary between them.

    Args:
        design: The design.
        columns: The stratum of each of its fixed effects.

    Returns:
        Warnings.

    Raises:
        FitError: If fixed effects tell all levels apart, so that nothing is left to compare them with.
    """
    for stratum in columns:
        if stratum.df < 1:
            members = [name for name, other in zip(design.names, columns, strict=True) if other.group == stratum.group]
            raise FitError(
                f"the fixed effects {joined(members)} tell all levels of {stratum.group!r} apart: no variance between them"
                f" is left to compare with, as with one run per condition; take more levels of {stratum.group!r}, or leave"
                " it out of the formula and speak of these levels alone"
            )
    found = []
    for name in design.matrix.factors:
        for term in design.terms:
            if name in term.columns:
                continue
            factor = as_factor(design.frame[name]).cat
            pairs = pd.DataFrame({"group": term.codes, "level": factor.codes}).drop_duplicates()
            if len(pairs) != term.q:
                continue  # the factor varies within the group
            counts = pairs["level"].value_counts()
            alone = [str(factor.categories[code]) for code in sorted(counts.index[counts == 1])]
            if alone:
                found.append(
                    f"{name} = {joined(alone)} {'has' if len(alone) == 1 else 'have'} one level of {term.group} only: how much"
                    f" {'it' if len(alone) == 1 else 'they'} would vary between levels is taken from the others"
                )
            break
    return found


def check_repeats(design: Design, data: pd.DataFrame) -> list[str]:
    """Pseudo-replication: rows that are no new observations, since they repeat an answer.

    Looks at cells of two grouping factors, at whole levels of one (runs at temperature 0), and at columns of the table
    that name stimuli.

    Args:
        design: The design.
        data: The table that it was made of, with columns that the formula does not name.

    Returns:
        Warnings.
    """
    if design.family.name != "binomial" or design.trials.max() > 1:
        return []
    found = []
    for first, second in itertools.combinations(design.terms, 2):
        if text := _repeated_cells(design, first, second):
            found.append(text)
    for group in design.terms:
        for other in design.terms:
            if other is not group and (text := _equal_levels(design, group, other)):
                found.append(text)
                break
    return found + _repeated_stimuli(design, data)


def _repeated_cells(design: Design, first: RandomTerm, second: RandomTerm) -> str:
    cell = first.codes * second.q + second.codes
    _, index, counts = np.unique(cell, return_inverse=True, return_counts=True)
    several = counts > 1
    # Where one factor is nested in the other, cells are its levels.
    if several.mean() < 0.5 or len(counts) <= max(first.q, second.q):
        return ""
    successes = np.bincount(index, design.y)
    if not ((successes == 0) | (successes == counts))[several].all():
        return ""
    return (
        f"answers repeat: rows of the same {first.group} and {second.group} always have the same answer"
        f" ({int(several.sum()):,} such cells), as at temperature 0; repeated rows are no new observations: keep one of each"
    )


def _equal_levels(design: Design, group: RandomTerm, other: RandomTerm) -> str:
    """Levels of a group, say runs, with the same answers to the same levels of another factor, say items."""
    order = np.lexsort((design.y, other.codes, group.codes))
    starts = np.searchsorted(group.codes[order], np.arange(group.q + 1))
    if group.q > MANY or np.diff(starts).min() < FEW_ANSWERS:
        return ""
    content: dict[bytes, list[str]] = {}
    rate, pairs = float(design.y.mean()), group.q * (group.q - 1) / 2
    agreement = rate**2 + (1 - rate) ** 2  # of two answers, by chance
    for level, start, end in zip(group.levels, starts[:-1], starts[1:], strict=True):
        rows = order[start:end]
        if len(np.unique(other.codes[rows])) < FEW_ANSWERS:
            return ""
        # As of items that all runs solve, or all but one: no sign of repetition.
        settled = min(design.y[rows].sum(), len(rows) - design.y[rows].sum()) < RARE
        if settled or pairs * agreement ** len(rows) > BY_CHANCE:
            continue
        content.setdefault(other.codes[rows].tobytes() + design.y[rows].tobytes(), []).append(str(level))
    same = [levels for levels in content.values() if len(levels) > 1]
    if not same:
        return ""
    return (
        f"no variance between levels of {group.group}: {joined(same[0])} have the same answers to all {other.group}s, as"
        " repetitions at temperature 0 do; a repetition is no new level: keep one of them"
    )


def _repeated_stimuli(design: Design, data: pd.DataFrame) -> list[str]:
    """Columns that name stimuli, are not in the formula, and settle every answer."""
    used = {name for term in design.terms for name in term.columns} | set(design.frame.columns)
    for place, name in enumerate(map(str, data.columns)):
        if name in used or not any(word in name.lower() for word in STIMULI):
            continue
        try:
            codes = pd.factorize(data.iloc[:, place].to_numpy()[design.frame.index])[0]
        except TypeError:  # of lists and the like, which are no names
            continue
        counts = np.bincount(codes[codes >= 0])
        if not len(counts) or len(counts) < 2 or (counts > 1).mean() < 0.5:
            continue
        successes = np.bincount(codes[codes >= 0], design.y[codes >= 0])
        if ((successes == 0) | (successes == counts)).all():
            return [
                f"answers repeat within every level of the column {name!r}: {design.n:,} rows are {len(counts):,} independent"
                f" answers, and standard errors are too small; keep one row per {name}"
            ]
    return []


def check_solution(design: Design, solution: Solution, n_nodes: int = 1) -> list[str]:
    """Look at estimates after the fit.

    Args:
        design: The design.
        solution: Its estimates.
        n_nodes: Nodes of the quadrature.

    Returns:
        Warnings.

    Raises:
        FitError: If predictors give a response exactly, so that there are no residuals.
    """
    found = []
    if design.family.name == "gaussian" and solution.sigma < 1e-7 * float(np.std(design.y)):
        raise FitError(
            f"the predictors give {design.formula.response_name!r} exactly: no residual variance is left to test against;"
            " leave out what it was computed from"
        )
    if not solution.converged:
        found.append(
            f"the fit did not converge (about {solution.distance:.2g} standard errors from the optimum): do not report it;"
            " simplify the random effects"
        )
    for term, factor in zip(solution.terms, solution.factors, strict=True):
        found += singular_effects(term, factor, solution.sigma)
        if design.family.name == "binomial" and n_nodes == 1:
            better = "; give nAGQ=15" if len(design.terms) == term.k == 1 else ""
            for name, sd in zip(term.names, np.sqrt((factor**2).sum(axis=1)) * term.scale, strict=True):
                if sd > WIDE:
                    found.append(
                        f"the standard deviation of {name} by {term.group} is {sd:.1f} in log-odds: many levels have"
                        f" nothing but right or nothing but wrong answers, and the Laplace approximation is poor{better}"
                    )
    return found


def singular_effects(term: RandomTerm, factor: np.ndarray, sigma: float) -> list[str]:
    """What is singular about one term, in words.

    Args:
        term: The term.
        factor: The factor `L` (k, k) of the covariance of its effects, in the units of the data.
        sigma: Residual standard deviation; 1 for families without one.
    """
    scaled = factor * term.scale[:, None] / sigma
    sds = np.sqrt((scaled**2).sum(axis=1))
    found = [
        f"singular: the variance of {name} by {term.group} is estimated as 0"
        for name, sd in zip(term.names, sds, strict=True)
        if sd < 1e-4
    ]
    for i, j in term.free:
        if i > j and min(sds[i], sds[j]) >= 1e-4 and not found:
            correlation = float(scaled[i] @ scaled[j] / (sds[i] * sds[j]))
            if abs(correlation) > 1 - 1e-6:
                found.append(
                    f"singular: {term.names[j]} and {term.names[i]} by {term.group} are estimated to correlate perfectly"
                    f" ({correlation:+.0f})"
                )
    small = np.abs(np.diag(scaled)) < 1e-4
    if small.any() and not found:
        found.append(f"singular: the covariance of {', '.join(term.names)} by {term.group} has no full rank")
    return found


def _alias(design: Design, column: str, reason: str) -> str:
    term = design.matrix.column_terms[design.matrix.names.index(column)]
    if reason == "0 in all rows":
        cell = " and ".join(f"{name} = {level}" for name, level in levels_in(column, term).items())
        return (
            f"{column} cannot be estimated and is left out: {f'no row has {cell}' if cell else 'it is 0 in all rows'}"
        )
    text = f"{column} cannot be estimated and is left out: it follows from {reason}"
    empty = _empty_cells(design, term)
    return f"{text}; no row has {' or '.join(empty)}" if empty else text


def _empty_cells(design: Design, names: Sequence[str]) -> list[str]:
    """Combinations of levels of these factors that no row has, the first three of them."""
    factors = [name for name in dict.fromkeys(names) if name in design.matrix.factors]
    if len(factors) < 2:
        return []
    there = set(design.frame[factors].itertuples(index=False, name=None))
    levels = [list(design.frame[name].cat.categories) for name in factors]
    empty = (cell for cell in itertools.product(*levels) if cell not in there)
    return [
        ", ".join(f"{name} = {level}" for name, level in zip(factors, cell, strict=True))
        for cell in itertools.islice(empty, 3)
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
