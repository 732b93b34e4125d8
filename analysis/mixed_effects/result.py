"""The result of a fit: named numbers, further questions as methods, and a print that is the table of a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.mixed_effects import marginal_means
from vlm_probe.analysis.mixed_effects.degrees_of_freedom import Stratum
from vlm_probe.analysis.mixed_effects.design import Design
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.inference import estimates, with_odds_ratios
from vlm_probe.analysis.mixed_effects.solution import Solution


@dataclass(frozen=True, repr=False)
class FitResult:
    """A fitted model.

    Attributes:
        design: The model and its data.
        solution: Estimates, and what inference needs.
        df_method: "satterthwaite", "between-within", "residual" or "asymptotic".
        reml: Whether the likelihood is restricted.
        contrasts: The coding of factors, as it was asked for.
        warnings: What a reader of the numbers has to know.
        strata: Between the levels of which grouping factor each fixed effect varies.
        prior_sd: Standard deviation of the weak prior on standardised effects, or None.
        n_nodes: Nodes of the quadrature (`nAGQ`); 1 for the Laplace approximation.
    """

    design: Design
    solution: Solution
    df_method: str
    reml: bool
    contrasts: str | Mapping[str, Any]
    warnings: tuple[str, ...]
    strata: tuple[Stratum, ...]
    prior_sd: float | None = None
    n_nodes: int = 1

    # -- what was fitted

    @property
    def formula(self) -> str:
        """The formula."""
        return self.design.formula.text

    @property
    def family(self) -> str:
        """Distribution of the response."""
        return self.design.family.name

    @property
    def n_rows(self) -> int:
        """Number of rows used."""
        return self.design.n

    @property
    def n_dropped(self) -> int:
        """Number of rows left out; `dropped` says why."""
        return sum(self.design.dropped.values())

    @property
    def dropped(self) -> dict[str, int]:
        """Reason -> number of rows left out for it."""
        return dict(self.design.dropped)

    @property
    def n_groups(self) -> dict[str, int]:
        """Grouping factor -> number of its levels."""
        return {term.group: term.q for term in self.design.terms}

    @property
    def optimizer(self) -> str:
        """How the optimum was found."""
        found = self.solution
        return (
            f"{found.optimizer}; {found.evaluations} evaluations, {found.starts} start{'s' if found.starts > 1 else ''}"
        )

    @property
    def converged(self) -> bool:
        """Whether the optimum was reached, to 0.005 standard errors."""
        return self.solution.converged

    @property
    def singular(self) -> bool:
        """Whether a variance is 0 or a correlation perfect."""
        return any(warning.startswith("singular") for warning in self.warnings)

    # -- what was found

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
        table = estimates(self, np.eye(len(self.design.names)), level=level, df=df)
        table.index = pd.Index(self.design.names, name="term")
        return with_odds_ratios(table, self.family)

    def profile(
        self, of: Mapping[str, float] | None = None, *, level: float = 0.95, df: str | None = None
    ) -> pd.DataFrame:
        """Profile-likelihood tests and intervals, beside the Wald ones of `coefficients`; of linear models by ML.

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
        from vlm_probe.analysis.mixed_effects.profile import profile_table

        if of is None:
            return profile_table(self, np.eye(len(self.design.names)), list(self.design.names), level, df)
        label, weights = marginal_means.of_coefficients(self, of)
        return profile_table(self, weights, [label], level, df)

    @cached_property
    def variance_components(self) -> pd.DataFrame:
        """Standard deviations of random effects: group, name, sd, correlation (with the first effect of the group)."""
        rows: list[dict[str, Any]] = []
        for term, factor in zip(self.solution.terms, self.solution.factors, strict=True):
            covariance = factor @ factor.T
            sds = np.sqrt(np.diag(covariance))
            correlated = {i for i, j in term.free if i != j}
            for i, name in enumerate(term.names):
                known = i in correlated and sds[0] > 0 and sds[i] > 0
                correlation = float(covariance[0, i] / (sds[0] * sds[i])) if known else np.nan
                rows.append({"group": term.group, "name": name, "sd": float(sds[i]), "correlation": correlation})
        order = [term.group for term in self.design.terms]
        rows.sort(key=lambda row: order.index(row["group"]))
        if self.family == "gaussian":
            rows.append({"group": "Residual", "name": "", "sd": self.solution.sigma, "correlation": np.nan})
        return pd.DataFrame(rows, columns=["group", "name", "sd", "correlation"])

    def correlations(self, group: str) -> pd.DataFrame:
        """Correlations of all random effects of a grouping factor, (k, k); NaN with an effect whose variance is 0.

        Raises:
            FitError: If the model has no such grouping factor.
        """
        for term, factor in zip(self.solution.terms, self.solution.factors, strict=True):
            if term.group == group:
                covariance = factor @ factor.T
                sds = np.sqrt(np.diag(covariance))
                with np.errstate(invalid="ignore", divide="ignore"):
                    matrix = covariance / np.outer(sds, sds)
                return pd.DataFrame(matrix, index=list(term.names), columns=list(term.names))
        raise FitError(f"{group!r} is no grouping factor of {self.formula!r}; those are {', '.join(self.n_groups)}")

    @property
    def sigma(self) -> float:
        """Residual standard deviation; 1 for families without one."""
        return self.solution.sigma

    @property
    def log_likelihood(self) -> float:
        """Log-likelihood; restricted if `reml`."""
        return self.solution.log_likelihood

    @property
    def n_parameters(self) -> int:
        """Number of parameters: fixed effects, variances and correlations, residual variance."""
        residual = self.family == "gaussian" and not self.design.terms
        return len(self.solution.beta) + self.solution.n_variance_parameters + residual

    @property
    def aic(self) -> float:
        """Akaike's information criterion."""
        return 2 * self.n_parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's information criterion, with the number of rows."""
        return float(np.log(self.n_rows)) * self.n_parameters - 2 * self.log_likelihood

    @cached_property
    def covariance(self) -> pd.DataFrame:
        """Covariance of the fixed effects."""
        return pd.DataFrame(self.solution.covariance, index=list(self.design.names), columns=list(self.design.names))

    @cached_property
    def r_squared(self) -> dict[str, float]:
        """Share of variance explained by fixed effects (`marginal`), and with the random ones (`conditional`).

        Nakagawa, Johnson & Schielzeth (2017, J. R. Soc. Interface 14), with the mean variance of random slopes (Johnson,
        2014). On the scale of the link, with pi^2 / 3 for the logit and log(1 + 1 / mean) for counts.
        """
        fixed = float(np.var(self.design.x @ self.solution.beta))
        between = 0.0
        for term, factor in zip(self.solution.terms, self.solution.factors, strict=True):
            scaled = factor * term.scale[:, None]
            between += float(np.einsum("na,ab,nb->", term.values, scaled @ scaled.T, term.values) / self.n_rows)
        if self.family == "gaussian":
            within = self.solution.sigma**2
        elif self.family == "binomial":
            within = float(np.pi**2 / 3)
        else:
            within = float(np.log1p(1 / np.exp(np.mean(self.design.x @ self.solution.beta) + between / 2)))
        total = fixed + between + within
        return {"marginal": fixed / total, "conditional": (fixed + between) / total}

    @cached_property
    def random_effects(self) -> pd.DataFrame:
        """Conditional modes of all random effects, with conditional standard deviations: group, level, name, mode, sd."""
        parts = []
        for term, mode, covariance in zip(
            self.solution.terms, self.solution.modes, self.solution.mode_covariances, strict=True
        ):
            sds = np.sqrt(np.maximum(np.einsum("qaa->qa", covariance), 0))
            for i, name in enumerate(term.names):
                parts.append(
                    pd.DataFrame(
                        {
                            "group": term.group,
                            "level": list(term.levels),
                            "name": name,
                            "mode": mode[:, i],
                            "sd": sds[:, i],
                        }
                    )
                )
        return (
            pd.concat(parts, ignore_index=True)
            if parts
            else pd.DataFrame(columns=["group", "level", "name", "mode", "sd"])
        )

    # -- what can be asked further

    def means(
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
        return marginal_means.means(self, of, by=by, at=at, level=level, df=df)

    def contrast(
        self,
        of: str | Sequence[str] | Mapping[str, float],
        weights: str | marginal_means.Weights = "pairwise",
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
        return marginal_means.contrast(self, of, weights, by=by, at=at, adjust=adjust, level=level, df=df)

    def group_means_contrast(
        self,
        of: str | Sequence[str],
        weights: str | marginal_means.Weights = "pairwise",
        by: str | Sequence[str] | None = None,
        *,
        group: str | None = None,
        level: float = 0.95,
    ) -> pd.DataFrame:
        """The same contrasts by a t test on one mean response per run (or other group), with pooled variance.

        With few runs it is the plainer test; report it beside the model's. It is about runs on these items: what else the
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
        from vlm_probe.analysis.mixed_effects.group_means import contrast_of_group_means

        return contrast_of_group_means(self, of, weights, by, group, level)

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
        from vlm_probe.analysis.mixed_effects.prediction import predict

        return predict(self, data, random=random, scale=scale)

    def compare(self, other: FitResult) -> pd.DataFrame:
        """Likelihood-ratio test of two nested models on the same rows. REML fits are refitted by ML.

        Args:
            other: A fit of the same rows, one of the two nested in the other.

        Returns:
            One row per model, the smaller first: n_parameters, log_likelihood, aic, bic; and for the larger chi2, df, p.

        Raises:
            FitError: If the models are of other rows or families, have a prior, or as many parameters.
        """
        from vlm_probe.analysis.mixed_effects.comparison import compare

        return compare(self, other)

    def omnibus(self) -> pd.DataFrame:
        """Likelihood-ratio test of every term, against the model without it and the interactions that contain it.

        Returns:
            By term: chi2, df, p. A term without which nothing is left, not even an intercept, has no row.

        Raises:
            FitError: If the fit has a prior.
        """
        from vlm_probe.analysis.mixed_effects.comparison import omnibus

        return omnibus(self)

    def cross_check(self) -> pd.DataFrame:
        """The same numbers by statsmodels' MixedLM, for small linear models with one grouping factor.

        Returns:
            By number: ours, statsmodels.

        Raises:
            FitError: If it is another model.
        """
        from vlm_probe.analysis.mixed_effects.second_opinions import mixedlm

        return mixedlm(self)

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
        from vlm_probe.analysis.mixed_effects.second_opinions import gee

        return gee(self, group)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain data, for JSON."""
        from vlm_probe.analysis.mixed_effects.printing import to_dict

        return to_dict(self)

    def __str__(self) -> str:
        from vlm_probe.analysis.mixed_effects.printing import to_text

        return to_text(self)

    __repr__ = __str__
