"""Psychometric functions by maximum likelihood: one function, or thousands at once for the bootstrap.

    P(signal | x) = lapse + (1 - 2 lapse) Phi(intercept + slope x)

Lapses are trials answered by the toss of a coin, with probability 2 `lapse`, so that the function ends at `lapse` and 1 - `lapse`
(Wichmann & Hill, 2001, Percept Psychophys 63:1293-1313, with equal lapse rates, as is usual for yes-no tasks). In these
parameters the likelihood is smooth everywhere; bias and threshold, which run away when the slope is 0, follow from them.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, xlog1py, xlogy

from analysis.selection import Floats

MAX_LAPSE = 0.4
"""A function that ends at .4 and .6 is all but flat, and its other parameters mean nothing."""
TINY = 1e-10
ITERATIONS = 200
GRID = (9, (0.02, 0.06, 0.15, 0.4, 1.0), (0.0, 0.02, 0.08, 0.2, 0.35))
"""Where the search may start: so many points of subjective equality, slopes as shares of the steepest, and lapse rates."""
CLIMBS, FEW_CLIMBS = 16, 3
"""Grid points that are climbed from, for single data sets and for many. A step has an optimum between any two margins."""


def probability(x: Floats | float, intercept: Floats | float, slope: Floats | float, lapse: Floats | float) -> Floats:
    """P(signal) at the signed margins x."""
    return np.asarray(lapse + (1 - 2 * np.asarray(lapse)) * ndtr(intercept + slope * np.asarray(x, dtype=float)))


def steepest(x: Floats) -> float:
    """The slope beyond which a function is a step as far as these margins can tell."""
    size = np.abs(x[x != 0])
    return 4.0 / max(float(np.quantile(size, 0.05)), float(size.max()) / 1000) if len(size) else 1.0


def fit_functions(x: Floats, n: Floats, signals: Floats, *, lapses: bool = True) -> tuple[Floats, Floats]:
    """Maximum-likelihood parameters of many data sets with the same margins.

    Args:
        x: Signed margins (k,).
        n: Trials at each margin (sets, k); may be fractional, or 0.
        signals: Signal answers among them (sets, k); may be fractional, for graded answers.
        lapses: Estimate the lapse rate, else it is 0.

    Returns:
        Parameters (sets, 3): intercept, slope, lapse; and log-likelihoods (sets,).
    """
    scale = float(np.abs(x).max()) or 1.0
    z, limit = x / scale, steepest(x) * scale
    # Without lapses the likelihood is concave: any start will do.
    parameters, value = _climb(z, n, signals, np.zeros((len(n), 3)), limit, free_lapse=False)
    if lapses:
        grid = _grid(z, limit)
        p = np.clip(probability(z, *grid.T[:, :, None]), TINY, 1 - TINY)
        heights = signals @ np.log(p).T + (n - signals) @ np.log1p(-p).T
        chosen = np.argsort(-heights, axis=1, kind="stable")[:, : CLIMBS if len(n) == 1 else FEW_CLIMBS]
        starts = np.vstack([parameters, *(grid[column] for column in chosen.T)])
        sets = np.tile(np.arange(len(n)), len(starts) // len(n))
        found, reached = _climb(z, n[sets], signals[sets], starts, limit, free_lapse=True)
        best = reached.reshape(-1, len(n)).argmax(0) * len(n) + np.arange(len(n))
        parameters, value = found[best], reached[best]
    return parameters / np.array([1.0, scale, 1.0]), value


def _grid(z: Floats, limit: float) -> Floats:
    count, shares, lapses = GRID
    centres = np.unique(np.r_[0.0, np.quantile(z, np.linspace(0.05, 0.95, count - 1))])
    slopes = limit * np.array([sign * share for share in shares for sign in (1, -1)])
    points = np.array([(c, b, lapse) for c in centres for b in slopes for lapse in lapses])
    return np.column_stack([-points[:, 0] * points[:, 1], points[:, 1], points[:, 2]])


def _climb(
    z: Floats, n: Floats, signals: Floats, start: Floats, limit: float, *, free_lapse: bool
) -> tuple[Floats, Floats]:
    """Damped Fisher scoring (Levenberg-Marquardt) within the bounds, for all sets at once."""
    low, high = np.array([-np.inf, -limit, 0.0]), np.array([np.inf, limit, MAX_LAPSE])
    parameters = np.clip(start, low, high)
    value = _log_likelihood(z, n, signals, parameters)
    damping = np.full(len(n), 1e-3)
    going = np.arange(len(n))
    powers = np.column_stack([np.ones_like(z), z, z * z])
    for _ in range(ITERATIONS):
        gradient, information = _scores(powers, n[going], signals[going], parameters[going])
        own = parameters[going]
        held = ((own <= low) & (gradient < 0)) | ((own >= high) & (gradient > 0))
        held[:, 2] |= not free_lapse
        gradient[held] = 0.0
        information[held[:, :, None] | held[:, None, :]] = 0.0
        diagonal = np.einsum("bii->bi", information)
        diagonal *= 1 + damping[going, None]
        diagonal += np.where(held, 1.0, 1e-9 + 1e-9 * diagonal.max(1, keepdims=True))
        trial = np.clip(own + np.linalg.solve(information, gradient[:, :, None])[:, :, 0], low, high)
        reached = _log_likelihood(z, n[going], signals[going], trial)
        gain = reached - value[going]
        accepted = gain >= 0
        taken = going[accepted]
        parameters[taken], value[taken] = trial[accepted], reached[accepted]
        damping[going] *= np.where(accepted, 0.2, 8.0)
        finished = (accepted & (gain < 1e-10)) | (damping[going] > 1e10)
        going = going[~finished]
        if not len(going):
            break
    return parameters, value


def _scores(powers: Floats, n: Floats, signals: Floats, parameters: Floats) -> tuple[Floats, Floats]:
    """Gradient (sets, 3) and expected information (sets, 3, 3) of the log-likelihood."""
    intercept, slope, lapse = parameters.T[:, :, None]
    eta = intercept + slope * powers[:, 1]
    phi = ndtr(eta)
    p = np.clip(lapse + (1 - 2 * lapse) * phi, TINY, 1 - TINY)
    weight = 1 / (p * (1 - p))
    by_eta = (1 - 2 * lapse) * np.exp(-eta * eta / 2) / np.sqrt(2 * np.pi)
    by_lapse = 1 - 2 * phi
    residual = (signals - n * p) * weight
    first = (residual * by_eta) @ powers[:, :2]
    gradient = np.column_stack([first, (residual * by_lapse).sum(1)])
    weight *= n
    square, cross = (weight * by_eta**2) @ powers, (weight * by_eta * by_lapse) @ powers[:, :2]
    information = np.empty((len(n), 3, 3))
    information[:, 0, 0], information[:, 1, 1] = square[:, 0], square[:, 2]
    information[:, 0, 1] = information[:, 1, 0] = square[:, 1]
    information[:, :2, 2] = information[:, 2, :2] = cross
    information[:, 2, 2] = (weight * by_lapse**2).sum(1)
    return gradient, information


def _log_likelihood(z: Floats, n: Floats, signals: Floats, parameters: Floats) -> Floats:
    intercept, slope, lapse = parameters.T[:, :, None]
    p = np.clip(lapse + (1 - 2 * lapse) * ndtr(intercept + slope * z), TINY, 1 - TINY)
    return np.asarray((xlogy(signals, p) + xlog1py(n - signals, -p)).sum(1))
