from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, ttest_1samp

from tests.analysis.conftest import saying
from vlm_probe.analysis.minimal_pairs import pairs

Make = Callable[..., pd.DataFrame]
BASE = {("none", "none", "towers-stability"): 0.0}
TRAINED = {("sft", "towers-stability", "towers-stability"): 1.5}


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
