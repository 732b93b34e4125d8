from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from statsmodels.stats.multitest import multipletests

from vlm_probe.analysis.run_means import Side, compare, contrast_of_means, fieller, per_item
from vlm_probe.analysis.source_target import condition_contrasts, transfer_contrasts
from vlm_probe.analysis.transfer import with_names
from vlm_probe.analysis.transfer_verdicts import ALL, VERDICTS, chosen, decide, finding, holm
from vlm_probe.stimuli.errors import InvalidInput

Make = Callable[..., pd.DataFrame]
A, B, C = "towers-topblock", "towers-direction", "balance-place"


def study(
    right: float, invalid_before: float = 0.0, runs: int = 6, base: float = 0.5, items: int = 80, seed: int = 0
) -> pd.DataFrame:
    """A study in which training on A makes B right with a probability, and the untrained model gives invalid replies to B."""
    rng = np.random.default_rng(seed)
    index = np.arange(items)
    truth = np.where(index % 2 == 0, "left", "right")
    other = np.where(index % 2 == 0, "right", "left")
    parts = []
    for run in range(-1, runs):
        trained = run >= 0
        for task, p in ((A, 0.9 if trained else 0.3), (B, right if trained else base)):
            correct = rng.random(items) < expit(np.log(p / (1 - p)) + rng.normal(0, 0.2) * trained)
            lost = (rng.random(items) < invalid_before) & (not trained) & (task == B)
            parts.append(
                pd.DataFrame(
                    {
                        "run": f"r{run}",
                        "model": "m",
                        "method": "sft" if trained else "none",
                        "train_tasks": A if trained else "none",
                        "regime": "",
                        "seed": max(run, 0),
                        "test_task": task,
                        "shift": "none",
                        "shift_level": 0,
                        "transfer": None if not trained else "within" if task == A else "cross-task",
                        "item_id": [f"{task}{i}" for i in index],
                        "group_id": [f"{task}g{i // 2}" for i in index],
                        "truth": truth,
                        "answer": pd.Series(np.where(correct, truth, other), dtype=object).mask(lost),
                        "status": np.where(lost, "no_answer", "ok"),
                        "success": (correct & ~lost).astype(int),
                        "chance": 0.5,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def on_target(trials: pd.DataFrame) -> dict[str, object]:
    table = transfer_contrasts(trials).table
    return dict(table[(table["target"] == B) & (table["method"] == ALL)].iloc[0])


@pytest.mark.parametrize(
    ("right", "invalid", "verdict", "measure"),
    [
        (0.08, 0.0, "reversed", "signed"),
        (0.85, 0.0, "higher", "success"),
        (0.5, 0.0, "inconclusive", ""),
        (0.5, 0.7, "uninformative", "format"),
    ],
)
def test_kinds_of_transfer_are_told_apart(right: float, invalid: float, verdict: str, measure: str) -> None:
    row = on_target(study(right, invalid))
    assert (row["verdict"], row["measure"]) == (verdict, measure)


def test_no_transfer_is_equivalent_with_enough_items_and_says_what_was_ruled_out() -> None:
    # Of success alone: the signed score, on a scale twice as wide, asks for as many items again.
    row = on_target(study(0.5, items=1600, runs=9).drop(columns=["truth", "answer"]))
    assert row["verdict"] == "equivalent" and 0 < float(str(row["ruled_out"])) < 0.1


def test_the_floor_is_uninformative_and_not_equivalent() -> None:
    row = on_target(study(0.02, base=0.02).assign(truth="5", answer="3"))
    assert (row["verdict"], row["measure"]) == ("uninformative", "floor")


def test_runs_that_did_not_learn_are_flagged_and_left_out_next_to_the_whole() -> None:
    trials = study(0.85)
    lost = (trials["run"] == "r5") & (trials["test_task"] == A)
    trials.loc[lost, "success"] = 0
    found = transfer_contrasts(trials)
    assert found.runs.set_index("run")["learned"].to_dict() == {f"r{i}": i != 5 for i in range(6)}
    row = found.table[found.table["target"] == B].iloc[0]
    assert (row["n_runs"], row["n_learned"]) == (6, 5) and np.isfinite(row["difference_learned"])
    assert "1 of 6 runs" in found.notes[0]


def test_it_is_the_test_on_means(simulated: Make) -> None:
    cells = {("none", "none", "towers-stability"): 0.0, ("sft", "towers-stability", "towers-stability"): 0.6}
    trials = simulated(cells, runs=5, items=40, run_sd=0.4, item_sd=0.8).drop(columns="group_id")
    named = with_names(trials)
    expected = contrast_of_means(per_item(named), {"sft": 1.0, "none": -1.0}).over_items
    row = transfer_contrasts(trials).table.iloc[0]
    assert row["difference"] == pytest.approx(expected.value)
    assert row["p"] == pytest.approx(expected.p, rel=0.05) and row["df"] == pytest.approx(expected.df, rel=0.05)


def test_one_run_is_tested_over_items_alone() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((2, 60)) < 0.5).astype(float)
    items = np.arange(60)
    found = compare(
        y, np.full(60, 1 / 60), np.zeros(60, int), items, Side(np.array([0]), ("a",)), Side(np.array([1]), ("b",), True)
    )
    difference = y[0] - y[1]
    assert found.over_runs.value == pytest.approx(difference.mean()) and found.over_runs.df == 59
    assert found.over_runs.se == pytest.approx(difference.std(ddof=1) / 60**0.5)
    assert found.each == pytest.approx(found.over_runs.p)


def test_fieller_is_that_of_a_known_example() -> None:
    # Roots of (a - r b)^2 = t^2 (v_a - 2 r c + r^2 v_b).
    low, high = fieller(0.2, 0.5, 0.01, 0.004, 0.001, 10)
    critical = 2.2281388519862744
    for root in (low, high):
        assert (0.2 - root * 0.5) ** 2 == pytest.approx(critical**2 * (0.01 - 2 * root * 0.001 + root**2 * 0.004))
    assert np.isnan(fieller(0.2, 0.05, 0.01, 0.01, 0.0, 10)).all()


def test_two_sets_of_one_task_are_two_targets() -> None:
    one = study(0.9).assign(stimuli="aaa")
    two = study(0.1, seed=1).assign(stimuli="bbb", item_id=lambda t: "x" + t["item_id"])
    table = transfer_contrasts(pd.concat([one, two], ignore_index=True)).table
    assert set(table["target"]) == {f"{task} (set {name})" for task in (A, B) for name in ("aaa", "bbb")}


@pytest.mark.parametrize("p", [[0.3], [0.01, 0.04, 0.03, 0.005], [0.2, 0.9, 0.9, 0.0], list(np.linspace(0.001, 1, 30))])
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    assert holm(np.array(p)) == pytest.approx(multipletests(p, method="holm")[1])


def test_findings_are_sentences_and_json_is_plain() -> None:
    found = transfer_contrasts(study(0.08))
    (row,) = chosen(found, "reversed")
    assert finding(row).startswith(f"{A} → {B}: signed score −0.") and finding(row).endswith("6 runs")
    json.dumps(found.to_dict(), allow_nan=False)
    assert set(found.table["verdict"]) <= set(VERDICTS)


def test_holm_is_over_both_measures() -> None:
    table = transfer_contrasts(study(0.6)).table
    row = table[table["target"] == B].iloc[0]
    assert row["p_holm"] >= row["p"] and row["signed_p_holm"] >= row["signed_p"]
    assert min(row["p_holm"], row["signed_p_holm"]) == pytest.approx(2 * min(row["p"], row["signed_p"]))


def test_a_loss_of_format_is_no_loss_of_physics() -> None:
    row = {
        **dict.fromkeys(("p_reversed_holm", "signed_p", "signed_p_holm", "signed_difference", "signed_p_equivalence"), 1.0),
        "limit": "", "p_holm": 0.001, "p_equivalence_holm": 1.0, "difference": -0.3, "p_valid": 0.8, "difference_valid": 0.01,
        "invalid": 0.4,
    }  # fmt: skip
    assert decide(row) == ("uninformative", "format")
    assert decide(row | {"p_valid": 0.001, "difference_valid": -0.25}) == ("lower", "success")


def test_a_gain_that_random_answers_give_as_well_is_one_of_format() -> None:
    gained = study(0.85)
    control = study(0.85, seed=1).query("method == 'sft'")
    control = control.assign(run="c" + control["run"], regime="demonstrations random")
    row = on_target(pd.concat([gained, control], ignore_index=True))
    assert (row["verdict"], row["measure"]) == ("uninformative", "format") and np.isfinite(float(str(row["control_p"])))
    assert on_target(gained)["verdict"] == "higher"


def test_any_two_conditions_are_compared_at_a_level() -> None:
    plain = study(0.85)
    other = study(0.5, seed=1).query("method == 'sft'")
    other = other.assign(run="c" + other["run"], regime="curriculum easy-to-hard")
    wanted = [("plain − curriculum", (A, ""), (A, "curriculum easy-to-hard"), "cross-task")]
    both = pd.concat([plain, other], ignore_index=True)
    row = condition_contrasts(both, wanted).table.iloc[0]
    assert row["difference"] == pytest.approx(0.35, abs=0.08) and row["verdict"] == "higher"
    assert (row["n_runs"], row["n_runs_other"], row["n_targets"]) == (6, 6, 1)
    turned = condition_contrasts(both, [("turned", wanted[0][2], wanted[0][1], "cross-task")]).table.iloc[0]
    assert turned["difference"] == pytest.approx(-row["difference"]) and turned["p"] == pytest.approx(row["p"])
    nothing = condition_contrasts(both, [("none", (A, ""), (C, ""), "within")])
    assert nothing.table.empty and "both conditions" in nothing.notes[0]


def test_shifted_copies_share_the_weight_of_their_task() -> None:
    whole = study(0.5)
    copy = whole[whole["test_task"] == B].assign(shift="camera", shift_level=1, success=1)
    row = on_target(pd.concat([whole, copy], ignore_index=True))
    trained = whole[(whole["method"] == "sft") & (whole["test_task"] == B)]
    assert row["rate"] == pytest.approx((trained["success"].mean() + 1) / 2)


def test_without_a_trained_model_there_is_no_transfer() -> None:
    trials = study(0.5)
    with pytest.raises(InvalidInput, match="runs with adapters"):
        transfer_contrasts(trials[trials["method"] == "none"])
