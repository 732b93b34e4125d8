from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from tests.analysis.conftest import saying
from vlm_probe.analysis.controls import controls

Make = Callable[..., pd.DataFrame]
BASE = {("none", "none", "towers-stability"): 0.0}
TRAINED = {("sft", "towers-stability", "towers-stability"): 1.5}


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
