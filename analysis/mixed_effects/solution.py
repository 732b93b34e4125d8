"""What an engine hands on: estimates in the units of the data, and all that inference about them needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.terms import RandomTerm

Array = NDArray[Any]


@dataclass(frozen=True)
class Solution:
    """Estimates of one model, with `p` fixed effects and `d` free variance parameters.

    Attributes:
        terms: Random-effect terms, in the order of what follows.
        beta: Fixed effects, `(p,)`.
        covariance: Their covariance, `(p, p)`.
        factors: Per term, the factor `L` (k, k) of the covariance of its effects, in the units of the data.
        modes: Per term, the conditional modes of its effects, `(q, k)`.
        mode_covariances: Per term, their conditional covariances, `(q, k, k)`.
        sigma: Residual standard deviation; 1 for families without one.
        log_likelihood: Restricted, if the model was fitted by REML.
        derivatives: Derivatives of `covariance` with respect to the variance parameters, `(d, p, p)`; linear models only.
        parameter_covariance: Covariance of the variance parameters, `(d, d)`; linear models only.
        n_variance_parameters: Number of variance parameters, those at the boundary included.
        converged: Whether the optimum was reached.
        distance: Estimated distance to the optimum, in standard errors.
        evaluations: Evaluations of the log-likelihood.
        starts: Number of starting points.
        optimizer: How it was found, in words.
    """

    terms: tuple[RandomTerm, ...]
    beta: Array
    covariance: Array
    factors: tuple[Array, ...]
    modes: tuple[Array, ...]
    mode_covariances: tuple[Array, ...]
    sigma: float
    log_likelihood: float
    derivatives: Array
    parameter_covariance: Array
    n_variance_parameters: int
    converged: bool
    distance: float
    evaluations: int
    starts: int
    optimizer: str


def in_data_units(
    terms: tuple[RandomTerm, ...], factors: list[Array], modes: list[Array], covariances: list[Array], sigma: float
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """Undo the scaling of the random-effect designs, and give every column of `L` a positive diagonal.

    Args:
        terms: The terms.
        factors: The factor `L` (k, k) of each, for its scaled design and a residual standard deviation of 1.
        modes: Conditional modes (q, k) of each, for its scaled design.
        covariances: Their conditional covariances (q, k, k).
        sigma: Residual standard deviation.

    Returns:
        Factors, modes and covariances in the units of the data.
    """
    scaled = []
    for term, factor in zip(terms, factors, strict=True):
        signs = np.where(np.diag(factor) < 0, -1.0, 1.0)
        scaled.append(sigma * factor * signs / term.scale[:, None])
    return (
        tuple(scaled),
        tuple(mode / term.scale for term, mode in zip(terms, modes, strict=True)),
        tuple(block / (term.scale[:, None] * term.scale) for term, block in zip(terms, covariances, strict=True)),
    )
