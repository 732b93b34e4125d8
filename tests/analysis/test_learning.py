from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test, ttest_ind
from statsmodels.duration.survfunc import SurvfuncRight

from vlm_probe.analysis.learning import KIND, TEST, curves_from_trials, learning, permutation_p
from vlm_probe.analysis.material import Settings
from vlm_probe.analysis.sections.learning import section
from vlm_probe.analysis.training import read_facts


def straight(method: str, slopes: list[float], end: float = 100, step: float = 10, **columns: str) -> pd.DataFrame:
    """Curves that rise from .5 by so much per 100 samples."""
    x = np.arange(0, end + 1, step)
    parts = [
        pd.DataFrame(
            {"run": f"{method} {i}", "method": method, "samples": x, "success": np.minimum(1, 0.5 + slope * x / 100)}
        )
        for i, slope in enumerate(slopes)
    ]
    return pd.concat(parts).assign(model="tiny", train_tasks="towers-topblock", regime="", **columns)


def test_straight_lines_worked_by_hand() -> None:
    found = learning(straight("grpo", [0.5, 0.4]), criterion=0.8)
    # 0.5 + 0.5 x: mean .75, reaches .8 at 60; 0.5 + 0.4 x: mean .7, at 75.
    assert found.runs["area"].tolist() == pytest.approx([0.75, 0.7])
    assert found.runs["samples_to_criterion"].tolist() == pytest.approx([60, 75])
    row = found.table.iloc[0]
    assert (row["area"], row["samples_to_criterion"], row["samples_median"]) == pytest.approx((0.725, 67.5, 67.5))
    assert row["n_reached"] == row["n_runs"] == 2
    assert found.means["mean"].iloc[-1] == pytest.approx(0.95)


def test_longer_trainings_have_no_advantage() -> None:
    curves = pd.concat([straight("sft", [0.4], end=100), straight("grpo", [0.4], end=200)])
    found = learning(curves)
    assert found.runs["area"].nunique() == 1 and found.comparisons["area_difference"].iloc[0] == pytest.approx(0)


def test_runs_that_never_reach_the_criterion_are_censored() -> None:
    found = learning(straight("ppo", [0.5, 0.4, 0.1, 0.05]), criterion=0.8)
    row = found.table.iloc[0]
    assert row["n_reached"] == 2 and np.isnan(row["samples_median"]) and "2 of 4 runs never reached" in found.notes[0]
    # The restricted mean is the area under the Kaplan-Meier curve.
    times, status = [60, 75, 100, 100], [1, 1, 0, 0]
    curve = SurvfuncRight(times, status)
    steps, heights = np.r_[0, curve.surv_times, 100], np.r_[1, curve.surv_prob]
    assert row["samples_to_criterion"] == pytest.approx((np.diff(steps) * heights).sum())
    three = learning(straight("ppo", [0.5, 0.4, 0.1]), criterion=0.8).table["samples_median"].iloc[0]
    assert three == pytest.approx(SurvfuncRight([60, 75, 100], [1, 1, 0]).quantile(0.5)) == pytest.approx(75)


def test_kinds_are_compared_within_a_task() -> None:
    a, b = [0.5, 0.45, 0.55, 0.48], [0.35, 0.4, 0.38, 0.36]
    curves = pd.concat([straight("sft", a), straight("grpo", b), straight("ppo", a, end=80).assign(train_tasks="x")])
    found = learning(curves, criterion=0.6)
    assert len(found.comparisons) == 1
    row = found.comparisons.iloc[0]
    areas = [found.runs.loc[found.runs["method"] == m, "area"] for m in (row["first"], row["second"])]
    expected = ttest_ind(*areas, equal_var=False)
    assert row["area_p"] == pytest.approx(expected.pvalue) and row["area_df"] == pytest.approx(expected.df)
    times = {"sft": 10 / np.array(a), "grpo": 10 / np.array(b)}
    ratio = np.exp(np.log(times[row["first"]]).mean() - np.log(times[row["second"]]).mean())
    assert row["samples_ratio"] == pytest.approx(ratio)
    assert row["samples_p"] == pytest.approx(2 / 70)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_start_from_another_training_is_a_kind_of_its_own() -> None:
    curves = pd.concat(
        [straight("sft", [0.3, 0.35]), straight("sft", [0.5, 0.6]).assign(regime="init abc", run="other")]
    )
    curves.loc[curves["regime"] != "", "run"] = np.repeat(["o0", "o1"], 11)
    found = learning(curves)
    assert found.comparisons[["first", "second"]].iloc[0].tolist() == ["sft", "sft init abc"]
    assert found.comparisons["area_difference"].iloc[0] < 0


def test_permutation_tests_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, 5), rng.normal(1, 1, 4)
    expected = permutation_test((x, y), lambda a, b, axis: np.abs(a.mean(axis) - b.mean(axis)), vectorized=True,
                                alternative="greater", n_resamples=np.inf).pvalue  # fmt: skip
    assert permutation_p(x, y) == pytest.approx(expected)
    x, y = rng.normal(0, 1, 12), rng.normal(0.8, 1, 12)
    assert permutation_p(x, y) == pytest.approx(ttest_ind(x, y).pvalue, abs=0.01)
    assert np.isnan(permutation_p(np.ones(3), np.ones(3)))


def test_checkpoints_make_curves(simulated) -> None:
    trials = simulated({("sft", "towers-stability", "towers-stability"): 1.0}, runs=2, items=40)
    checkpoints = pd.concat(
        [trials.assign(samples=0.0, success=0), trials.assign(samples=100.0, run=trials["run"] + " b")]
    )
    curves = curves_from_trials(checkpoints)
    assert len(curves) == 4 and curves["run"].nunique() == 2
    found = learning(curves, criterion=0.5)
    assert found.table["final"].iloc[0] == pytest.approx(trials["success"].mean())
    with pytest.raises(ValueError, match="two points"):
        learning(curves[curves["samples"] == 0])


def test_smoothing_is_a_trailing_mean() -> None:
    noisy = straight("ppo", [0.4, 0.4])
    noisy["success"] += np.where(np.arange(len(noisy)) % 2, 0.2, -0.2)
    raw, smooth = learning(noisy), learning(noisy, window=4)
    assert smooth.runs["samples_to_criterion"].mean() > raw.runs["samples_to_criterion"].mean()


def test_checkpoints_have_a_curve_for_every_test(simulated) -> None:
    cell = {("sft", "towers-stability", "towers-stability"): 1.0}
    plain = simulated(cell, runs=2, items=40)
    shifted = simulated(cell, runs=2, items=40, task_shift="camera").assign(shift_level=2, success=0)
    parts = [table.assign(samples=n) for table in (plain, shifted) for n in (0.0, 100.0)]
    found = learning(curves_from_trials(pd.concat(parts)), criterion=0.5, by=(*KIND, *TEST)).table
    assert found["shift"].tolist() == ["none", "camera"] or found["shift"].tolist() == ["camera", "none"]
    final = found.set_index("shift")["final"]
    assert final["camera"] == 0 and final["none"] == pytest.approx(plain["success"].mean())


def test_tasks_without_a_common_range_cost_themselves_alone() -> None:
    early = straight("ppo", [0.4, 0.4]).assign(train_tasks="x")
    early.loc[early["run"] == "ppo 1", "samples"] += 500
    found = learning(pd.concat([straight("sft", [0.4, 0.5]), early]))
    assert found.table["method"].tolist() == ["sft"]
    assert any("tiny, x share no range of samples" in note for note in found.notes)
    with pytest.raises(ValueError, match="share no range"):
        learning(early)


def test_measures_that_are_no_shares_have_intervals_around_their_means() -> None:
    tokens = straight("ppo", [0.2, 0.4, 0.3])
    tokens["tokens"] = 100 * tokens["success"]
    row = learning(tokens, criterion=60, measure="tokens").table.iloc[0]
    assert 1 < row["area_low"] < row["area"] < row["area_high"]


def test_savings_are_samples_to_criterion_from_an_adapter_against_from_the_base() -> None:
    facts = {
        "method": "grpo",
        "tasks": ["towers-topblock"],
        "init": "f" * 64,
        "lineage": [{"method": "sft", "tasks": ["towers-stability"]}],
    }
    warm = read_facts(facts).regime
    assert warm == "after sft on towers-stability" and read_facts({**facts, "lineage": []}).regime == "init ffffffff"
    x = np.arange(0, 1001, 50)
    parts = []
    for regime, needed in (("", 800), (warm, 400)):
        for seed in range(4):
            y = np.clip(x / (needed + 10 * seed), 0, 1)
            run = {
                "run": f"{regime} {seed}",
                "model": "tiny",
                "train_tasks": "towers-topblock",
                "method": "grpo",
                "regime": regime,
            }
            parts.append(pd.DataFrame({**run, "samples": x, "success": y}))
    columns = ["method", "regime", "model", "train_tasks", "seed", "samples"]
    trials = SimpleNamespace(curves=pd.concat(parts, ignore_index=True))
    material = SimpleNamespace(trials=trials, plain=pd.DataFrame(columns=columns), settings=Settings(criterion=0.8))
    (line,) = [line for line in section(material).answer if line.startswith("Savings")]  # type: ignore[arg-type]
    assert "grpo after sft on towers-stability, compared with grpo from the base, takes 0.5" in line and ".029" in line
