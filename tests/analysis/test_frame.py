"""The tidy table: every trial once, with the facts of its training and its level of transfer."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.conftest import run_rows, write_run
from vlm_probe.analysis.frame import COLUMNS, Dropped, FrameError, Trials, from_table, load
from vlm_probe.analysis.levels import TRANSFER, transfer_level
from vlm_probe.probes.trials import RUN, TABLE, TRIALS, Column, RunError, read_run
from vlm_probe.stimuli.tasks import task_names


def test_a_study_is_one_table(study_folder: Path) -> None:
    trials = load([study_folder])
    table = trials.table
    assert tuple(table.columns) == COLUMNS and len(table) == 48 * (3 + 2 * 3 * 4)
    assert trials.dropped == () and trials.notes == [] and len(trials.sources) == 27
    # One run is one adapter, whatever number of folders it has.
    assert table["run"].nunique() == 7 and set(table["method"]) == {"none", "sft", "grpo"}
    assert list(table["method"].cat.categories) == ["none", "sft", "grpo"]
    of_one = table[table["run"] == "tiny sft towers-stability seed 2"]
    assert of_one["folder"].nunique() == 4 and set(of_one["seed"]) == {2} and set(of_one["samples"]) == {1000}
    levels = of_one.groupby(["test_task", "shift"], observed=True)["transfer"].first()
    assert levels.to_dict() == {
        ("towers-stability", "none"): "within",
        ("towers-stability", "camera"): "shifted",
        ("towers-topblock", "none"): "cross-task",
        ("balance-tilt", "none"): "cross-family",
    }
    base = table[table["method"] == "none"]
    assert base["transfer"].isna().all() and set(base["train_tasks"]) == {"none"} and set(base["samples"]) == {0}
    assert set(of_one.loc[of_one["shift"] == "camera", "shift_level"]) == {2}
    bins = list(table["margin_bin"].cat.categories)
    assert table["margin_bin"].cat.ordered and bins[0] == "-1.00 to -0.70" and bins[-1] == "+0.70 to +1.00"


def test_the_table_does_not_depend_on_how_runs_were_named(study_folder: Path) -> None:
    runs = sorted(path for path in study_folder.iterdir())
    expected = load([study_folder]).table
    pd.testing.assert_frame_equal(load(reversed(runs)).table, expected)
    pd.testing.assert_frame_equal(load([*runs, runs[0]]).table, expected)  # the same folder twice is one


def test_unread_replies_are_wrong_and_failed_trials_are_counted(tmp_path: Path) -> None:
    rows = run_rows(n=12)
    for row in rows[:3]:
        row.update(answer=None, answer_text=None, status="no_answer", correct=False, success=False, reward=0.0)
    for row in rows[3:5]:
        row.update(answer=None, status="error", correct=False, success=False, error="StimulusError: corrupt")
    trials = load([write_run(tmp_path / "r", rows)])
    assert len(trials.table) == 10
    unread = trials.table[trials.table["status"] == "no_answer"]
    assert len(unread) == 3 and unread["answer"].isna().all() and not unread["correct"].any()
    assert [(d.reason, d.n) for d in trials.dropped] == [("failed: StimulusError", 2)]
    assert "2 trials" in trials.notes[0] and "StimulusError" in trials.notes[0]


def test_a_trial_twice_is_refused(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", run_rows(n=8))
    shutil.copytree(first, tmp_path / "b")
    with pytest.raises(FrameError, match=r"8 trials are there twice.*/a and .*/b"):
        load([tmp_path])


def test_a_battery_of_controls_may_repeat_the_plain_run(tmp_path: Path) -> None:
    plain, blank = run_rows(n=8), run_rows(n=8, manner="blank", seed=1)
    plain[3] |= {"answer": None, "status": "no_answer", "success": False, "correct": False}  # twice unread is the same
    write_run(tmp_path / "plain", plain)
    write_run(tmp_path / "battery", [*plain, *blank])
    trials = load([tmp_path])
    assert trials.table["manner"].value_counts().to_dict() == {"": 8, "blank": 8}
    assert [(d.n, Path(d.source).name) for d in trials.dropped] == [(8, "battery")]
    # So may the grounding questions that batteries begin with.
    seen = run_rows("towers-grounding", n=4)
    write_run(tmp_path / "battery" / "grounding", seen)
    write_run(tmp_path / "grounding", seen)
    trials = load([tmp_path])
    assert len(trials.table) == 20 and len(load([tmp_path / "battery"]).table) == 20
    assert sum(d.n for d in trials.dropped) == 12
    # Another answer to the same greedy question cannot be: one of the logs is not what it seems.
    other = [row | {"answer": None, "status": "no_answer", "success": False, "correct": False} for row in plain]
    write_run(tmp_path / "other", [*other, *run_rows(n=8, manner="shuffled", seed=2)])
    with pytest.raises(FrameError, match="there twice"):
        load([tmp_path])


def test_a_log_edited_after_the_run_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", run_rows(n=8))
    text = (run / TRIALS).read_text()
    (run / TRIALS).write_text(text.replace('"correct": false', '"correct": true', 1))
    with pytest.raises(RunError, match="is not what the run wrote"):
        load([run])
    # A run that goes on has no last word yet, and logs of earlier versions never had one.
    for change in ({"status": "running"}, {"trials_sha256": None}):
        (run / RUN).write_text(json.dumps(read_run(run) | change))
        assert len(load([run]).table) == 8


def test_logs_of_earlier_versions_and_runs_that_go_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", run_rows(n=8), method="sft", train_tasks=["towers-stability"])
    record = read_run(run)
    del record["training"], record["trials_sha256"]
    (run / RUN).write_text(json.dumps(record | {"n": 20}))
    rows = [json.loads(line) for line in (run / TRIALS).read_text().splitlines()]
    for row in rows:
        del row["manner"], row["examples"]
    (run / TRIALS).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    trials = load([run])
    assert set(trials.table["method"]) == {"unknown"} and set(trials.table["manner"]) == {""}
    assert trials.table["transfer"].isna().all()
    assert any("8 of 20" in note for note in trials.notes)


def test_runs_that_would_be_called_alike_are_told_apart(tmp_path: Path) -> None:
    for index, curriculum in enumerate(("none", "easy-to-hard")):
        write_run(
            tmp_path / str(index), run_rows(n=4), method="ppo", train_tasks=["towers-stability"], curriculum=curriculum
        )
    write_run(tmp_path / "2", run_rows(n=4), method="ppo", train_tasks=["towers-stability"], note="other weights")
    runs = list(load([tmp_path]).table["run"].cat.categories)
    assert len(runs) == 3 and sum("#" in run for run in runs) == 2
    assert "tiny ppo towers-stability (curriculum easy-to-hard) seed 0" in runs


def test_models_that_differ_in_a_file_are_told_apart(tmp_path: Path) -> None:
    """The weights are the same; another configuration or tokenizer makes other answers of them."""
    for number, task in enumerate(("towers-stability", "balance-tilt", "support-hold")):
        folder = write_run(tmp_path / str(number), run_rows(task, n=4))
        record = json.loads((folder / RUN).read_text())
        record["model"]["files"] = {"config.json": "a" if number < 2 else "b"}
        (folder / RUN).write_text(json.dumps(record))
    assert load([tmp_path / "0", tmp_path / "1"]).table["run"].nunique() == 1
    assert load([tmp_path / "1", tmp_path / "2"]).table["run"].nunique() == 2


def test_sampled_runs_of_an_untrained_model_are_runs_of_their_own(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / str(seed), run_rows(n=4, seed=seed), seed=seed, temperature=1.0)
    assert list(load([tmp_path]).table["run"].cat.categories) == ["tiny sample 1", "tiny sample 2"]


def test_tables_of_other_people(tmp_path: Path, study_folder: Path) -> None:
    plain = pd.DataFrame(
        {"run": ["a", "a", "b"], "test_task": "my-task", "item_id": [1, 2, 1], "correct": [1, None, 0], "method": "sft"}
    )
    plain.to_csv(tmp_path / "t.csv", index=False)
    plain.to_parquet(tmp_path / "t.parquet")
    for trials in (load([tmp_path / "t.csv"]), load([tmp_path / "t.parquet"]), from_table(plain)):
        assert len(trials.table) == 2 and set(trials.table["test_family"]) == {"my"}
        assert [(d.reason, d.n) for d in trials.dropped] == [("no score in `correct`", 1)]
        assert trials.table["success"].tolist() == [1, 0] and trials.table["margin"].isna().all()
    # The table itself is such a table.
    tidy = load([study_folder]).table
    tidy.to_parquet(tmp_path / "tidy.parquet")
    again = load([tmp_path / "tidy.parquet"]).table
    pd.testing.assert_frame_equal(again.drop(columns="folder"), tidy.drop(columns="folder"))


def test_tables_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    good = pd.DataFrame({"run": "a", "test_task": "t", "item_id": ["1", "2"], "correct": [0, 1]})
    with pytest.raises(FrameError, match="lacks the column item_id"):
        from_table(good.drop(columns="item_id"))
    with pytest.raises(FrameError, match=r"the table, row 1, column correct: must be 0 or 1, got 0\.5"):
        from_table(good.assign(correct=[0.5, 1]))
    with pytest.raises(FrameError, match="there twice"):
        from_table(good.assign(item_id="1"))
    with pytest.raises(RunError, match="holds no run"):
        load([tmp_path])
    with pytest.raises(FrameError, match="no runs given"):
        load([])


WRONG: dict[str, tuple[str, ...]] = {
    "number": ("-1", "wide", "inf", "1e400", "1,5"),
    "whole": ("-1", "0.5", "12345678901234567890123", "1e400", "two", "inf"),
    "truth": ("2", "-1", "0.5", "perhaps"),
    "text": (),
}


def wrong_values(column: Column) -> list[str]:
    """Texts that are not allowed in a column."""
    values = list(WRONG[str(column.table)])
    values += ["", "  "] if column.needed and column.default is None else []
    values += ["fine"] if column.choices else []
    return [value for value in values if (column.name, value) != ("margin", "-1")]


@pytest.mark.parametrize("column", [c for c in TABLE if wrong_values(c)], ids=lambda column: column.name)
def test_every_column_of_a_table_has_its_range(tmp_path: Path, column: Column) -> None:
    plain = {"run": "a", "test_task": "t", "item_id": list("bcdef"), "correct": "1"}
    table = pd.DataFrame(plain | ({} if column.name in plain else {column.name: None}), dtype=object)
    for value in wrong_values(column):
        changed = table.copy()
        changed.loc[3, column.name] = value
        changed.to_csv(tmp_path / "t.csv", index=False)
        changed.to_parquet(tmp_path / "t.parquet")
        for place, use in (
            (r"t\.csv, row 4 \(line 5\)", lambda _: load([tmp_path / "t.csv"])),
            (r"t\.parquet, row 4", lambda _: load([tmp_path / "t.parquet"])),
            ("the table, row 4", from_table),
        ):
            with pytest.raises(FrameError, match=f"{place}, column {column.name}: (must be|is empty)") as told:
                use(changed)
            assert "\n" not in str(told.value)


odd_cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.decimals().filter(lambda value: not value.is_snan()),  # which pandas itself does not take
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=1), st.integers(), max_size=1),
    st.binary(max_size=2),
    st.datetimes(),
)


@given(st.sampled_from([column.name for column in TABLE]), odd_cells, odd_cells)
def test_any_cell_is_in_its_range_or_refused(name: str, first: object, second: object) -> None:
    table = pd.DataFrame({"run": "a", "test_task": "t", "item_id": ["b", "c"], "correct": 1}, dtype=object)
    table[name] = pd.Series([first, second], dtype=object)
    try:
        found = from_table(table).table
    except FrameError as error:
        assert "\n" not in str(error)
        return
    for column in TABLE:
        for value in found[column.name].dropna():
            empty = value == "" and not column.needed
            assert column.name == "observer" or empty or column.read(value) == value


def test_cells_of_other_kinds(tmp_path: Path) -> None:
    good = pd.DataFrame({"run": "a", "test_task": "t", "item_id": ["01", "1"], "correct": [True, False]})
    (tmp_path / "typed.csv").write_text(
        "run,test_task,item_id,correct,margin,answer\na,t,01,TRUE,NA,-5\na,t,1,0.0,-.5,\n"
    )
    for trials in (from_table(good), load([tmp_path / "typed.csv"])):
        items = trials.table.set_index("item_id")
        assert items["correct"].to_dict() == {"01": 1, "1": 0}
    assert items.loc["01", "answer"] == "-5" and items.loc["1", "margin"] == -0.5
    assert math.isnan(items.loc["01", "margin"]) and pd.isna(items.loc["1", "answer"])
    lists = good.assign(margin=[[0.1], [0.2, 0.3]])
    lists.to_parquet(tmp_path / "lists.parquet")
    for use in (lambda: from_table(lists), lambda: load([tmp_path / "lists.parquet"])):
        with pytest.raises(FrameError, match="row 1, column margin: must be a finite number"):
            use()
    with pytest.raises(FrameError, match="row 2, column item_id: must be a text"):
        from_table(good.assign(item_id=["a", ["b"]]))
    double = pd.concat([good, good[["run"]]], axis=1)
    with pytest.raises(FrameError, match="two columns called 'run'"):
        from_table(double)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"run,run,test_task,item_id,correct\na,a,t,1,1\n", "two columns are called 'run'"),
        ("t.csv", b"run,test_task,item_id,correct\na,t,1,1,1\n", "line 2: more cells than columns"),
        ("t.csv", b"run,test_task,item_id,correct\n\xff,t,1,1\n", "not UTF-8"),
        ("t.csv", b"", "lacks the columns run"),
        ("t.parquet", b"PAR1nonsense", "is damaged"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FrameError, match=message) as told:
        load([tmp_path / name])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("where", "change", "column"),
    [
        ("condition", {"count": -3}, "count"),
        ("condition", {"mirrored": 7}, "mirrored"),
        ("condition", {"shifts": [["camera", -1]]}, "shift_level"),
        ("variant", {"polarity": 7}, "polarity"),
        ("variant", {"order": 0.5}, "order"),
    ],
)
def test_factors_in_a_log_have_the_ranges_of_their_columns(
    tmp_path: Path, where: str, change: dict[str, object], column: str
) -> None:
    rows = run_rows(n=8)
    rows[3][where] = (rows[3][where] or {}) | change
    run = write_run(tmp_path / "r", rows)
    with pytest.raises(
        FrameError, match=rf"trials\.jsonl, trial of {re.escape(rows[3]['item_id'])}, column {column}: must"
    ):
        load([run])


def test_trainings_have_curves_and_whole_models_were_trained_too(tmp_path: Path) -> None:
    facts = {
        "model": "/models/tiny",
        "method": "ppo",
        "tasks": ["towers-topblock"],
        "seed": 3,
        "budget": {"samples": 64},
    }
    (tmp_path / "adapter").mkdir()
    curves = [{"samples": n, "success": n / 128, "reward": 0.5, "step": n} for n in (0, 32, 64)]
    (tmp_path / "adapter" / "training.json").write_text(json.dumps(facts | {"curves": curves}))
    run = write_run(tmp_path / "run", run_rows(n=4))
    (run / RUN).write_text(json.dumps(read_run(run) | {"training": facts}))
    trials = load([tmp_path / "adapter", run])
    assert trials.curves["success"].tolist() == [0.0, 0.25, 0.5] and set(trials.curves["method"]) == {"ppo"}
    assert set(trials.curves["run"]) == set(trials.table["run"]) == {"tiny ppo towers-topblock seed 3"}
    assert set(trials.table["transfer"]) == {"cross-task"}
    (tmp_path / "adapter" / "training.json").write_text('{"curves": [{}]}')
    with pytest.raises(RunError, match=r"training\.json is damaged"):
        load([tmp_path])


tasks = st.sampled_from(task_names())


@settings(deadline=None)  # the first example imports the tasks
@given(tasks, st.lists(tasks, min_size=1, max_size=3), st.sampled_from([(), (("camera", 1),), (("camera", 3),)]))
def test_every_test_has_one_level(test: str, trained: list[str], shifts: tuple[tuple[str, int], ...]) -> None:
    level = transfer_level(test, shifts, tuple(trained), (("camera", 1),))
    assert level in TRANSFER
    if level == "shifted":
        assert test in trained and shifts == (("camera", 3),)
    if level == "within":
        assert test in trained


def test_what_is_left_out_of_many_runs_for_one_reason_is_one_note():
    dropped = tuple(Dropped("failed", 2, f"runs/{number}") for number in range(9))
    (note,) = Trials(pd.DataFrame(), dropped, ()).notes
    assert note == "18 trials of 9 runs, runs/0 first, left out (failed)"
    assert len(Trials(pd.DataFrame(), dropped[:2], ()).notes) == 2


def test_trainings_that_would_be_called_alike_keep_their_own_curves(tmp_path: Path) -> None:
    facts = {"model": "tiny", "method": "ppo", "tasks": ["towers-topblock"], "seed": 0}
    for name, height in (("slow", 0.2), ("fast", 0.9), ("fast-merged", 0.9)):
        (tmp_path / name).mkdir()
        curves = [{"samples": n, "success": height * n / 64} for n in (0, 64)]
        (tmp_path / name / "training.json").write_text(json.dumps(facts | {"curves": curves}))
    write_run(tmp_path / "run", run_rows(n=4))
    both = load([tmp_path]).curves
    final = both[both["samples"] == 64].set_index("run")["success"]
    named = {f"tiny ppo towers-topblock seed 0 ({name})": height for name, height in (("fast", 0.9), ("slow", 0.2))}
    assert final.to_dict() == named
