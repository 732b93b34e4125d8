"""The result of a fit: named numbers, further questions as methods, and a print that is the table of a paper; and `fit`, which makes it."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.mixed_effects import comparison, emmeans, printing, profile
from vlm_probe.analysis.mixed_effects.design import Column, build
from vlm_probe.analysis.mixed_effects.diagnostics import (
    check_design,
    check_nodes,
    check_repeats,
    check_solution,
    check_strata,
    check_terms,
)
from vlm_probe.analysis.mixed_effects.emmeans import Weights
from vlm_probe.analysis.mixed_effects.errors import FitError, FitWarning
from vlm_probe.analysis.mixed_effects.estimation import engine, prior_precision, solve
from vlm_probe.analysis.mixed_effects.fitted import FittedModel
from vlm_probe.analysis.mixed_effects.inference import coefficient_table, strata
from vlm_probe.analysis.mixed_effects.separation import check_separation


@dataclass(frozen=True, repr=False)
class FitResult(FittedModel):
    """A fitted model, and what can be asked of it."""

    @cached_property
    def coefficients(self) -> pd.DataFrame:
        """Fixed effects by term: estimate, se, df, statistic, p, 95 % Wald interval; and odds or rate ratios."""
        return self.coefficient_table()

    def coefficient_table(self, level: float = 0.95, df: str | None = None) -> pd.DataFrame:
        """`coefficients` with intervals of another level, or another method of degrees of freedom.

        Args:
            level: Coverage of the Wald intervals.
            df: Method of the degrees of freedom; None for the fit's own.
        """
        return coefficient_table(self, level, df)

    def profile(
        self, of: Mapping[str, float] | None = None, *, level: float = 0.95, df: str | None = None
    ) -> pd.DataFrame:
        """Profile-likelihood tests and intervals, next to the Wald ones of `coefficients`; of linear models by ML.

        Args:
            of: Weights of coefficients by name, for one combination of them; None for every coefficient.
            level: Coverage of the intervals.
            df: Method of the degrees of freedom, by whose t the signed root of the likelihood ratio is judged; None for
                the fit's own, "asymptotic" for the chi-squared limits of lme4's `confint`.

        Returns:
            By term: estimate, df, statistic (the signed root), p, ci_low, ci_high; and odds or rate ratios.

        Raises:
            FitError: If the model is an ordinary linear one, whose Wald intervals are exact, or has no such coefficient.
        """
        return profile.profile_table(self, of, level, df)

    def emmeans(
        self,
        of: str | Sequence[str],
        by: str | Sequence[str] | None = None,
        *,
        at: Mapping[str, Any] | None = None,
        level: float = 0.95,
        df: str | None = None,
    ) -> pd.DataFrame:
        """Estimated marginal means, as emmeans gives them.

        Factors that are not named are averaged over with equal weights, numeric predictors are at their mean.

        Args:
            of: One factor or several, whose combinations of levels are wanted.
            by: Further factors, which come first in the table.
            at: Values of predictors: `{"margin": [-0.5, 0.5]}`.
            level: Coverage of the Wald intervals.
            df: Method of the degrees of freedom; None for the fit's own.

        Returns:
            One row per combination: the factors, `estimate` on the scale of the link, `se`, `df`, `ci_low`, `ci_high`, and where
            the link is not the identity `response`, `response_se`, `response_low`, `response_high`. NaN where the
            data do not hold what is needed.

        Raises:
            FitError: If one of the names is no fixed predictor.
        """
        return emmeans.emmeans(self, of, by=by, at=at, level=level, df=df)

    def contrast(
        self,
        of: str | Sequence[str] | Mapping[str, float],
        weights: str | Weights = "pairwise",
        by: str | Sequence[str] | None = None,
        *,
        at: Mapping[str, Any] | None = None,
        adjust: str = "none",
        level: float = 0.95,
        df: str | None = None,
    ) -> pd.DataFrame:
        """Contrasts of marginal means, or a linear combination of coefficients.

        Args:
            of: Factors whose means are compared; or weights of coefficients by name.
            weights: "pairwise", "treatment" (against the first level), "sequential", "effect" (against the mean of all), or
                `{name: {level: weight}}`, with tuples as levels where there are several factors.
            by: Factors within whose levels the contrasts are made.
            at: Values of predictors.
            adjust: "holm", "bonferroni", "fdr_bh" or "none", over all rows of the table.
            level: Coverage of the Wald intervals, which are not adjusted.
            df: Method of the degrees of freedom; None for the fit's own.

        Returns:
            One row per contrast: `by`, `contrast`, `estimate` on the scale of the link, `se`, `df`, `statistic`, `p`,
            (`p_adjusted`), `ci_low`, `ci_high`, and odds or rate ratios.

        Raises:
            FitError: If there is no such factor, level, coefficient, adjustment or kind of contrast.
        """
        return emmeans.contrast(self, of, weights, by=by, at=at, adjust=adjust, level=level, df=df)

    def group_means_contrast(
        self,
        of: str | Sequence[str],
        weights: str | Weights = "pairwise",
        by: str | Sequence[str] | None = None,
        *,
        group: str | None = None,
        level: float = 0.95,
    ) -> pd.DataFrame:
        """The same contrasts by a t test on one mean response per run (or other group), with pooled variance.

        With few runs it is the plainer test; report it next to the model's. It is about runs on these items: what else the
        formula takes at random, such as items, is as it is, so that effects of items that a condition's runs share
        count as effects of the condition.

        Args:
            of: Factors that are the same for all rows of a group.
            weights, by, level: As in `contrast`.
            group: The grouping factor; None for the one with the fewest levels that `of` does not vary within.

        Returns:
            One row per contrast: `estimate` as a difference of mean responses (proportions), `se`, `df`, `statistic`,
            `p`, `ci_low`, `ci_high`; NaN where means do not vary between groups.

        Raises:
            FitError: If `of` varies within every group, or within the one that is named.
        """
        return comparison.group_means_contrast(self, of, weights, by, group, level)

    def predict(self, data: pd.DataFrame | None = None, *, random: bool = True, scale: str = "response") -> np.ndarray:
        """Predictions for the rows of the fit, or of another table.

        Args:
            data: Rows with the predictors, and with the grouping factors where `random`; None for the rows of the fit. They are
                coded as the rows of the fit were, knots of splines and means of scales included.
            random: Whether to add the conditional modes; 0 for levels of grouping factors that were not in the data.
            scale: "response" or "link".

        Returns:
            One prediction per row, (n,).

        Raises:
            FitError: If rows lack a column or a value, or have a level of a predictor that was not in the data.
        """
        return emmeans.predict(self, data, random=random, scale=scale)

    def compare(self, other: FitResult) -> pd.DataFrame:
        """Likelihood-ratio test of two nested models on the same rows. REML fits are refitted by ML.

        Args:
            other: A fit of the same rows, one of the two nested in the other.

        Returns:
            One row per model, the smaller first: n_parameters, log_likelihood, aic, bic; and for the larger chi2, df, p.

        Raises:
            FitError: If the models are of other rows or families, have a prior, or as many parameters.
        """
        return comparison.compare(self, other)

    def omnibus(self) -> pd.DataFrame:
        """Likelihood-ratio test of every term, against the model without it and the interactions that contain it.

        Returns:
            By term: chi2, df, p. A term without which nothing is left, not even an intercept, has no row.

        Raises:
            FitError: If the fit has a prior.
        """
        return comparison.omnibus(self)

    def cross_check(self) -> pd.DataFrame:
        """The same numbers by statsmodels' MixedLM, for small linear models with one grouping factor.

        Returns:
            By number: ours, statsmodels.

        Raises:
            FitError: If it is another model.
        """
        return comparison.cross_check(self)

    def gee(self, group: str | None = None) -> pd.DataFrame:
        """A sensitivity analysis without random effects: generalised estimating equations by statsmodels.

        Standard errors are robust to any dependence within levels of the group, corrected for few of them (Mancl &
        DeRouen, 2001), and tested by t with the levels less the coefficients as degrees of freedom. Estimates are
        of population averages, which are smaller than those of logistic mixed models.

        Args:
            group: The grouping factor; None for the one with the fewest levels.

        Returns:
            By term: estimate, se, statistic, df, p, ci_low, ci_high.

        Raises:
            FitError: If there is no such grouping factor, or rows are counts or have weights.
        """
        return comparison.gee(self, group)

    def with_derivatives(self) -> FitResult:
        """The same fit of a logistic or Poisson mixed model with the second derivatives that `calc_derivs=False` left out."""
        if self.family == "gaussian" or not self.design.terms:
            return self
        precision = prior_precision(self.design, self.prior_sd)
        solution = engine(self.design, precision, self.n_nodes).completed(self.solution)
        before = check_solution(self.design, self.solution, self.n_nodes)
        kept = (warning for warning in self.warnings if warning not in before)
        return replace(
            self,
            solution=solution,
            warnings=(*kept, *check_solution(self.design, solution, self.n_nodes)),
        )

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain data, for JSON."""
        return printing.to_dict(self)

    def __str__(self) -> str:
        return printing.to_text(self)

    __repr__ = __str__


def fit(
    formula: str,
    data: pd.DataFrame,
    *,
    family: str = "gaussian",
    reml: bool = True,
    contrasts: str | Mapping[str, Any] = "treatment",
    trials: Column = None,
    offset: Column = None,
    weights: Column = None,
    df: str | None = None,
    prior_sd: float | None = None,
    nAGQ: int = 1,
    calc_derivs: bool = True,
) -> FitResult:
    """Fit a mixed-effects model.

    Linear models by (restricted) maximum likelihood, logistic and Poisson ones by maximum likelihood with the Laplace
    approximation. A formula without random effects is an ordinary (generalised) linear model.

    Args:
        formula: In the notation of lme4: `correct ~ method*shift + (1 + margin | run) + (1 | item)`. The fixed part has the
            grammar of formulaic; the response is a column, an expression, or `cbind(successes, failures)`.
        data: One row per trial, or per cell of counts. Text, booleans and categoricals are factors; categoricals keep the
            order of their levels, of which the first is the reference level.
        family: "gaussian", "binomial" (logit link) or "poisson" (log link).
        reml: For linear models, whether to restrict the likelihood, so that variances are not too small.
        contrasts: Coding of factors: "treatment", "sum", "helmert", "poly", "sequential"; or by factor, where planned
            contrasts are `{name: {level: weight}}`.
        trials: Binomial: number of trials of each row, of which the response is the number of successes (or the share).
        offset: Known part of the linear predictor.
        weights: Linear models: a row's residual variance is `sigma^2 / weight`. Binomial: the same as `trials`, for shares.
        df: Degrees of freedom: None for "satterthwaite" in linear mixed models, "between-within" in others; "asymptotic".
        prior_sd: For separated data: a normal prior with this standard deviation on the effect (log-odds) of every
            fixed effect per standard deviation of its column, but the intercept's (Gelman et al., 2008, suggest 2.5).
        nAGQ: Logistic and Poisson models with one effect of one grouping factor, `(1 | person)`: nodes of adaptive Gauss-Hermite
            quadrature, as in lme4; 1 is the Laplace approximation. It errs where levels have few answers and differ much.
        calc_derivs: Logistic and Poisson mixed models: whether to take second derivatives, as lme4's control has it. Without, standard
            errors are those at the variances that were estimated, which takes a fraction of the time where fixed effects are many, and
            does for a choice between models; `with_derivatives()` adds them.

    Returns:
        The result. Its `warnings`, which are raised as `FitWarning` too, say what a reader has to know.

    Raises:
        SeparationError: If an estimate is infinite.
        FitError: If the model cannot be fitted to these data; the message names the column, factor or cell.
    """
    design = build(formula, data, family=family, contrasts=contrasts, offset=offset, trials=trials, weights=weights)
    found = check_design(design, prior_sd)
    check_nodes(design, nAGQ)
    if prior_sd is None:
        # Before the grouping factors: answers that a predictor settles do not vary within runs either.
        check_separation(design)
    elif family == "gaussian":
        raise FitError("prior_sd is for family='binomial' and 'poisson': linear models have finite estimates")
    elif not prior_sd > 0:
        raise FitError(f"prior_sd is {prior_sd}: give a positive number, such as 2.5")
    else:
        found.append(
            f"estimates are drawn towards 0 by a normal prior with standard deviation {prior_sd:g} per standard deviation"
            " of a predictor: they are no maximum likelihood estimates"
        )
    columns = strata(design)
    found += [*check_terms(design), *check_strata(design, columns), *check_repeats(design, data)]
    solution = solve(design, reml=reml, prior_sd=prior_sd, n_nodes=nAGQ, derivatives=calc_derivs)
    found += check_solution(design, solution, nAGQ)
    for text in found:
        python_warnings.warn(text, FitWarning, stacklevel=2)
    if df is None:
        mixed = bool(design.terms)
        df = ("satterthwaite" if mixed else "residual") if family == "gaussian" else "between-within"
    return FitResult(
        design,
        solution,
        df,
        reml and family == "gaussian" and bool(design.terms),
        contrasts,
        tuple(found),
        columns,
        prior_sd,
        nAGQ,
    )
