"""Estimates of a design, by the engine that suits it."""

from __future__ import annotations

import warnings as python_warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.design import Design
from vlm_probe.analysis.mixed_effects.fitted import Solution
from vlm_probe.analysis.mixed_effects.glmm import GeneralizedMixedModel, fixed_only
from vlm_probe.analysis.mixed_effects.lmm import LinearMixedModel

Array = NDArray[Any]


def prior_precision(design: Design, prior_sd: float | None) -> NDArray[np.float64]:
    """Precision of the prior of every fixed effect, (p,): that of `prior_sd` per standard deviation of its column; 0 without."""
    if prior_sd is None:
        return np.zeros(design.x.shape[1])
    return np.asarray((design.x.std(axis=0) / prior_sd) ** 2, dtype=float)


def solve(
    design: Design, *, reml: bool, prior_sd: float | None = None, n_nodes: int = 1, derivatives: bool = True
) -> Solution:
    """Estimate a design, without any check.

    Args:
        design: The model and its data.
        reml: Whether to restrict the likelihood of a linear mixed model.
        prior_sd: As for `fit`.
        n_nodes: `nAGQ` of `fit`.
        derivatives: Whether second derivatives are taken (`calc_derivs` of `fit`).
    """
    precision = prior_precision(design, prior_sd)
    if not design.terms:
        return fit_ordinary(design, precision)
    if design.family.name == "gaussian":
        y = design.y - design.offset
        return LinearMixedModel(y, design.x, design.terms, design.weights, reml=reml).fit(derivatives=derivatives)
    return engine(design, precision, n_nodes).fit(derivatives=derivatives)


def engine(design: Design, precision: Array, n_nodes: int) -> GeneralizedMixedModel:
    """The engine of a generalised linear mixed model.

    Args:
        design: The model and its data.
        precision: Prior precision of each fixed effect, (p,).
        n_nodes: Nodes of the quadrature.
    """
    return GeneralizedMixedModel(
        design.family, design.y, design.trials, design.distinct, design.terms, design.offset, precision, n_nodes
    )


def fit_ordinary(design: Design, precision: Array) -> Solution:
    """Fit a model without random effects: ordinary least squares, or a generalised linear model, by statsmodels.

    Args:
        design: A design without random-effect terms.
        precision: Prior precision of each fixed effect, (p,).
    """
    import statsmodels.api as sm

    if design.family.name == "gaussian":
        found = sm.WLS(design.y - design.offset, design.x, weights=design.weights).fit()
        variance = found.ssr / found.df_resid
        covariance = found.normalized_cov_params * variance
        return _solution(
            found.params, covariance, float(np.sqrt(variance)), float(found.llf), "least squares (statsmodels)"
        )
    if np.any(precision):
        beta, information = fixed_only(
            design.family, design.y, design.trials, design.distinct, design.offset, np.diag(precision)
        )
        value = design.family.moments(design.y, design.trials, design.offset + design.x @ beta).log_likelihood
        value += design.family.constant(design.y, design.trials)
        return _solution(beta, np.linalg.inv(information), 1.0, value, "Newton, penalised")
    if design.family.name == "binomial":
        family, response = sm.families.Binomial(), np.column_stack([design.y, design.trials - design.y])
    else:
        family, response = sm.families.Poisson(), design.y
    with python_warnings.catch_warnings():
        # Of perfect separation, which was looked for before, and which counts with one rate throughout are taken for.
        python_warnings.simplefilter("ignore")
        found = sm.GLM(response, design.x, family=family, offset=design.offset).fit(tol=1e-12, maxiter=200)
    return _solution(
        found.params, found.cov_params(), 1.0, float(found.llf), "iteratively reweighted least squares (statsmodels)"
    )


def _solution(beta: Any, covariance: Any, sigma: float, log_likelihood: float, optimizer: str) -> Solution:
    p = len(beta)
    return Solution(
        terms=(),
        beta=np.asarray(beta, dtype=float),
        covariance=np.asarray(covariance, dtype=float),
        held_covariance=np.asarray(covariance, dtype=float),
        factors=(),
        modes=(),
        mode_covariances=(),
        sigma=sigma,
        log_likelihood=log_likelihood,
        derivatives=np.zeros((0, p, p)),
        parameter_covariance=np.zeros((0, 0)),
        n_variance_parameters=0,
        converged=True,
        distance=0.0,
        evaluations=1,
        starts=1,
        optimizer=optimizer,
    )
