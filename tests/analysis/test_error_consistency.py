from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import cohen_kappa_score

from tests.analysis.conftest import answering
from vlm_probe.analysis.error_consistency import error_consistency

Make = Callable[..., pd.DataFrame]
CELL = {("none", "none", "towers-stability"): 1.0}


def test_error_consistency_is_cohens_kappa_of_being_right(simulated: Make) -> None:
    trials = answering(simulated(CELL, items=300), np.full(300, 0.5), seed=3)
    p = norm.cdf(trials["margin"] / 0.5)
    observer = answering(trials, p, seed=4).assign(model="noisy-simulation", run="noisy")
    ideal = answering(trials, (trials["margin"] > 0).to_numpy(float)).assign(model="ideal", run="ideal")
    found = error_consistency(trials, pd.concat([observer, ideal]), resamples=200)
    noisy, perfect = (found.table[found.table["observer"] == n].iloc[0] for n in ("noisy-simulation", "ideal"))
    assert noisy["kappa"] == pytest.approx(cohen_kappa_score(trials["success"], observer["success"]))
    assert noisy["kappa_low"] < 0 < noisy["kappa_high"]
    assert noisy["agreement"] == pytest.approx((trials["success"] == observer["success"]).mean())
    assert np.isnan(perfect["kappa"]) and perfect["agreement"] == pytest.approx(trials["success"].mean())
    twin = error_consistency(observer.assign(model="tiny"), observer, resamples=50).table.iloc[0]
    assert twin["kappa"] == twin["agreement"] == 1
    with pytest.raises(ValueError, match="no observer"):
        error_consistency(trials, observer.assign(item_id="x"))
