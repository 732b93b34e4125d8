"""Predictions of rows that a model was not fitted to: coded as the rows of the fit were, or refused."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.mixed_effects.conftest import quietly
from vlm_probe.analysis import FitError


@pytest.fixture(scope="module")
def table(trials):
    shift = pd.Categorical(np.array(["none", "camera", "light"])[np.arange(len(trials)) % 3])
    return trials.assign(shift=shift, level=np.arange(len(trials)) % 4)


@pytest.mark.parametrize(
    "random",
    ["(poly(margin, 2) | run)", "(1 + scale(margin) || run)", "(bs(margin, df=3) | run)", "(0 + C(level) | run)"],
)
def test_some_rows_are_coded_as_all_rows_were(table, random):
    fitted = quietly(f"rt ~ margin + {random}", table)
    some = table.iloc[[3, 50, 51, 200, 333]]
    np.testing.assert_allclose(fitted.predict(some), fitted.predict()[[3, 50, 51, 200, 333]], rtol=1e-9)


def test_rows_with_some_levels_of_a_random_slope_have_the_effects_of_these(table):
    fitted = quietly("rt ~ 1 + (0 + shift | run) + (1 | item)", table)
    for kind in ("categorical", "text"):
        some = table[table["shift"] != "camera"].iloc[:9]
        some = some if kind == "categorical" else some.assign(shift=some["shift"].astype(str))
        np.testing.assert_allclose(fitted.predict(some), fitted.predict()[some.index], rtol=1e-9)


def test_levels_are_known_again_whatever_numbers_they_are(table):
    missing = table.assign(item=table["item"].astype(float))
    missing.loc[0, "item"] = np.nan  # so that whole numbers come as floats, as they do from a file
    fitted = quietly("rt ~ margin + (1 | item) + (1 | method:item)", missing)
    rows = table.iloc[1:]
    np.testing.assert_allclose(fitted.predict(rows), fitted.predict(), rtol=1e-9)
    named = rows.assign(item=rows["item"].astype(str))
    np.testing.assert_allclose(fitted.predict(named), fitted.predict(), rtol=1e-9)


def test_levels_with_colons_in_them_are_not_mixed_up():
    rng = np.random.default_rng(2)
    pairs = [("a:b", "c"), ("a", "b:c"), ("a", "c"), ("d", "c"), ("d", "e"), ("f", "e")]
    table = pd.DataFrame([pair for pair in pairs for _ in range(30)], columns=["g", "h"])
    table["y"] = np.repeat(np.arange(6) * 2.0, 30) + rng.normal(0, 1, 180)
    fitted = quietly("y ~ 1 + (1 | g:h)", table)
    np.testing.assert_allclose(fitted.predict(table), fitted.predict(), rtol=1e-9)
    assert abs(fitted.predict(table)[0] - fitted.predict(table)[30]) > 1


@pytest.mark.parametrize(
    ("formula", "change", "told"),
    [
        ("rt ~ 1 + (0 + shift | run)", {"shift": "dark"}, "shift has no level 'dark'"),
        ("rt ~ 1 + (0 + C(level) | run)", {"level": 9}, "level has no level 9"),
        ("rt ~ margin + (bs(margin, df=3) | run)", {"margin": 9.0}, "beyond upper"),
        ("rt ~ bs(margin, df=3) + (1 | run)", {"margin": 9.0}, "beyond upper"),
        ("rt ~ 1 + (margin | run)", {"margin": np.nan}, "missing values"),
        ("rt ~ method + (1 | run)", {"method": "grpo"}, "method has no level 'grpo'"),
    ],
)
def test_rows_that_cannot_be_coded_are_refused(table, formula, change, told):
    with pytest.raises(FitError, match=told):
        quietly(formula, table).predict(table.iloc[:5].assign(**change))


@pytest.mark.parametrize("column", ["run", "margin", "shift"])
def test_rows_without_a_column_are_refused(table, column):
    fitted = quietly("rt ~ 1 + (1 + margin + shift | run)", table)
    with pytest.raises(FitError, match=f"lack the column '{column}'"):
        fitted.predict(table.drop(columns=column))
    assert len(fitted.predict(table.drop(columns=column), random=False)) == len(table)


def test_levels_that_read_alike_are_not_mixed_up(table):
    mixed = table.assign(who=table["level"].astype(object).where(table.index // 4 % 2 == 0, table["level"].astype(str)))
    fitted = quietly("rt ~ margin + (1 | who)", mixed)
    assert fitted.n_groups == {"who": 8}
    with pytest.raises(FitError, match="the same numbers as text"):
        fitted.predict(mixed)
