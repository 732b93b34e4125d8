"""What a fit is compared with: other models, by their likelihoods; and other methods, as cross-checks.

With few runs, the test on the mean response of each run is the one whose error rate can be relied on: the unit of analysis is the unit of
assignment. It knows nothing of items, so that it has less power where runs saw different ones.
"""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.emmeans import Weights, contrast_weights, names_of
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.estimation import solve
from vlm_probe.analysis.mixed_effects.fitted import FittedModel


def compare(first: FittedModel, second: FittedModel) -> pd.DataFrame:
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
        raise FitError(
            "the models were fitted with different nAGQ, so that their likelihoods differ: fit both with the same"
        )
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


def omnibus(result: FittedModel) -> pd.DataFrame:
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


def _without(result: FittedModel, kept: NDArray[Any]) -> float:
    """Log-likelihood (ML) with some columns of the fixed part only."""
    design = replace(result.design, x=result.design.x[:, kept])
    return solve(design, reml=False, n_nodes=result.n_nodes, derivatives=False).log_likelihood


def _by_ml(fit: FittedModel) -> FittedModel:
    if not fit.reml:
        return fit
    return replace(fit, solution=solve(fit.design, reml=False), reml=False)


SMALL = 20_000
"""Rows beyond which statsmodels' mixed models take minutes."""


def cross_check(result: FittedModel) -> pd.DataFrame:
    """See `FitResult.cross_check`."""
    import statsmodels.api as sm

    design = result.design
    if result.family != "gaussian" or len(design.terms) != 1:
        raise FitError(
            "the cross-check by statsmodels' MixedLM is for linear models with one grouping factor; for others, compare"
            " with lme4 (`make test-slow`), or use gee()"
        )
    if design.n > SMALL or np.any(design.weights != 1):
        raise FitError(f"the cross-check by statsmodels' MixedLM is for up to {SMALL:,} rows without weights")
    (term,) = design.terms
    correlated = len(term.free) == term.k * (term.k + 1) // 2
    if not correlated:
        raise FitError("the cross-check by statsmodels' MixedLM is for correlated random effects: (1 + x | g)")
    model = sm.MixedLM(design.y - design.offset, design.x, groups=term.codes, exog_re=term.values * term.scale)
    with python_warnings.catch_warnings(action="ignore"):
        found = model.fit(reml=result.reml)
    p = design.x.shape[1]
    sds = np.sqrt(np.diag(np.asarray(found.cov_re)))
    own = result.variance_components
    names = [*design.names, *(f"SD {name} by {term.group}" for name in term.names), "SD residual", "log-likelihood"]
    ours = [*result.solution.beta, *own["sd"], result.log_likelihood]
    theirs = [*np.asarray(found.fe_params)[:p], *sds, float(np.sqrt(found.scale)), float(found.llf)]
    return pd.DataFrame({"ours": ours, "statsmodels": theirs}, index=pd.Index(names, name="number"))


def gee(result: FittedModel, group: str | None) -> pd.DataFrame:
    """See `FitResult.gee`."""
    import statsmodels.api as sm

    design = result.design
    terms = {term.group: term for term in design.terms}
    if not terms or (group is not None and group not in terms):
        raise FitError(f"{group!r} is no grouping factor of {result.formula!r}; those are {', '.join(terms) or 'none'}")
    term = terms[group] if group else min(terms.values(), key=lambda term: term.q)
    family = {"gaussian": sm.families.Gaussian, "binomial": sm.families.Binomial, "poisson": sm.families.Poisson}
    if design.trials.max() > 1 or np.any(design.weights != 1):
        raise FitError("gee() takes one answer per row and no weights: statsmodels' correction for few groups has none")
    order = np.argsort(term.codes, kind="stable")
    model = sm.GEE(
        design.y[order],
        design.x[order],
        groups=term.codes[order],
        family=family[result.family](),
        cov_struct=sm.cov_struct.Independence(),
        offset=design.offset[order],
    )
    with python_warnings.catch_warnings(action="ignore"):
        # Robust covariances are too small with few groups (Mancl & DeRouen, 2001).
        found = model.fit(cov_type="bias_reduced")
    table = pd.DataFrame(
        {"estimate": found.params, "se": found.bse, "statistic": found.tvalues},
        index=pd.Index(design.names, name="term"),
    )
    df = max(term.q - design.x.shape[1], 1)
    table["df"] = float(df)
    table["p"] = 2 * scipy.stats.t.sf(np.abs(table["statistic"]), df)
    half = scipy.stats.t.ppf(0.975, df) * table["se"]
    return table.assign(ci_low=table["estimate"] - half, ci_high=table["estimate"] + half)


def group_means(result: FittedModel, group: str, names: Sequence[str]) -> pd.DataFrame:
    """Mean response of every level of a grouping factor, within levels of other factors.

    Returns:
        One row per level and combination: the group, the names, `mean` (share of successes for the binomial family), `n` rows.

    Raises:
        FitError: If the model has no such grouping factor.
    """
    term = next((term for term in result.design.terms if term.group == group), None)
    if term is None:
        raise FitError(f"{group!r} is no grouping factor of {result.formula!r}; those are {', '.join(result.n_groups)}")
    levels = np.array(term.levels, dtype=object)[term.codes]
    table = pd.DataFrame({group: levels, "y": result.design.y, "of": result.design.trials})
    for name in names:
        table[name] = result.design.frame[name].to_numpy()
    sums = table.groupby([group, *names], observed=True, sort=False).agg(
        y=("y", "sum"), of=("of", "sum"), n=("y", "size")
    )
    return sums.assign(mean=sums["y"] / sums["of"]).reset_index()[[group, *names, "mean", "n"]]


def group_means_contrast(
    result: FittedModel,
    of: str | Sequence[str],
    weights: str | Weights,
    by: str | Sequence[str] | None,
    group: str | None,
    level: float,
) -> pd.DataFrame:
    """See `FitResult.group_means_contrast`."""
    factors, within = names_of(of), names_of(by)
    for name in [*factors, *within]:
        if name not in result.design.matrix.factors:
            raise FitError(f"{name!r} is no categorical predictor of {result.formula!r}")
    group = group or _group_of(result, factors)
    table = group_means(result, group, [*factors, *within])
    table["cell"] = list(table[factors].itertuples(index=False, name=None)) if len(factors) > 1 else table[factors[0]]
    rows: list[dict[str, Any]] = []
    for own, members in table.groupby(within, observed=True, sort=False) if within else [((), table)]:
        if members[group].duplicated().any():
            raise FitError(
                f"{' and '.join(factors)} varies within {group}: the test on means of {group} compares factors that are the"
                f" same for all rows of a {group}; name it in by= or use the model's contrast"
            )
        by_cell = members.groupby("cell", observed=True, sort=False)["mean"].agg(["mean", "var", "size"])
        levels = _ordered(result, factors, list(by_cell.index))
        df = int(by_cell["size"].sum() - len(by_cell))
        variance = float(((by_cell["size"] - 1) * by_cell["var"].fillna(0)).sum() / df) if df > 0 else float("nan")
        for name, by_level in contrast_weights(factors, levels, weights).items():
            estimate = sum(weight * by_cell.loc[[cell], "mean"].iloc[0] for cell, weight in by_level.items())
            se = float(
                np.sqrt(variance * sum(w**2 / by_cell.loc[[cell], "size"].iloc[0] for cell, w in by_level.items()))
            )
            keys = own if isinstance(own, tuple) else (own,)
            rows.append(
                {**dict(zip(within, keys, strict=True)), "contrast": name, **_test(float(estimate), se, df, level)}
            )
    return pd.DataFrame(rows)


def _group_of(result: FittedModel, factors: Sequence[str]) -> str:
    """The grouping factor with the fewest levels within which the factors do not vary."""
    for term in sorted(result.design.terms, key=lambda term: term.q):
        cells = result.design.frame[list(factors)].assign(_code=term.codes).drop_duplicates()
        if len(cells) == term.q:
            return term.group
    raise FitError(
        f"{' and '.join(factors)} varies within every grouping factor: name one with group=, and the rest in by="
    )


def _ordered(result: FittedModel, factors: Sequence[str], cells: list[Any]) -> list[Any]:
    places = [{level: place for place, level in enumerate(result.design.matrix.factors[name])} for name in factors]
    return sorted(
        cells,
        key=lambda cell: [place[v] for place, v in zip(places, cell if len(factors) > 1 else (cell,), strict=True)],
    )


def _test(estimate: float, se: float, df: int, level: float) -> dict[str, float]:
    if not se > 0 or df < 1:
        # No variance between runs: there is nothing to test with, which is not the same as certainty.
        empty = dict.fromkeys(["statistic", "p", "ci_low", "ci_high"], float("nan"))
        return {"estimate": estimate, "se": se, "df": float(df), **empty}
    half = float(scipy.stats.t.ppf(0.5 + level / 2, df)) * se
    statistic = estimate / se
    p = float(2 * scipy.stats.t.sf(abs(statistic), df))
    low, high = estimate - half, estimate + half
    return {
        "estimate": estimate,
        "se": se,
        "df": float(df),
        "statistic": statistic,
        "p": p,
        "ci_low": low,
        "ci_high": high,
    }
