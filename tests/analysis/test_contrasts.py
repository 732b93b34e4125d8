from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp, ttest_ind
from statsmodels.stats.multitest import multipletests

from analysis.contrasts import planned_contrasts
from analysis.equivalence import bayes_factor

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


def test_the_tests_on_run_means_are_t_tests(simulated: Make) -> None:
    trials = simulated(
        {("none", "none", A): 0.0, ("sft", A, A): 1.0, ("grpo", A, A): 1.5}, runs=5, items=40, run_sd=0.4
    )
    table = planned_contrasts(trials).table.set_index("contrast")
    rates = trials.groupby(["method", "run"])["success"].mean()
    sft, grpo, base = rates["sft"].to_numpy(), rates["grpo"].to_numpy(), float(rates["none"].iloc[0])
    both = ttest_ind(grpo, sft)
    assert table.loc["RL − SFT", "p_runs"] == pytest.approx(both.pvalue)
    assert table.loc["RL − SFT", "run_df"] == both.df == 8
    assert table.loc["RL − SFT", "bf01"] == pytest.approx(bayes_factor(grpo, sft).bf01)
    # Against the untrained model, which is a constant, with the spread pooled over both methods.
    one = table.loc["SFT − base"]
    pooled = math.sqrt((sft.var(ddof=1) + grpo.var(ddof=1)) / 2 / 5)
    assert one["run_difference"] == pytest.approx(sft.mean() - base) and one["run_se"] == pytest.approx(pooled)
    single = planned_contrasts(trials[trials["method"] != "grpo"]).table.iloc[0]
    assert single["p_runs"] == pytest.approx(ttest_1samp(sft - base, 0).pvalue)
    assert single["bf01"] == pytest.approx(bayes_factor(sft - base).bf01)


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
