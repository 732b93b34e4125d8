"""Distributions of the response, each with its canonical link, for which Newton's method is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, gammaln, log1p

Array = NDArray[Any]


@dataclass(frozen=True)
class Moments:
    """What Newton's method needs of a family at one linear predictor.

    Attributes:
        mean: Expected responses, (n,).
        weight: Their variances, which are the derivatives of the mean, (n,).
        weight_slope: Derivatives of the weights, (n,).
        log_likelihood: Without the constant that depends on the responses alone.
    """

    mean: Array
    weight: Array
    weight_slope: Array
    log_likelihood: float


@dataclass(frozen=True)
class Family:
    """One distribution with its canonical link.

    Attributes:
        name: "gaussian", "binomial" or "poisson".
        link: The link's name.
        inverse_link: From the linear predictor to the mean (of one trial).
        inverse_link_slope: Its derivative.
    """

    name: str
    link: str
    inverse_link: Callable[[Array], Array]
    inverse_link_slope: Callable[[Array], Array]

    def moments(self, response: Array, trials: Array, predictor: Array) -> Moments:
        """Mean, weight, its slope, and the log-likelihood at a linear predictor (binomial and Poisson).

        Args:
            response: Successes, or counts, (n,).
            trials: Numbers of trials, (n,).
            predictor: The linear predictor, (n,).
        """
        if self.name == "binomial":
            p = expit(predictor)
            weight = trials * p * (1 - p)
            # log(1 + exp(eta)) without overflow, from what is there already.
            softplus = np.maximum(predictor, 0) + log1p(np.exp(-np.abs(predictor)))
            value = float(response @ predictor - trials @ softplus)
            return Moments(trials * p, weight, weight * (1 - 2 * p), value)
        mean = np.exp(np.minimum(predictor, 50.0))
        return Moments(mean, mean, mean, float(response @ predictor - mean.sum()))

    def constant(self, response: Array, trials: Array) -> float:
        """The part of the log-likelihood that depends on the responses alone.

        Args:
            response: Successes, or counts, (n,).
            trials: Numbers of trials, (n,).
        """
        if self.name == "binomial":
            return float(np.sum(gammaln(trials + 1) - gammaln(response + 1) - gammaln(trials - response + 1)))
        return float(-np.sum(gammaln(response + 1)))


def _expit_slope(predictor: Array) -> Array:
    p = expit(predictor)
    return p * (1 - p)


GAUSSIAN = Family("gaussian", "identity", lambda x: x, np.ones_like)
BINOMIAL = Family("binomial", "logit", expit, _expit_slope)
POISSON = Family("poisson", "log", np.exp, np.exp)
FAMILIES = {family.name: family for family in (GAUSSIAN, BINOMIAL, POISSON)}
