from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from tests.analysis.conftest import saying
from vlm_probe.analysis.shortcut_rules import adjusted_success, cue_reliance, item_rules, reliance_by_method
from vlm_probe.stimuli.dataset import StimulusSet

Make = Callable[..., pd.DataFrame]
A = "towers-stability"
BASE = {("none", "none", "towers-stability"): 0.0}
TRAINED = {("sft", "towers-stability", "towers-stability"): 1.5}


def rules_of(trials: pd.DataFrame, share: float) -> pd.DataFrame:
    """A rule that is right on this share of the items, as often for one answer as for the other."""
    index = trials["pair_id"].str.extract(r"p(\d+)$")[0].astype(int).to_numpy()
    return pd.DataFrame({"item_id": trials["item_id"], "neighbour": index % 10 < 10 * share})


def test_who_follows_a_rule_is_adjusted_to_chance(simulated: Make) -> None:
    trials = simulated(BASE, items=200)
    rules = rules_of(trials, 0.8)
    other = np.where(trials["truth"] == "stands", "falls", "stands")
    follower = saying(trials, np.where(rules["neighbour"], trials["truth"], other))
    row = adjusted_success(follower, rules).table.iloc[0]
    assert (row["rate"], row["rule_rate"]) == pytest.approx((0.8, 0.8))
    assert (row["where_right"], row["where_wrong"], row["adjusted"]) == pytest.approx((1, 0, 0.5))
    physicist = adjusted_success(saying(trials, trials["truth"].to_numpy()), rules).table.iloc[0]
    assert physicist["adjusted"] == pytest.approx(1)


def test_adjusting_for_all_rules_is_a_regression(simulated: Make) -> None:
    trials = simulated({("none", "none", "towers-stability"): 0.7}, items=200)
    rng = np.random.default_rng(1)
    rules = rules_of(trials, 0.7).assign(height=rng.random(200) < 0.6, always=True)
    rules["copy"] = ~rules["neighbour"]
    found = adjusted_success(trials, rules)
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
        adjusted_success(trials, pd.DataFrame({"item_id": ["x"], "rule": [True]}))


def test_weights_tell_who_follows_a_cue_from_who_follows_the_margin(simulated: Make) -> None:
    trials = simulated({("sft", A, A): 0.0, ("grpo", A, A): 0.0}, runs=3, items=200)
    rules = rules_of(trials, 0.7).drop_duplicates("item_id")
    right = trials["item_id"].map(rules.set_index("item_id")["neighbour"]).to_numpy(bool)
    other = np.where(trials["truth"] == "stands", "falls", "stands")
    of_rule = np.where(right, trials["truth"], other)
    follows = (trials["method"] == "grpo").to_numpy(bool)
    noise = np.random.default_rng(0).random(len(trials)) < 0.1
    given = np.where(follows, of_rule, trials["truth"])
    found = cue_reliance(saying(trials, np.where(noise, "stands", given)), rules)
    weight = found.table.set_index(["method", "cue"])["weight"]
    assert weight["grpo", "neighbour"] > 0.8 and abs(weight["grpo", "margin"]) < 0.15
    assert weight["sft", "margin"] > 0.4 and weight["sft", "neighbour"] < weight["grpo", "neighbour"] - 0.4
    methods = reliance_by_method(found, ("ppo", "grpo")).table.set_index("cue")
    assert methods.loc["neighbour", "difference"] == pytest.approx(
        weight["grpo", "neighbour"] - weight["sft", "neighbour"]
    )
    assert methods.loc["neighbour", "p"] < 0.01 and methods.loc["neighbour", "difference_low"] > 0
