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
from vlm_probe.analysis.mixed_effects.estimation import engine, prior_precision, solve
from vlm_probe.analysis.mixed_effects.fitted import FittedModel
from vlm_probe.analysis.mixed_effects.glmm import GeneralizedMixedModel, fixed_only
from vlm_probe.analysis.mixed_effects.inference import degrees_of_freedom, with_odds_ratios
from vlm_probe.analysis.mixed_effects.lmm import LinearMixedModel

Array = NDArray[Any]
Restricted = Callable[[Array], tuple[float, float]]
"""From fixed effects (p,) to the largest log-likelihood among those with the same value of a combination of them, and how fast it rises
with that value; nan where that is not known."""

FARTHEST = 300.0
"""Standard errors beyond which a limit is called infinite."""
ACCURACY, ROUGH = 1e-5, 1e-4
"""Standard errors that a limit may be off; where slopes are not known, and every value is a fit."""


class ProfiledModel:
    """A fitted model, whose likelihood is profiled along combinations of its fixed effects.

    Where the fit has a prior, it is the penalised likelihood (Heinze & Schemper, 2002, Stat Med 21:2409-2419). Linear models are
    taken by maximum likelihood.

    Args:
        result: The fit.
        free: Whether variances are estimated again for every value; else they stay as they were estimated.
    """

    def __init__(self, result: FittedModel, *, free: bool = True) -> None:
        if result.family == "gaussian" and not result.design.terms:
            raise FitError("Wald intervals of ordinary linear models are exact: take those of `coefficients`")
        self._result, self._free = result, free
        self._solution = solve(result.design, reml=False) if result.reml else result.solution
        self._precision = prior_precision(result.design, result.prior_sd)
        self.beta = self._solution.beta
        self.covariance = self._solution.covariance if free else self._solution.held_covariance
        self.log_likelihood = self._solution.log_likelihood - 0.5 * float(self._precision @ self.beta**2)

    def along(self, weights: Array) -> Profile:
        """The profile of `weights @ beta`, for weights (p,)."""
        weights = np.asarray(weights, dtype=float)
        return Profile(self, weights, self._restricted(weights))

    @cached_property
    def _model(self) -> GeneralizedMixedModel:
        """The engine of a generalised linear mixed model, which all profiles share."""
        return engine(self._result.design, self._precision, self._result.n_nodes)

    def _restricted(self, weights: Array) -> Restricted:
        design = self._result.design
        if design.terms and design.family.name != "gaussian":
            return self._model.restricted(self._solution.theta, weights, None if self._free else self.covariance)
        within = scipy.linalg.null_space(weights[None])
        if design.family.name == "gaussian":

            def linear(beta: Array) -> tuple[float, float]:
                y = design.y - design.offset - design.x @ beta
                model = LinearMixedModel(y, design.x @ within, design.terms, design.weights, reml=False)
                return model.fit(derivatives=False, start=self._solution.theta).log_likelihood, math.nan

            return linear

        def ordinary(beta: Array) -> tuple[float, float]:
            prior, rows = np.diag(self._precision), design.distinct
            own, _ = fixed_only(design.family, design.y, design.trials, rows, design.offset, prior, beta, within)
            moments = design.family.moments(design.y, design.trials, design.offset + rows.times(own))
            constant = design.family.constant(design.y, design.trials)
            return moments.log_likelihood + constant - 0.5 * float(self._precision @ own**2), math.nan

        return ordinary


class Profile:
    """The likelihood along one combination `weights @ beta`, everything else at its best.

    Args:
        model: The model.
        weights: Of the fixed effects, (p,).
        restricted: The largest log-likelihood with a value of the combination.
    """

    def __init__(self, model: ProfiledModel, weights: Array, restricted: Restricted) -> None:
        self._model, self._restricted = model, restricted
        variance = float(weights @ model.covariance @ weights)
        self.estimate = float(weights @ model.beta)
        """Where the likelihood is highest."""
        self.se = math.sqrt(variance)
        """The standard error that Wald tests would use."""
        self._direction = model.covariance @ weights / variance
        self._known: dict[float, tuple[float, float]] = {}

    def root(self, value: float) -> float:
        """Signed root of the likelihood ratio against a value: positive if the estimate is above it."""
        return self._at(value)[0]

    def _at(self, value: float) -> tuple[float, float]:
        """The signed root against a value, and its derivative."""
        if value not in self._known:
            best, slope = self._restricted(self._model.beta + self._direction * (value - self.estimate))
            ratio = 2 * (self._model.log_likelihood - best)
            root = math.copysign(math.sqrt(max(ratio, 0.0)), self.estimate - value)
            self._known[value] = root, -slope / root if root else math.nan
        return self._known[value]

    def interval(self, critical: float) -> tuple[float, float]:
        """The values whose root is at most `critical`; infinite where the likelihood levels off before."""
        return self._limit(critical, -1), self._limit(critical, 1)

    def _limit(self, critical: float, side: int) -> float:
        def beyond(distance: float) -> tuple[float, float]:
            root, slope = self._at(self.estimate + side * distance)
            return abs(root) - critical, -slope  # on both sides, the root falls where the value rises

        near, far = 0.0, critical * self.se
        value, slope = beyond(far)
        while value < 0:
            if far > FARTHEST * self.se:
                return side * math.inf
            near, far = far, 1.5 * far
            value, slope = beyond(far)
        tolerance = ACCURACY * self.se
        if math.isnan(slope):
            rough = ROUGH * self.se
            distance = float(
                scipy.optimize.brentq(lambda d: beyond(d)[0] if d else -critical, near, far, xtol=rough, rtol=1e-6)
            )
            return self.estimate + side * distance
        distance = far
        while far - near > tolerance and not abs(value) < tolerance * slope:
            newton = distance - value / slope if slope > 0 else near
            distance = newton if near < newton < far else (near + far) / 2
            value, slope = beyond(distance)
            near, far = (distance, far) if value < 0 else (near, distance)
        return self.estimate + side * distance


def profile_table(result: FittedModel, of: Mapping[str, float] | None, level: float, df: str | None) -> pd.DataFrame:
    """See `FitResult.profile`."""
    if not 0 < level < 1:
        raise FitError(f"level is {level}: give a coverage between 0 and 1, such as 0.95")
    names, weights = list(result.design.names), np.eye(len(result.design.names))
    if of is not None:
        label, weights = of_coefficients(result, of)
        names = [label]
    model = ProfiledModel(result)
    rows = []
    for row in weights:
        profile = model.along(row)
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
