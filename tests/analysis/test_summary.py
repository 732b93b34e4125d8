from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import norm

from tests.analysis.conftest import run_rows, write_run
from vlm_probe.analysis.proportions import by_condition, wilson
from vlm_probe.analysis.rows import two_options
from vlm_probe.analysis.summary import summarise, summarise_rows

Make = Callable[..., list[dict[str, Any]]]
RECORD = {
    "stimuli": {
        "path": "sets/towers",
        "task": "towers-stability",
        "baselines": {
            "chance": 0.5,
            "constant": {"answer": "stands", "score": 0.5},
            "shortcuts": {"block count": 0.52},
        },
    }
}


def test_a_judgement(judgements: Make) -> None:
    rows = judgements(lambda margin: float(norm.cdf(margin / 0.3)))
    found = summarise_rows(rows, RECORD, "runs/x").to_dict()
    right = sum(row["correct"] for row in rows) / len(rows)
    assert found["n"] == len(rows) and found["accuracy"] == pytest.approx(right, abs=1e-6)
    assert found["accuracy_ci"][0] < right < found["accuracy_ci"][1]
    assert found["d_prime"] > 1 and found["signal"] == "stands" and found["parse_rate"] == 1
    assert found["run"] == "runs/x" and found["stimuli"] == "sets/towers" and found["task"] == "towers-stability"
    assert found["baselines"] == RECORD["stimuli"]["baselines"]
    assert found["by_margin"][0]["margin_bin"] == [-1.0, -0.7]
    p = [cell["p_signal"] for cell in found["by_margin"]]
    assert p[0] < 0.1 and p[-1] > 0.9
    assert [cell["count"] for cell in found["by_count"]] == [2, 3, 4]


def test_a_run_that_says_nothing_about_the_model_says_why(judgements: Make) -> None:
    rows = judgements(lambda margin: 0.5)[:12]
    for row in rows:
        row |= {"answer": None, "correct": False, "success": False, "status": "unfinished"}
    rows[0]["status"] = "content_filter"
    found = summarise_rows(rows, RECORD)
    assert found.problem == (
        "none of the 12 replies could be read: 11 cut at the token limit or without a final answer, 1 content filter;"
        " give a larger --max-new-tokens"
    )
    assert str(found).startswith("none of the 12 replies") and found.to_dict()["problem"] == found.problem
    for number, row in enumerate(rows):
        row |= {"error": f"ServerError: 413\nnumber {number // 6}"}
    found = summarise_rows(rows, RECORD)
    assert found.problem == "all 12 trials failed: ServerError: 413 number 0 (and 1 other reasons, in its trials.jsonl)"
    assert "nan" not in str(found) and "accuracy" not in str(found)
    assert summarise_rows(judgements(lambda margin: 0.5), RECORD).problem == ""


def test_bias_is_separated_from_sensitivity(judgements: Make) -> None:
    found = summarise_rows(judgements(lambda _: 1.0), RECORD).to_dict()
    assert found["accuracy"] == 0.5 and found["d_prime"] == pytest.approx(0) and found["criterion"] < -2
    # "stands" is "yes" in one polarity and "no" in the other: no bias towards the word.
    assert found["yes_bias"] == pytest.approx(0) and found["pair_accuracy"] == 0


def test_always_saying_yes_is_a_bias_towards_the_word(judgements: Make) -> None:
    rows = judgements(lambda _: 0.5)
    for row in rows:
        yes = row["options"][row["variant"]["order"]]
        row.update(answer=yes, answer_text="yes", correct=yes == row["truth"], success=yes == row["truth"])
    found = summarise_rows(rows, RECORD).to_dict()
    assert found["yes_bias"] == pytest.approx(0.5)
    assert found["criterion"] == pytest.approx(0, abs=1e-6)


def test_catch_items_come_first_where_there_are_several_manners(judgements: Make) -> None:
    """Those of the outermost margin bins, of the intact condition only."""
    rows = judgements(lambda margin: float(margin > 0 or margin < -0.7), per_bin=10)
    assert summarise_rows(rows, RECORD).to_dict()["n_catch"] == 0
    blank = [{**row, "key": f"{row['key']} blank", "manner": {"code": "blank", "control": "blank"}} for row in rows]
    found = summarise_rows(rows + blank, RECORD)
    bins = sorted({tuple(row["condition"]["margin_bin"]) for row in rows})
    outer = [row for row in rows if tuple(row["condition"]["margin_bin"]) in (bins[0], bins[-1])]
    assert found.to_dict()["n_catch"] == len(outer) == 20
    assert found.to_dict()["catch_accuracy"] == sum(row["success"] for row in outer) / 20
    assert str(found).index("catch items right") < str(found).index("accuracy ")


def test_a_battery_begins_with_what_was_seen(tmp_path: Path) -> None:
    """The run of the grounding questions, inside the folder of the battery, by kind of question."""
    rows = run_rows(n=80)
    run = write_run(tmp_path / "run", rows + run_rows(n=80, manner="blank"))
    assert summarise(run).grounding == [] and "seen in the images" not in str(summarise(run))
    kinds = ("count:3", "exists")
    asked = [row | {"condition": row["condition"] | {"build": kinds[i % 2]}} for i, row in enumerate(rows)]
    write_run(run / "grounding", asked)
    found = summarise(run)
    assert [(cell["kind"], cell["n"]) for cell in found.to_dict()["grounding"]] == [("count", 40), ("exists", 40)]
    text = str(found)
    assert text.index("seen in the images") < text.index("catch items right") < text.index("vs intact")


def test_no_number_is_cut_in_a_narrow_terminal(tmp_path: Path) -> None:
    manners = ("", "blank", "paraphrase3_polarity1_order1_examples3")
    rows = [row for manner in manners for row in run_rows(n=80, manner=manner)]
    text = str(summarise(write_run(tmp_path / "run", rows)))
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_unread_replies_are_wrong_and_failed_trials_are_neither(judgements: Make) -> None:
    rows = judgements(lambda margin: float(margin > 0), per_bin=10)
    for row in rows[:8]:
        row.update(answer=None, answer_text=None, status="no_answer", correct=False, success=False, reward=0.0)
    for row in rows[8:12]:
        row.update(answer=None, status="error", correct=False, success=False, error="ValueError: bad picture")
    found = summarise_rows(rows, RECORD).to_dict()
    assert (found["n"], found["errors"]) == (80, 4)
    assert found["accuracy"] == pytest.approx(68 / 76, abs=1e-6)
    assert found["parse_rate"] == pytest.approx(68 / 76, abs=1e-6)
    assert found["statuses"] == {"ok": 68, "no_answer": 8}
    assert sum(cell["n"] for cell in found["by_margin"]) == 76


def test_an_action(actions: Make) -> None:
    summary = summarise_rows(actions(), {})
    found = summary.to_dict()
    assert found["d_prime"] is None and found["criterion"] is None and found["by_margin"] == []
    assert 0 < found["accuracy"] < 1 and found["reward"] > found["accuracy"]
    assert [cell["build"] for cell in found["by_build"]] == ["2to4cm", "5to7cm", "8to10cm", "11to13cm"]
    assert "success rate" in str(summary) and "d'" not in str(summary)


def test_no_trials_give_nulls_and_no_nan() -> None:
    summary = summarise_rows([], RECORD)
    text = json.dumps(summary.to_dict(), allow_nan=False)
    assert json.loads(text)["accuracy"] is None and json.loads(text)["d_prime"] is None
    assert "0 trials" in str(summary)


def test_the_printed_table(judgements: Make) -> None:
    text = str(summarise_rows(judgements(lambda _: 0.7), RECORD))
    for expected in ("accuracy", "Wilson", "criterion c", "signal: stands", "block count", 'P("stands")', "chance"):
        assert expected in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_signal_does_not_depend_on_the_wording_of_the_first_item(judgements: Make) -> None:
    rows = judgements(lambda _: 0.5, per_bin=4)
    for row in rows:
        assert two_options([row]) == ("stands", "falls")
    assert two_options([*rows, {"options": ["left", "right"], "variant": {}}]) is None
    assert two_options([{"options": None}]) is None


def test_wilson_stays_inside_the_unit_interval() -> None:
    for successes, n in ((0, 5), (5, 5), (1, 1), (3, 7)):
        found = wilson(successes, n)
        assert 0 <= found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high <= 1
    # Brown, Cai & DasGupta (2001): 0 of 10 gives an upper limit of .278.
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-3)


def test_levels_are_in_natural_order() -> None:
    rows = [{"condition": {"build": b}, "success": True} for b in ("10cm", "9cm", "plain", "2cm")]
    assert [cell.level for cell in by_condition(rows, "build")] == ["2cm", "9cm", "10cm", "plain"]
