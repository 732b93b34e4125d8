"""Effect sizes of success rates: Cohen's h, and what log odds of a mixed model mean as a rate."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from vlm_probe.analysis.selection import Floats

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(31)
_SHARES = _WEIGHTS / _WEIGHTS.sum()


def cohen_h(p: float, q: float) -> float:
    """Difference of two rates on the arcsine scale: .2 is small, .5 medium, .8 large (Cohen, 1988)."""
    return 2 * math.asin(math.sqrt(min(max(p, 0.0), 1.0))) - 2 * math.asin(math.sqrt(min(max(q, 0.0), 1.0)))


def odds_of(log_odds: float) -> float:
    """Odds, or a ratio of odds; infinite where they are beyond what a number can hold."""
    return math.exp(log_odds) if log_odds < 700 else math.inf


def rate_of(log_odds: float | Floats, sd: float = 0.0) -> Floats:
    """The mean success rate where log odds vary normally around their mean, by Gauss-Hermite quadrature.

    A mixed model's estimate is about a run and an item in the middle; the rate over all of them is nearer to a half.

    Args:
        log_odds: Mean log odds.
        sd: Standard deviation of all random effects together.
    """
    eta = np.asarray(log_odds, dtype=float)
    return np.asarray(expit(eta[..., None] + sd * _NODES) @ _SHARES)


def rate_slope(log_odds: float, sd: float = 0.0) -> float:
    """Derivative of `rate_of` with respect to the log odds, for the delta method.

    Args:
        log_odds: Mean log odds.
        sd: Standard deviation of all random effects together.
    """
    p = expit(log_odds + sd * _NODES)
    return float((p * (1 - p)) @ _SHARES)


def log_odds_of(rate: float, sd: float = 0.0) -> float:
    """Inverse of `rate_of`: the mean log odds at which the mean rate is this one.

    Args:
        rate: The mean rate; 0 and 1 have infinite log odds.
        sd: Standard deviation of all random effects together.
    """
    if not 0 < rate < 1:
        return math.nan if math.isnan(rate) else math.copysign(math.inf, rate - 0.5)
    return float(brentq(lambda eta: float(rate_of(eta, sd)) - rate, -60 - 10 * sd, 60 + 10 * sd, xtol=1e-12))
