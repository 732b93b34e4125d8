from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, ttest_1samp
from scipy.stats import t as student

from vlm_probe.analysis.pooling import pool

# Colditz et al. (1994): trials of the BCG vaccine; cases and others, vaccinated and not.
BCG = np.array(
    [
        (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
        (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232), (17, 1699, 65, 1600),
        (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
    ],
    dtype=float,
)  # fmt: skip


def test_the_bcg_trials_as_metafor_pools_them() -> None:
    a, b, c, d = BCG.T
    found = pool(np.log(a / (a + b) / (c / (c + d))), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d))
    # metafor, rma(yi, vi, method = "REML", test = "knha").
    assert (found.mean, found.se) == pytest.approx((-0.7145, 0.1808), abs=1e-4)
    assert (found.low, found.high) == pytest.approx((-1.1084, -0.3206), abs=1e-4)
    assert found.tau**2 == pytest.approx(0.3132, abs=1e-4)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=12).filter(lambda x: np.std(x) > 1e-3), st.floats(1e-4, 1))
def test_runs_of_equal_precision_give_the_t_interval_of_their_means(y: list[float], variance: float) -> None:
    found, expected = pool(y, [variance] * len(y)), ttest_1samp(y, 0)
    low, high = expected.confidence_interval()
    # Never narrower than the sampling of items allows, however well few runs happen to agree.
    least = norm.ppf(0.975) * math.sqrt(variance / len(y))
    low, high = min(low, np.mean(y) - least), max(high, np.mean(y) + least)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(y), low, high), abs=1e-6)
    sampling = 2 * norm.sf(abs(np.mean(y)) / math.sqrt(variance / len(y)))
    assert found.p == pytest.approx(max(expected.pvalue, sampling), abs=1e-6)
    assert found.tau**2 == pytest.approx(max(0.0, np.var(y, ddof=1) - variance), abs=1e-4)


def test_one_run_and_none() -> None:
    one = pool([0.4, math.nan], [0.01, 1.0])
    assert (one.mean, one.se, one.n) == (0.4, pytest.approx(0.1), 1) and math.isinf(one.df)
    assert one.high == pytest.approx(0.4 + 1.96 * 0.1, abs=1e-3) and math.isnan(one.shrunken[1])
    assert math.isnan(pool([], []).mean)


def test_intervals_between_few_runs_cover() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        variance = rng.uniform(0.005, 0.03, 4)
        found = pool(rng.normal(1, 0.2, 4) + rng.normal(0, np.sqrt(variance)), variance)
        hits += found.low < 1 < found.high
    assert 0.91 < hits / 200 < 0.985
    assert found.high - found.low >= 2 * student.ppf(0.975, found.df) * found.se - 1e-12
