"""Agreement with lme4: with its stored results on simulated trials, and with R itself where it is installed."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.analysis.mixed_effects.conftest import quietly

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "lme4_agreement.py"
REFERENCE = json.loads((ROOT / "tests" / "data" / "lme4_trials.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def agreement():
    spec = importlib.util.spec_from_file_location("lme4_agreement", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(agreement):
    trials = agreement.simulate_trials()
    trials["method"] = pd.Categorical(trials["method"], ["none", "sft", "ppo"])
    trials["shift"] = pd.Categorical(trials["shift"], ["none", "camera", "light"])
    return trials


@pytest.mark.parametrize("name", list(REFERENCE))
def test_stored_results(agreement, table, name):
    settings = agreement.MODELS[name]
    result = quietly(settings["formula"], table, family=settings.get("family", "gaussian"))
    theirs = REFERENCE[name]
    fixed = pd.DataFrame(theirs["fixed"]).set_index("term")
    ours = result.coefficients.rename(index=agreement.as_in_r).loc[fixed.index]
    assert (np.abs(ours["estimate"] - fixed["estimate"]) < 0.005 * fixed["se"]).all()
    np.testing.assert_allclose(ours["se"], fixed["se"], rtol=0.01)
    assert result.log_likelihood == pytest.approx(theirs["log_likelihood"], abs=0.001)
    if fixed["df"].notna().all():
        np.testing.assert_allclose(ours["df"], fixed["df"], atol=0.1)
    components = result.variance_components.set_index(["group", "name"])
    for group, effect, sd in theirs["random"]:
        assert components.loc[(group, effect), "sd"] == pytest.approx(sd, rel=0.01, abs=1e-4)
    means = pd.DataFrame(theirs["means"])
    own = result.emmeans("method", by="shift").astype({"method": str, "shift": str})
    both = own.merge(means, on=["method", "shift"], suffixes=("", "_r"))
    assert len(both) == 9
    np.testing.assert_allclose(both["estimate"], both["estimate_r"], atol=0.005 * both["se_r"].max())
    np.testing.assert_allclose(both["se"], both["se_r"], rtol=0.01)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
@pytest.mark.parametrize(
    "name",
    [
        "sleepstudy",
        "sleepstudy_uncorrelated",
        "penicillin",
        "pastes",
        "cbpp",
        "verbagg",
        "grouseticks",
        "insteval",
        "visits_15",
    ],
)
def test_lme4_itself(name):
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", name], check=True, capture_output=True, text=True, cwd=ROOT
    )
    row = json.loads(found.stdout)[name]
    assert row["fixed_se"] < 0.005
    assert row["se_percent"] < 1
    assert row["sd_percent"] < 1
    assert row["log_likelihood_gain"] > -0.001
    assert row["df"] is None or row["df"] < 0.1
