from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import cohen_kappa_score

from vlm_probe.analysis.alignment import alignment
from vlm_probe.analysis.alignment_model import alignment_model
from vlm_probe.analysis.humans import human_answers
from vlm_probe.analysis.sections.people import in_words

Make = Callable[..., pd.DataFrame]
CELL = {("none", "none", "towers-stability"): 1.0}


def people(items: pd.DataFrame, n: int = 30, difficulty: float = 1.2, seed: int = 0) -> pd.DataFrame:
    """People who see margins through noise, each with a bias of their own."""
    rng = np.random.default_rng(seed)
    margin = items["margin"].to_numpy()
    rows = []
    for person in range(n):
        said = rng.random(len(margin)) < 1 / (1 + np.exp(-(margin * 3 / difficulty + rng.normal(0, 0.5))))
        rows.append(
            pd.DataFrame(
                {
                    "item_id": items["item_id"],
                    "participant": f"s{person:02d}",
                    "response": np.where(said, "stands", "falls"),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def trials(simulated: Make) -> pd.DataFrame:
    table = simulated(CELL, items=60)
    rng = np.random.default_rng(1)
    p = 1 / (1 + np.exp(-2 * table["margin"] + rng.normal(0, 0.5, len(table))))
    answer = np.where(p > 0.5, "stands", "falls")
    return table.assign(
        answer=answer,
        success=(answer == table["truth"]).astype(int),
        p_correct=np.where(table["truth"] == "stands", p, 1 - p),
    )


def test_correlation_and_rmse_are_those_of_the_shares(trials: pd.DataFrame) -> None:
    responses = people(trials)
    found = alignment(trials, responses, resamples=200)
    row = found.table.iloc[0]
    share = (
        responses.assign(y=responses["response"] == "stands")
        .groupby("item_id")["y"]
        .mean()
        .loc[trials["item_id"]]
        .to_numpy()
    )
    p = np.where(trials["truth"] == "stands", trials["p_correct"], 1 - trials["p_correct"])
    assert row["r"] == pytest.approx(pearsonr(p, share)[0])
    assert row["spearman"] == pytest.approx(spearmanr(p, share)[0])
    assert row["rmse"] == pytest.approx(np.sqrt(np.mean((p - share) ** 2)))
    assert row["r_low"] < row["r"] < row["r_high"] and row["rmse_low"] < row["rmse"]
    assert (row["n_items"], row["n_people"], row["n_responses"]) == (60, 30, 1800)
    json.dumps(found.to_dict(), allow_nan=False)


def test_kappas_are_those_of_scikit_learn(trials: pd.DataFrame) -> None:
    responses = people(trials, n=6)
    found = alignment(trials, responses, resamples=50)
    wide = responses.pivot(index="participant", columns="item_id", values="response")[trials["item_id"]]
    each = [cohen_kappa_score(trials["answer"], row) for _, row in wide.iterrows()]
    pairs = [cohen_kappa_score(wide.iloc[i], wide.iloc[j]) for i in range(6) for j in range(i + 1, 6)]
    row, ceiling = found.table.iloc[0], found.ceilings.iloc[0]
    assert row["kappa"] == pytest.approx(np.mean(each)) and row["kappa_low"] < row["kappa"] < row["kappa_high"]
    assert sorted(found.kappas["towers-stability"]) == pytest.approx(sorted(pairs))
    assert ceiling["kappa_people"] == pytest.approx(np.mean(pairs))
    assert row["kappa_percentile"] == pytest.approx(np.mean(np.array(pairs) < np.mean(each)))


def test_noise_ceilings_by_the_definition_of_nili(trials: pd.DataFrame) -> None:
    responses = people(trials, n=8)
    ceiling = alignment(trials, responses, resamples=20).ceilings.iloc[0]
    wide = (responses.pivot(index="participant", columns="item_id", values="response") == "stands").to_numpy(float)
    lower = [pearsonr(wide[i], np.delete(wide, i, 0).mean(0))[0] for i in range(8)]
    upper = [pearsonr(wide[i], wide.mean(0))[0] for i in range(8)]
    assert ceiling["r_single_lower"] == pytest.approx(np.mean(lower))
    assert ceiling["r_single_upper"] == pytest.approx(np.mean(upper))
    assert ceiling["r_single_lower"] < ceiling["r_single_upper"]


def test_reliability_is_that_of_split_halves(trials: pd.DataFrame) -> None:
    responses = people(trials, n=40, seed=3)
    ceiling = alignment(trials, responses, resamples=20).ceilings.iloc[0]
    wide = (responses.pivot(index="participant", columns="item_id", values="response") == "stands").to_numpy(float)
    rng, halves = np.random.default_rng(0), []
    for _ in range(200):
        order = rng.permutation(40)
        r = pearsonr(wide[order[:20]].mean(0), wide[order[20:]].mean(0))[0]
        halves.append(2 * r / (1 + r))
    assert ceiling["reliability"] == pytest.approx(np.mean(halves), abs=0.015)
    assert ceiling["r_ceiling"] == pytest.approx(np.sqrt(ceiling["reliability"]))


def test_a_model_that_is_the_human_probability_reaches_the_ceiling(simulated: Make) -> None:
    table = simulated(CELL, items=400)
    p = 1 / (1 + np.exp(-2.5 * table["margin"]))
    table = table.assign(p_correct=np.where(table["truth"] == "stands", p, 1 - p))
    found = alignment(table, people(table, n=20), resamples=20)
    row, ceiling = found.table.iloc[0], found.ceilings.iloc[0]
    assert row["r"] == pytest.approx(ceiling["r_ceiling"], abs=0.02)
    assert ceiling["r_single_lower"] - 0.01 < row["r_single"] < ceiling["r_single_upper"] + 0.01
    assert row["rmse"] == pytest.approx(ceiling["rmse_floor"], abs=0.02)


def test_counts_give_what_participants_give(trials: pd.DataFrame) -> None:
    responses = people(trials, n=25)
    counts = responses.groupby(["item_id", "response"]).size().rename("count").reset_index()
    one, many = alignment(trials, counts, resamples=200), alignment(trials, responses, resamples=200)
    for name in ("r", "rmse", "spearman"):
        assert one.table[name].iloc[0] == pytest.approx(many.table[name].iloc[0])
    assert one.ceilings["reliability"].iloc[0] == pytest.approx(many.ceilings["reliability"].iloc[0])
    assert one.ceilings["kappa_people"].iloc[0] == pytest.approx(many.ceilings["kappa_people"].iloc[0], abs=0.05)
    assert one.table["kappa"].iloc[0] == pytest.approx(many.table["kappa"].iloc[0], abs=0.05)
    assert np.isnan(one.table["r_single"].iloc[0]) and "only counts" in one.notes[0]


def test_unread_replies_and_unseen_items_are_left_out(trials: pd.DataFrame) -> None:
    trials = trials.assign(p_correct=np.nan)
    trials.loc[:9, "answer"] = None
    responses = people(trials, n=5)
    responses = responses[responses["item_id"] != trials["item_id"].iloc[20]]
    assert alignment(trials, responses, resamples=20).table["n_items"].iloc[0] == 49


def test_responses_have_to_be_meanings(trials: pd.DataFrame) -> None:
    words = people(trials, n=3).replace({"response": {"stands": "yes", "falls": "no"}})
    with pytest.raises(ValueError, match="nobody answered 'stands'"):
        alignment(trials, words)
    with pytest.raises(ValueError, match="none of the judged items"):
        alignment(trials, words.assign(item_id="x"))
    with pytest.raises(ValueError, match="two answers"):
        human_answers(pd.DataFrame({"item_id": list("abc"), "response": ["left", "right", "even"]}), "left")


def test_what_constant_answers_leave_undefined_is_said_in_words(trials: pd.DataFrame) -> None:
    constant = trials.assign(answer="stands", p_correct=np.nan, success=(trials["truth"] == "stands").astype(int))
    responses = people(trials, n=3)

    def said(table: pd.DataFrame, responses: pd.DataFrame) -> str:
        found = alignment(table, responses, resamples=10)
        return in_words(found.table.iloc[0].to_dict(), found.items)

    assert "r = 0." in said(trials, responses) and "undefined" not in said(trials, responses)
    # A run that always says the same agrees with people by chance: kappa is 0, and a correlation there is none.
    text = said(constant, responses)
    assert "r with the share of people is undefined (the run said the same about every item" in text
    assert "κ = 0.00 with single people" in text and "nan" not in text
    text = said(constant, responses.assign(response="stands"))
    assert "(the run and people said the same" in text and "κ with single people is undefined" in text


def test_pairs_of_people_without_items_in_common_are_no_rank(trials: pd.DataFrame) -> None:
    responses = people(trials, n=6)
    first = set(trials["item_id"].iloc[:30])
    apart = responses[(responses["participant"] < "s03") == responses["item_id"].isin(first)]
    found = alignment(trials, apart, resamples=20)
    pairs = found.kappas["towers-stability"]
    known = pairs[np.isfinite(pairs)]
    assert (len(pairs), len(known)) == (15, 6)
    assert found.table["kappa_percentile"].iloc[0] == np.mean(known < found.table["kappa"].iloc[0])


def test_a_run_whose_replies_cannot_be_read_is_named_and_left_out(trials: pd.DataFrame) -> None:
    unread = trials.assign(answer=None, p_correct=np.nan, run="mute", success=0)
    found = alignment(pd.concat([trials, unread], ignore_index=True), people(trials, n=5), resamples=20)
    assert found.table["run"].tolist() == [trials["run"].iloc[0]]
    assert found.notes == ("mute on towers-stability: it gave a readable answer to 0 of the items, too few to compare",)


def test_items_of_another_set_with_the_same_name_are_other_items(trials: pd.DataFrame) -> None:
    responses = people(trials, n=10)
    turned = np.where(trials["truth"] == "stands", "falls", "stands")
    other = trials.assign(stimuli="b", p_correct=1 - trials["p_correct"], truth=turned)
    both = pd.concat([trials.assign(stimuli="a"), other], ignore_index=True)
    alone = alignment(trials, responses, resamples=20).table.iloc[0]
    found = alignment(both, responses.assign(stimuli="a"), resamples=20).table.iloc[0]
    assert (found["n_items"], found["r"]) == (60, pytest.approx(alone["r"]))
    predicted = alignment_model(both, responses.assign(stimuli="a")).table
    assert predicted["estimate"].tolist() == pytest.approx(
        alignment_model(trials, responses).table["estimate"].tolist()
    )
