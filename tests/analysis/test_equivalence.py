from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import cauchy, nct
from scipy.stats import t as student
from statsmodels.stats.weightstats import DescrStatsW, ttost_ind

from vlm_probe.analysis.equivalence import (
    bayes_factor,
    bic_bayes_factor,
    equivalence,
    jzs,
)

SLEEP = (
    (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0),
    (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4),
)  # Student (1908), R's `sleep`
finite = st.floats(-5, 5, allow_nan=False)


def test_tost_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.1, 1, 12), rng.normal(0, 1, 9)
    expected = ttost_ind(x, y, -0.9, 0.7)
    pooled = ((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum()
    se = math.sqrt(pooled / 19 * (1 / 12 + 1 / 9))
    found = equivalence(x.mean() - y.mean(), se, (-0.9, 0.7), df=19)
    assert found.p == pytest.approx(expected[0], rel=1e-9)
    assert found.p_low == pytest.approx(expected[1][1], rel=1e-9)
    assert found.p_high == pytest.approx(expected[2][1], rel=1e-9)


@settings(deadline=None)
@given(finite, st.floats(0.01, 3), st.floats(0.01, 3), st.floats(1, 200))
def test_equivalence_is_that_the_90_percent_interval_lies_within_the_bound(
    estimate: float, se: float, bound: float, df: float
) -> None:
    found = equivalence(estimate, se, bound, df)
    inside = -bound < found.ci_low and found.ci_high < bound
    if abs(found.p - 0.05) > 1e-9:
        assert found.equivalent == inside
    assert found.p == pytest.approx(equivalence(-estimate, se, bound, df).p, abs=1e-12)
    assert found.p_difference == pytest.approx(2 * student.sf(abs(estimate) / se, df))


@pytest.mark.parametrize(
    ("estimate", "se", "verdict"),
    [(0.02, 0.05, "equivalent"), (0.9, 0.1, "different"), (0.1, 0.02, "trivial"), (0.1, 0.5, "undecided")],
)
def test_the_four_verdicts(estimate: float, se: float, verdict: str) -> None:
    assert equivalence(estimate, se, 0.2, df=20).verdict == verdict


def test_runs_that_do_not_vary_are_no_evidence_of_equivalence() -> None:
    found = equivalence(0.0, 0.0, 0.2, df=4)
    assert not found.equivalent and found.verdict == "undefined" and math.isnan(found.p)


def test_a_bound_has_to_be_one() -> None:
    with pytest.raises(ValueError, match=r"bound .* is empty"):
        equivalence(0.0, 1.0, 0.0)


def test_published_jzs_bayes_factors() -> None:
    # BayesFactor 0.9.12, ttestBF(sleep, paired = TRUE): 17.25888.
    assert bayes_factor(np.subtract(*SLEEP)).bf10 == pytest.approx(17.25888, rel=1e-5)
    # Rouder et al. (2009), p. 232: t(79) = 2.24 and 2.03 of Grider and Malmberg (2008) give B01 = 1.02 and 1.56 at r = 1.
    assert jzs(2.24, 79, 80, scale=1).bf01 == pytest.approx(1.02, abs=0.005)
    assert jzs(2.03, 79, 80, scale=1).bf01 == pytest.approx(1.56, abs=0.005)
    # pingouin's documentation: t = 3.5 of 20 and 20, and of 20 pairs.
    assert jzs(3.5, 38, 10).bf10 == pytest.approx(26.743, abs=0.001)
    assert jzs(3.5, 19, 20).bf10 == pytest.approx(17.185, abs=0.001)


@pytest.mark.parametrize(
    ("t", "df", "n", "scale"), [(0.5, 4, 5, 0.7), (2, 2, 1.5, 0.7), (5, 10, 3, 1), (-1, 4, 1.5, 1.4)]
)
def test_jzs_is_the_ratio_of_marginal_densities_of_t(t: float, df: float, n: float, scale: float) -> None:
    marginal = quad(lambda d: nct.pdf(t, df, d * math.sqrt(n)) * cauchy.pdf(d, 0, scale), -np.inf, np.inf, limit=500)[0]
    assert jzs(t, df, n, scale).bf10 == pytest.approx(marginal / student.pdf(t, df), rel=1e-6)


def test_jzs_is_finite_far_out_and_consistent_under_the_null() -> None:
    assert jzs(200, 500, 500).log_bf10 > 700 and jzs(200, 500, 500).bf01 == 0
    support = [jzs(0, n - 1, n).bf01 for n in (5, 50, 5000)]
    assert support == sorted(support) and support[-1] > 50
    assert jzs(1.3, 9, 10).bf10 == pytest.approx(jzs(-1.3, 9, 10).bf10)


def test_two_samples_are_one_contrast_of_two_means() -> None:
    a, b = (0.5, 0.55, 0.61), (0.7, 0.68, 0.81)
    t = DescrStatsW(a).get_compare(DescrStatsW(b)).ttest_ind()[0]
    assert bayes_factor(a, b).bf10 == pytest.approx(jzs(t, 4, 1.5).bf10)
    assert math.isnan(bayes_factor((0.5, 0.5), (0.5, 0.5)).bf10)
    assert bayes_factor((0.5,), (0.7,)).evidence == "undefined"


def test_bic_approximation_by_hand() -> None:
    # Log-likelihoods 3 apart, one parameter, 20 units: exp(3 - ln(20) / 2).
    found = bic_bayes_factor(-103, -100, 1, 20)
    assert found.bf10 == pytest.approx(math.exp(3) / math.sqrt(20))
    assert "BIC approximation with n = 20" in found.method and found.evidence == "moderate for an effect"
    assert bic_bayes_factor(-100, -100, 1, 20).evidence == "moderate for no effect"
