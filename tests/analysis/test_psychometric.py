from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize
from scipy.stats import norm

from tests.analysis.conftest import run_rows, write_run
from vlm_probe.analysis.frame import load
from vlm_probe.analysis.material import Settings, select
from vlm_probe.analysis.psychometric import MAX_LAPSE, fit_functions, probability, psychometric, steepest
from vlm_probe.analysis.sections.psychometry import section

Make = Callable[..., pd.DataFrame]
CELL = {("sft", "towers-stability", "towers-stability"): 0.0}


def margins(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.1, 1.0, n) * np.where(np.arange(n) % 2, 1, -1)


def answered(trials: pd.DataFrame, p_stands: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> pd.DataFrame:
    """The trials as an observer answers who says "stands" with a probability that the margin gives."""
    said = np.random.default_rng(seed).random(len(trials)) < p_stands(trials["margin"].to_numpy())
    answer = np.where(said, "stands", "falls")
    return trials.assign(answer=answer, correct=(answer == trials["truth"]).astype(int))


def test_without_lapses_it_is_a_probit_regression() -> None:
    rng = np.random.default_rng(0)
    x = margins(300, rng)
    y = (rng.random(300) < norm.cdf(0.3 + 2 * x)).astype(float)
    (found,), (height,) = fit_functions(x, np.ones((1, 300)), y[None], lapses=False)
    expected = sm.Probit(y, sm.add_constant(x)).fit(disp=0, tol=1e-10)
    assert found[:2] == pytest.approx(expected.params, abs=1e-5) and found[2] == 0
    assert height == pytest.approx(expected.llf, abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_search_finds_a_higher_likelihood(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.choice([60, 200, 500]))
    x = margins(n, rng)
    a, b, lapse = rng.normal(0, 0.5), rng.choice([0, -2, 2, 5, 15]), rng.choice([0, 0.02, 0.1, 0.25])
    y = rng.random(n) < probability(x, a, b, lapse)

    def minus(q: np.ndarray) -> float:
        p = probability(x, *q)
        return -float(np.log(np.clip(np.where(y, p, 1 - p), 1e-10, 1)).sum())

    bounds = [(None, None), (-steepest(x), steepest(x)), (0, MAX_LAPSE)]
    starts = [(0, 1, 0.01), (0, -1, 0.01), (0, 5, 0.1), (0, -5, 0.1), (0, 20, 0.3), (a, b, lapse)]
    best = min(minimize(minus, start, bounds=bounds, method="L-BFGS-B").fun for start in starts)
    height = fit_functions(x, np.ones((1, n)), y[None].astype(float))[1][0]
    assert height > -best - 2e-3


def test_the_parameters_of_a_simulated_observer_come_back(simulated: Make) -> None:
    trials = answered(simulated(CELL, runs=3, items=800), lambda m: 0.04 + 0.92 * norm.cdf((m - 0.15) / 0.3), seed=1)
    found = psychometric(trials, resamples=60)
    row = found.table.iloc[0]
    assert row["bias"] == pytest.approx(0.15, abs=0.05)
    assert row["slope"] == pytest.approx(1 / 0.3, rel=0.15)
    assert row["threshold"] == pytest.approx(0.6745 * 0.3, rel=0.15)
    assert row["lapse"] == pytest.approx(0.04, abs=0.02)
    assert row["slope_per_sd"] == pytest.approx(row["slope"] * trials["margin"].std(), rel=1e-2)
    assert row["threshold_low"] < row["threshold"] < row["threshold_high"] and row["n_runs"] == 3
    curve = found.curves(np.linspace(-1, 1, 9))
    assert (curve["low"] <= curve["p_signal"] + 0.02).all() and curve["p_signal"].is_monotonic_increasing
    assert curve["p_signal"].to_numpy() == pytest.approx(
        0.04 + 0.92 * norm.cdf((curve["margin"] - 0.15) / 0.3), abs=0.05
    )
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.slow
def test_bootstrap_intervals_cover(simulated: Make) -> None:
    hits = dict.fromkeys(("slope", "bias", "p_at_0"), 0)
    truth = {"slope": 2.5, "bias": 0.1, "p_at_0": 0.03 + 0.94 * norm.cdf(-0.25)}
    trials = simulated(CELL, runs=200, items=300)
    found = psychometric(answered(trials, lambda m: 0.03 + 0.94 * norm.cdf(2.5 * (m - 0.1)), seed=2), resamples=200)
    for name in hits:
        hits[name] = ((found.runs[f"{name}_low"] <= truth[name]) & (truth[name] <= found.runs[f"{name}_high"])).sum()
    # Of 200 intervals at 95 %, 178 or fewer have a probability below .001.
    assert min(hits.values()) > 178 and max(hits.values()) < 200, hits


def test_answers_without_relation_to_the_margin_have_no_threshold(simulated: Make) -> None:
    found = psychometric(answered(simulated(CELL, runs=1, items=400), lambda m: 0 * m + 0.7), resamples=200)
    row = found.table.iloc[0]
    assert np.isnan(row["threshold"]) and np.isnan(row["lapse"]) and np.isnan(row["bias"])
    assert row["slope_low"] < 0 < row["slope_high"] and row["p_at_0"] == pytest.approx(0.7, abs=0.06)
    assert "do not depend on the margin" in found.notes[0]


def test_the_ideal_observer_is_a_step(simulated: Make) -> None:
    found = psychometric(answered(simulated(CELL, runs=1, items=200), lambda m: (m > 0).astype(float)), resamples=100)
    row = found.table.iloc[0]
    assert row["threshold"] < 0.1 and row["lapse"] < 1e-6 and abs(row["bias"]) < 0.15
    assert any("upper limit" in note for note in found.notes)


def test_answers_against_the_physics_have_a_negative_slope(simulated: Make) -> None:
    found = psychometric(answered(simulated(CELL, runs=1, items=400), lambda m: norm.cdf(-2 * m)), resamples=100)
    assert found.table["slope_high"].iloc[0] < 0 and found.table["slope"].iloc[0] == pytest.approx(-2, rel=0.3)
    assert np.isinf(found.table["threshold"].iloc[0])


def test_the_orientation_of_the_margin_and_of_the_signal_does_not_matter(simulated: Make) -> None:
    trials = answered(simulated(CELL, runs=1, items=200), lambda m: norm.cdf(3 * (m - 0.1)))
    first = psychometric(trials, resamples=50).table.iloc[0]
    turned = psychometric(trials.assign(margin=-trials["margin"]), resamples=50).table.iloc[0]
    other = psychometric(trials.assign(signal="falls"), resamples=50).table.iloc[0]
    assert first["slope"] == turned["slope"] and first["bias"] == turned["bias"]
    assert other["slope"] == pytest.approx(first["slope"], rel=1e-3)
    assert other["bias"] == pytest.approx(-first["bias"], abs=1e-3)


def test_graded_answers_and_equal_seeds(simulated: Make) -> None:
    trials = simulated(CELL, runs=1, items=100)
    p = norm.cdf(4 * trials["margin"])
    graded = trials.assign(p_correct=np.where(trials["truth"] == "stands", p, 1 - p))
    found, again = psychometric(graded, resamples=50), psychometric(graded.sample(frac=1, random_state=1), resamples=50)
    assert found.table["slope"].iloc[0] == pytest.approx(4, rel=1e-3)
    assert "graded" in found.how
    pd.testing.assert_frame_equal(found.table, again.table)


def test_tasks_without_sides_are_named(simulated: Make) -> None:
    trials = simulated(CELL, runs=1, items=100)
    odd = trials.assign(test_task="support-hold", margin=trials["margin"].abs())
    found = psychometric(pd.concat([trials, odd]), resamples=20)
    assert len(found.table) == 1 and any("support-hold" in note for note in found.notes)
    with pytest.raises(ValueError, match="both sides of margin 0"):
        psychometric(odd, resamples=20)


def test_margins_without_bins_are_fitted_and_not_drawn(tmp_path):
    rows = run_rows(n=24)
    for row in rows:
        row["condition"] = row["condition"] | {"margin_bin": [0.0, 0.0]}
    material = select(load([write_run(tmp_path / "run", rows)]), Settings(resamples=5), None)
    made = section(material)
    assert made.figures == ()
    assert "depend on the margin" in made.answer[0]
