"""The mixed-effects model of all plain trials, as a paper reports it: cells, random effects, fit; and its caterpillar plot."""

from __future__ import annotations

from functools import partial

import pandas as pd

from vlm_probe.analysis.cell_model import INTERVALS, TERMS, CellModel, fit_cells
from vlm_probe.analysis.figures.caterpillar import caterpillar
from vlm_probe.analysis.labels import file_part, joined
from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.mixed_effects import FitResult
from vlm_probe.analysis.random_effects import RULE
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import Figure, MissingData, Section
from vlm_probe.analysis.tables import number, proportion
from vlm_probe.analysis.transfer import with_names

SHOWN = ("run", "item")
"""Grouping factors of the caterpillar plot, as far as the model has them."""


def section(material: ReportData) -> Section:
    """The model of each model's trials. Raises Unanswerable if there are none."""
    if material.plain.empty:
        raise MissingData("no model was asked a physics task in the plain manner: give runs of `probe run` with one")
    names = with_names(material.plain)
    results: dict[str, Result] = {}
    figures: list[Figure] = []
    answer: list[str] = []
    models = list(dict.fromkeys(names["model"].astype(str)))
    for model in models:
        own = names[names["model"].astype(str) == model]
        # Items by training runs matter to contrasts within a test; here they would cost most of the time and say little.
        fitted = fit_cells(own, ["training", "test"], allowed=TERMS[:3])
        part = file_part(model) if len(models) > 1 else ""
        results |= {joined(key, part): result for key, result in _results(fitted, model).items()}
        effects = fitted.fit.random_effects
        # The untrained model is no sample of anything, and has no effect of its own.
        untrained = set(own.loc[own["method"].astype(str) == "none", "run"].astype(str))
        effects = effects[effects["group"].isin(SHOWN) & ~effects["level"].astype(str).isin(untrained)]
        if len(effects):
            figures.append(_figure(effects, fitted.fit, model, part))
        fit = fitted.fit
        answer.append(
            f"{model}: {fit.formula}; {fit.n_rows} trials; R² marginal {proportion(fit.r_squared['marginal'])}, conditional"
            f" {proportion(fit.r_squared['conditional'])}."
        )
    return Section(
        "model",
        "The mixed-effects model",
        "How much of success goes with training and test, and how much with runs and items?",
        tuple(answer),
        results,
        tuple(figures),
    )


def _results(fitted: CellModel, model: str) -> dict[str, Result]:
    fit = fitted.fit
    levels = ", ".join(f"{name} {count}" for name, count in fit.n_groups.items())
    how = (
        f"{fit.formula}, binomial with logit link, {fit.optimizer}; {fit.n_rows} trials; {INTERVALS}; {RULE}; t with {number(fitted.df, 0)}"
        " degrees of freedom between runs (∞: one run each, tests are about items)"
    )
    notes = tuple(dict.fromkeys((*fitted.notes, *fit.warnings)))
    cells = pd.DataFrame(
        [
            {
                "cell": name,
                "estimate": e.value,
                "se": e.se,
                "df": e.df,
                "ci_low": e.low,
                "ci_high": e.high,
                "interval": e.interval,
                "rate": r.value,
            }
            for name in fitted.cells
            for e, r in [(fitted.contrast({name: 1.0}), fitted.rate(name))]
        ]
    )
    spread = fit.variance_components.assign(n_levels=fit.variance_components["group"].map(fit.n_groups))
    facts = [
        ("formula", fit.formula),
        ("family", f"{fit.family} (logit link), maximum likelihood, Laplace approximation"),
        ("trials", f"{fit.n_rows}"),
        ("levels", levels or "no random effects"),
        ("left out", f"{fit.n_dropped}"),
        ("log-likelihood", f"{fit.log_likelihood:.3f}"),
        ("AIC", f"{fit.aic:.1f}"),
        ("BIC", f"{fit.bic:.1f}"),
        ("R² marginal", proportion(fit.r_squared["marginal"])),
        ("R² conditional", proportion(fit.r_squared["conditional"])),
        ("df between runs", number(fitted.df, 0)),
        ("optimiser", fit.optimizer),
        ("converged", "yes" if fit.converged else "NO"),
        ("singular", "yes" if fit.singular else "no"),
        (
            "weak prior",
            f"sd {fit.prior_sd:g} per standard deviation of a predictor" if fitted.chosen.regularised else "none",
        ),
        ("warnings", "; ".join(fit.warnings) or "none"),
    ]
    return {
        "cells": Result(
            title=f"{model}: log odds of success by training and test, with 95 % intervals",
            table=cells,
            how=how,
            notes=notes,
        ),
        "random": Result(title=f"{model}: random effects", table=spread, how=how),
        "fit": Result(title=f"{model}: the fit", table=pd.DataFrame(facts, columns=["quantity", "value"]), how=how),
    }


def _figure(effects: pd.DataFrame, fit: FitResult, model: str, part: str) -> Figure:
    counts = ", ".join(f"{n} {group}s" for group, n in effects["group"].value_counts(sort=False).items())
    caption = (
        f"Random effects of {model} in order of their size ({counts}; {fit.n_rows} trials): conditional modes with 95 % intervals"
        " (mode ± 1.96 conditional SD) on the scale of log odds. Filled: the interval does not contain 0."
    )
    shown = effects.assign(name="(Intercept)").reset_index(drop=True)
    return Figure(joined("random-effects", part), caption, partial(caterpillar, shown))
