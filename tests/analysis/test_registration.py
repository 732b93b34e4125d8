"""Registered tests: those that were planned, on what was planned, and nothing else passes for one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from vlm_probe.analysis import report
from vlm_probe.analysis.contrasts import planned_contrasts
from vlm_probe.analysis.frame import from_table
from vlm_probe.analysis.material import Settings, select
from vlm_probe.analysis.registration import read_registration, registered_contrasts
from vlm_probe.probes.trials import RunError

A, B = "towers-stability", "towers-topblock"
SET = "0123456789ab"


def contrast(positive: str, negative: str, level: str, training: str = "") -> dict[str, str]:
    return {"positive": positive, "negative": negative, "level": level, "training": training}


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes a registration."""

    def write(contrasts: list[dict[str, str]], trainings: list[dict[str, Any]] | None = None) -> Path:
        plain = {
            "name": "stability",
            "tasks": [A],
            "methods": ["sft", "ppo", "grpo"],
            "seeds": [0, 1, 2],
            "settings": {},
        }
        told = {
            "registered": "2026-01-01T00:00:00+00:00",
            "design": {
                "trainings": trainings or [plain],
                "settings": {},
                "budgets": {"ppo": "samples=1000"},
                "contrasts": contrasts,
                "bound": 0.2,
            },
            "sets": {"sets/towers-stability": {"content_sha256": SET + "f" * 52}},
            "done_before": [],
        }
        sha256 = hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
        path = tmp_path / "registration.json"
        path.write_text(json.dumps({"sha256": sha256, **told}))
        return path

    return write


@pytest.fixture
def trials(simulated: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """Three runs each of PPO and SFT, trained on one task and tested on it."""
    table = simulated({("none", "none", A): 0.0, ("sft", A, A): 0.5, ("ppo", A, A): 1.5}, runs=3, items=40, run_sd=0.3)
    return table.assign(stimuli=SET, regime="", samples=1000.0)


def test_registered_contrasts_are_tested_as_planned_and_no_others(trials, record):
    planned = [contrast("ppo", "none", "within"), contrast("rl", "sft", "within"), contrast("grpo", "none", "within")]
    found = registered_contrasts(trials, read_registration(record(planned)))
    assert list(found.table["contrast"]) == ["PPO − base", "RL − SFT"]
    usual = planned_contrasts(trials, bound=0.2).table.set_index("contrast")
    for row in found.table.to_dict("records"):
        assert row["b"] == usual.loc[row["contrast"], "b"]
        assert row["p_equivalence"] == usual.loc[row["contrast"], "p_equivalence"], "the bound is the registered one"
    assert max(found.table["p_holm"] / found.table["p"]) <= 2, (
        "corrected for two tests, not for the three of the usual family"
    )
    assert any("not answered by these runs: GRPO − base (within)" in note for note in found.notes)
    assert any("without trainings that were registered: grpo stability seed 0" in note for note in found.notes)


@pytest.mark.parametrize(
    "change",
    [
        {"stimuli": "another set."},
        {"seed": 7},
        {"regime": "shift visual:2"},
        {"samples": 500.0},
        {"train_tasks": B},
    ],
)
def test_what_was_not_registered_enters_no_registered_test(trials, record, change):
    registration = read_registration(record([contrast("ppo", "none", "within")]))
    other = trials[trials["method"] == "ppo"].assign(run="further", **change)
    both = pd.concat([trials, other], ignore_index=True)
    assert list(registration.covers(both)) == [True] * len(trials) + [False] * len(other)
    found, alone = registered_contrasts(both, registration), registered_contrasts(trials, registration)
    assert found.table.equals(alone.table)
    assert f"{len(other)} plain trials are not of the registered design" in found.notes[0]


def test_a_condition_with_settings_has_contrasts_of_its_own(trials, record):
    plain = {"name": "stability", "tasks": [A], "methods": ["sft", "ppo"], "seeds": [0, 1, 2], "settings": {}}
    drawn = plain | {"name": "randomised", "methods": ["ppo"], "settings": {"shift": "visual:2"}}
    planned = [contrast("ppo", "none", "within"), contrast("ppo", "none", "within", "randomised")]
    registration = read_registration(record(planned, [plain, drawn]))
    special = trials[trials["method"] == "ppo"].assign(regime="shift visual:2", success=1, correct=1)
    special["run"] = special["run"].astype(str) + " drawn"
    found = registered_contrasts(pd.concat([trials, special], ignore_index=True), registration).table
    by_training = found.set_index("training")["run_difference"]
    assert list(by_training.index) == ["all plain", "randomised"]
    assert by_training["randomised"] > by_training["all plain"]


def test_a_condition_of_which_one_side_is_trained_yet_is_named_and_costs_the_others_nothing(trials, record):
    plain = {"name": "stability", "tasks": [A], "methods": ["sft", "ppo"], "seeds": [0, 1, 2], "settings": {}}
    drawn = plain | {"name": "randomised", "settings": {"shift": "visual:2"}}
    planned = [contrast("ppo", "none", "within"), contrast("rl", "sft", "within", "randomised")]
    special = trials[trials["method"] == "ppo"].assign(regime="shift visual:2")
    special["run"] = special["run"].astype(str) + " drawn"
    registration = read_registration(record(planned, [plain, drawn]))
    found = registered_contrasts(pd.concat([trials, special], ignore_index=True), registration)
    assert list(found.table["contrast"]) == ["PPO − base"]
    assert "randomised: registered, and not answered by these runs: RL − SFT (within)" in found.notes


def test_a_report_calls_exploratory_what_was_not_registered(trials, record, monkeypatch):
    kept = [section for section in report.SECTIONS if section[0] in ("data", "contrasts")]
    monkeypatch.setattr(report, "SECTIONS", kept)
    registration = read_registration(record([contrast("ppo", "none", "within")]))
    sections, failed = report.answer(select(from_table(trials), Settings(), registration))
    titles = [section.title for section in sections]
    assert titles == ["The data", "Registered contrasts", "Planned contrasts (exploratory)"]
    assert failed == []
    assert registration.sha256[:16] in sections[1].answer[0]
    plain, _ = report.answer(select(from_table(trials), Settings()))
    assert [section.title for section in plain] == ["The data", "Planned contrasts"]


def test_an_edited_registration_is_refused(record):
    path = record([contrast("ppo", "none", "within")])
    path.write_text(path.read_text().replace('"bound": 0.2', '"bound": 0.4'))
    with pytest.raises(RunError, match="is not what was registered"):
        read_registration(path)
    with pytest.raises(RunError, match=r"cannot read .*nothing.json"):
        read_registration(path.parent / "nothing.json")


def test_a_record_of_another_kind_is_one_line(tmp_path: Path) -> None:
    for text in ("[]", "{", '{"sha256": NaN}'):
        (tmp_path / "registration.json").write_text(text)
        with pytest.raises(RunError, match=r"registration.json (is damaged|is not what)"):
            read_registration(tmp_path)
    told: dict[str, Any] = {"design": {"trainings": [3]}}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    (tmp_path / "registration.json").write_text(json.dumps(told | {"sha256": digest}))
    with pytest.raises(RunError, match=r"is damaged .*registration that `probe study freeze` wrote"):
        read_registration(tmp_path)
