"""Fitting: from a formula and a table to a result, with everything checked on the way."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.columns import Column
from vlm_probe.analysis.mixed_effects.degrees_of_freedom import strata
from vlm_probe.analysis.mixed_effects.design import Design, build
from vlm_probe.analysis.mixed_effects.errors import FitError, FitWarning
from vlm_probe.analysis.mixed_effects.guards import (
    check_design,
    check_nodes,
    check_repeats,
    check_solution,
    check_strata,
    check_terms,
)
from vlm_probe.analysis.mixed_effects.separation import check_separation
from vlm_probe.analysis.mixed_effects.solution import Solution

if TYPE_CHECKING:
    import pandas as pd

    from vlm_probe.analysis.mixed_effects.result import FitResult


def fit(
    formula: str,
    data: pd.DataFrame,
    *,
    family: str = "gaussian",
    reml: bool = True,
    contrasts: str | Mapping[str, Any] = "treatment",
    trials: Column = None,
    offset: Column = None,
    weights: Column = None,
    df: str | None = None,
    prior_sd: float | None = None,
    nAGQ: int = 1,
) -> FitResult:
    """Fit a mixed-effects model.

    Linear models by (restricted) maximum likelihood, logistic and Poisson ones by maximum likelihood with the Laplace
    approximation. A formula without random effects is an ordinary (generalised) linear model.

    Args:
        formula: In the notation of lme4: `correct ~ method*shift + (1 | run) + (1 + margin | item)`. The fixed part has the
            grammar of formulaic; the response is a column, an expression, or `cbind(successes, failures)`.
        data: One row per trial, or per cell of counts. Text, booleans and categoricals are factors; categoricals keep the
            order of their levels, of which the first is the reference level.
        family: "gaussian", "binomial" (logit link) or "poisson" (log link).
        reml: For linear models, whether to restrict the likelihood, so that variances are not too small.
        contrasts: Coding of factors: "treatment", "sum", "helmert", "poly", "sequential"; or by factor, where planned
            contrasts are `{name: {level: weight}}`.
        trials: Binomial: number of trials of each row, of which the response is the number of successes (or the share).
        offset: Known part of the linear predictor.
        weights: Linear models: a row's residual variance is `sigma^2 / weight`. Binomial: the same as `trials`, for shares.
        df: Degrees of freedom: None for "satterthwaite" in linear mixed models, "between-within" in others; "asymptotic".
        prior_sd: For separated data: a normal prior with this standard deviation on the effect (log-odds) of every
            fixed effect per standard deviation of its column, but the intercept's (Gelman et al., 2008, suggest 2.5).
        nAGQ: Logistic and Poisson models with one effect of one grouping factor, `(1 | person)`: nodes of adaptive Gauss-Hermite
            quadrature, as in lme4; 1 is the Laplace approximation. It errs where levels have few answers and differ much.

    Returns:
        The result. Its `warnings`, which are raised as `FitWarning` too, say what a reader has to know.

    Raises:
        SeparationError: If an estimate is infinite.
        FitError: If the model cannot be fitted to these data; the message names the column, factor or cell.
    """
    from vlm_probe.analysis.mixed_effects.result import FitResult

    design = build(formula, data, family=family, contrasts=contrasts, offset=offset, trials=trials, weights=weights)
    found = check_design(design, prior_sd)
    check_nodes(design, nAGQ)
    if prior_sd is None:
        # Before the grouping factors: answers that a predictor settles do not vary within runs either.
        check_separation(design)
    elif family == "gaussian":
        raise FitError("prior_sd is for family='binomial' and 'poisson': linear models have finite estimates")
    elif not prior_sd > 0:
        raise FitError(f"prior_sd is {prior_sd}: give a positive number, such as 2.5")
    else:
        found.append(
            f"estimates are drawn towards 0 by a normal prior with standard deviation {prior_sd:g} per standard deviation"
            " of a predictor: they are no maximum likelihood estimates"
        )
    columns = strata(design)
    found += [*check_terms(design), *check_strata(design, columns), *check_repeats(design, data)]
    solution = solve(design, reml=reml, prior_sd=prior_sd, n_nodes=nAGQ)
    found += check_solution(design, solution, nAGQ)
    for text in found:
        python_warnings.warn(text, FitWarning, stacklevel=2)
    if df is None:
        mixed = bool(design.terms)
        df = ("satterthwaite" if mixed else "residual") if family == "gaussian" else "between-within"
    return FitResult(
        design,
        solution,
        df,
        reml and family == "gaussian" and bool(design.terms),
        contrasts,
        tuple(found),
        columns,
        prior_sd,
        nAGQ,
    )


def prior_precision(design: Design, prior_sd: float | None) -> NDArray[np.float64]:
    """Precision of the prior of every fixed effect, (p,): that of `prior_sd` per standard deviation of its column; 0 without."""
    if prior_sd is None:
        return np.zeros(design.x.shape[1])
    return np.asarray((design.x.std(axis=0) / prior_sd) ** 2, dtype=float)


def solve(design: Design, *, reml: bool, prior_sd: float | None = None, n_nodes: int = 1) -> Solution:
    """Estimate a design, without any check.

    Args:
        design: The model and its data.
        reml: Whether to restrict the likelihood of a linear mixed model.
        prior_sd: As for `fit`.
        n_nodes: `nAGQ` of `fit`.
    """
    precision = prior_precision(design, prior_sd)
    if not design.terms:
        from vlm_probe.analysis.mixed_effects.ordinary import fit_ordinary

        return fit_ordinary(design, precision)
    if design.family.name == "gaussian":
        from vlm_probe.analysis.mixed_effects.lmm import LinearMixedModel

        y = design.y - design.offset
        return LinearMixedModel(y, design.x, design.terms, design.weights, reml=reml).fit()
    from vlm_probe.analysis.mixed_effects.glmm import GeneralizedMixedModel

    model = GeneralizedMixedModel(
        design.family, design.y, design.trials, design.x, design.terms, design.offset, precision, n_nodes
    )
    return model.fit()
