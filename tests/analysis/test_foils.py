from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.stats import binomtest, ttest_1samp

from analysis.foils import adjusted_accuracy, controls, item_rules, pairs
from stimuli.dataset import StimulusSet

Make = Callable[..., pd.DataFrame]
BASE = {("none", "none", "towers-stability"): 0.0}
TRAINED = {("sft", "towers-stability", "towers-stability"): 1.5}


def saying(trials: pd.DataFrame, answer: np.ndarray) -> pd.DataFrame:
    right = (answer == trials["truth"].to_numpy()).astype(int)
    return trials.assign(answer=answer, correct=right, success=right)


def test_a_constant_answer_gets_no_pair_right(simulated: Make) -> None:
    trials = simulated(BASE, items=80)
    row = pairs(saying(trials, np.full(80, "stands"))).table.iloc[0]
    assert (row["both_right"], row["none_right"], row["same_answer"]) == (0, 0, 1)
    assert row["net"] == 0 and row["net_low"] < 0 < row["net_high"] and row["n_pairs"] == 40


def test_pairs_of_one_run_are_counted_and_tested_exactly(simulated: Make) -> None:
    trials = simulated({("none", "none", "towers-stability"): 1.0}, items=80)
    row = pairs(trials).table.iloc[0]
    right = trials.groupby("pair_id")["success"].sum()
    both, none = int((right == 2).sum()), int((right == 0).sum())
    assert row["both_right"] == pytest.approx(both / 40) and row["none_right"] == pytest.approx(none / 40)
    assert row["net"] == pytest.approx((both - none) / 40)
    assert row["p"] == pytest.approx(binomtest(both, both + none).pvalue)


def test_pairs_over_runs_use_the_spread_between_runs(simulated: Make) -> None:
    trials = simulated(TRAINED, runs=5, items=200)
    row = pairs(trials).table.iloc[0]
    right = trials.groupby(["run", "pair_id"])["success"].sum().unstack()
    net = ((right == 2).mean(axis=1) - (right == 0).mean(axis=1)).to_numpy()
    expected = ttest_1samp(net, 0)
    assert row["net"] == pytest.approx(net.mean(), abs=0.01)
    assert row["p"] < 0.01 and expected.pvalue < 0.01 and row["n_runs"] == 5


def test_broken_pairs_are_left_out(simulated: Make) -> None:
    trials = simulated(BASE, items=40)
    assert pairs(trials.iloc[1:]).table["n_pairs"].iloc[0] == 19
    with pytest.raises(ValueError, match="no minimal pair"):
        pairs(trials[trials["role"] == "base"])


def test_a_control_that_takes_everything_away(simulated: Make) -> None:
    intact = simulated(TRAINED, runs=4, items=100)
    rng = np.random.default_rng(0)
    blank = saying(intact, rng.choice(["stands", "falls"], len(intact))).assign(manner="blank")
    found = controls(pd.concat([intact, blank])).table.iloc[0]
    per_run = (blank["success"] - intact["success"]).groupby(intact["run"]).mean()
    assert found["difference"] == pytest.approx(per_run.mean(), abs=0.01)
    assert found["intact_rate"] == pytest.approx(intact["success"].mean())
    assert found["difference_high"] < -0.1 and found["df"] == 3 and found["n_items"] == 400
    assert found["same_answer"] == pytest.approx((blank["answer"] == intact["answer"]).mean())


def test_a_model_that_never_looks_loses_nothing(simulated: Make) -> None:
    intact = simulated(BASE, items=60)
    found = controls(pd.concat([intact, intact.assign(manner="blank"), intact.assign(examples=3)])).table
    assert found["manner"].tolist() == ["blank", "3 examples"]
    assert (found["difference"] == 0).all() and (found["same_answer"] == 1).all()
    assert (found["difference_low"] < 0).all() and (found["p"] > 0.9).all()
    with pytest.raises(ValueError, match="another manner"):
        controls(intact)


def rules_of(trials: pd.DataFrame, share: float) -> pd.DataFrame:
    """A rule that is right on this share of the items, as often for one answer as for the other."""
    index = trials["pair_id"].str.extract(r"p(\d+)$")[0].astype(int).to_numpy()
    return pd.DataFrame({"item_id": trials["item_id"], "neighbour": index % 10 < 10 * share})


def test_who_follows_a_rule_is_adjusted_to_chance(simulated: Make) -> None:
    trials = simulated(BASE, items=200)
    rules = rules_of(trials, 0.8)
    other = np.where(trials["truth"] == "stands", "falls", "stands")
    follower = saying(trials, np.where(rules["neighbour"], trials["truth"], other))
    row = adjusted_accuracy(follower, rules).table.iloc[0]
    assert (row["rate"], row["rule_rate"]) == pytest.approx((0.8, 0.8))
    assert (row["where_right"], row["where_wrong"], row["adjusted"]) == pytest.approx((1, 0, 0.5))
    physicist = adjusted_accuracy(saying(trials, trials["truth"].to_numpy()), rules).table.iloc[0]
    assert physicist["adjusted"] == pytest.approx(1)


def test_adjusting_for_all_rules_is_a_regression(simulated: Make) -> None:
    trials = simulated({("none", "none", "towers-stability"): 0.7}, items=200)
    rng = np.random.default_rng(1)
    rules = rules_of(trials, 0.7).assign(height=rng.random(200) < 0.6, always=True)
    rules["copy"] = ~rules["neighbour"]
    found = adjusted_accuracy(trials, rules)
    assert found.table["rule"].tolist() == ["neighbour", "height", "copy", "all rules"]
    design = np.column_stack([np.ones(200), rules[["neighbour", "height"]].to_numpy(float) - 0.5])
    groups = pd.factorize(trials["group_id"])[0]
    expected = sm.OLS(trials["success"].to_numpy(float), design).fit()
    robust = expected.get_robustcov_results("cluster", groups=groups)
    row = found.table.iloc[-1]
    assert row["adjusted"] == pytest.approx(expected.params[0])
    half = (row["adjusted_high"] - row["adjusted_low"]) / 2 / 1.959964
    assert half == pytest.approx(robust.bse[0], rel=1e-6)
    one = found.table.iloc[0]
    assert one["adjusted"] == pytest.approx((one["where_right"] + one["where_wrong"]) / 2)
    assert any("always" in note for note in found.notes) and any("copy" in note for note in found.notes)


def test_rules_come_from_the_stimulus_set(stability: StimulusSet) -> None:
    rules = item_rules(stability.path)
    assert len(rules) == 24 and set(rules.columns) > {"item_id"} and rules.iloc[:, 1].dtype == bool
    listed = stability.card["baselines"]["shortcuts"]
    for name in rules.columns[1:]:
        assert rules[name].mean() == pytest.approx(listed[name], abs=1e-3)


def test_rules_of_other_items_are_refused(simulated: Make) -> None:
    trials = simulated(BASE, items=20)
    with pytest.raises(ValueError, match="none of the items"):
        adjusted_accuracy(trials, pd.DataFrame({"item_id": ["x"], "rule": [True]}))
