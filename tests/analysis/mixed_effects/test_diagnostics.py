"""What cannot be fitted is refused, and what a reader has to know is said, with the name of the factor, column or cell."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.mixed_effects.conftest import quietly, simulate
from vlm_probe.analysis import FitError, FitWarning, SeparationError, fit


def refused(text, formula, data, **settings):
    with pytest.raises(FitError, match=text):
        quietly(formula, data, **({"family": "binomial"} | settings))


def test_a_cell_of_right_answers_is_separation(trials):
    ceiling = trials.assign(correct=trials["correct"] | (trials["method"] == "ppo"))
    with pytest.raises(SeparationError, match=r"quasi-complete.*is 1 in all 250 answers of the cell method = ppo"):
        quietly("correct ~ method + (1|run) + (1|item)", ceiling, family="binomial")


def test_a_cell_of_two_factors_is_found(trials):
    trials = trials.assign(side=np.where(trials["item"] % 2, "left", "right"))
    wrong = (trials["method"] == "sft") & (trials["side"] == "left")
    refused(
        "method = sft, side = left",
        "correct ~ method*side + (1|run)",
        trials.assign(correct=trials["correct"] & ~wrong),
    )


def test_complete_separation_by_a_number_is_named(trials):
    table = trials.assign(correct=trials["margin"] > 0)
    refused("^complete separation: margin foretells", "correct ~ margin + (1|run)", table)


def test_complete_separation_by_a_factor_names_its_cell(trials):
    table = trials.assign(correct=trials["method"] == "ppo")
    refused("^complete separation: .*of the cell method = none", "correct ~ method + (1|run) + (1|item)", table)


def test_separation_with_rows_on_the_border_is_quasi_complete(trials):
    table = trials.assign(side=np.sign(trials["margin"].round()))
    table["correct"] = np.where(table["side"] == 0, table["correct"], table["side"] > 0).astype(bool)
    refused("^quasi-complete separation: side foretells", "correct ~ side + (1|run)", table)


def test_what_is_nearly_separated_is_fitted(trials):
    table = trials.assign(correct=trials["correct"] | (trials["method"] == "ppo"))
    table.loc[table.index[table["method"] == "ppo"][0], "correct"] = False
    result = quietly("correct ~ method + (1|run)", table, family="binomial")
    assert result.coefficients.loc["method[T.ppo]", "estimate"] == pytest.approx(np.log(249 / 1), abs=1.5)


def test_a_weak_prior_makes_separated_estimates_finite_and_is_marked(trials):
    table = trials.assign(correct=trials["correct"] | (trials["method"] == "ppo"))
    result = quietly("correct ~ method + (1|run)", table, family="binomial", prior_sd=2.5)
    assert 2 < result.coefficients.loc["method[T.ppo]", "estimate"] < 12
    assert any("no maximum likelihood" in warning for warning in result.warnings)


def test_a_grouping_factor_needs_levels_and_rows(trials):
    refused("'model' has one level only, 'tiny'", "correct ~ 1 + (1|model)", trials.assign(model="tiny"))
    refused("'row' has one row per level", "correct ~ 1 + (1|row)", trials.assign(row=np.arange(len(trials))))
    refused(
        "'row' has 750 random effects", "rt ~ 1 + (1|row)", trials.assign(row=np.arange(len(trials))), family="gaussian"
    )
    refused(
        "'run' and 'name' have the same 15",
        "rt ~ 1 + (1|run) + (1|name)",
        trials.assign(name=trials["run"]),
        family="gaussian",
    )


def test_a_factor_needs_two_levels(trials):
    refused("'model' has one level only", "correct ~ model + (1|run)", trials.assign(model="tiny"))


def test_runs_must_not_be_conditions(trials):
    one = trials[trials["run"].str.endswith("0")]
    refused(r"tell all levels of 'run' apart.*one run per condition", "correct ~ method + (1|run)", one)


def test_a_condition_with_one_run_is_named(trials):
    table = trials[(trials["method"] != "none") | (trials["run"] == "none-0")]
    result = quietly("correct ~ method + (1|run)", table, family="binomial")
    assert any("method = none has one level of run only" in warning for warning in result.warnings)


def test_columns_that_follow_from_others_are_left_out_and_named(trials):
    result = quietly("rt ~ margin + double + (1|run)", trials.assign(double=2 * trials["margin"]))
    assert list(result.coefficients.index) == ["Intercept", "margin"]
    assert "double cannot be estimated and is left out: it follows from margin" in result.warnings


def test_an_empty_cell_is_named_and_its_mean_is_not_estimated(trials):
    table = trials.assign(side=np.where(trials["item"] % 2, "left", "right"))
    other = quietly("rt ~ method*side + (1|run)", table[(table["method"] != "ppo") | (table["side"] == "right")])
    assert any("no row has method = ppo, side = left" in warning for warning in other.warnings)
    table = table[(table["method"] != "ppo") | (table["side"] == "left")]
    result = quietly("rt ~ method*side + (1|run)", table)
    assert any("no row has method = ppo and side = right" in warning for warning in result.warnings)
    means = result.emmeans(["method", "side"]).set_index(["method", "side"])["estimate"]
    assert np.isnan(means["ppo", "right"])
    assert means.notna().sum() == 5


def test_rows_that_are_left_out_are_counted_by_reason(trials):
    table = trials.astype({"correct": float})
    table.loc[:2, "correct"] = np.nan
    table.loc[2:5, "margin"] = np.inf
    table.loc[9, "run"] = None
    with pytest.warns(FitWarning, match="left out: margin is infinite"):
        result = fit("correct ~ margin + (1|run)", table, family="binomial")
    assert result.dropped == {"correct is missing": 3, "margin is infinite": 3, "run is missing": 1}
    assert result.n_dropped == 7
    assert result.n_rows == len(trials) - 7


def test_a_variance_of_0_is_singular(trials):
    rng = np.random.default_rng(0)
    result = quietly("noise ~ 1 + (1|run)", trials.assign(noise=_without_run_means(trials, rng)))
    assert result.singular
    assert result.warnings == ("singular: the variance of Intercept by run is estimated as 0",)
    assert result.variance_components["sd"][0] == 0


def _without_run_means(trials, rng):
    noise = pd.Series(rng.normal(size=len(trials)))
    return noise - noise.groupby(trials["run"]).transform("mean")


def test_repetitions_at_temperature_0_are_no_runs():
    table = simulate(runs=3, items=50)
    first = table[table["run"] == "ppo-0"]
    twin = first.assign(run="ppo-twin")
    result = quietly("correct ~ method + (1|run) + (1|item)", pd.concat([table, twin]), family="binomial")
    assert any("ppo-0 and ppo-twin have the same answers" in warning for warning in result.warnings)


def test_answers_repeated_for_every_participant_are_found(trials):
    stimuli = trials.drop_duplicates("item")[["item", "correct", "margin"]]
    table = stimuli.merge(pd.DataFrame({"participant": [f"p{i}" for i in range(20)]}), how="cross")
    refused("same answers|are the same", "correct ~ margin + (1|participant) + (1|item)", table)
    result = quietly("correct ~ margin + (1|participant)", table, family="binomial")
    assert any("answers repeat within every level of the column 'item'" in warning for warning in result.warnings)


def test_responses_that_do_not_vary_within_levels_are_no_repeated_measures(trials):
    table = trials.assign(rt=trials["run"].map({run: float(i) for i, run in enumerate(trials["run"].unique())}))
    refused("750 rows are 15 independent responses", "rt ~ 1 + (1|run)", table, family="gaussian")


def test_a_response_that_was_computed_from_a_predictor_is_refused(trials):
    refused(
        "give 'rt' exactly",
        "rt ~ margin",
        trials.assign(rt=2 * trials["margin"] + 1),
        family="gaussian",
    )


def test_repeated_cells_are_found(trials):
    result = quietly("correct ~ method + (1|run) + (1|item)", pd.concat([trials, trials]), family="binomial")
    assert any("answers repeat: rows of the same run and item" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        ("correct ~ metod + (1|run)", "did you mean method"),
        ("correct ~ method + 1|run", "in brackets of its own"),
        ("correct method", "is not a formula"),
        ("correct ~ method + (1|run", "bracket"),
        ("correct ~ method + (1|)", "not a random effect|no grouping"),
        ("method ~ 1 + (1|run)", "is not numeric.*two names will do"),
        ("rt ~ method + (1|run)", "must be 0 and 1|outside"),
        ("correct ~ np.log(margin - 9) + (1|run)", "not finite"),
    ],
)
def test_errors_say_what_is_wrong_and_what_to_do(trials, formula, text):
    refused(text, formula, trials)


def test_items_that_agree_by_chance_are_no_repetitions():
    table = simulate(runs=4, items=300)
    result = quietly("correct ~ method + (1|run) + (1|item)", table, family="binomial")
    assert table.pivot_table(index="item", columns="run", values="correct").duplicated().any()
    assert not any("same answers" in warning for warning in result.warnings)


def test_counts_with_one_rate_can_be_fitted_unless_all_or_none_succeed(trials):
    table = pd.DataFrame({"right": [18, 18], "wrong": [2, 2]})
    found = quietly("cbind(right, wrong) ~ 1", table, family="binomial")
    assert found.coefficients["estimate"].iloc[0] == pytest.approx(np.log(9))
    refused("is 1 in all rows", "cbind(right, wrong) ~ 1", table.assign(wrong=0), family="binomial")


# -- counts of 0


@pytest.fixture(scope="module")
def errors():
    """Errors of 8 schools by 4 methods, none of which is made where `method` is both, nor by the young where it is new."""
    rng = np.random.default_rng(2)
    table = pd.DataFrame({"school": np.repeat(np.arange(8), 16), "method": np.tile(["both", "new", "none", "old"], 32)})
    table["age"] = np.tile(np.repeat(["old", "young"], 4), 16)
    table["errors"] = rng.poisson(3, 128) * (table["method"] != "both")
    return table


def test_counts_of_0_throughout_a_cell_are_separation(errors):
    told = r"all 32 counts of the cell method = both are 0, so that the logarithm of their mean is infinite; .*prior_sd=2.5"
    for formula in ("errors ~ method + (1 | school)", "errors ~ method", "errors ~ 0 + method + age + (1 | school)"):
        with pytest.raises(SeparationError, match=told):
            quietly(formula, errors, family="poisson")
        with pytest.raises(SeparationError, match="method = both"):
            quietly(formula, errors, family="poisson", offset=np.linspace(-4, 4, len(errors)))
    number = errors.assign(both=(errors["method"] == "both") * 1.0)
    refused("quasi-complete separation: both foretells counts of 0", "errors ~ both + age", number, family="poisson")
    found = quietly("errors ~ method + (1 | school)", errors, family="poisson", prior_sd=2.5)
    assert found.coefficients.loc["method[T.new]", "se"] < 3


def test_a_zero_inflated_cell_of_two_factors_is_named(errors):
    table = errors[errors["method"] != "both"]
    table = table.assign(errors=table["errors"].where((table["method"] != "new") | (table["age"] != "young"), 0))
    refused("method = new, age = young are 0", "errors ~ method*age + (1 | school)", table, family="poisson")
    # Without the interaction, and with one error in the cell, nothing is infinite.
    assert quietly("errors ~ method + age + (1 | school)", table, family="poisson").converged
    some = table.copy()
    some.loc[some.index[(some["method"] == "new") & (some["age"] == "young")][0], "errors"] = 1
    found = quietly("errors ~ method*age + (1 | school)", some, family="poisson")
    assert found.coefficients["se"].max() < 2


@pytest.mark.parametrize("kind", ["cbind", "trials", "share"])
@pytest.mark.parametrize("right", [0, 1])
def test_counts_out_of_trials_are_separated_as_single_answers_are(errors, kind, right):
    n = 2 + errors["school"] % 3
    k = np.where(errors["method"] == "both", n * right, n // 2)
    table = errors.assign(k=k, n=n, wrong=n - k, share=k / n)
    formula, settings = {
        "cbind": ("cbind(k, wrong) ~ method + (1 | school)", {}),
        "trials": ("k ~ method + (1 | school)", {"trials": "n"}),
        "share": ("share ~ method + (1 | school)", {"weights": "n"}),
    }[kind]
    refused(f"the response is {right} in all .* answers of the cell method = both", formula, table, **settings)


def test_large_and_rare_counts_are_not_taken_for_separation(errors):
    rng = np.random.default_rng(5)
    for mean in (1e-2, 1e7):
        table = errors.assign(errors=rng.poisson(mean * (1 + (errors["age"] == "young")), len(errors)))
        table.loc[table.index[:8], "errors"] += 1
        assert quietly("errors ~ age + (1 | school)", table, family="poisson").coefficients["se"].max() < 10


# -- effects that cannot be told apart


@pytest.mark.parametrize("bar", ["|", "||"])
def test_a_slope_of_a_constant_is_refused(trials, bar):
    refused(
        r"gain is 0.5 in all rows: its slope by 'item' is the intercept",
        f"correct ~ 1 + (gain {bar} item)",
        trials.assign(gain=0.5),
    )
    refused(
        "twice is a multiple of margin",
        f"correct ~ 1 + (margin + twice {bar} run)",
        trials.assign(twice=2 * trials["margin"]),
    )
    with pytest.raises(FitError, match="the factor 'one' has one level only"):
        quietly(f"rt ~ 1 + (one {bar} item)", trials.assign(one="a"))
    alone = quietly("rt ~ 1 + (0 + gain | item)", trials.assign(gain=0.5))  # a variance of its own, on another scale
    assert alone.log_likelihood == pytest.approx(quietly("rt ~ 1 + (1 | item)", trials).log_likelihood, abs=1e-6)


@pytest.mark.parametrize(("effects", "name"), [("margin", "margin"), ("method", r"method\[T.sft\]"), ("age", "age")])
def test_a_slope_that_does_not_vary_within_levels_is_named(trials, effects, name):
    table = trials.assign(age=trials["run"].astype("category").cat.codes % 7 + 20.0)
    group = {"margin": "item"}.get(effects, "run")
    with pytest.warns(FitWarning, match=f"^{name} does not vary within any level of {group}"):
        fit(f"rt ~ 1 + ({effects} || {group})", table)
    within = quietly("rt ~ 1 + (margin || run)", table)
    assert not any("does not vary" in warning for warning in within.warnings)


def test_correlations_of_effects_that_no_level_has_both_of_are_refused(trials):
    refused(
        r"no level of 'run' has both method\[none\] and method\[sft\].*write \|\| for \|",
        "correct ~ 1 + (0 + method | run)",
        trials,
    )
    assert quietly("correct ~ 1 + (0 + method || run)", trials, family="binomial").n_groups == {"run": 15}
