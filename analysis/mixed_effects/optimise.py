"""Minimising a smooth negative log-likelihood of variance and regression parameters, to a stated accuracy.

The factors of covariance matrices are not bounded: changing the sign of a column of `L` changes nothing, so that an
estimate on the boundary (a variance of 0) is an ordinary stationary point. It may be the wrong one, which is why every
variance of 0 is tried again from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray

Array = NDArray[Any]
Objective = Callable[[Array], tuple[float, Array]]

GRADIENT_TOLERANCE = 1e-4
"""Largest gradient in coordinates of unit curvature: about how many standard errors an estimate may be off."""
ZERO = 1e-4
"""A diagonal entry of `L` (for a scaled design) below this is a variance of 0, as in lme4's test of singularity."""
ROUGH = 1e-2
"""The same for a first look from another start."""
NEARLY_ZERO = 1e-2
BETTER = 1e-6
"""By how much a log-likelihood must be higher for another optimum to be preferred."""
STEP, SHORT_STEP = 1e-2, 1e-3
"""Steps of differences, in coordinates of unit curvature; short ones where gradients are exact."""
NEAR, EXACT = 1e-3, 1e-8
"""Distances in standard errors from which second derivatives count as those at the optimum, and at which nothing is left to gain."""
ROUNDS, STEPS = 4, 10
"""How often second derivatives are taken at most, and how many steps with each."""
ROUNDING = 1e-10
"""Relative error of a log-likelihood: what is higher by less may be as low."""


@dataclass(frozen=True)
class Optimum:
    """Where a minimisation ended.

    Attributes:
        x: Parameters.
        value: The objective there.
        hessian: Second derivatives, with zeros for the parameters that are fixed at the boundary.
        fixed: Which parameters are fixed at the boundary, at 0.
        distance: Estimated distance to the exact optimum, in standard errors.
        evaluations: Number of evaluations of objective and gradient.
        starts: Number of starting points.
    """

    x: Array
    value: float
    hessian: Array
    fixed: NDArray[np.bool_]
    distance: float
    evaluations: int
    starts: int

    @property
    def converged(self) -> bool:
        """Whether the estimates are within 0.005 standard errors of the optimum."""
        return bool(self.distance < 0.005)


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes:
        x: Parameters.
        fixed: Which parameters are fixed at the boundary, at 0.
        evaluations, starts: As in `Optimum`.
    """

    x: Array
    fixed: NDArray[np.bool_]
    evaluations: int
    starts: int


def search(
    objective: Objective, start: Array, curvature: Callable[[Array], Array], diagonal: NDArray[np.bool_]
) -> Found:
    """Quasi-Newton steps to the minimum of an objective, with the variances that are 0 fixed there.

    If the first search ends at a variance of 0, there is another from elsewhere.

    Args:
        objective: From parameters to value and gradient.
        start: Parameters to begin with.
        curvature: From parameters to approximate second derivatives (P, P), positive definite.
        diagonal: Which parameters are diagonal entries of a factor `L` of a covariance matrix.
    """
    counter = Counter(objective)
    x, value = descend(counter, start, curvature(start))
    starts = 1
    small = diagonal & (np.abs(x) < NEARLY_ZERO)
    if small.any():
        # From the other side of the first start, and not to the end unless it leads elsewhere.
        again = np.where(small, 0.2 if start[small].max() >= 1 else 1.0, x)
        other, its_value = descend(counter, again, curvature(again), ROUGH)
        starts += 1
        if its_value < value - BETTER:
            x, value = descend(counter, other, curvature(other))
    x, value = _snap(counter, x, value, diagonal)
    return Found(x, diagonal & (np.abs(x) < ZERO), counter.calls, starts)


class Counter:
    """An objective that counts how often it is asked, and is large where it is not finite."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.calls = 0

    def __call__(self, x: Array) -> tuple[float, Array]:
        """Value and gradient."""
        self.calls += 1
        value, gradient = self.objective(x)
        if not np.isfinite(value):
            return 1e300, np.zeros_like(x)
        return value, gradient


def descend(
    objective: Counter, start: Array, curvature: Array, tolerance: float = GRADIENT_TOLERANCE
) -> tuple[Array, float]:
    """Quasi-Newton steps (BFGS) in coordinates in which the curvature at the start is about one; where they end, and the value.

    Args:
        objective: From parameters to value and gradient.
        start: Parameters (P,) to begin with.
        curvature: Approximate second derivatives there, (P, P).
        tolerance: Largest gradient, in those coordinates, at which the search ends.
    """
    if not len(start):
        return start, objective(start)[0]
    to_x = _inverse_root(curvature)

    def scaled(z: Array) -> tuple[float, Array]:
        value, gradient = objective(start + to_x @ z)
        return value, to_x.T @ gradient

    options = {"gtol": tolerance, "maxiter": 500}
    found = scipy.optimize.minimize(scaled, np.zeros_like(start), jac=True, method="BFGS", options=options)
    return start + to_x @ found.x, float(found.fun)


def _inverse_root(matrix: Array) -> Array:
    """A matrix `S` with `S.T @ matrix @ S = I`."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values = np.maximum(values, 1e-10 * max(values.max(), 1e-10))
    return vectors / np.sqrt(values)


def _snap(objective: Counter, x: Array, value: float, diagonal: NDArray[np.bool_]) -> tuple[Array, float]:
    """Set those variances to 0 exactly that are 0 except for the accuracy of the search."""
    for place in np.flatnonzero(diagonal & (np.abs(x) < NEARLY_ZERO)):
        other = x.copy()
        other[place] = 0
        its_value = objective(other)[0]
        if its_value <= value + BETTER:
            x, value = other, its_value
    return x, value


def unpolished(objective: Objective, found: Found, curvature: Callable[[Array], Array]) -> Optimum:
    """Where a search ended, with approximate second derivatives; arguments as in `polish`."""
    value, gradient = objective(found.x)
    free = ~found.fixed
    hessian = curvature(found.x) * np.outer(free, free)
    step = np.linalg.lstsq(hessian[np.ix_(free, free)], gradient[free], rcond=None)[0]
    distance = float(np.sqrt(max(gradient[free] @ step, 0.0)))
    return Optimum(found.x, value, hessian, found.fixed, distance, found.evaluations + 1, found.starts)


def polish(objective: Objective, found: Found, curvature: Callable[[Array], Array], exact: bool) -> Optimum:
    """Newton steps with second derivatives from differences of gradients, until those are the derivatives at the optimum.

    Args:
        objective: From parameters to value and gradient.
        found: Where to begin.
        curvature: From parameters to approximate second derivatives (P, P), positive definite.
        exact: Whether gradients are exact to rounding, so that second derivatives can be taken to many digits.
    """
    counter = Counter(objective)
    x, free = found.x, np.flatnonzero(~found.fixed)
    value, gradient = counter(x)
    hessian = np.zeros((len(x), len(x)))
    distance = np.inf if len(free) else 0.0
    guess = curvature(x) if len(free) else hessian
    for _ in range(ROUNDS if len(free) else 0):
        inner = differentiate(counter, x, free, guess, exact)
        hessian = np.zeros_like(hessian)
        hessian[np.ix_(free, free)] = inner
        guess = np.where(np.eye(len(x)) * hessian > 0, hessian, guess)
        x, value, gradient, before, distance = _newton(counter, x, value, gradient, free, inner)
        if before < (EXACT if exact else NEAR) or not distance < before:
            break
    return Optimum(x, value, hessian, found.fixed, float(distance), found.evaluations + counter.calls, found.starts)


def _newton(
    objective: Counter, x: Array, value: float, gradient: Array, free: Array, hessian: Array
) -> tuple[Array, float, Array, float, float]:
    """Newton steps with the same second derivatives, as long as each brings the optimum much nearer.

    Returns:
        Parameters, value and gradient at the end, and the distances to the optimum before and after, in standard errors.
    """
    try:
        factor = scipy.linalg.cho_factor(hessian)
    except np.linalg.LinAlgError:
        return x, value, gradient, np.inf, np.inf

    def newton_step(gradient: Array) -> tuple[Array, float]:
        step = scipy.linalg.cho_solve(factor, gradient[free])
        return step, float(np.sqrt(max(gradient[free] @ step, 0.0)))

    step, distance = newton_step(gradient)
    before = distance
    for _ in range(STEPS):
        if distance < EXACT:
            break
        other = x.copy()
        other[free] -= step
        its_value, its_gradient = objective(other)
        its_step, its_distance = newton_step(its_gradient)
        if not (its_distance < distance / 2 and its_value <= value + ROUNDING * (1 + abs(value))):
            break
        x, value, gradient, step, distance = other, its_value, its_gradient, its_step, its_distance
    return x, value, gradient, before, distance


def differentiate(objective: Objective, x: Array, free: Array, curvature: Array, exact: bool = False) -> Array:
    """Second derivatives with respect to the parameters `free`, by central differences of the gradient.

    Args:
        objective: From parameters to value and gradient.
        x: Where, (P,).
        free: Places of the parameters, (d,).
        curvature: Approximate second derivatives, (P, P), which say how long steps are.
        exact: Whether to take shorter steps, and twice as many, so that errors are of the fourth order of a step (Richardson).

    Returns:
        The second derivatives, (d, d), symmetric.
    """

    def slope(place: int, step: float) -> Array:
        ahead, behind = x.copy(), x.copy()
        ahead[place] += step
        behind[place] -= step
        return np.asarray((objective(ahead)[1] - objective(behind)[1])[free] / (2 * step))

    def row(place: int, own: float) -> Array:
        step = (SHORT_STEP if exact else STEP) / np.sqrt(max(own, 1e-8))
        found = slope(place, step)
        return (4 * found - slope(place, 2 * step)) / 3 if exact else found

    rows = []
    for number, place in enumerate(free):
        guess = float(curvature[place, place])
        found = row(place, guess)
        if found[number] > 4 * guess:  # where a variance is 0, little is known beforehand, and the step was too long
            found = row(place, float(found[number]))
        rows.append(found)
    hessian = np.array(rows)
    return (hessian + hessian.T) / 2
