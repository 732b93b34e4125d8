from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_effectsize

from vlm_probe.analysis.cell_model import fit_cells
from vlm_probe.analysis.effect_sizes import cohen_h, log_odds_of, rate_of, rate_slope
from vlm_probe.analysis.transfer import transfer_matrix, with_names

Make = Callable[..., pd.DataFrame]
A, B = "towers-stability", "towers-topblock"
REFERENCE = {
    ("none", "none", A): 0.0, ("none", "none", B): 0.2, ("sft", A, A): 1.5, ("grpo", A, A): 1.0, ("ppo", A, A): 1.0,
    ("sft", A, B): 0.0, ("grpo", A, B): 0.3, ("ppo", A, B): 0.6,
}  # fmt: skip


@pytest.fixture
def reference(simulated: Make) -> pd.DataFrame:
    """The table whose lme4 estimates are written down below."""
    return simulated(REFERENCE, runs=4, items=40, run_sd=0.5, item_sd=0.7, seed=3)


def test_cell_means_are_those_of_lme4(reference: pd.DataFrame) -> None:
    trials = with_names(reference)
    fitted = fit_cells(trials[trials["test"] == A], ["training"])
    # lme4 1.1-31, glmer(success ~ 0 + training + (0 + trained | run) + (1 | item)).
    expected = {
        f"grpo {A}": (0.83365, 0.23060),
        "none none": (0.55553, 0.35580),
        f"ppo {A}": (0.83525, 0.23095),
        f"sft {A}": (1.35318, 0.24731),
    }
    for cell, (estimate, se) in expected.items():
        found = fitted.contrast({cell: 1.0})
        assert found.value == pytest.approx(estimate, abs=0.005 * se)
        assert found.se == pytest.approx(se, rel=0.01)
    assert fitted.fit.log_likelihood > -305.6405
    assert fitted.df == 9 and fitted.contrast({"none none": 1.0}).df == math.inf
    between = fitted.contrast({f"sft {A}": 1.0, f"ppo {A}": -1.0})
    # By hand: two methods of four runs with 160 answers each; the rest of the variance is that of shrinkage.
    sd, p = 0.2085, expit(np.array([1.3532, 0.8352]))
    part = 2 * sd**2 / 4 + (1 / (160 * p * (1 - p))).sum()
    rest = max(
        between.se**2 - part, 0.0
    )  # nine degrees of freedom between runs, of which eight runs carry the contrast; 40 items
    assert between.df == pytest.approx(between.se**4 / (part**2 / 8 + rest**2 / 39), rel=0.01)
    assert fitted.chosen.steps == ("(1 | item:training) dropped: its variance is estimated as 0",)


def test_rates_average_over_runs_and_items(reference: pd.DataFrame) -> None:
    trials = with_names(reference)
    fitted = fit_cells(trials[trials["test"] == A], ["training"])
    counted = trials[trials["test"] == A].groupby("training")["success"].mean()
    for cell in fitted.cells:
        assert fitted.rate(cell).value == pytest.approx(counted[cell], abs=0.01)
    difference = fitted.rate_contrast({f"sft {A}": 1.0, "none none": -1.0})
    assert difference.value == pytest.approx(fitted.rate(f"sft {A}").value - fitted.rate("none none").value)
    # By simulation from the sampling distribution of the log odds.
    rng, cells = np.random.default_rng(0), list(fitted.cells)
    drawn = rng.multivariate_normal(fitted.log_odds, fitted.fit.solution.covariance, 4000)
    sd = {
        c: math.sqrt(sum(x**2 for x in fitted.fit.variance_components["sd"][: 1 if c == "none none" else 2]))
        for c in cells
    }
    sd["none none"] = float(fitted.fit.variance_components.set_index("group")["sd"]["item"])
    rates = {c: rate_of(drawn[:, cells.index(c)], sd[c]) for c in (f"sft {A}", "none none")}
    assert difference.se == pytest.approx(np.std(rates[f"sft {A}"] - rates["none none"]), rel=0.06)


def test_the_matrix_has_every_training_on_every_test(reference: pd.DataFrame) -> None:
    found = transfer_matrix(reference, pd.DataFrame({"test_task": [A], "best_baseline": [0.55]}))
    table = found.table.set_index(["method", "test_task"])
    assert len(table) == 8 and table["n_runs"].to_dict()[("sft", A)] == 4
    sft, base = table.loc[("sft", A)], table.loc[("none", A)]
    assert sft["rate"] == pytest.approx(reference.query("method == 'sft' and test_task == @A")["success"].mean())
    assert sft["odds_ratio"] == pytest.approx(math.exp(1.35318 - 0.55553), rel=0.005)
    assert sft["odds_low"] < sft["odds_ratio"] < sft["odds_high"] and 4 < sft["df"] < 50
    assert sft["h"] == pytest.approx(proportion_effectsize(sft["rate"], base["rate"]))
    assert sft["p_baseline"] < 0.01 < table.loc[("grpo", B), "p"] and np.isnan(table.loc[("sft", B), "p_baseline"])
    assert np.isnan(base["difference"]) and sft["transfer"] == "within"
    assert (table["p_holm"].dropna() >= table["p"].dropna()).all()
    assert "glmer" not in found.how and "(0 + trained | run)" in found.how and "item:training" in found.notes[0]
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_perfect_cell_is_regularised_and_said_so(simulated: Make) -> None:
    trials = simulated({("none", "none", A): 0.0, ("sft", A, A): 30.0}, runs=3, items=40, item_sd=0.3)
    found = transfer_matrix(trials)
    row = found.table[found.table["method"] == "sft"].iloc[0]
    assert row["rate"] == 1 and 0.9 < row["estimate"] < 1 and math.isfinite(row["odds_ratio"])
    assert row["difference"] > 0.3 and any("weak prior" in note for note in found.notes)


def test_one_run_per_training_is_tested_on_items_and_said_so(simulated: Make) -> None:
    trials = simulated({("none", "none", A): 0.0, ("sft", A, A): 1.0, ("ppo", A, A): 1.0}, runs=1, items=80)
    found = transfer_matrix(trials)
    assert (found.table["df"] == math.inf).all() and any("one run each" in note for note in found.notes)


def test_without_an_untrained_model_there_are_no_differences(simulated: Make) -> None:
    found = transfer_matrix(simulated({("sft", A, A): 1.0}, runs=3, items=40))
    assert found.table["difference"].isna().all() and 0.6 < found.table["estimate"].iloc[0] < 0.85
    assert any("no run of the untrained model" in note for note in found.notes)


def test_shifted_tests_have_cells_of_their_own(simulated: Make) -> None:
    cells = {("none", "none", A): 0.0, ("sft", A, A): 2.0}
    both = pd.concat([simulated(cells), simulated(cells, task_shift="camera", seed=1)])
    found = transfer_matrix(both)
    assert found.table[["shift", "method"]].drop_duplicates().shape[0] == 4
    assert set(with_names(both)["test"]) == {A, f"{A}@camera:1"}


@settings(deadline=None, max_examples=40)
@given(st.floats(-4, 4), st.floats(0, 3))
def test_rates_of_log_odds_by_quadrature(eta: float, sd: float) -> None:
    exact = quad(lambda z: expit(eta + sd * z) * norm.pdf(z), -9, 9)[0]
    assert rate_of(eta, sd) == pytest.approx(exact, abs=1e-4)
    assert log_odds_of(float(rate_of(eta, sd)), sd) == pytest.approx(eta, abs=1e-6)
    assert rate_slope(eta, sd) == pytest.approx((rate_of(eta + 1e-4, sd) - rate_of(eta - 1e-4, sd)) / 2e-4, rel=1e-4)


@given(st.floats(0, 1), st.floats(0, 1))
def test_cohen_h(p: float, q: float) -> None:
    assert cohen_h(p, q) == pytest.approx(proportion_effectsize(p, q), abs=1e-9)
    assert cohen_h(p, q) == pytest.approx(-cohen_h(q, p))
