"""The choice of random effects by one stated rule: start with all that the design allows, drop what cannot be estimated."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from vlm_probe.analysis.mixed_effects import FitError, FitResult, FitWarning, SeparationError, fit
from vlm_probe.analysis.mixed_effects.diagnostics import WIDE

RULE = (
    "random effects: all that the design allows; those with one level or one row per level are left out, and those whose variance"
    f" is estimated as 0 are dropped one by one, the last first, and so are those with a standard deviation above {WIDE:g} log odds, which"
    " the Laplace approximation does not hold for; runs always stay"
)
PRIOR_SD = 2.5
"""Of the weak normal prior (Gelman et al., 2008) that keeps estimates finite where a cell has only right or only wrong answers."""


@dataclass(frozen=True)
class Chosen:
    """A fit, and how its random effects came to be.

    Attributes:
        fit: The fit that the rule arrives at.
        steps: What was left out or added and why, in order; empty if the maximal model stands.
        regularised: Whether a weak prior was needed.
        separated: Grouping factors that were dropped because their levels are (quasi-)separated: all answers of a level alike, or almost.
    """

    fit: FitResult
    steps: tuple[str, ...]
    regularised: bool
    separated: tuple[str, ...] = ()


def group_of(term: str) -> str:
    """The grouping factor of a random term: `run:test` of `(0 + trained | run:test)`."""
    return term.partition("|")[2].strip(" )")


def choose(
    fixed: str, terms: Sequence[str], data: pd.DataFrame, keep: Sequence[str] = (), family: str = "binomial"
) -> Chosen:
    """Fit a model with random effects chosen by `RULE`.

    Args:
        fixed: Response and fixed part, such as `success ~ 0 + cell`.
        terms: Random terms in the notation of lme4, the most important first.
        data: One row per trial.
        keep: Those of the terms that stay even if their variance is estimated as 0, because the tests hang on them.
        family: As for `fit`.

    Raises:
        FitError: If not even the kept terms can be fitted.
    """
    steps: list[str] = []
    separated: list[str] = []
    left = []
    for term in terms:
        reason = _impossible(group_of(term), data)
        if reason:
            steps.append(f"{term} left out: {reason}")
        else:
            left.append(term)
    prior: float | None = None
    while True:
        formula = " + ".join([fixed, *left])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FitWarning)
                found = fit(formula, data, family=family, prior_sd=prior, calc_derivs=False)
        except SeparationError as error:
            if prior is not None:
                raise
            prior = PRIOR_SD
            steps.append(
                f"weak prior (sd {PRIOR_SD} per standard deviation of a predictor): {str(error).partition(';')[0]}"
            )
            continue
        except FitError as error:
            if prior is None and family == "binomial" and str(error).endswith("in all rows"):
                prior = PRIOR_SD
                steps.append(f"weak prior (sd {PRIOR_SD} per standard deviation of a predictor): {error}")
                continue
            named = [term for term in left if f"{group_of(term)!r}" in str(error)]
            if not named:
                raise
            left.remove(named[-1])
            separated += [group_of(named[-1])] if "are the same" in str(error) else []
            steps.append(f"{named[-1]} left out: {str(error).partition(';')[0]}")
            continue
        sds = found.variance_components.groupby("group")["sd"].min()
        null = [term for term in left if term not in keep and sds.get(group_of(term), 1.0) < 1e-4]
        if null:
            left.remove(null[-1])
            steps.append(f"{null[-1]} dropped: its variance is estimated as 0")
            continue
        sds = found.variance_components.groupby("group")["sd"].max()
        wide = [term for term in left if term not in keep and sds.get(group_of(term), 0.0) > WIDE]
        if family == "gaussian" or not wide:
            return Chosen(found.with_derivatives(), tuple(steps), prior is not None, tuple(separated))
        left.remove(wide[-1])
        separated.append(group_of(wide[-1]))
        steps.append(
            f"{wide[-1]} dropped: its levels are (quasi-)separated (standard deviation {sds[group_of(wide[-1])]:.0f} log odds)"
        )


def _impossible(group: str, data: pd.DataFrame) -> str:
    """Why a grouping factor cannot be one; empty if it can."""
    counts = data.groupby(group.split(":"), observed=True).size()
    if len(counts) < 2:
        return "one level"
    return "one row per level" if counts.max() == 1 else ""


def standard_deviation(found: FitResult, groups: Sequence[str]) -> float:
    """Standard deviation of the sum of the random effects of these grouping factors.

    Args:
        found: The fit, whose random effects are intercepts.
        groups: Grouping factors; those that it does not have add nothing.
    """
    table = found.variance_components
    return float((table.loc[table["group"].isin(list(groups)), "sd"] ** 2).sum() ** 0.5)
