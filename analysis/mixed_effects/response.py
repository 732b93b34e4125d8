"""Responses: their distributions, each with its canonical link, for which Newton's method is exact; and whether data are such responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, gammaln, log1p

from vlm_probe.analysis.mixed_effects.errors import FitError

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
            # One exponential, which cannot overflow, gives the rate and log(1 + exp(eta)).
            small = np.exp(-np.abs(predictor))
            p = np.where(predictor >= 0, 1.0, small) / (1.0 + small)
            weight = trials * p * (1 - p)
            value = float(response @ predictor - trials @ (np.maximum(predictor, 0) + log1p(small)))
            return Moments(trials * p, weight, weight * (1 - 2 * p), value)
        mean = np.exp(np.minimum(predictor, 50.0))
        return Moments(mean, mean, mean, float(response @ predictor - mean.sum()))

    def log_density(self, response: Array, trials: Array, predictor: Array) -> Array:
        """The log-likelihood of `moments`, row by row, (n,)."""
        if self.name == "binomial":
            return np.asarray(response * predictor - trials * np.logaddexp(0, predictor))
        predictor = np.minimum(predictor, 50.0)
        return np.asarray(response * predictor - np.exp(predictor))

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


def of_two_names(values: pd.Series) -> tuple[Array | None, str]:
    """A response of two names as 0 and 1, what is missing as nan, and the name that is 1: the second, as in R.

    Args:
        values: The response.

    Returns:
        None and "" if it does not hold two names.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = list(values.cat.remove_unused_categories().cat.categories)
    elif pd.api.types.is_object_dtype(values) or pd.api.types.is_string_dtype(values):
        levels = sorted(values.dropna().unique(), key=str)
    else:
        return None, ""
    if len(levels) != 2 or not all(isinstance(level, str) for level in levels):
        return None, ""
    found = values.astype(object).map({levels[0]: 0.0, levels[1]: 1.0}).to_numpy(dtype=float, na_value=np.nan)
    return found, levels[1]


def checked_response(
    family: Family, name: str, response: Sequence[Array], trials: Array | None, weights: Array
) -> tuple[Array, Array, Array]:
    """Responses (numbers of successes for the binomial family), numbers of trials, and weights of rows, (n,) each.

    Args:
        family: Distribution of the response.
        name: What the response is called, for errors.
        response: The response; or successes and failures.
        trials: Numbers of trials, if they were given.
        weights: Weights of rows; of proportions, their numbers of trials.

    Raises:
        FitError: If these are no responses of the family.
    """
    first = response[0]
    if np.any(weights <= 0):
        raise FitError("weights must be greater than 0: leave out the rows that are to count for nothing")
    if family.name != "binomial":
        if len(response) == 2 or trials is not None:
            raise FitError("successes, failures and trials belong to family='binomial'")
        if family.name == "poisson" and (np.any(first < 0) or np.any(first != np.round(first))):
            raise FitError(f"the response {name!r} of family='poisson' must be counts: 0, 1, 2, ...")
        if family.name == "poisson" and np.any(weights != 1):
            raise FitError("family='poisson' takes no weights: for exposure, give offset=log(exposure)")
        return first, np.ones_like(first), weights
    if len(response) == 2:
        if trials is not None:
            raise FitError("give either cbind(successes, failures), or trials=")
        trials = first + response[1]
    elif trials is not None:
        # Counts out of the trials, or proportions of them.
        first = first * trials if np.all(first <= 1) and np.any(trials > 1) and np.any(first % 1) else first
    else:
        # As in glm: a proportion and its weight are a proportion and its number of trials.
        trials, first = weights, first * weights
    successes = np.round(first)
    if np.any(np.abs(successes - first) > 1e-6 * np.maximum(trials, 1)) and np.all(trials == np.round(trials)):
        raise FitError(
            f"the response {name!r} of family='binomial' must be 0 and 1 (or True and False), cbind(successes,"
            " failures), or a proportion with trials="
        )
    first = successes if np.all(trials == np.round(trials)) else first
    if np.any(first < 0) or np.any(first > trials):
        raise FitError(f"the response {name!r} has values outside 0 and the number of trials")
    if np.any(trials <= 0):
        raise FitError(f"{int((trials <= 0).sum())} rows have no trials: leave them out")
    return first, trials, np.ones_like(first)
