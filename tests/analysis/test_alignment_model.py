from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit

from vlm_probe.analysis.alignment import alignment
from vlm_probe.analysis.alignment_model import alignment_model

Make = Callable[..., pd.DataFrame]
CELL = {("none", "none", "towers-stability"): 1.0}


@pytest.fixture
def both(simulated: Make) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A model that sees every item through noise of its own, and people who share that noise."""
    trials, rng = simulated(CELL, items=60), np.random.default_rng(0)
    seen = trials["margin"].to_numpy() + rng.normal(0, 0.6, 60)
    p = expit(2 * seen)
    trials = trials.assign(p_correct=np.where(trials["truth"] == "stands", p, 1 - p))
    rows = []
    for person in range(20):
        said = rng.random(60) < expit(2 * seen + rng.normal(0, 0.5))
        answer = np.where(said, "stands", "falls")
        rows.append(pd.DataFrame({"item_id": trials["item_id"], "participant": f"s{person:02d}", "response": answer}))
    return trials, pd.concat(rows, ignore_index=True)


def test_a_model_with_the_errors_of_people_predicts_them_beyond_the_truth(
    both: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    trials, responses = both
    found = alignment_model(trials, responses).table.set_index("predictors")
    spread = np.log(trials["p_correct"] / (1 - trials["p_correct"])).where(trials["truth"] == "stands", lambda x: -x)
    alone, beside = found.loc["model"], found.loc["model + truth"]
    assert alone["estimate"] == pytest.approx(float(np.std(spread)), rel=0.15)
    assert beside["estimate"] > 0.5 and beside["p"] < 1e-4 and beside["ci_low"] > 0
    assert (alone["n_items"], alone["n_people"], alone["n_responses"]) == (60, 20, 1200)
    assert "(1 | item)" in alone["formula"] and "participant" in alone["formula"] and np.isfinite(alone["df"])


def test_a_run_that_says_the_same_about_every_item_predicts_nothing_and_that_is_said(
    both: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    trials, responses = both
    found = alignment_model(trials.assign(answer="stands", p_correct=np.nan), responses)
    assert found.table.empty
    assert "said the same about every item" in found.notes[0]


def test_counts_have_item_effects_alone(both: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    trials, responses = both
    counts = responses.groupby(["item_id", "response"]).size().rename("count").reset_index()
    row = alignment_model(trials, counts).table.iloc[0]
    share = responses.assign(y=responses["response"] == "stands").groupby("item_id")["y"].sum().loc[trials["item_id"]]
    p = np.where(trials["truth"] == "stands", trials["p_correct"], 1 - trials["p_correct"])
    x = np.log(p / (1 - p))
    simple = sm.GLM(
        np.column_stack([share, 20 - share]), sm.add_constant((x - x.mean()) / x.std()), sm.families.Binomial()
    ).fit()
    # The items hardly differ beyond what the model says, so that their variance is near 0.
    assert row["estimate"] == pytest.approx(simple.params[1], rel=0.05) and row["n_people"] == 0


def test_items_without_responses_are_refused(both: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    with pytest.raises(ValueError, match="none of the judged items"):
        alignment_model(both[0], both[1].assign(item_id="x"))


def dissenting(k: int, seed: int, n_people: int = 30, n_items: int = 25) -> tuple[pd.DataFrame, pd.DataFrame]:
    """People who answer at random, and a run that says "left" of k items and "right" of the others."""
    rng = np.random.default_rng(seed)
    items = [f"i{i:02d}" for i in range(n_items)]
    said = np.where(np.isin(np.arange(n_items), rng.choice(n_items, k, replace=False)), "left", "right")
    truth = np.where(np.arange(n_items) % 2 == 0, "left", "right")
    trials = pd.DataFrame(
        {
            "run": "r",
            "model": "m",
            "method": "none",
            "test_task": "towers-direction",
            "item_id": items,
            "signal": "left",
        }
    ).assign(truth=truth, answer=said, success=(said == truth).astype(int))
    responses = pd.DataFrame(
        [(item, f"p{person}", str(rng.choice(["left", "right"]))) for item in items for person in range(n_people)],
        columns=["item_id", "participant", "response"],
    )
    return trials, responses


@pytest.mark.parametrize("k", [1, 2, 3])
def test_few_dissenting_items_are_no_agreement(k: int) -> None:
    for seed in range(5):
        trials, responses = dissenting(k, seed)
        model, plain = alignment_model(trials, responses), alignment(trials, responses, resamples=50)
        assert model.table.empty and "cannot be told" in model.notes[0]
        row = plain.table.iloc[0]
        assert row[["r", "r_low", "r_high", "spearman"]].isna().all() and np.isfinite(row["rmse"])
        assert any("cannot be told" in note for note in plain.notes)


def test_enough_dissenting_items_are_compared() -> None:
    trials, responses = dissenting(6, 0)
    assert len(alignment_model(trials, responses).table) == 2
    assert np.isfinite(alignment(trials, responses, resamples=50).table["r"].iloc[0])
