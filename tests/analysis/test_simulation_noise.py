from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from tests.analysis.conftest import answering
from vlm_probe.analysis.simulation_noise import fit_noise

Make = Callable[..., pd.DataFrame]
CELL = {("none", "none", "towers-stability"): 1.0}
SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def tabulated(trials: pd.DataFrame) -> pd.DataFrame:
    """An observer who sees the margin through Gaussian noise."""
    margin = trials["margin"].to_numpy()
    return pd.concat(
        [pd.DataFrame({"item_id": trials["item_id"], "sigma": s, "p_signal": norm.cdf(margin / s)}) for s in SIGMAS]
    )


def test_the_noise_of_a_simulated_observer_comes_back(simulated: Make) -> None:
    trials = simulated(CELL, items=1000)
    found = fit_noise(answering(trials, norm.cdf(trials["margin"] / 0.3)), tabulated(trials), resamples=200)
    row = found.table.iloc[0]
    assert row["sigma"] == pytest.approx(0.3, rel=0.15) and row["sigma_low"] < 0.3 < row["sigma_high"]
    assert row["lapse"] < 0.04 and row["inside"] and row["bits"] > 0.3
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_noise_is_that_of_a_direct_search(simulated: Make) -> None:
    trials = simulated(CELL, items=400)
    answered = answering(trials, 0.05 + 0.9 * norm.cdf(trials["margin"] / 0.3), seed=2)
    y, margin = (answered["answer"] == "stands").to_numpy(), trials["margin"].to_numpy()

    def minus(q: np.ndarray) -> float:
        p = q[1] + (1 - 2 * q[1]) * norm.cdf(margin / np.exp(q[0]))
        return -float(np.log(np.where(y, p, 1 - p)).sum())

    best = minimize(minus, (np.log(0.3), 0.05), bounds=[(-4, 2), (1e-6, 0.4)]).x
    fine = tuple(np.geomspace(0.1, 0.9, 12))
    table = pd.concat(
        [pd.DataFrame({"item_id": trials["item_id"], "sigma": s, "p_signal": norm.cdf(margin / s)}) for s in fine]
    )
    row = fit_noise(answered, table, resamples=20).table.iloc[0]
    assert row["sigma"] == pytest.approx(np.exp(best[0]), rel=0.05)
    assert row["lapse"] == pytest.approx(best[1], abs=0.011)


def test_an_answer_beyond_the_tabulated_noise_is_a_limit(simulated: Make) -> None:
    trials = simulated(CELL, items=200)
    found = fit_noise(answering(trials, (trials["margin"] > 0).to_numpy(float)), tabulated(trials), resamples=20)
    assert found.table["sigma"].iloc[0] == pytest.approx(min(SIGMAS)) and not found.table["inside"].iloc[0]
    assert "a limit, no estimate" in found.notes[0]
    blind = fit_noise(answering(trials, np.full(200, 0.5)), tabulated(trials), resamples=20).table.iloc[0]
    assert blind["bits"] < 0.03
    with pytest.raises(ValueError, match="three sigmas"):
        fit_noise(trials, tabulated(trials).query("sigma < .15"))
