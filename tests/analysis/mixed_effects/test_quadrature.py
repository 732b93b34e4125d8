"""Adaptive quadrature: against lme4's stored results, and against integrals by another routine."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

from benchmarks.hard_data import simulate
from benchmarks.lme4_agreement import MODELS, as_in_r
from tests.analysis.mixed_effects.conftest import quietly
from vlm_probe.analysis import FitError, fit

REFERENCE = json.loads((Path(__file__).parents[2] / "data" / "lme4_quadrature.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def visits() -> pd.DataFrame:
    return simulate("visits")


@pytest.mark.parametrize("name", REFERENCE)
def test_estimates_are_those_of_lme4(visits, name):
    theirs = REFERENCE[name]
    settings = dict(MODELS[name])
    ours = quietly(settings.pop("formula"), visits, **settings)
    table = ours.coefficients.rename(index=as_in_r)
    for term, (estimate, se) in theirs["fixed"].items():
        assert table.loc[term, "estimate"] == pytest.approx(estimate, abs=1e-3 * se)
        assert table.loc[term, "se"] == pytest.approx(se, rel=1e-3)
    assert ours.variance_components["sd"][0] == pytest.approx(theirs["sd"], rel=1e-3)
    if name in ("visits_laplace", "visits_15", "visits_slope"):  # lme4's others are relative to saturated models
        assert ours.log_likelihood == pytest.approx(theirs["log_likelihood"], abs=1e-3)


def test_it_is_the_integral_that_laplace_only_approximates(visits):
    few = visits[visits["id"] < 25]
    found = {k: quietly("y ~ month + (1 | id)", few, family="binomial", nAGQ=k) for k in (1, 100)}
    best = found[100]
    b, sd = best.coefficients["estimate"].to_numpy(), best.variance_components["sd"][0]

    def likelihood(own: pd.DataFrame) -> float:
        eta, sign = b[0] + b[1] * own["month"].to_numpy(), 2 * own["y"].to_numpy() - 1

        def density(level: float) -> float:
            return float(np.prod(expit(sign * (eta + level)))) * norm.pdf(level, scale=sd)

        return quad(density, -12 * sd, 12 * sd, limit=200, points=[-sd, 0, sd])[0]

    exact = sum(np.log(likelihood(own)) for _, own in few.groupby("id"))
    assert best.log_likelihood == pytest.approx(exact, abs=1e-3)
    assert abs(found[1].log_likelihood - exact) > 0.05


def test_it_is_named_in_print_and_data(visits):
    found = quietly("y ~ month + (1 | id)", visits, family="binomial", nAGQ=7)
    assert "adaptive Gauss-Hermite quadrature, 7 nodes" in str(found) and found.to_dict()["nAGQ"] == 7
    row = found.profile({"month": 1}).iloc[0]
    assert row["ci_low"] < found.coefficients.loc["month", "estimate"] < row["ci_high"]
    smaller = quietly("y ~ 1 + (1 | id)", visits, family="binomial", nAGQ=7)
    assert found.omnibus().loc["month", "chi2"] == pytest.approx(found.compare(smaller)["chi2"].iloc[1], abs=1e-4)
    with pytest.raises(FitError, match="different nAGQ"):
        found.compare(quietly("y ~ 1 + (1 | id)", visits, family="binomial"))


def test_laplace_says_where_it_errs(visits):
    with pytest.warns(UserWarning, match="Laplace approximation is poor; give nAGQ=15"):
        fit("y ~ month + (1 | id)", visits, family="binomial")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit("y ~ month + (1 | id)", visits, family="binomial", nAGQ=15)


@pytest.mark.parametrize(
    ("formula", "settings", "told"),
    [
        ("y ~ month + (1 | id) + (1 | N)", {}, "one effect of one grouping factor.*Intercept by id, Intercept by N"),
        ("y ~ month + (month | id)", {}, "Intercept by id, month by id"),
        ("y ~ month", {}, "no random effects"),
        ("dose ~ month + (1 | id)", {"family": "gaussian"}, "the likelihood of linear models is exact"),
        ("y ~ month + (1 | id)", {"nAGQ": 0}, "a whole number of nodes from 1"),
        ("y ~ month + (1 | id)", {"nAGQ": 2.5}, "a whole number of nodes from 1"),
        ("y ~ month + (1 | id)", {"nAGQ": 1000}, "a whole number of nodes from 1"),
    ],
)
def test_models_without_one_effect_are_refused(visits, formula, settings, told):
    with pytest.raises(FitError, match=told):
        quietly(formula, visits, **({"family": "binomial", "nAGQ": 7} | settings))
