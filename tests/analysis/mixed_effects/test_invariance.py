"""What must not change an estimate: the order of rows, the names of levels, the units of predictors and responses."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.analysis.mixed_effects.conftest import quietly, simulate

FORMULAS = {
    "gaussian": "rt ~ method + margin + (1 + margin|item) + (1|run)",
    "binomial": "correct ~ method + margin + (1|item) + (1|run)",
}
SMALL = simulate(seed=3, runs=3, items=20, per_run=20)
BASE = {family: quietly(formula, SMALL, family=family) for family, formula in FORMULAS.items()}
few = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
families = pytest.mark.parametrize("family", list(FORMULAS))


def same(result, base, scale=None):
    scale = scale or {}
    for term, row in base.coefficients.iterrows():
        other = result.coefficients.loc[term]
        factor = scale.get(term, 1.0)
        assert other["estimate"] * factor == pytest.approx(row["estimate"], abs=2e-3 * row["se"])
        assert other["se"] * factor == pytest.approx(row["se"], rel=2e-3)


@families
@few
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows(family, seed):
    shuffled = SMALL.sample(frac=1, random_state=np.random.default_rng(seed))
    result = quietly(FORMULAS[family], shuffled, family=family)
    same(result, BASE[family])
    assert result.log_likelihood == pytest.approx(BASE[family].log_likelihood, abs=1e-5)


@families
@few
@given(names=st.permutations(range(20)))
def test_the_names_of_levels(family, names):
    renamed = SMALL.assign(item=SMALL["item"].map(dict(enumerate(names))).map("item {}".format))
    result = quietly(FORMULAS[family], renamed, family=family)
    same(result, BASE[family])
    assert result.log_likelihood == pytest.approx(BASE[family].log_likelihood, abs=1e-5)


@families
@few
@given(exponent=st.floats(-6, 6))
def test_the_unit_of_a_predictor(family, exponent):
    unit = 10.0**exponent
    result = quietly(FORMULAS[family], SMALL.assign(margin=SMALL["margin"] * unit), family=family)
    same(result, BASE[family], {"margin": unit})
    # A restricted likelihood is that of residual contrasts, whose density has the unit of the predictor.
    shift = np.log(unit) if family == "gaussian" else 0.0
    assert result.log_likelihood == pytest.approx(BASE[family].log_likelihood - shift, abs=1e-4)


@few
@given(exponent=st.floats(-6, 6), shift=st.floats(-1e3, 1e3))
def test_the_unit_and_the_zero_of_the_response(exponent, shift):
    unit = 10.0**exponent
    result = quietly(FORMULAS["gaussian"], SMALL.assign(rt=(SMALL["rt"] + shift) * unit))
    base = BASE["gaussian"]
    np.testing.assert_allclose(result.coefficients["se"] / unit, base.coefficients["se"], rtol=2e-3)
    np.testing.assert_allclose(
        result.variance_components["sd"] / unit, base.variance_components["sd"], rtol=5e-3, atol=1e-3
    )
    np.testing.assert_allclose(
        result.coefficients["estimate"].iloc[1:] / unit, base.coefficients["estimate"].iloc[1:], atol=1e-3
    )


@families
def test_the_coding_of_factors(family):
    coded = quietly(FORMULAS[family], SMALL, family=family, contrasts="sum")
    assert coded.log_likelihood == pytest.approx(BASE[family].log_likelihood, abs=1e-5 if family == "binomial" else 10)
    for table in ("emmeans", "contrast"):
        np.testing.assert_allclose(
            getattr(coded, table)("method")["estimate"], getattr(BASE[family], table)("method")["estimate"], atol=1e-3
        )
