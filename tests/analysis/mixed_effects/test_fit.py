"""A fit from end to end, on simulated trials."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from tests.analysis.mixed_effects.conftest import quietly
from vlm_probe.analysis import FitError


def test_it_prints_the_table_of_a_paper(logistic):
    text = str(logistic)
    assert "method[T.ppo]:margin" in text
    assert "run 15; item 60" in text
    assert "converged" in text
    assert "between-within" in text
    json.dumps(logistic.to_dict(), allow_nan=False)


def test_method_is_tested_between_runs_and_margin_between_items(logistic, linear):
    df = logistic.coefficients["df"]
    assert df["method[T.ppo]"] == 12  # 15 runs, 3 methods
    assert df["margin"] == 59  # its slope varies between 60 items
    assert np.isinf(df["method[T.ppo]:margin"])
    assert logistic.coefficient_table(df="asymptotic")["df"].eq(np.inf).all()
    assert linear.df_method == "satterthwaite"


def test_means_are_on_both_scales_and_contrasts_are_their_differences(logistic):
    means = logistic.emmeans("method").set_index("method")
    contrast = logistic.contrast("method", "treatment").set_index("contrast")
    difference = means.loc["ppo", "estimate"] - means.loc["none", "estimate"]
    assert contrast.loc["ppo - none", "estimate"] == pytest.approx(difference)
    assert contrast.loc["ppo - none", "odds_ratio"] == pytest.approx(np.exp(difference))
    np.testing.assert_allclose(means["response"], expit(means["estimate"]))
    at = logistic.emmeans("method", at={"margin": [0.0, 0.5]}, by="margin")
    assert list(at["margin"]) == [0.0] * 3 + [0.5] * 3
    assert at["estimate"].iloc[0] == pytest.approx(logistic.coefficients.loc["Intercept", "estimate"])


def test_contrasts_may_have_any_weights_and_are_adjusted_for_their_number(logistic):
    planned = {"adapted - none": {"sft": 0.5, "ppo": 0.5, "none": -1}, "ppo - sft": {"ppo": 1, "sft": -1}}
    table = logistic.contrast("method", planned, adjust="holm")
    assert (table["p_adjusted"] >= table["p"]).all()
    b = logistic.coefficients["estimate"]
    combination = logistic.contrast({"method[T.ppo]": 1, "method[T.sft]": -1})
    assert combination["estimate"][0] == pytest.approx(b["method[T.ppo]"] - b["method[T.sft]"])


def test_planned_contrasts_are_coefficients(trials, logistic):
    planned = {"adapted": {"sft": 0.5, "ppo": 0.5, "none": -1}, "ppo-sft": {"ppo": 1, "sft": -1}}
    coded = quietly(logistic.formula, trials, family="binomial", contrasts={"method": planned})
    assert coded.log_likelihood == pytest.approx(logistic.log_likelihood, abs=1e-6)
    b = coded.coefficients["estimate"]
    at_zero = logistic.contrast("method", planned, at={"margin": 0.0})
    np.testing.assert_allclose([b["method[adapted]"], b["method[ppo-sft]"]], at_zero["estimate"], atol=1e-3)


def test_the_test_on_run_means_is_the_t_test(trials, logistic):
    import scipy.stats

    means = trials.groupby(["method", "run"], observed=True)["correct"].mean()
    two = quietly("correct ~ method + (1|run) + (1|item)", trials[trials["method"] != "sft"], family="binomial")
    expected = scipy.stats.ttest_ind(means["ppo"], means["none"])
    row = two.group_means_contrast("method", "treatment").iloc[0]
    assert row["statistic"] == pytest.approx(expected.statistic)
    assert row["p"] == pytest.approx(expected.pvalue)
    assert logistic.group_means_contrast("method")["df"].eq(12).all()


def test_predictions_of_the_same_rows_are_the_same(logistic, trials):
    np.testing.assert_allclose(logistic.predict(), logistic.predict(trials), rtol=1e-10)
    other = trials.iloc[:3].assign(run="new", item=-1)
    np.testing.assert_allclose(logistic.predict(other), logistic.predict(other, random=False))


def test_random_effects_have_a_mean_near_0_and_name_their_levels(logistic, trials):
    table = logistic.random_effects
    assert set(table["group"]) == {"run", "item"}
    assert set(table.loc[table["group"] == "run", "level"]) == set(trials["run"])
    assert abs(table.loc[table["group"] == "item", "mode"].mean()) < 0.1
    assert (table["sd"] > 0).all()


def test_a_likelihood_ratio_test_is_the_omnibus_test(trials, logistic):
    smaller = quietly("correct ~ method + margin + (1|run) + (1 + margin|item)", trials, family="binomial")
    row = logistic.compare(smaller).iloc[1]
    omnibus = logistic.omnibus().loc["method:margin"]
    assert row["df"] == omnibus["df"] == 2
    assert row["chi2"] == pytest.approx(omnibus["chi2"], abs=1e-4)


def test_models_without_random_effects_and_without_predictors(trials):
    ordinary = quietly("rt ~ method", trials)
    assert ordinary.coefficients["df"].eq(len(trials) - 3).all()
    logit = quietly("correct ~ 1", trials, family="binomial")
    share = trials["correct"].mean()
    assert logit.coefficients.loc["Intercept", "estimate"] == pytest.approx(np.log(share / (1 - share)), abs=1e-6)
    assert quietly("correct ~ 1 + (1|run)", trials, family="binomial").converged


def test_counts_are_the_trials_they_count(trials):
    each = quietly("correct ~ method + (1|run)", trials, family="binomial")
    cells = trials.groupby(["method", "run"], observed=True)["correct"].agg(["sum", "size"]).reset_index()
    cells["wrong"] = cells["size"] - cells["sum"]
    counts = [
        quietly("cbind(sum, wrong) ~ method + (1|run)", cells, family="binomial"),
        quietly("sum ~ method + (1|run)", cells, family="binomial", trials="size"),
        quietly(
            "share ~ method + (1|run)",
            cells.assign(share=cells["sum"] / cells["size"]),
            family="binomial",
            weights="size",
        ),
    ]
    for other in counts:
        np.testing.assert_allclose(other.coefficients["estimate"], each.coefficients["estimate"], atol=2e-3)
        np.testing.assert_allclose(other.variance_components["sd"], each.variance_components["sd"], rtol=1e-2)


def test_an_offset_is_taken_off(trials):
    shifted = quietly("correct ~ 1 + (1|run)", trials, family="binomial", offset=np.full(len(trials), 0.5))
    plain = quietly("correct ~ 1 + (1|run)", trials, family="binomial")
    difference = plain.coefficients["estimate"].iloc[0] - shifted.coefficients["estimate"].iloc[0]
    assert difference == pytest.approx(0.5, abs=1e-3)


def test_ordered_categoricals_keep_their_order(trials):
    order = ["ppo", "none", "sft"]
    table = trials.assign(method=trials["method"].cat.reorder_categories(order, ordered=True))
    result = quietly("rt ~ method + (1|run)", table)
    assert list(result.coefficients.index) == ["Intercept", "method[T.none]", "method[T.sft]"]
    assert list(result.emmeans("method")["method"]) == order


@pytest.mark.parametrize(
    ("scheme", "second"), [("treatment", (-1, 0, 1)), ("sequential", (0, -1, 1)), ("sum", (-1 / 3, 2 / 3, -1 / 3))]
)
def test_codings_mean_what_they_say(trials, scheme, second):
    coded = quietly("rt ~ method", trials, contrasts=scheme)
    means = trials.groupby("method", observed=True)["rt"].mean()
    assert coded.coefficients["estimate"].iloc[2] == pytest.approx(means.to_numpy() @ np.array(second))


def test_second_opinions(trials, logistic):
    simple = quietly("rt ~ margin + (1|item)", trials)
    both = simple.cross_check()
    np.testing.assert_allclose(both["ours"], both["statsmodels"], rtol=1e-3, atol=1e-3)
    table = logistic.gee()
    assert list(table.index) == list(logistic.coefficients.index)
    ratio = table["se"] / logistic.coefficients["se"]
    assert ratio["method[T.ppo]"] == pytest.approx(1, abs=0.5)


def test_numbers_can_be_names(trials):
    table = trials.assign(method=trials["method"].cat.codes * 10)
    numbered = quietly("rt ~ C(method) + (1|run)", table)
    assert list(numbered.coefficients.index) == ["Intercept", "method[T.10]", "method[T.20]"]
    assert list(numbered.emmeans("method")["method"]) == [0, 10, 20]


def test_transformations_take_columns_of_any_name(trials):
    table = trials.rename(columns={"margin": "signed margin"})
    table.loc[0, "signed margin"] = np.nan
    result = quietly("np.exp(rt / 10) ~ poly(`signed margin`, 2) + (1|run)", table)
    assert result.dropped == {"signed margin is missing": 1}
    assert len(result.coefficients) == 3


@pytest.mark.parametrize(
    ("as_in_r", "as_here"),
    [
        ("rt ~ margin + I(margin^2) + (1 | run)", "rt ~ margin + I(margin**2) + (1 | run)"),
        ("rt ~ factor(item) + (1 | run)", "rt ~ C(item) + (1 | run)"),
        ("rt ~ margin + (1 | as.factor(item))", "rt ~ margin + (1 | item)"),
        ("rt ~ sqrt(margin + 1) + (I(margin^2) | run)", "rt ~ np.sqrt(margin + 1) + (I(margin**2) | run)"),
        ("I(rt^2) ~ method + (1 | item)", "rt**2 ~ method + (1 | item)"),
        ("rt ~ `response time` + (1 | run)", "rt ~ rt2 + (1 | run)"),
    ],
)
def test_formulas_may_be_written_as_in_r(trials, as_in_r, as_here):
    table = trials.assign(rt2=trials["rt"] ** 2 + trials["margin"])
    table["response time"] = table["rt2"]
    ours, theirs = quietly(as_here, table), quietly(as_in_r, table)
    assert theirs.log_likelihood == pytest.approx(ours.log_likelihood, abs=1e-8)
    np.testing.assert_allclose(theirs.coefficients["estimate"], ours.coefficients["estimate"], rtol=1e-6)


def test_columns_may_have_any_name(trials):
    plain = quietly("rt ~ method*margin + (1 | run)", trials)
    odd = trials.rename(columns={"method": "C", "margin": "log", "run": "np", "rt": "I"})
    found = quietly("I ~ C*log + (1 | np)", odd)
    assert found.log_likelihood == pytest.approx(plain.log_likelihood)
    assert list(found.coefficients.index)[:2] == ["Intercept", "C[T.sft]"]
    np.testing.assert_allclose(found.predict(odd), plain.predict())


def test_an_offset_may_stand_in_the_formula(trials):
    table = trials.assign(exposure=np.linspace(0.5, 3, len(trials)))
    table.loc[4, "exposure"] = np.nan
    written = quietly("correct ~ method + offset(log(exposure)) + (1|run)", table, family="binomial")
    given = quietly("correct ~ method + (1|run)", table, family="binomial", offset=np.log(table["exposure"]))
    assert written.log_likelihood == pytest.approx(given.log_likelihood)
    assert written.n_dropped == given.n_dropped == 1
    rows = table.drop(4)
    np.testing.assert_allclose(written.predict(rows), written.predict())
    with pytest.raises(FitError, match="write it into the formula"):
        given.predict(rows)
    with pytest.raises(FitError, match="given twice"):
        quietly(written.formula, table, family="binomial", offset="exposure")


@pytest.mark.parametrize("kind", ["text", "factor", "reversed"])
def test_a_response_of_two_names_is_the_second_of_them(trials, kind):
    named = pd.Series(np.where(trials["correct"], "yes", "no"), index=trials.index)
    levels = ["yes", "no"] if kind == "reversed" else ["no", "yes"]
    table = trials.assign(said=named if kind == "text" else pd.Categorical(named, levels))
    result = quietly("said ~ method + (1|run)", table, family="binomial")
    plain = quietly("correct ~ method + (1|run)", trials, family="binomial")
    sign = -1 if kind == "reversed" else 1
    np.testing.assert_allclose(result.coefficients["estimate"], sign * plain.coefficients["estimate"], atol=1e-4)
    assert f"said = {levels[1]} counts as success" in str(result)


def test_omnibus_tests_carry_the_name_of_their_own_term(trials):
    # Without method nothing is left of the smaller model, so that it has no test; its interaction has.
    result = quietly("rt ~ 0 + method + method:margin + (1|run)", trials)
    smaller = quietly("rt ~ 0 + method + (1|run)", trials)
    table = result.omnibus()
    assert list(table.index) == ["method:margin"]
    assert table.loc["method:margin", "chi2"] == pytest.approx(result.compare(smaller)["chi2"].iloc[1], abs=1e-4)


def test_only_models_of_the_same_rows_and_trials_are_compared(trials, logistic):
    cells = trials.groupby(["method", "run"], observed=True)["correct"].agg(["sum", "size"]).reset_index()
    one = quietly("sum ~ method + (1|run)", cells, family="binomial", trials="size")
    more = cells.assign(size=cells["size"] + 1)
    for other in (logistic, quietly("sum ~ 1 + (1|run)", more, family="binomial", trials="size")):
        with pytest.raises(FitError, match="same rows"):
            one.compare(other)
    with pytest.raises(FitError, match="no grouping factor"):
        one.correlations("item")
