"""Profile likelihood of combinations of fixed effects: tests and intervals that do not take the log-likelihood for a parabola.

The signed root of the likelihood ratio, zeta (Bates & Watts, 1988, Nonlinear regression analysis), takes the place of
estimate / standard error. Both agree where there are many answers. They part near rates of 0 and 1, where standard errors of log-odds
grow faster than the estimates, so that Wald tests find nothing although the data are clear (Hauck & Donner, 1977, JASA
72:851-853).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.optimize
import scipy.stats
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.emmeans import of_coefficients
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.estimation import prior_precision, solve
from vlm_probe.analysis.mixed_effects.fitted import FittedModel
from vlm_probe.analysis.mixed_effects.glmm import GeneralizedMixedModel, fixed_only
from vlm_probe.analysis.mixed_effects.inference import degrees_of_freedom, with_odds_ratios
from vlm_probe.analysis.mixed_effects.lmm import LinearMixedModel
from vlm_probe.analysis.mixed_effects.model_matrix import DistinctRows

Array = NDArray[Any]

FARTHEST = 300.0
"""Standard errors beyond which a limit is called infinite."""


class Profile:
    """The likelihood along one combination `weights @ beta`, everything else at its best.

    Where the fit has a prior, it is the penalised likelihood (Heinze & Schemper, 2002, Stat Med 21:2409-2419). Linear models are
    taken by maximum likelihood.

    Args:
        result: The fit.
        weights: Of the fixed effects, (p,).
        free: Whether variances are estimated anew for every value; else they stay as they were estimated.
    """

    def __init__(self, result: FittedModel, weights: Array, *, free: bool = True) -> None:
        if result.family == "gaussian" and not result.design.terms:
            raise FitError("Wald intervals of ordinary linear models are exact: take those of `coefficients`")
        self._result, self._weights, self._free = result, np.asarray(weights, dtype=float), free
        self._known: dict[float, float] = {}

    @cached_property
    def _best(self) -> tuple[Array, Array, float]:
        """Fixed effects, their covariance and the log-likelihood at the optimum (ML)."""
        result = self._result
        found = solve(result.design, reml=False) if result.reml else result.solution
        precision = prior_precision(result.design, result.prior_sd)
        return found.beta, found.covariance, found.log_likelihood - 0.5 * float(precision @ found.beta**2)

    @property
    def estimate(self) -> float:
        """Where the likelihood is highest."""
        return float(self._weights @ self._best[0])

    @property
    def se(self) -> float:
        """The standard error that Wald tests would use."""
        return float(np.sqrt(self._weights @ self._best[1] @ self._weights))

    @cached_property
    def _at(self) -> Callable[[float], float]:
        """From a value of the combination to the largest log-likelihood."""
        design, solution, weights = self._result.design, self._result.solution, self._weights
        beta, covariance, _ = self._best
        direction = covariance @ weights / float(weights @ covariance @ weights)
        within = scipy.linalg.null_space(weights[None])
        precision = prior_precision(design, self._result.prior_sd)
        family = design.family

        def moved(value: float) -> Array:
            return beta + direction * (value - self.estimate)

        if family.name == "gaussian":

            def linear(value: float) -> float:
                y = design.y - design.offset - design.x @ moved(value)
                model = LinearMixedModel(y, design.x @ within, design.terms, design.weights, reml=False)
                return model.fit().log_likelihood

            return linear
        if not design.terms:
            rows = DistinctRows.of(design.x)

            def ordinary(value: float) -> float:
                prior = np.diag(precision)
                own, _ = fixed_only(family, design.y, design.trials, rows, design.offset, prior, moved(value), within)
                moments = family.moments(design.y, design.trials, design.offset + design.x @ own)
                constant = family.constant(design.y, design.trials)
                return moments.log_likelihood + constant - 0.5 * float(precision @ own**2)

            return ordinary
        model = GeneralizedMixedModel(
            family, design.y, design.trials, design.x, design.terms, design.offset, precision, self._result.n_nodes
        )
        theta = np.concatenate(
            [
                (factor * term.scale[:, None])[term.at]
                for term, factor in zip(solution.terms, solution.factors, strict=True)
            ]
        )
        return lambda value: model.restricted(theta, moved(value), weights, free=self._free)

    def root(self, value: float) -> float:
        """Signed root of the likelihood ratio against a value: positive if the estimate is above it."""
        if value not in self._known:
            ratio = 2 * (self._best[2] - self._at(value))
            self._known[value] = math.copysign(math.sqrt(max(ratio, 0.0)), self.estimate - value)
        return self._known[value]

    def interval(self, critical: float) -> tuple[float, float]:
        """The values whose root is at most `critical`; infinite where the likelihood levels off before."""
        return self._limit(critical, -1), self._limit(critical, 1)

    def _limit(self, critical: float, side: int) -> float:
        def beyond(distance: float) -> float:
            return abs(self.root(self.estimate + side * distance)) - critical

        near, far = 0.0, critical * self.se
        while beyond(far) < 0:
            if far > FARTHEST * self.se:
                return side * math.inf
            near, far = far, 1.5 * far
        if near == 0.0:
            # The root is almost straight, so that a little less is a bound from below as a rule.
            closer = 0.7 * far
            near = closer if beyond(closer) < 0 else 0.0
        distance = scipy.optimize.brentq(
            lambda d: beyond(d) if d else -critical, near, far, xtol=1e-4 * self.se, rtol=1e-6
        )
        return self.estimate + side * float(distance)


def profile_table(result: FittedModel, of: Mapping[str, float] | None, level: float, df: str | None) -> pd.DataFrame:
    """See `FitResult.profile`."""
    if not 0 < level < 1:
        raise FitError(f"level is {level}: give a coverage between 0 and 1, such as 0.95")
    names, weights = list(result.design.names), np.eye(len(result.design.names))
    if of is not None:
        label, weights = of_coefficients(result, of)
        names = [label]
    rows = []
    for row in weights:
        profile = Profile(result, row)
        freedom = degrees_of_freedom(result, row, df or result.df_method)
        low, high = profile.interval(float(scipy.stats.t.ppf(0.5 + level / 2, freedom)))
        root = profile.root(0.0)
        p = 2 * float(scipy.stats.t.sf(abs(root), freedom))
        rows.append([profile.estimate, freedom, root, p, low, high])
    table = pd.DataFrame(
        rows,
        columns=["estimate", "df", "statistic", "p", "ci_low", "ci_high"],
        index=pd.Index(names, name="term"),
    )
    return with_odds_ratios(table, result.family)
