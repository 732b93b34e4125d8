"""Second opinions by statsmodels: another implementation of small linear models, and estimating equations for any."""

from __future__ import annotations

import warnings as python_warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.stats

from vlm_probe.analysis.mixed_effects.errors import FitError

if TYPE_CHECKING:
    from vlm_probe.analysis.mixed_effects.result import FitResult

SMALL = 20_000
"""Rows beyond which statsmodels' mixed models take minutes."""


def mixedlm(result: FitResult) -> pd.DataFrame:
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


def gee(result: FitResult, group: str | None) -> pd.DataFrame:
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
