"""Columns of any name and kind: names that formulas would take for something else, Series in another order, numbers as objects."""

import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from tests.analysis.mixed_effects.conftest import quietly
from vlm_probe.analysis import FitError, fit

NAMES = [
    *(
        "from",
        "lambda",
        "yield",
        "not",
        "class",
        "None",
        "True",
        "T",
        "C",
        "I",
        "np",
        "log",
        "offset",
        "cbind",
        "Intercept",
    ),
    *(
        "1",
        "0",
        "-1",
        "load*2",
        "load/max",
        "load (kg)",
        "load ~ x",
        "a|b",
        "a:b",
        "a + b",
        "poly(x, 2)",
        "x[T.b]",
        "%",
        "it's",
    ),
    *(" x", "a  b", "reaction.time", ".x", "_", "µ", "x²", '"q"', "a`b", "a\\b", "ǂ"),
]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Answers of 12 people to 6 scenes: a text factor, a number, weights, counts of trials."""
    rng = np.random.default_rng(4)
    person, scene = np.repeat(np.arange(12), 6), np.tile(np.arange(6), 12)
    d = pd.DataFrame({"person": person, "scene": scene, "load": rng.uniform(1, 5, 72).round(2)})
    d["side"] = np.where(rng.random(72) < 0.5, "near", "far")
    d["trust"], d["shown"] = rng.uniform(0.5, 4, 72).round(1), rng.integers(2, 9, 72)
    d["seconds"] = 3 + 0.3 * d.load + rng.normal(0, 0.5, 12)[person] + rng.normal(0, 0.5, 72)
    d["named"] = rng.binomial(d.shown, 0.6)
    return d


@pytest.fixture(scope="module")
def plain(table):
    return quietly("seconds ~ load*side + (load || person) + (1 | scene)", table)


def quoted(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


@pytest.mark.parametrize("name", NAMES)
def test_a_number_may_have_any_name_in_fixed_and_random_parts(table, plain, name):
    q = quoted(name)
    odd = table.rename(columns={"load": name})
    found = quietly(f"seconds ~ {q}*side + ({q} || person) + (1 | scene)", odd)
    assert found.log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-6)
    np.testing.assert_allclose(found.coefficients["estimate"], plain.coefficients["estimate"], rtol=1e-5)
    shown = "`Intercept`" if name == "Intercept" else name
    assert list(found.coefficients.index) == ["Intercept", "side[T.near]", shown, f"side[T.near]:{shown}"] or list(
        found.coefficients.index
    ) == ["Intercept", shown, "side[T.near]", f"{shown}:side[T.near]"]
    assert shown in list(found.variance_components["name"]) and shown in str(found) and "ǂc" not in str(found)
    np.testing.assert_allclose(found.predict(odd.iloc[[5, 9]]), plain.predict(table.iloc[[5, 9]]), rtol=1e-5)
    means = found.emmeans("side", at={name: 2.0})["estimate"]
    np.testing.assert_allclose(means, plain.emmeans("side", at={"load": 2.0})["estimate"], rtol=1e-5)
    np.testing.assert_allclose(found.omnibus()["chi2"], plain.omnibus()["chi2"], atol=1e-4)
    assert "is missing" in str(quietly(found.formula, odd.assign(**{name: odd[name].where(odd.index != 3)})))


@pytest.mark.parametrize("name", ["from", "lambda", "None", "a:b", "load (kg)", "1"])
def test_factors_and_groups_may_have_any_name(table, name):
    plain = quietly("seconds ~ side + (1 | scene:side) + (1 | person)", table)
    odd = table.rename(columns={"side": name})
    found = quietly(f"seconds ~ {quoted(name)} + (1 | scene:{quoted(name)}) + (1 | person)", odd)
    assert found.log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-6)
    assert list(found.coefficients.index) == ["Intercept", f"{name}[T.near]"]
    assert list(found.emmeans(name)[name]) == ["far", "near"] and f"scene:{name}" in found.n_groups
    np.testing.assert_allclose(found.predict(odd), found.predict(), rtol=1e-9)
    coded = quietly(f"seconds ~ {quoted(name)}", odd, contrasts={name: "sum"})
    assert coded.coefficients.index[1] == f"{name}[S.far]"
    alone = odd.assign(**{name: odd[name].where(odd[name] == "far", "near"), "seconds": odd["seconds"]})
    with pytest.raises(FitError, match="has one level only"):
        quietly(f"seconds ~ {quoted(name)}", alone[alone[name] == "far"])


def test_levels_may_read_like_symbols(table):
    odd = table.assign(side=np.where(table.side == "near", "ǂc7ǂ", 'ǂt0ǂ "x"'))
    found = quietly("seconds ~ load*side + (1 | person)", odd)
    assert list(found.emmeans("side")["side"]) == sorted(odd.side.unique())
    assert (
        found.coefficients.index[2] in ("side[T.ǂc7ǂ]", 'side[T.ǂt0ǂ "x"]') or "side[T." in found.coefficients.index[1]
    )
    np.testing.assert_allclose(found.predict(odd), found.predict(), rtol=1e-9)


def test_names_that_are_python_words_need_no_quotes(table):
    plain = quietly("seconds ~ load*side + (1 | person)", table)
    for name in ("from", "lambda", "True", "None", "reaction.time", "log"):
        found = quietly(f"seconds ~ {name}*side + (1 | person)", table.rename(columns={"load": name}))
        assert found.log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-8) and len(found.coefficients) == 4


def test_responses_offsets_and_counts_may_have_any_name(table):
    odd = table.rename(columns={"named": "named?", "shown": "from", "seconds": "1"})
    assert quietly("`1` ~ load", odd).coefficients.equals(quietly("seconds ~ load", table).coefficients)
    counts = quietly("cbind(`named?`, from - `named?`) ~ load + (1 | person)", odd, family="binomial")
    assert counts.log_likelihood == pytest.approx(
        quietly("cbind(named, shown - named) ~ load + (1 | person)", table, family="binomial").log_likelihood
    )
    rates = quietly("`named?` ~ load + offset(log(from))", odd, family="poisson")
    given = quietly("named ~ load", table, family="poisson", offset=np.log(table.shown))
    np.testing.assert_allclose(rates.coefficients["estimate"], given.coefficients["estimate"], rtol=1e-8)


def test_names_that_are_numbers_or_tuples_are_known_by_their_text(table):
    odd = table.rename(columns={"load": 7, "side": ("side", "of")})
    found = quietly("seconds ~ `7` + `('side', 'of')`", odd)
    np.testing.assert_allclose(found.predict(odd), quietly("seconds ~ load + side", table).predict(), rtol=1e-9)


def test_two_columns_of_one_name_are_refused_if_they_are_used(table):
    twice = pd.concat([table, table[["load"]]], axis=1)
    for call in (
        lambda: quietly("seconds ~ load", twice),
        lambda: quietly("seconds ~ side", twice, weights="load"),
        lambda: quietly("seconds ~ side + (1 | load)", twice),
    ):
        with pytest.raises(FitError, match=r"^the data have 2 columns called 'load': rename[^\n]*$"):
            call()
    assert quietly("seconds ~ side", twice).n_rows == 72
    with pytest.raises(FitError, match="two coefficients are called 'load:trust'"):
        quietly("seconds ~ load*trust + `load:trust`", table.assign(**{"load:trust": table.shown}))


# -- values that are given apart from the data


def test_series_belong_to_the_rows_of_their_index(table):
    named = quietly("seconds ~ load + (1 | person)", table, weights="trust").coefficients
    shuffled = table.trust.sample(frac=1, random_state=np.random.default_rng(1))
    for weights, data in ((shuffled, table), (table.trust, table.iloc[::-1]), (table.trust, table.sample(frac=1))):
        found = quietly("seconds ~ load + (1 | person)", data, weights=weights).coefficients
        np.testing.assert_allclose(found["estimate"], named["estimate"], rtol=1e-6)
    part = table[table.load > 2.5]
    np.testing.assert_allclose(
        quietly("seconds ~ load + (1 | person)", part, weights=table.trust).coefficients["se"],
        quietly("seconds ~ load + (1 | person)", part, weights="trust").coefficients["se"],
        rtol=1e-9,
    )
    counts = quietly("named ~ load", table, family="binomial", trials="shown").coefficients
    turned = quietly("named ~ load", table.iloc[::-1], family="binomial", trials=table.shown).coefficients
    np.testing.assert_allclose(turned["estimate"], counts["estimate"], rtol=1e-6)
    rates = quietly("named ~ load", table, family="poisson", offset=np.log(shuffled)).coefficients
    np.testing.assert_allclose(
        rates["estimate"],
        quietly("named ~ load + offset(log(trust))", table, family="poisson").coefficients["estimate"],
        rtol=1e-6,
    )


def test_series_that_cannot_be_matched_are_refused(table):
    twice = pd.concat([table, table])
    for text, data, weights in (
        ("the index of the data has labels that repeat", twice, table.trust),
        ("the index of weights has labels that repeat", table, twice.trust),
        (r"weights has no value for 22 of 72 rows by its index \(50, 51, 52, ...\)", table, table.trust[:50]),
        ("weights has 71 values for 72 rows", table, table.trust.to_numpy()[1:]),
        ("weights is a table", table, table[["trust"]]),
        ("weights is not numeric", table, table.side),
        ("weights='wieghts': the data have no such column", table, "wieghts"),
    ):
        with pytest.raises(FitError, match=text):
            quietly("seconds ~ load", data, weights=weights)
    same = quietly("seconds ~ load", twice, weights=twice.trust)  # labels repeat, in the same order
    assert same.coefficients.equals(quietly("seconds ~ load", twice, weights="trust").coefficients)


# -- numbers in disguise


@pytest.mark.parametrize(
    "change",
    [
        lambda load: [Decimal(str(value)) for value in load],
        lambda load: load.astype(object),
        lambda load: load.astype("Float64"),
        lambda load: load.astype("float32").astype(float).round(2).astype(object),
        lambda load: [float(v) if i % 2 else Decimal(str(v)) for i, v in enumerate(load)],
    ],
)
def test_numbers_as_objects_are_numbers(table, change):
    plain = quietly("seconds ~ load + (load || person)", table)
    odd = table.assign(load=change(table.load))
    found = quietly("seconds ~ load + (load || person)", odd)
    np.testing.assert_allclose(found.coefficients["estimate"], plain.coefficients["estimate"], rtol=1e-6)
    np.testing.assert_allclose(found.predict(odd.iloc[:5]), plain.predict(table.iloc[:5]), rtol=1e-6)
    missing = odd.astype({"load": object})
    missing.loc[3, "load"] = None
    assert quietly("seconds ~ load", missing).dropped == {"load is missing": 1}
    response = odd.assign(seconds=[Decimal(str(v)) for v in table.seconds], trust=odd.trust.astype(object))
    assert quietly("seconds ~ load", response, weights="trust").n_rows == 72


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda load: ["n/a" if i == 3 else v for i, v in enumerate(load)],
            r"'load'.*number and text",
        ),
        (lambda load: pd.date_range("2026-01-01", periods=len(load)), r"'load'.*datetime"),
        (lambda load: [[v] for v in load], r"'load'.*list"),
        (lambda load: load + 0j, r"'load'.*complex"),
        (lambda load: [True if i == 3 else v for i, v in enumerate(load)], r"'load'.*number and truth"),
    ],
)
def test_what_is_neither_numbers_nor_names_is_refused_by_name(table, change, told):
    for formula in ("seconds ~ load", "seconds ~ 1 + (load | person)"):
        with pytest.raises(FitError, match=told) as caught:
            quietly(formula, table.assign(load=change(table.load)))
        assert "\n" not in str(caught.value) and "pd.to_numeric" in str(caught.value)


def test_text_that_reads_as_numbers_stays_a_factor_with_a_warning(table):
    found = quietly("seconds ~ scene", table.assign(scene=table.scene.astype(str)))
    assert len(found.coefficients) == 6
    assert any(text.startswith("scene is text that reads as numbers") for text in found.warnings)
    for clean in (pd.Categorical(table.scene.astype(str)), "s" + table.scene.astype(str)):
        assert not quietly("seconds ~ scene", table.assign(scene=clean)).warnings
    assert not quietly("seconds ~ load + (1 | who)", table.assign(who=table.person.astype(str))).warnings


def test_a_factor_with_nearly_as_many_levels_as_rows_warns(table):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit("seconds ~ label", table.assign(label=[f"x{min(v, 40)}" for v in range(72)]))
    assert any("label is a factor with 41 levels in 72 rows" in str(one.message) for one in caught)


def test_what_is_no_name_is_no_group_and_no_factor(table):
    odd = table.assign(tags=[[v] for v in table.scene], item_tags=[[v] for v in table.scene])
    for formula in ("seconds ~ load + (1 | tags)", "seconds ~ factor(tags)"):
        with pytest.raises(FitError, match="the column 'tags' holds no names"):
            quietly(formula, odd)
    assert quietly("I(named > 3) ~ load + (1 | person)", odd, family="binomial").n_rows == 72
    mixed = table.assign(scene=[v if v % 2 else str(v) for v in table.scene])
    assert len(quietly("seconds ~ factor(scene)", mixed).coefficients) == 6
    with pytest.raises(FitError, match=r"72 rows cannot tell 7\d coefficients.*row is a factor with 72 levels"):
        quietly("seconds ~ row", table.assign(row=[f"r{v}" for v in range(72)]))
    with pytest.raises(FitError, match="the formula is a list"):
        quietly(["seconds ~ load"], table)
