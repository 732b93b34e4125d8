from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from analysis.signal_detection import signal_detection

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
