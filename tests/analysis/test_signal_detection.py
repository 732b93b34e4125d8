from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from vlm_probe.analysis.signal_detection import sensitivity, signal_detection

counts = st.integers(0, 500)


def test_a_table_worked_by_hand() -> None:
    # (20 + .5) / 26 = .7885 and (10 + .5) / 26 = .4038; z = .8011 and -.2434.
    found = signal_detection(hits=20, misses=5, false_alarms=10, correct_rejections=15)
    assert found.d_prime == pytest.approx(1.0445, abs=1e-3)
    assert found.criterion == pytest.approx(-0.2788, abs=1e-3)
    assert (found.n_signal, found.n_noise) == (25, 25)


def test_perfect_answers_are_finite_and_unbiased() -> None:
    found = signal_detection(50, 0, 0, 50)
    assert 4 < found.d_prime < 6
    assert found.criterion == 0.0


def test_always_yes_has_no_sensitivity_and_a_liberal_criterion() -> None:
    found = signal_detection(50, 0, 50, 0)
    assert found.d_prime == pytest.approx(0.0)
    assert found.criterion < -2


def test_one_state_of_the_world_alone_is_undefined() -> None:
    found = signal_detection(10, 3, 0, 0)
    assert math.isnan(found.d_prime) and math.isnan(found.criterion)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        signal_detection(-1, 0, 0, 0)


@given(counts, counts, counts, counts)
def test_naming_the_other_state_signal_keeps_sensitivity_and_turns_bias_round(h: int, m: int, f: int, c: int) -> None:
    this, other = signal_detection(h, m, f, c), signal_detection(c, f, m, h)
    if h + m and f + c:
        assert this.d_prime == pytest.approx(other.d_prime, abs=1e-9)
        assert this.criterion == pytest.approx(-other.criterion, abs=1e-9)
    else:
        assert math.isnan(this.d_prime) and math.isnan(other.d_prime)


def test_the_parameters_of_a_simulated_observer_come_back() -> None:
    rng, n, d_prime, criterion = np.random.default_rng(0), 20_000, 1.2, 0.3
    hits = int(rng.binomial(n, norm.sf(criterion - d_prime / 2)))
    false_alarms = int(rng.binomial(n, norm.sf(criterion + d_prime / 2)))
    found = signal_detection(hits, n - hits, false_alarms, n - false_alarms)
    assert found.d_prime == pytest.approx(d_prime, abs=0.05)
    assert found.criterion == pytest.approx(criterion, abs=0.03)


def test_the_sampling_variances_are_those_of_simulated_observers() -> None:
    rng, n = np.random.default_rng(2), 200
    hits, false_alarms = rng.binomial(n, 0.8, 1500), rng.binomial(n, 0.3, 1500)
    found = [signal_detection(int(h), n - int(h), int(f), n - int(f)) for h, f in zip(hits, false_alarms, strict=True)]
    d_variance, c_variance = np.mean([x.variances for x in found], axis=0)
    assert d_variance == pytest.approx(np.var([x.d_prime for x in found]), rel=0.1)
    assert c_variance == pytest.approx(np.var([x.criterion for x in found]), rel=0.1)


def test_sensitivity_by_cell_over_runs(simulated: Callable[..., pd.DataFrame]) -> None:
    trials = simulated(
        {
            ("none", "none", "towers-stability"): 0.0,
            ("grpo", "towers-stability", "towers-stability"): 2.0,
        },
        runs=6,
        items=400,
        run_sd=0.3,
    )
    found = sensitivity(trials)
    base, trained = (found.table[found.table["method"] == m].iloc[0] for m in ("none", "grpo"))
    # Right with probability p whatever is shown: d' = 2 z(p) and no bias.
    assert base["d_low"] < 0 < base["d_high"] and base["n_runs"] == 1 and math.isinf(base["df"])
    assert trained["d_prime"] == pytest.approx(2 * norm.ppf(1 / (1 + math.exp(-2))), abs=0.25)
    assert trained["df"] == 5 and trained["p"] < 1e-3 and trained["c_low"] < 0.1 and trained["c_high"] > -0.1
    assert any("one run" in note for note in found.notes)
    own = found.runs[found.runs["method"] == "grpo"]
    assert len(own) == 6 and own["d_shrunken"].std() < own["d_prime"].std()
    assert "Hartung-Knapp" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_unread_replies_and_other_tasks_are_left_out(simulated: Callable[..., pd.DataFrame]) -> None:
    trials = simulated({("none", "none", "towers-stability"): 1.0}, items=40)
    trials.loc[:4, "answer"] = None
    other = trials.assign(test_task="towers-topblock", signal=None)
    found = sensitivity(pd.concat([trials, other]))
    assert found.table["n_trials"].tolist() == [35] and "5 of 40 replies" in found.notes[0]
    with pytest.raises(ValueError, match="two-option judgement"):
        sensitivity(other)
