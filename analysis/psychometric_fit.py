"""Psychometric functions by maximum likelihood: one function, or thousands at once for the bootstrap.

    P(signal | x) = lapse + (1 - 2 lapse) Phi(intercept + slope x)

Lapses are trials answered by the toss of a coin, with probability 2 `lapse`, so that the function ends at `lapse` and 1 - `lapse`
(Wichmann & Hill, 2001, Percept Psychophys 63:1293-1313, with equal lapse rates, as is usual for yes-no tasks). In these
parameters the likelihood is smooth everywhere; bias and threshold, which run away when the slope is 0, follow from them.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from vlm_probe.analysis.selection import Floats

Flags = npt.NDArray[np.bool_]

MAX_LAPSE = 0.4
"""A function that ends at .4 and .6 is all but flat, and its other parameters mean nothing."""
TINY = 1e-10
ITERATIONS, HEAT = 200, 3
"""Steps of a climb at most, and steps after which climbs of a data set that have met go on as one."""
MET = 0.01
"""Functions are the same climb if they differ by less than this at every margin."""
ENOUGH = 1e-10
"""Gain in log-likelihood at which a climb has arrived."""
BLOCK = 30_000
"""Margins of data sets that are worked on together: as many as stay in the processor's cache."""
GRID = (9, (0.02, 0.06, 0.15, 0.4, 1.0), (0.0, 0.02, 0.08, 0.2, 0.35))
"""Where the search may start: so many points of subjective equality, slopes as shares of the steepest, and lapse rates."""
CLIMBS, FEW_CLIMBS = 16, 3
"""Grid points that are climbed from, for single data sets and for many. A step has an optimum between any two margins."""


def probability(x: Floats | float, intercept: Floats | float, slope: Floats | float, lapse: Floats | float) -> Floats:
    """P(signal) at the signed margins x.

    Args:
        x: Signed margins.
        intercept, slope, lapse: Parameters, of a shape that goes with that of the margins.
    """
    return np.asarray(lapse + (1 - 2 * np.asarray(lapse)) * ndtr(intercept + slope * np.asarray(x, dtype=float)))


def steepest(x: Floats) -> float:
    """The slope beyond which a function is a step as far as these margins can tell."""
    size = np.abs(x[x != 0])
    return 4.0 / max(float(np.quantile(size, 0.05)), float(size.max()) / 1000) if len(size) else 1.0


def fit_functions(
    x: Floats, n: Floats, signals: Floats, *, lapses: bool = True, near: Floats | None = None
) -> tuple[Floats, Floats]:
    """Maximum-likelihood parameters of many data sets with the same margins.

    Args:
        x: Signed margins (k,).
        n: Trials at each margin (sets, k); may be fractional, or 0.
        signals: Signal answers among them (sets, k); may be fractional, for graded answers.
        lapses: Estimate the lapse rate, else it is 0.
        near: Parameters (3,) that those of all sets are near to, as those of bootstrap samples are near to the estimate.

    Returns:
        Parameters (sets, 3): intercept, slope, lapse; and log-likelihoods (sets,).
    """
    scale = float(np.abs(x).max()) or 1.0
    units = np.array([1.0, scale, 1.0])
    z, limit = x / scale, steepest(x) * scale
    start = np.zeros(3) if near is None else near * units
    blocks = np.array_split(np.arange(len(n)), -(-n.size // BLOCK))
    found = [_optima(z, n[block], signals[block], start, limit, lapses) for block in blocks]
    parameters, value = (np.concatenate(part) for part in zip(*found, strict=True))
    return parameters / units, value


def _optima(z: Floats, n: Floats, signals: Floats, near: Floats, limit: float, lapses: bool) -> tuple[Floats, Floats]:
    """The highest optima of some sets."""
    start = np.tile(near, (len(n), 1))
    # Without lapses the likelihood is concave: any start will do.
    found, value = _climb(z, n, signals, start * [1, 1, 0], limit, free_lapse=False)
    if lapses:
        starts = [found, start, *_best_of_grid(z, n, signals, limit)]
        found, value = _highest(z, n, signals, np.stack(starts), limit)
    return found, value


def _highest(z: Floats, n: Floats, signals: Floats, starts: Floats, limit: float) -> tuple[Floats, Floats]:
    """The highest optima that climbs from several starts (starts, sets, 3) lead to."""
    count = len(n)
    sets = np.tile(np.arange(count), len(starts))
    parameters, value = _climb(
        z, n[sets], signals[sets], starts.reshape(-1, 3), limit, free_lapse=True, iterations=HEAT
    )
    curves = probability(z, *parameters.T[:, :, None]).reshape(len(starts), count, -1)
    heights = value.reshape(len(starts), count)
    leads = np.ones((len(starts), count), dtype=bool)
    for i, j in combinations(range(len(starts)), 2):
        met = np.abs(curves[i] - curves[j]).max(1) < MET
        ahead = heights[i] >= heights[j]
        leads[j] &= ~(met & ahead)
        leads[i] &= ~(met & ~ahead)
    left = np.flatnonzero(leads)
    parameters[left], value[left] = _climb(
        z, n[sets[left]], signals[sets[left]], parameters[left], limit, free_lapse=True
    )
    value[~leads.ravel()] = -np.inf
    best = value.reshape(len(starts), count).argmax(0) * count + np.arange(count)
    return parameters[best], value[best]


def _best_of_grid(z: Floats, n: Floats, signals: Floats, limit: float) -> list[Floats]:
    """The likeliest points of the grid for every set, each (sets, 3)."""
    count, shares, lapses = GRID
    centres = np.unique(np.r_[0.0, np.quantile(z, np.linspace(0.05, 0.95, count - 1))])
    slopes = limit * np.array([sign * share for share in shares for sign in (1, -1)])
    points = np.array([(c, b, lapse) for c in centres for b in slopes for lapse in lapses])
    grid = np.column_stack([-points[:, 0] * points[:, 1], points[:, 1], points[:, 2]])
    p = np.clip(probability(z, *grid.T[:, :, None]), TINY, 1 - TINY)
    heights = signals @ np.log(p).T + (n - signals) @ np.log1p(-p).T
    found = []
    for _ in range(CLIMBS if len(n) == 1 else FEW_CLIMBS):
        best = heights.argmax(1)
        found.append(grid[best])
        heights[np.arange(len(n)), best] = -np.inf
    return found


def _climb(
    z: Floats,
    n: Floats,
    signals: Floats,
    start: Floats,
    limit: float,
    *,
    free_lapse: bool,
    iterations: int = ITERATIONS,
) -> tuple[Floats, Floats]:
    """Newton's method within the bounds, damped (Levenberg-Marquardt), for all sets at once.

    Where the likelihood is not concave, Fisher's information stands for its curvature.
    """
    low, high = np.array([-np.inf, -limit, 0.0]), np.array([np.inf, limit, MAX_LAPSE])
    parameters = np.clip(start, low, high)
    powers = np.column_stack([np.ones_like(z), z, z * z])
    value, gradient, observed = _expansion(powers, n, signals, parameters)
    damping = np.full(len(n), 1e-3)
    going = np.arange(len(n))
    for _ in range(iterations):
        own, slope = parameters[going], gradient[going]
        held = ((own <= low) & (slope < 0)) | ((own >= high) & (slope > 0))
        held[:, 2] |= not free_lapse
        slope[held] = 0.0
        information = _freed(observed[going], held)
        bent = np.flatnonzero(~_convex(information))
        if len(bent):
            information[bent] = _freed(_expected(powers, n[going[bent]], own[bent]), held[bent])
        diagonal = np.einsum("bii->bi", information)
        diagonal *= 1 + damping[going, None]
        diagonal += 1e-9 + 1e-9 * diagonal.max(1, keepdims=True)
        trial = np.clip(own + np.linalg.solve(information, slope[:, :, None])[:, :, 0], low, high)
        reached, *there = _expansion(powers, n[going], signals[going], trial)
        gain = reached - value[going]
        accepted = gain >= 0
        taken = going[accepted]
        parameters[taken], value[taken] = trial[accepted], reached[accepted]
        gradient[taken], observed[taken] = there[0][accepted], there[1][accepted]
        damping[going] *= np.where(accepted, 0.1, 8.0)
        finished = (accepted & (gain < ENOUGH)) | (damping[going] > 1e10)
        going = going[~finished]
        if not len(going):
            break
    return parameters, value


def _freed(information: Floats, held: Flags) -> Floats:
    """Information (sets, 3, 3) with that of parameters which are held at a bound out of the way."""
    information[held[:, :, None] | held[:, None, :]] = 0.0
    diagonal = np.einsum("bii->bi", information)
    diagonal += held
    return information


def _convex(matrices: Floats) -> Flags:
    """Which matrices (sets, 3, 3) are positive definite, by their leading minors."""
    minor = matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] ** 2
    return np.asarray((matrices[:, 0, 0] > 0) & (minor > 0) & (np.linalg.det(matrices) > 0))


def _expansion(powers: Floats, n: Floats, signals: Floats, parameters: Floats) -> tuple[Floats, Floats, Floats]:
    """Log-likelihood (sets,), gradient (sets, 3) and observed information (sets, 3, 3)."""
    p, by_eta, by_lapse, eta = _derivatives(powers[:, 1], parameters)
    q, failures = 1 - p, n - signals
    value = (signals * np.log(p) + failures * np.log(q)).sum(1)
    won, lost = signals / p, failures / q
    residual, seen = won - lost, won / p + lost / q
    first = residual * by_eta
    gradient = np.column_stack([first @ powers[:, :2], (residual * by_lapse).sum(1)])
    information = _squares(powers, seen, by_eta, by_lapse)
    # What the curvature of p adds: its second derivatives are -eta by_eta, and by slope and lapse -2 by_eta / (1 - 2 lapse).
    bend = (first * eta) @ powers
    information[:, 0, 0] += bend[:, 0]
    information[:, 1, 1] += bend[:, 2]
    information[:, 0, 1] += bend[:, 1]
    twist = gradient[:, :2] * (2 / (1 - 2 * parameters[:, 2:]))
    information[:, :2, 2] += twist
    information[:, 1, 0], information[:, 2, :2] = information[:, 0, 1], information[:, :2, 2]
    return value, gradient, information


def _expected(powers: Floats, n: Floats, parameters: Floats) -> Floats:
    """Fisher's information (sets, 3, 3)."""
    p, by_eta, by_lapse, _ = _derivatives(powers[:, 1], parameters)
    return _squares(powers, n / (p * (1 - p)), by_eta, by_lapse)


def _derivatives(z: Floats, parameters: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """P(signal), its derivatives by eta = intercept + slope z and by the lapse rate, and eta, all (sets, k)."""
    intercept, slope, lapse = parameters.T[:, :, None]
    eta = intercept + slope * z
    phi = ndtr(eta)
    p = np.clip(lapse + (1 - 2 * lapse) * phi, TINY, 1 - TINY)
    return p, ((1 - 2 * lapse) / np.sqrt(2 * np.pi)) * np.exp(-0.5 * eta * eta), 1 - 2 * phi, eta


def _squares(powers: Floats, weight: Floats, by_eta: Floats, by_lapse: Floats) -> Floats:
    """Weighted sums of products of the first derivatives of p, (sets, 3, 3)."""
    scaled = weight * by_eta
    square, cross = (scaled * by_eta) @ powers, (scaled * by_lapse) @ powers[:, :2]
    information = np.empty((len(weight), 3, 3))
    information[:, 0, 0], information[:, 1, 1] = square[:, 0], square[:, 2]
    information[:, 0, 1] = information[:, 1, 0] = square[:, 1]
    information[:, :2, 2] = information[:, 2, :2] = cross
    information[:, 2, 2] = (weight * by_lapse**2).sum(1)
    return information
