"""Comparisons of models by their likelihoods."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.fitting import solve

if TYPE_CHECKING:
    from vlm_probe.analysis.mixed_effects.result import FitResult


def compare(first: FitResult, second: FitResult) -> pd.DataFrame:
    """See `FitResult.compare`.

    Returns:
        One row per model, the smaller first: n_parameters, log_likelihood, aic, bic; and for the larger chi2, df, p.

    Raises:
        FitError: If the models are of other rows or families, have a prior, or as many parameters.
    """
    rows = [(fit.design.y, fit.design.trials, fit.design.weights) for fit in (first, second)]
    if first.family != second.family or not all(map(np.array_equal, *rows)):
        raise FitError("the models have different families, responses or weights: compare fits of the same rows")
    if first.prior_sd is not None or second.prior_sd is not None:
        raise FitError("likelihood-ratio tests need maximum likelihood: fit without prior_sd")
    if first.n_nodes != second.n_nodes:
        raise FitError("the models were fitted with different nAGQ, so that their likelihoods differ: fit both with the same")
    both = sorted((_by_ml(first), _by_ml(second)), key=lambda fit: fit.n_parameters)
    small, large = both
    df = large.n_parameters - small.n_parameters
    if df == 0:
        raise FitError(f"both models have {large.n_parameters} parameters: one of them has to be nested in the other")
    chi2 = max(2 * (large.log_likelihood - small.log_likelihood), 0.0)
    table = pd.DataFrame(
        [[fit.n_parameters, fit.log_likelihood, fit.aic, fit.bic] for fit in both],
        columns=["n_parameters", "log_likelihood", "aic", "bic"],
        index=pd.Index([fit.formula for fit in both], name="formula"),
    )
    table["chi2"], table["df"] = [np.nan, chi2], [np.nan, float(df)]
    table["p"] = [np.nan, float(scipy.stats.chi2.sf(chi2, df))]
    return table


def omnibus(result: FitResult) -> pd.DataFrame:
    """See `FitResult.omnibus`.

    Returns:
        By term: chi2, df, p. A term without which nothing is left, not even an intercept, has no row.

    Raises:
        FitError: If the fit has a prior.
    """
    if result.prior_sd is not None:
        raise FitError("likelihood-ratio tests need maximum likelihood: fit without prior_sd")
    terms = [term for term in dict.fromkeys(result.design.column_terms) if term]
    fits: dict[frozenset[tuple[str, ...]], tuple[float, int]] = {}

    def of(kept_terms: frozenset[tuple[str, ...]]) -> tuple[float, int]:
        if kept_terms not in fits:
            kept = np.array([not term or term in kept_terms for term in result.design.column_terms])
            fits[kept_terms] = (_without(result, kept), int(kept.sum()))
        return fits[kept_terms]

    tested, rows = [], []
    for term in terms:
        larger = frozenset(other for other in terms if not set(other) > set(term))
        smaller = larger - {term}
        if not smaller and () not in result.design.column_terms:
            continue
        (high, p_high), (low, p_low) = of(larger), of(smaller)
        chi2, df = max(2 * (high - low), 0.0), p_high - p_low
        tested.append(":".join(term))
        rows.append([chi2, float(df), float(scipy.stats.chi2.sf(chi2, df))])
    return pd.DataFrame(rows, columns=["chi2", "df", "p"], index=pd.Index(tested, name="term"))


def _without(result: FitResult, kept: NDArray[Any]) -> float:
    """Log-likelihood (ML) with some columns of the fixed part only."""
    design = replace(result.design, x=result.design.x[:, kept])
    return solve(design, reml=False, n_nodes=result.n_nodes).log_likelihood


def _by_ml(fit: FitResult) -> FitResult:
    if not fit.reml:
        return fit
    return replace(fit, solution=solve(fit.design, reml=False), reml=False)
