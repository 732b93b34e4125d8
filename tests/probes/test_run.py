"""The run loop: what fails costs its own trials, and batches do not change answers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm_probe.probes import provenance
from vlm_probe.probes.models import Generation, Identity, Model, Trial
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.readout import Scorer, rescore
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import COLUMNS, RunError, read_run, read_trials, trials_hash
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.question import IntegerFormat
from vlm_probe.stimuli.ranges import OutOfRange
from vlm_probe.stimuli.tasks import get_task


class Yes(Model):
    """Says yes to everything; fails on the items it is told to."""

    needs_images = True
    identity = Identity("yes")

    def __init__(self, fails: Sequence[str] = (), error: BaseException | None = None) -> None:
        self.fails, self.error, self.asked = set(fails), error or ValueError("no\nidea"), 0

    def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str]:
        if any(trial.item.item_id in self.fails for trial in trials):
            raise self.error
        assert all(trial.image is not None and trial.image.size == (64, 64) for trial in trials)
        self.asked += len(trials)
        return ["Yes."] * len(trials)

    def score_options(self, trials: Sequence[Trial]) -> list[Any]:
        return [np.zeros(len(t.item.question.grammar.candidates())) for t in trials]


def copied(stimuli: StimulusSet, folder: Path) -> StimulusSet:
    """A copy of the set that can be damaged."""
    return StimulusSet.load(shutil.copytree(stimuli.path, folder))


def test_rows_have_all_columns(stability: StimulusSet, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = run(
        RunConfig("yes", "s"), stability, tmp_path / "r", model=Yes(), progress=lambda done, n: told.append((done, n))
    )
    assert (report.n, report.n_errors) == (24, 0)
    assert told[0] == (0, 24) and told[-1] == (24, 24)
    rows = read_trials(report.path)
    assert all(tuple(row) == COLUMNS for row in rows)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["chance"] for row in rows} == {0.5} and {row["n_candidates"] for row in rows} == {2}
    for row in rows:
        assert row["correct"] == row["success"] == (row["answer"] == row["truth"])
        assert sorted(row["options"]) == ["falls", "stands"]
    facts = read_run(report.path)
    assert facts["status"] == "finished" and facts["n"] == 24 and facts["stimuli"]["task"] == "towers-stability"
    assert facts["config"]["model"] == "yes" and "numpy" in facts["versions"] and facts["hardware"]["cpus"]


def test_versions_that_were_not_tested_are_told_and_noted(
    stability: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    declared = [
        "numpy>=2.0",
        "pandas>=0.1,<0.2",
        "pytest<1; extra == 'test'",
        "absent>=1",
        "pillow<1; python_version < '3'",
    ]
    monkeypatch.setattr(provenance, "requires", lambda _: declared)
    report = run(RunConfig("yes", "s", limit=2), stability, tmp_path / "r", model=Yes())
    noted = read_run(report.path)["untested"]
    assert noted == {"pandas": f"{version('pandas')}, tested with >=0.1,<0.2"}
    assert f"versions that were not tested: pandas {noted['pandas']} (see `probe doctor`)" in caplog.text
    monkeypatch.setattr(provenance, "requires", lambda _: declared[:1])
    assert read_run(run(RunConfig("yes", "s", limit=2), stability, tmp_path / "q", model=Yes()).path)["untested"] == {}


def test_a_bad_picture_costs_one_row_and_is_asked_again(stability: StimulusSet, tmp_path: Path) -> None:
    stimuli = copied(stability, tmp_path / "set")
    corrupt, missing = stimuli.items[3], stimuli.items[10]
    whole = {item.item_id: (stimuli.path / item.file_name).read_bytes() for item in (corrupt, missing)}
    (stimuli.path / corrupt.file_name).write_bytes(b"no picture")
    (stimuli.path / missing.file_name).unlink()
    report = run(RunConfig("yes", "s", batch_size=8), stimuli, tmp_path / "r", model=Yes())
    assert report.n_errors == len({corrupt.item_id, missing.item_id})
    bad = {row["item_id"]: row for row in read_trials(report.path) if row["error"]}
    assert set(bad) == {corrupt.item_id, missing.item_id}
    assert "corrupt" in bad[corrupt.item_id]["error"] and bad[corrupt.item_id]["error"].startswith("StimulusError: ")
    assert all(row["status"] == "error" and row["raw"] is None and not row["correct"] for row in bad.values())
    for item in (corrupt, missing):
        (stimuli.path / item.file_name).write_bytes(whole[item.item_id])
    model = Yes()
    report = run(RunConfig("yes", "s"), stimuli, tmp_path / "r", model=model)
    assert (report.n_errors, model.asked) == (0, 2)
    rows = read_trials(report.path)
    assert len(rows) == 24 and not any(row["error"] for row in rows)


def test_one_item_that_the_model_cannot_take_costs_one_row(stability: StimulusSet, tmp_path: Path) -> None:
    bad = stability.items[5].item_id
    report = run(RunConfig("yes", "s", batch_size=8), stability, tmp_path / "r", model=Yes([bad]))
    assert [row["error"] for row in read_trials(report.path) if row["item_id"] == bad] == ["ValueError: no idea"]
    assert report.n_errors == 1


def test_ctrl_c_leaves_a_run_to_go_on_with(stability: StimulusSet, tmp_path: Path) -> None:
    last = max(stability.items, key=lambda item: len(item.question.prompt)).item_id
    with pytest.raises(KeyboardInterrupt):
        run(RunConfig("yes", "s", batch_size=1), stability, tmp_path / "r", model=Yes([last], KeyboardInterrupt()))
    assert read_run(tmp_path / "r")["status"] == "interrupted"
    before = len(read_trials(tmp_path / "r"))
    assert 0 < before < 24
    model = Yes()
    run(RunConfig("yes", "s"), stability, tmp_path / "r", model=model)
    assert model.asked == 24 - before and len(read_trials(tmp_path / "r")) == 24
    assert read_run(tmp_path / "r")["status"] == "finished"


def test_a_model_without_a_preference_is_not_credited_with_a_constant(stability: StimulusSet, tmp_path: Path) -> None:
    report = run(RunConfig("yes", "s", "options"), stability, tmp_path / "r", model=Yes())
    rows = read_trials(report.path)
    assert {row["answer_text"] for row in rows} == {"yes", "no"}
    assert all(row["p_correct"] == pytest.approx(0.5) and row["raw"] is None for row in rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, "limit must be"),
        ({"readout": "words"}, "readout"),
        ({"temperature": -1.0}, "temperature must be a number from 0"),
        ({"temperature": math.nan}, "temperature must be a number from 0"),
        ({"examples": (0, 10**30)}, "examples must be a whole number from 0"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((RunError, OutOfRange), match=message):
        RunConfig("yes", "s", **changes)


def items_of(request: pytest.FixtureRequest) -> list[Item]:
    return [i for n in ("stability", "topblock", "sideblock", "grounding") for i in request.getfixturevalue(n).items]


def test_the_quick_score_is_the_task_s_score(request: pytest.FixtureRequest) -> None:
    """Comparing a judgement with the stored answer gives what simulating it once more gives."""
    scorer = Scorer()
    for item in items_of(request)[::3]:
        candidates = [value for _, value in item.question.grammar.candidates()]
        for answer in {item.answer, candidates[0], candidates[-1]}:
            assert item.scene is not None
            assert scorer.score(item, answer) == get_task(item.task).score(item.scene, item.question, answer)


def test_the_probability_of_being_right_counts_all_right_answers(request: pytest.FixtureRequest) -> None:
    scorer = Scorer()
    for item in items_of(request):
        columns = scorer.describe(item)
        even = scorer.options(item, np.zeros(columns["n_candidates"]))
        assert even["p_correct"] == pytest.approx(columns["chance"])
        if item.task == "towers-topblock":
            assert columns["chance"] == len(item.certificate["working"]) / 41
        if isinstance(item.question.grammar, IntegerFormat) and item.question.about.get("ask") == "shift":
            assert columns["chance"] in (2 / 21, 3 / 21)


def test_nothing_is_asked_of_an_empty_reply(stability: StimulusSet) -> None:
    columns = Scorer().reply(stability.items[0], " ")
    assert (columns["status"], columns["correct"], columns["reward"]) == ("empty", False, 0.0)


def test_observers_run_without_pictures(stability: StimulusSet, tmp_path: Path) -> None:
    stimuli = copied(stability, tmp_path / "set")
    shutil.rmtree(stimuli.path / "images")
    assert run(RunConfig("chance", "s"), stimuli, tmp_path / "r", model=make_observer("chance")).n_errors == 0


def test_a_run_of_an_adapter_knows_how_it_was_trained(stability: StimulusSet, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    model = Yes()
    model.identity = Identity("yes", adapter_sha256="abc")
    facts = {
        "method": "ppo",
        "tasks": ["towers-topblock"],
        "seed": 3,
        "budget": {"samples": 640},
        "adapter_sha256": "abc",
    }
    config = RunConfig("yes", "s", adapter=str(adapter), limit=2)
    assert read_run(run(config, stability, tmp_path / "unknown", model=model).path)["training"] is None
    (adapter / "training.json").write_text(json.dumps(facts | {"curves": {"reward": [0.1, 0.9]}}))
    assert read_run(run(config, stability, tmp_path / "known", model=model).path)["training"] == facts
    (adapter / "training.json").write_text(json.dumps(facts | {"adapter_sha256": "def"}))
    with pytest.raises(ValueError, match="about another adapter"):
        run(config, stability, tmp_path / "other", model=model)
    (adapter / "training.json").write_text('{"method"')
    with pytest.raises(ValueError, match=r"training\.json is damaged"):
        run(config, stability, tmp_path / "damaged", model=model)


def test_a_run_notes_the_hash_of_its_log(stability: StimulusSet, tmp_path: Path) -> None:
    out = run(RunConfig("yes", "s", limit=4), stability, tmp_path / "r", model=Yes()).path
    assert read_run(out)["trials_sha256"] == trials_hash(out)
    rows = (out / "trials.jsonl").read_text()
    (out / "trials.jsonl").write_text(rows.replace('"correct": false', '"correct": true', 1))
    assert read_run(out)["trials_sha256"] != trials_hash(out)
    rescore(out, stability)  # reads the replies once more, and so vouches for them
    assert read_run(out)["trials_sha256"] == trials_hash(out)
