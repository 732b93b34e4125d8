"""Profile likelihood: against fits with the combination held, against lme4, and where Wald fails."""

import math
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import null_space
from scipy.optimize import brentq, minimize
from scipy.stats import binom, chi2, norm

from tests.analysis.mixed_effects.conftest import quietly
from vlm_probe.analysis import FitError
from vlm_probe.analysis.mixed_effects.estimation import engine, prior_precision
from vlm_probe.analysis.mixed_effects.profile import ProfiledModel


def test_limits_are_where_a_fit_with_the_effect_held_loses_192(trials):
    two = trials[trials["method"] != "sft"].assign(ppo=lambda t: (t["method"] == "ppo") * 1.0)
    full = quietly("correct ~ ppo + (1|run) + (1|item)", two, family="binomial")
    row = full.profile(df="asymptotic").loc["ppo"]
    for end in (row["ci_low"], row["ci_high"], 0.0):
        held = quietly("correct ~ 1 + (1|run) + (1|item)", two, family="binomial", offset=end * two["ppo"])
        drop = 2 * (full.log_likelihood - held.log_likelihood)
        expected = row["statistic"] ** 2 if end == 0 else chi2.ppf(0.95, 1)
        assert drop == pytest.approx(expected, abs=2e-3)
    assert row["p"] == pytest.approx(2 * norm.sf(abs(row["statistic"])))
    assert row["odds_ratio_low"] == pytest.approx(math.exp(row["ci_low"]))


def test_one_rate_has_the_likelihood_interval_of_a_binomial():
    table = pd.DataFrame({"right": [18], "wrong": [2]}).loc[[0, 0]].reset_index(drop=True)
    found = quietly("cbind(right, wrong) ~ 1", table, family="binomial").profile(df="asymptotic").iloc[0]

    def loss(p):
        return 2 * (binom.logpmf(36, 40, 0.9) - binom.logpmf(36, 40, p)) - chi2.ppf(0.95, 1)

    ends = [brentq(loss, 0.5, 0.9), brentq(loss, 0.9, 0.9999)]
    np.testing.assert_allclose(
        [found["ci_low"], found["ci_high"]], np.log(ends) - np.log1p(np.negative(ends)), atol=1e-3
    )


def test_linear_models_by_ml_and_between_run_degrees_of_freedom(linear, logistic):
    wald, profile = linear.coefficients.loc["method[T.ppo]"], linear.profile({"method[T.ppo]": 1}).iloc[0]
    # ML takes the variance between runs as a little smaller than REML does.
    assert profile["estimate"] == pytest.approx(wald["estimate"], abs=0.05)
    assert profile["ci_high"] - profile["ci_low"] == pytest.approx(wald["ci_high"] - wald["ci_low"], rel=0.15)
    held = logistic.profile({"method[T.ppo]": 1, "method[T.sft]": -1})
    wider = logistic.profile({"method[T.ppo]": 1, "method[T.sft]": -1}, level=0.99)
    assert held["df"].iloc[0] == 12 and wider["ci_low"].iloc[0] < held["ci_low"].iloc[0]


def test_it_finds_what_wald_cannot_near_the_ceiling():
    # 30 of 60 against 59 of 60; Fisher's exact test: p < 1e-9.
    table = pd.DataFrame({"trained": [0.0, 1.0], "right": [30, 59], "wrong": [30, 1]})
    found = quietly("cbind(right, wrong) ~ trained", table.loc[[0, 1, 1]].iloc[:2].pipe(lambda t: pd.concat([t] * 2)).assign(
        right=[15, 29, 15, 30], wrong=[15, 1, 15, 0]), family="binomial")  # fmt: skip
    assert found.profile().loc["trained", "statistic"] > found.coefficients.loc["trained", "statistic"] + 2


@pytest.mark.parametrize("prior", [None, 2.5])
def test_at_given_variances_it_is_what_a_general_search_finds(trials, prior):
    # The profile of one cell of a model with nothing but cells: the other cells at their best, variances as they were estimated.
    table = trials.assign(correct=trials["correct"] | (trials["method"] == "ppo")) if prior else trials
    fitted = quietly("correct ~ 0 + method + (1|run) + (1|item)", table, family="binomial", prior_sd=prior)
    model = ProfiledModel(fitted, free=False)
    weights = np.array([0.5, 0.5, -1.0])
    profile = model.along(weights)
    engine_ = engine(fitted.design, prior_precision(fitted.design, prior), 1)
    to_gamma, theta = engine_._r, fitted.solution.theta
    within = null_space(weights[None])
    low, high = profile.interval(1.96)
    for value in (low, high, 0.0, profile.estimate + 0.3):
        start = model.beta + weights * (value - profile.estimate) / (weights @ weights)

        def loss(moved, start=start):
            at = np.concatenate([theta, to_gamma @ (start + within @ moved)])
            return engine_.objective(at)[0]

        best = -minimize(
            loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4000}
        ).fun
        root = math.copysign(math.sqrt(max(2 * (model.log_likelihood - best), 0)), profile.estimate - value)
        assert profile.root(value) == pytest.approx(root, abs=2e-5)
    assert (profile.root(low), profile.root(high)) == pytest.approx((1.96, -1.96), abs=1e-4)
    wald = profile.estimate + 1.96 * profile.se * np.array([-1, 1])
    assert (low, high) != pytest.approx(tuple(wald), abs=1e-3)


def test_ordinary_linear_models_need_none(trials):
    with pytest.raises(FitError, match="exact"):
        quietly("rt ~ method", trials).profile()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_profile_intervals_are_those_of_lme4(tmp_path):
    script = """
    suppressPackageStartupMessages(library(lme4))
    write.csv(cbpp, "cbpp.csv", row.names = FALSE); write.csv(sleepstudy, "sleepstudy.csv", row.names = FALSE)
    g <- glmer(cbind(incidence, size - incidence) ~ period + (1 | herd), cbpp, family = binomial)
    l <- lmer(Reaction ~ Days + (Days | Subject), sleepstudy)
    for (m in c(g, l)) write.table(confint(m, parm = "beta_", method = "profile", quiet = TRUE), "limits.txt",
      append = TRUE, col.names = FALSE, row.names = FALSE)
    """
    subprocess.run(["Rscript", "-e", script], cwd=tmp_path, check=True)
    limits = np.loadtxt(tmp_path / "limits.txt")
    cbpp = pd.read_csv(tmp_path / "cbpp.csv", dtype={"period": str})
    logistic = quietly("cbind(incidence, size - incidence) ~ period + (1|herd)", cbpp, family="binomial")
    linear = quietly("Reaction ~ Days + (Days|Subject)", pd.read_csv(tmp_path / "sleepstudy.csv"))
    ours = np.vstack([fit.profile(df="asymptotic")[["ci_low", "ci_high"]] for fit in (logistic, linear)])
    np.testing.assert_allclose(ours, limits, rtol=1e-4)
