from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp, ttest_ind
from statsmodels.stats.multitest import multipletests

from vlm_probe.analysis import fit
from vlm_probe.analysis.contrasts import planned_contrasts
from vlm_probe.analysis.equivalence import jzs
from vlm_probe.analysis.frame import from_table

Make = Callable[..., pd.DataFrame]
A, B = "towers-stability", "towers-topblock"
REFERENCE = {
    ("none", "none", A): 0.0, ("none", "none", B): 0.2, ("sft", A, A): 1.5, ("grpo", A, A): 1.0, ("ppo", A, A): 1.0,
    ("sft", A, B): 0.0, ("grpo", A, B): 0.3, ("ppo", A, B): 0.6,
}  # fmt: skip


def test_contrasts_are_those_of_lme4_and_emmeans(simulated: Make) -> None:
    # Two tests at one level, so that contrasts are means over them.
    trials = simulated(REFERENCE, runs=4, items=40, run_sd=0.5, item_sd=0.7, seed=3)
    trials.loc[trials["method"] != "none", "transfer"] = "within"
    found = planned_contrasts(trials)
    table = found.table.set_index("contrast")
    # glmer(success ~ method*test + (0 + trained | run) + (0 + trained | run:test) + (1 | item)), emmeans 1.8.
    for name, estimate, se in (("RL − SFT", -0.12056, 0.22103), ("GRPO − base", 0.12889, 0.29700)):
        assert table.loc[name, "b"] == pytest.approx(estimate, abs=0.005 * se)
        assert table.loc[name, "se"] == pytest.approx(se, rel=0.01)
        assert table.loc[name, "odds_ratio"] == pytest.approx(math.exp(estimate), rel=0.003)
        assert table.loc[name, "df"] >= 9 and table.loc[name, "n_tests"] == 2
    # Nearly all of the variance between methods is between runs, and much of that against the one base model is not.
    assert table.loc["RL − SFT", "df"] < 11 < table.loc["GRPO − base", "df"]
    row = found.omnibus.iloc[0]
    # anova() of the same fits, and logLik -657.7465 of the model with tests alone.
    assert row["chi2"] == pytest.approx(2 * (657.74648 - 654.05508), abs=0.01) and row["df"] == 6
    # BIC of one parameter and 13 runs, from the Wald statistic.
    assert table.loc["RL − SFT", "bf01_bic"] == pytest.approx(math.sqrt(13) * math.exp(-(0.5454**2) / 2), rel=0.01)


def test_the_tests_on_these_items_are_t_tests(simulated: Make) -> None:
    trials = simulated(
        {("none", "none", A): 0.0, ("sft", A, A): 1.0, ("grpo", A, A): 1.5}, runs=5, items=40, run_sd=0.4
    )
    table = planned_contrasts(trials).table.set_index("contrast")
    rates = trials.groupby(["method", "run"])["success"].mean()
    sft, grpo, base = rates["sft"].to_numpy(), rates["grpo"].to_numpy(), float(rates["none"].iloc[0])
    both = ttest_ind(grpo, sft)
    assert table.loc["RL − SFT", "p_runs"] == pytest.approx(both.pvalue)
    assert table.loc["RL − SFT", "run_df"] == both.df == 8
    # Against the untrained model, which is a constant, with the spread pooled over both methods.
    one = table.loc["SFT − base"]
    pooled = math.sqrt((sft.var(ddof=1) + grpo.var(ddof=1)) / 2 / 5)
    assert one["run_difference"] == pytest.approx(sft.mean() - base) and one["run_se"] == pytest.approx(pooled)
    single = planned_contrasts(trials[trials["method"] != "grpo"]).table.iloc[0]
    assert single["p_runs"] == pytest.approx(ttest_1samp(sft - base, 0).pvalue)


def test_the_test_over_runs_and_items_is_the_linear_mixed_model(simulated: Make) -> None:
    trials = simulated({("none", "none", A): 0.0, ("sft", A, A): 1.0}, runs=5, items=40, run_sd=0.9, item_sd=0.7)
    row = planned_contrasts(trials).table.iloc[0]
    wide = trials.pivot(index="item_id", columns="run", values="success").astype(float)
    base = next(run for run in wide if run in set(trials.loc[trials["method"] == "none", "run"]))
    gains = wide.drop(columns=base).sub(wide[base], axis=0).melt(ignore_index=False, value_name="gain").reset_index()
    model = fit("gain ~ 1 + (1 | run) + (1 | item_id)", gains)
    assert not model.singular
    mean = model.coefficients.iloc[0]
    assert row["run_difference"] == pytest.approx(mean["estimate"])
    assert row["means_se"] == pytest.approx(mean["se"], rel=1e-5) and row["means_se"] > row["run_se"]
    assert row["means_df"] == pytest.approx(mean["df"], rel=1e-3) and row["p_means"] == pytest.approx(
        mean["p"], rel=1e-3
    )
    assert row["about"] == "runs and items"
    assert row["bf01"] == pytest.approx(jzs(mean["statistic"], mean["df"], 5).bf01, rel=1e-3)


def test_answers_of_the_untrained_model_are_a_sample_of_items() -> None:
    # Three trainings with the same rate, on average 6 of 60 more than the base; McNemar's test of any of them says p = .3.
    rng = np.random.default_rng(0)
    runs = {
        f"sft-{seed}": list(rng.permutation([1] * (36 + (-1, 0, 1)[seed]) + [0] * (24 - (-1, 0, 1)[seed])))
        for seed in range(3)
    }
    row = planned_contrasts(answers({"none": [1, 0] * 30, **runs})).table.iloc[0]
    assert row["p_runs"] < 0.01 and row["p_means"] > 0.1 and row["p"] > 0.1


def test_one_run_of_a_kind_is_about_items_alone() -> None:
    row = planned_contrasts(answers({"none": [1, 0] * 30, "sft-0": [1, 1, 0] * 20})).table.iloc[0]
    assert (
        row["about"] == "items"
        and row["means_df"] == pytest.approx(59)
        and np.isnan(row["p_runs"])
        and np.isnan(row["bf01"])
    )
    paired = ttest_1samp(np.array([1, 1, 0] * 20) - np.array([1, 0] * 30), 0)
    assert row["p_means"] == pytest.approx(paired.pvalue)


def test_levels_of_transfer_are_families_of_their_own(simulated: Make) -> None:
    cells = {("none", "none", t): 0.0 for t in (A, B)} | {
        (m, own, t): 1.5 if own == t else 0.0 for m in ("sft", "grpo") for own in (A, B) for t in (A, B)
    }
    found = planned_contrasts(simulated(cells, runs=3, items=40, run_sd=0.2, item_sd=0.4))
    table = found.table
    assert table["transfer"].tolist() == ["within"] * 3 + ["cross-task"] * 3
    assert table["contrast"].tolist() == ["SFT − base", "GRPO − base", "RL − SFT"] * 2
    for _, family in table.groupby("transfer"):
        assert family["p_holm"].to_numpy() == pytest.approx(multipletests(family["p"], method="holm")[1])
    within, across = table.iloc[0], table.iloc[3]
    assert within["p_holm"] < 0.01 and within["verdict"] == "different" and within["bf01"] < 0.1
    assert across["p_holm"] > 0.05 and across["difference_low"] < 0 < across["difference_high"]
    assert set(found.run_means["transfer"]) == {"within", "cross-task"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_no_transfer_with_enough_trials_is_equivalence(simulated: Make) -> None:
    cells = {("none", "none", B): 0.0, ("sft", A, B): 0.0, ("grpo", A, B): 0.0}
    row = planned_contrasts(simulated(cells, runs=6, items=200, seed=5), bound=0.1).table.iloc[2]
    assert row["contrast"] == "RL − SFT" and row["verdict"] == "equivalent" and row["p_equivalence"] < 0.01
    assert row["bf01"] > 1


def test_contrasts_use_the_tests_that_both_sides_took(simulated: Make) -> None:
    cells = {
        ("none", "none", A): 0.0,
        ("none", "none", B): 0.0,
        ("sft", A, A): 1.0,
        ("sft", B, B): 1.0,
        ("ppo", A, A): 1.0,
    }
    table = planned_contrasts(simulated(cells, runs=3, items=40)).table.set_index("contrast")
    assert table["n_tests"].to_dict() == {"SFT − base": 2, "PPO − base": 1, "RL − SFT": 1}


def test_other_regimes_are_left_out(simulated: Make) -> None:
    trials = simulated({("none", "none", A): 0.0, ("sft", A, A): 1.0}, runs=3, items=40).assign(regime="")
    special = trials[trials["method"] == "sft"].assign(regime="shift camera", run=lambda t: t["run"] + " c", success=0)
    both = planned_contrasts(pd.concat([trials, special])).table.iloc[0]
    assert both["n_runs"] == 3 and both["b"] > 0


def test_untrained_models_alone_have_no_contrasts(simulated: Make) -> None:
    with pytest.raises(ValueError, match="trained model"):
        planned_contrasts(simulated({("none", "none", A): 0.0}))


@pytest.mark.slow
def test_few_seeds_do_not_reject_too_often(simulated: Make) -> None:
    """Under a true null with runs that differ, for three seeds a method (z tests reject .105 here)."""
    cells = {("none", "none", B): 0.0, ("sft", A, B): 0.0, ("grpo", A, B): 0.0}
    p = []
    for seed in range(300):
        trials = simulated(cells, runs=3, items=100, run_sd=0.3, item_sd=0.7, seed=seed)
        table = planned_contrasts(trials).table.set_index("contrast")
        p.append([*table.loc["RL − SFT", ["p", "p_runs"]], table.loc["SFT − base", "p"]])
    rejected = (np.array(p, dtype=float) < 0.05).mean(0)
    # 300 draws: .05 +- .025 with probability .95.
    assert (rejected < 0.09).all() and (rejected > 0.01).all(), rejected


def answers(runs: dict[str, list[int]]) -> pd.DataFrame:
    """Answers of runs to the same items: `none` of the untrained model, `sft-0` of a method's first seed."""
    rows = [
        {
            "run": run,
            "method": (method := run.partition("-")[0]),
            "seed": int(run[-1]) if run[-1].isdigit() else 0,
            "item_id": f"i{k}",
            "correct": right,
        }
        | {"test_task": "towers-stability", "train_tasks": "none" if method == "none" else "towers-stability"}
        | {"transfer": None if method == "none" else "within", "model": "tiny"}
        for run, given in runs.items()
        for k, right in enumerate(given)
    ]
    return from_table(pd.DataFrame(rows)).table


def test_runs_with_the_same_answers_count_once() -> None:
    # Against 30 of 60, 40 of 60 are p = .07; three runs at temperature 0 that agree in everything do not make it .02.
    untrained, trained = [1, 0] * 30, [1, 1, 0] * 20
    found = planned_contrasts(answers({"none": untrained, **{f"sft-{seed}": trained for seed in range(3)}}))
    row = found.table.iloc[0]
    assert row["se"] == pytest.approx(math.sqrt(1 / 30 + 1 / 30 + 1 / 40 + 1 / 20), rel=0.04)
    assert 0.05 < row["p"] < 0.1 and row["verdict"] == "undecided"
    assert any("most items are (quasi-)separated" in note for note in found.notes)
    assert np.isnan(found.omnibus["p"].iloc[0])


@pytest.mark.parametrize("items", [1, 2])
def test_an_item_or_two_make_nothing_certain(items: int) -> None:
    found = planned_contrasts(answers({"none": [0] * items, **{f"sft-{seed}": [1] * items for seed in range(3)}}))
    row = found.table.iloc[0]
    assert row["p"] > 0.1 and row["verdict"] == "undecided" and -1 < row["difference_low"] < 0


def test_intervals_of_differences_stay_within_bounds_near_the_ceiling() -> None:
    runs = {f"sft-{seed}": [1] * 60 for seed in range(3)}
    row = planned_contrasts(answers({"none": [1] * 57 + [0] * 3, **runs})).table.iloc[0]
    assert -1 < row["difference_low"] < row["difference"] < row["difference_high"] < 1
    assert row["p"] > 0.05 and row["verdict"] == "undecided"  # 57 of 60 may be 52 in 60


def test_one_kind_of_run_alone_has_no_contrast() -> None:
    with pytest.raises(ValueError, match="add runs of the untrained model"):
        planned_contrasts(answers({"sft-0": [1, 0] * 30, "sft-1": [1, 1, 0] * 20}))


def test_the_ceiling_is_found_and_two_ceilings_are_equivalent() -> None:
    # The finding of many a study: at the ceiling on the trained task. Wald's test says p = .06 here (Hauck & Donner).
    half, right = [1, 0] * 30, [1] * 60
    runs = {f"{method}-{seed}": right for method in ("sft", "grpo") for seed in range(2)}
    table = planned_contrasts(answers({"none": half, **runs})).table.set_index("contrast")
    sft, both = table.loc["SFT − base"], table.loc["RL − SFT"]
    assert sft["interval"] == "profile" and sft["p"] < 0.01 and sft["verdict"] == "different"
    assert 0.3 < sft["difference_low"] < 0.5 < sft["difference_high"] < 0.7
    assert both["p"] == pytest.approx(1.0, abs=1e-6) and both["verdict"] == "equivalent"
    # An upper limit of the failures among 60 of about 4 to 6 % on either side: .06 or so of difference.
    assert (
        both["difference_high"] == pytest.approx(-both["difference_low"], abs=1e-3) and both["difference_high"] < 0.08
    )


def test_where_nobody_errs_nothing_differs() -> None:
    found = planned_contrasts(answers({"none": [1] * 60, **{f"sft-{seed}": [1] * 60 for seed in range(3)}}))
    row = found.table.iloc[0]
    assert (
        row["p"] > 0.5 and row["verdict"] == "equivalent" and -0.15 < row["difference_low"] < 0 < row["difference_high"]
    )
    # With a handful of items the same agreement says little.
    few = planned_contrasts(answers({"none": [1] * 6, **{f"sft-{seed}": [1] * 6 for seed in range(3)}})).table.iloc[0]
    assert few["p"] > 0.5 and few["verdict"] == "undecided"


def test_the_same_answers_from_all_are_no_difference() -> None:
    same = [1, 0, 1] * 20
    runs = {f"{method}-{seed}": same for method in ("sft", "grpo") for seed in range(2)}
    table = planned_contrasts(answers({"none": same, **runs})).table
    assert (table["p"] > 0.99).all() and (table["verdict"] == "equivalent").all()
    # None of 60 items differs, so that up to 5 % may (the rule of three), and the rates by as much.
    assert (table["difference_high"].between(0.02, 0.06)).all()
    few = planned_contrasts(answers({run: given[:6] for run, given in {"none": same, **runs}.items()})).table
    assert (few["p"] > 0.99).all() and (few["verdict"] == "undecided").all()


def test_a_difference_of_rates_has_the_interval_of_its_parts() -> None:
    # One run each and no effect of items: independent rates, whose intervals combine as Newcombe (1998) does.
    from vlm_probe.analysis.cell_model import fit_cells
    from vlm_probe.analysis.transfer import with_names

    fitted = fit_cells(
        with_names(answers({"none": [1, 0, 1] * 20, "sft-0": [1, 1, 1, 0] * 15})), ["method"], allowed=["none"]
    )
    base, sft, found = fitted.rate("none"), fitted.rate("sft"), fitted.rate_contrast({"sft": 1, "none": -1})
    assert found.value == pytest.approx(0.75 - 2 / 3, abs=1e-6)
    below = math.hypot(sft.value - sft.low, base.high - base.value)
    above = math.hypot(sft.high - sft.value, base.value - base.low)
    assert (found.low, found.high) == pytest.approx((found.value - below, found.value + above), abs=1e-6)
