from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from tests.analysis.conftest import answering, saying
from vlm_probe.analysis.clustered import clustered
from vlm_probe.analysis.controls import controls
from vlm_probe.analysis.error_consistency import error_consistency
from vlm_probe.analysis.frame import from_table
from vlm_probe.analysis.psychometric import psychometric
from vlm_probe.analysis.selection import item_groups, plain_trials
from vlm_probe.analysis.shortcut_rules import adjusted_success

Make = Callable[..., pd.DataFrame]
BASE = {("none", "none", "towers-stability"): 1.0}


@pytest.fixture
def foreign(simulated: Make) -> pd.DataFrame:
    """A table of other people, who know of no groups of items: the tidy table has a column without a value."""
    trials = simulated(BASE, items=200)
    trials = answering(trials, norm.cdf(trials["margin"] / 0.3))
    return from_table(trials.drop(columns=["group_id", "pair_id"])).table


def test_items_without_a_group_are_on_their_own(foreign: pd.DataFrame) -> None:
    assert foreign["group_id"].isna().all() and len(set(item_groups(foreign))) == 200
    some = foreign.assign(group_id=np.where(foreign.index < 4, "g", None))
    assert len(set(item_groups(some))) == psychometric(some, resamples=5).runs["groups"].iloc[0] == 197


def test_intervals_of_tables_without_groups_are_those_of_items(foreign: pd.DataFrame) -> None:
    run = psychometric(foreign, resamples=50).runs.iloc[0]
    assert run["groups"] == 200 and run["slope_low"] < run["slope"] < run["slope_high"]
    blank = saying(foreign, np.random.default_rng(0).choice(["stands", "falls"], 200)).assign(manner="blank")
    found = controls(pd.concat([foreign, blank])).table.iloc[0]
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    rules = pd.DataFrame({"item_id": foreign["item_id"].astype(str), "rule": np.arange(200) % 3 > 0})
    row = adjusted_success(foreign, rules).table.iloc[0]
    assert row["adjusted_low"] < row["adjusted"] < row["adjusted_high"]
    observer = answering(foreign, norm.cdf(foreign["margin"] / 0.5), seed=4).assign(model="noisy-simulation")
    kappa = error_consistency(foreign, observer, resamples=50).table.iloc[0]
    assert kappa["kappa_low"] < kappa["kappa"] < kappa["kappa_high"]


def test_an_item_that_was_asked_with_one_attempt_and_with_several_counts_once(simulated: Make) -> None:
    single = simulated(BASE, items=40)
    several = pd.concat([single.assign(attempts=3, attempt=k, success=0) for k in (1, 2, 3)])
    both = pd.concat([several, single.assign(attempts=1, attempt=1)])
    kept = plain_trials(both)
    assert len(kept) == 40 and (kept["attempts"] == 1).all()
    assert len(plain_trials(several)) == 40
    blank = single.assign(attempts=1, attempt=1, manner="blank")
    row = controls(pd.concat([both, blank])).table.iloc[0]
    assert row["n_items"] == 40 and row["intact_rate"] == pytest.approx(single["success"].mean())


def test_as_many_coefficients_as_rows_leave_no_variance() -> None:
    value, variance = clustered(np.array([1.0, 0.0]), np.array([[1, 0.5], [1, -0.5]]), np.array(["a", "b"]))
    assert value == pytest.approx(0.5) and np.isnan(variance)
