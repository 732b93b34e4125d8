"""Degrees of freedom that theory gives exactly, and second derivatives."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.mixed_effects.conftest import FORMULA, quietly


def paired(people: int, per_cell: int, sd: float, seed: int) -> pd.DataFrame:
    """Times of people under two lights, some trials each; their reaction to light varies by `sd`."""
    rng = np.random.default_rng([people, seed])
    person, light = np.repeat(np.arange(people), 2 * per_cell), np.tile(np.repeat([0, 1], per_cell), people)
    own, reaction = rng.normal(0, 60, people), rng.normal(0, sd, people)
    ms = 600 + own[person] + (15 + reaction[person]) * light + rng.normal(0, 60, len(person))
    return pd.DataFrame({"ms": ms, "light": np.array(["dim", "lit"])[light], "viewer": person})


@pytest.mark.parametrize("people", [5, 11, 24])
@pytest.mark.parametrize("sd", [15, 60])
@pytest.mark.parametrize("per_cell", [2, 4])
def test_balanced_pairs_have_the_degrees_of_freedom_of_the_paired_t_test(people, sd, per_cell):
    import scipy.stats

    checked = 0
    for seed in range(6):
        table = paired(people, per_cell, sd, seed)
        means = table.groupby(["viewer", "light"])["ms"].mean().unstack()
        expected = scipy.stats.ttest_rel(means["lit"], means["dim"])
        for random in ("(light | viewer)", "(1 | viewer) + (1 | viewer:light)"):
            found = quietly(f"ms ~ light + {random}", table)
            if found.singular:  # a variance of 0, or a perfect correlation: then the t test is of another model
                continue
            row = found.coefficients.loc["light[T.lit]"]
            assert row["df"] == pytest.approx(people - 1, abs=0.01)
            assert row["p"] == pytest.approx(expected.pvalue, rel=1e-3)
            checked += 1
    assert checked


def test_a_correlation_near_1_does_not_cost_digits():
    # lmerTest, restarted with tight tolerances: df 27.160 of an effect whose random slope correlates -.993 with the intercept.
    from tests.analysis.mixed_effects.conftest import simulate

    found = quietly("rt ~ 0 + method + method:margin + (scale(margin) | item)", simulate())
    row = found.coefficients.loc["method[none]:margin"]
    assert row["df"] == pytest.approx(27.160, abs=0.02)
    assert row["se"] == pytest.approx(0.2628969, rel=1e-5)


def test_a_fit_without_derivatives_gets_them_later(trials, logistic):
    quick = quietly(FORMULA, trials, family="binomial", calc_derivs=False)
    assert quick.log_likelihood == pytest.approx(logistic.log_likelihood, abs=1e-6)
    assert quick.solution.evaluations < logistic.solution.evaluations
    ratio = quick.coefficients["se"] / logistic.coefficients["se"]
    assert ratio.between(0.9, 1.01).all() and (ratio != 1).any()  # as if variances were known
    whole = quick.with_derivatives()
    np.testing.assert_allclose(whole.coefficients["se"], logistic.coefficients["se"], rtol=1e-4)
    assert whole.warnings == logistic.warnings and whole.converged


def test_a_term_without_variance_costs_nothing(trials):
    # Whether a term whose variance is 0 is in the model makes no difference to anything else.
    table = trials.assign(half=np.arange(len(trials)) % 8)
    both = quietly("correct ~ method + (1 | item) + (1 | half) + (1 | run)", table, family="binomial")
    assert both.variance_components.set_index("group").loc["half", "sd"] == 0
    without = quietly("correct ~ method + (1 | item) + (1 | run)", table, family="binomial")
    np.testing.assert_allclose(both.coefficients["se"], without.coefficients["se"], rtol=1e-4)
    assert both.log_likelihood == pytest.approx(without.log_likelihood, abs=1e-6)
