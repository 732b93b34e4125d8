"""A fitted model as data: estimates in the units of the data, and the numbers that follow from them alone.

What is asked of it (tests, means, intervals, comparisons, print) is computed by the modules above this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.design import Design
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.terms import RandomTerm

Array = NDArray[Any]


@dataclass(frozen=True)
class Solution:
    """Estimates of one model, with `p` fixed effects and `d` free variance parameters.

    Attributes:
        terms: Random-effect terms, in the order of what follows.
        beta: Fixed effects, `(p,)`.
        covariance: Their covariance, `(p, p)`.
        held_covariance: Their covariance at the variances that were estimated, as if those were known, `(p, p)`.
        factors: Per term, the factor `L` (k, k) of the covariance of its effects, in the units of the data.
        modes: Per term, the conditional modes of its effects, `(q, k)`.
        mode_covariances: Per term, their conditional covariances, `(q, k, k)`.
        sigma: Residual standard deviation; 1 for families without one.
        log_likelihood: Restricted, if the model was fitted by REML.
        derivatives: Derivatives of `covariance` with respect to the variance parameters, `(d, p, p)`; linear models only.
        parameter_covariance: Covariance of the variance parameters, `(d, d)`; linear models only.
        n_variance_parameters: Number of variance parameters, those at the boundary included.
        converged: Whether the optimum was reached.
        distance: Estimated distance to the optimum, in standard errors.
        evaluations: Evaluations of the log-likelihood.
        starts: Number of starting points.
        optimizer: How it was found, in words.
    """

    terms: tuple[RandomTerm, ...]
    beta: Array
    covariance: Array
    held_covariance: Array
    factors: tuple[Array, ...]
    modes: tuple[Array, ...]
    mode_covariances: tuple[Array, ...]
    sigma: float
    log_likelihood: float
    derivatives: Array
    parameter_covariance: Array
    n_variance_parameters: int
    converged: bool
    distance: float
    evaluations: int
    starts: int
    optimizer: str

    @property
    def theta(self) -> Array:
        """Free entries of the factors of all terms, for their scaled designs, (d,); over the residual standard deviation."""
        pairs = zip(self.terms, self.factors, strict=True)
        return np.concatenate([(factor * term.scale[:, None] / self.sigma)[term.at] for term, factor in pairs])


def in_data_units(
    terms: tuple[RandomTerm, ...], factors: list[Array], modes: list[Array], covariances: list[Array], sigma: float
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """Undo the scaling of the random-effect designs, and give every column of `L` a positive diagonal.

    Args:
        terms: The terms.
        factors: The factor `L` (k, k) of each, for its scaled design and a residual standard deviation of 1.
        modes: Conditional modes (q, k) of each, for its scaled design.
        covariances: Their conditional covariances (q, k, k).
        sigma: Residual standard deviation.

    Returns:
        Factors, modes and covariances in the units of the data.
    """
    scaled = []
    for term, factor in zip(terms, factors, strict=True):
        signs = np.where(np.diag(factor) < 0, -1.0, 1.0)
        scaled.append(sigma * factor * signs / term.scale[:, None])
    return (
        tuple(scaled),
        tuple(mode / term.scale for term, mode in zip(terms, modes, strict=True)),
        tuple(block / (term.scale[:, None] * term.scale) for term, block in zip(terms, covariances, strict=True)),
    )


@dataclass(frozen=True)
class Stratum:
    """Where a fixed effect varies.

    Attributes:
        group: The grouping factor between whose levels it does, or "" if it varies within all of them.
        effect: The random effect of that group which it is compared with: the intercept, or a slope.
        df: Degrees of freedom; infinite within all groups.
    """

    group: str
    effect: str
    df: float


@dataclass(frozen=True, repr=False)
class FittedModel:
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
