"""Several attempts: what is seen after each, when an episode ends, and that nothing of it is lost or doubled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm_probe.analysis.summary import summarise
from vlm_probe.probes.conditions import PresentationError
from vlm_probe.probes.models import Generation, Identity, Model, ModelError, Trial
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.readout import rescore
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import COLUMNS, TRIALS, read_run, read_trials
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.environment import PhysicsEnv
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.ranges import OutOfRange


def wrong(item: Item) -> int:
    """An answer that does not work."""
    return 20 if item.answer < 0 else -20  # type: ignore[operator]


class Scripted(Model):
    """Solves an item at an attempt that its place in the set gives (the fourth is never made), and says nothing before.

    It notes what it was shown.
    """

    needs_images = True
    identity = Identity("scripted")
    batch_size = 3

    def __init__(self, stimuli: StimulusSet, stop_after: int | None = None) -> None:
        self.solves_at = {item.item_id: 1 + number % 4 for number, item in enumerate(stimuli.items)}
        self.shown: dict[tuple[str, int], Trial] = {}
        self.left = stop_after

    def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        self.shown |= {(trial.item.item_id, trial.attempt): trial for trial in trials}
        return [self.reply(trial.item, trial.attempt) for trial in trials]

    def reply(self, item: Item, attempt: int) -> str:
        if attempt == self.solves_at[item.item_id]:
            return str(item.answer)
        return "perhaps" if attempt == 2 else f"{wrong(item)}."

    def score_options(self, trials: Sequence[Trial]) -> list[Any]:
        raise NotImplementedError


def played(stimuli: StimulusSet, out: Path, memory: str = "all", **settings: Any) -> tuple[list[dict[str, Any]], Any]:
    model = Scripted(stimuli, **settings)
    run(RunConfig("scripted", "s", attempts=3, memory=memory), stimuli, out, model=model)
    return read_trials(out), model


def by_attempt(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    found = {
        (row["item_id"], row["attempt"]): {k: v for k, v in row.items() if k not in ("latency_s", "time")}
        for row in rows
    }
    assert len(found) == len(rows)
    return found


def test_one_row_per_attempt_until_it_succeeds(topblock: StimulusSet, tmp_path: Path) -> None:
    rows, model = played(topblock, tmp_path / "r")
    assert all(tuple(row) == COLUMNS for row in rows)
    for item in topblock.items:
        made = sorted((row for row in rows if row["item_id"] == item.item_id), key=lambda row: row["attempt"])
        expected = min(model.solves_at[item.item_id], 3)
        assert [row["attempt"] for row in made] == list(range(1, expected + 1))
        assert [row["success"] for row in made] == [False] * (expected - 1) + [model.solves_at[item.item_id] <= 3]
        assert {(row["attempts"], row["memory"]) for row in made} == {(3, "all")}
        if expected > 1:
            assert made[1]["status"] == ("ok" if made[1]["success"] else "no_answer")
    assert len({row["key"] for row in rows}) == len(rows)


def test_what_is_seen_is_what_the_environment_shows(topblock: StimulusSet, tmp_path: Path) -> None:
    _, model = played(topblock, tmp_path / "r")
    item = next(item for item in topblock.items if model.solves_at[item.item_id] == 4)
    env = PhysicsEnv(item.task, max_attempts=3, size=64, actions="text")
    seen, _ = env.reset(options={"item": item})
    pictures, words = [seen["image"]], []
    for attempt in (1, 2):
        after, *_, info = env.step(model.reply(item, attempt))
        words.append(info["status"])
        if info["simulated"]:
            pictures.append(after["image"])
    assert words == ["ok", "no_answer"]
    images = [image for turn in model.shown[item.item_id, 3].turns for image in turn.images]
    assert len(images) == len(pictures) == 2  # nothing is shown of a reply that could not be read
    for image, picture in zip(images, pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(image), picture)
    assert not np.array_equal(*pictures)
    replies = [turn.text for turn in model.shown[item.item_id, 3].turns if turn.role == "assistant"]
    assert replies == [model.reply(item, 1), "perhaps"]


def test_without_memory_every_attempt_is_asked_like_the_first(
    topblock: StimulusSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, alone = played(topblock, tmp_path / "last", "last-1")
    assert "give a --temperature" not in caplog.text
    _, model = played(topblock, tmp_path / "none", "none")
    assert "give a --temperature" in caplog.text
    for (item_id, attempt), trial in model.shown.items():
        first = model.shown[item_id, 1]
        assert [t.text for t in trial.turns] == [t.text for t in first.turns] and len(trial.turns) == 1
        assert np.array_equal(np.asarray(trial.image), np.asarray(first.image))
        assert len(alone.shown[item_id, attempt].turns) == min(2 * attempt - 1, 3)


def test_a_run_that_is_stopped_anywhere_goes_on_as_if_it_had_not_been(topblock: StimulusSet, tmp_path: Path) -> None:
    rows, _ = played(topblock, tmp_path / "whole")
    expected = by_attempt(rows)
    for stop in (1, 3, 4):
        out = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            played(topblock, out, stop_after=stop)
        again, model = played(topblock, out)
        assert by_attempt(again) == expected
        assert (out / TRIALS).read_bytes().count(b"\n") == len(expected)
        assert len(model.shown) < len(expected)
    data = (tmp_path / "whole" / TRIALS).read_bytes()
    for cut in (0, 700, len(data) // 2, len(data) - 1):
        (tmp_path / "whole" / TRIALS).write_bytes(data[:cut])
        again, _ = played(topblock, tmp_path / "whole")
        assert by_attempt(again) == expected
    assert played(topblock, tmp_path / "whole")[1].shown == {}


def test_an_attempt_that_fails_to_take_place_is_asked_again(
    topblock: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = played(topblock, tmp_path / "whole")
    item = next(item for number, item in enumerate(topblock.items) if number % 4 == 3)
    with monkeypatch.context() as patch:
        usual = Scripted.generate

        def broken(self: Scripted, trials: Sequence[Trial], settings: Generation) -> list[str]:
            if any((trial.item.item_id, trial.attempt) == (item.item_id, 2) for trial in trials):
                raise ValueError("out of order")
            return usual(self, trials, settings)

        patch.setattr(Scripted, "generate", broken)
        found, _ = played(topblock, tmp_path / "r")
    assert [row["attempt"] for row in found if row["item_id"] == item.item_id] == [1, 2]
    assert [row["error"] for row in found if row["error"]] == ["ValueError: out of order"]
    tried = summarise(tmp_path / "r").attempts
    assert [cell.success.n for cell in tried] == [8, 7, 7]
    assert by_attempt(played(topblock, tmp_path / "r")[0]) == by_attempt(rows)


def test_the_summary_says_what_attempts_are_worth(topblock: StimulusSet, tmp_path: Path) -> None:
    played(topblock, tmp_path / "r")
    summary = summarise(tmp_path / "r")
    assert summary.n == 8 and summary.accuracy.value == 2 / 8  # of first attempts alone
    assert [cell.success.value for cell in summary.attempts] == [2 / 8, 4 / 8, 6 / 8]
    assert [cell.parse_rate for cell in summary.attempts] == [1, 2 / 6, 1]
    found = summary.to_dict()["by_attempts"]
    assert [cell["independent"] for cell in found] == [0.25, 0.4375, pytest.approx(0.578125)]
    working = [set(item.certificate["working"]) for item in topblock.items]
    p = np.array([len(answers) / 41 for answers in working])
    for k, cell in enumerate(found, 1):
        assert cell["guesses"]["chance"] == pytest.approx(np.mean(1 - (1 - p) ** k), abs=1e-4)
        chosen = {int(answer) for answer in cell["guesses"]["constants"]["answers"]}
        assert len(chosen) == k
        assert cell["guesses"]["constants"]["score"] == np.mean([bool(chosen & answers) for answers in working])
    assert "attempts, memory all" in str(summary) and "best constants" in str(summary)


def test_scoring_again_changes_nothing(topblock: StimulusSet, tmp_path: Path) -> None:
    rows, _ = played(topblock, tmp_path / "r")
    assert rescore(tmp_path / "r", topblock) == (len(rows), 0, 0)


def test_observers_draw_anew_at_every_attempt(topblock: StimulusSet, tmp_path: Path) -> None:
    config = RunConfig("chance", "s", attempts=6)
    run(config, topblock, tmp_path / "r", model=make_observer("chance"))
    run(RunConfig("chance", "s"), topblock, tmp_path / "once", model=make_observer("chance"))
    rows = read_trials(tmp_path / "r")
    answers = [[row["answer"] for row in rows if row["item_id"] == item.item_id] for item in topblock.items]
    assert sum(len(set(given)) > 1 for given in answers) >= 6
    first = {row["item_id"]: row["answer"] for row in rows if row["attempt"] == 1}
    assert first == {row["item_id"]: row["answer"] for row in read_trials(tmp_path / "once")}
    run(RunConfig("ideal", "s", attempts=3), topblock, tmp_path / "ideal", model=make_observer("ideal"))
    assert [row["attempt"] for row in read_trials(tmp_path / "ideal")] == [1] * 8


@pytest.mark.parametrize("readout", ["generate", "options"])
def test_a_real_model_is_asked_in_conversations(
    readout: Any, topblock: StimulusSet, llava: Path, tmp_path: Path
) -> None:
    config = RunConfig(str(llava), "s", readout, limit=4, attempts=3, max_new_tokens=6)
    report = run(config, topblock, tmp_path / "r")
    rows = read_trials(report.path)
    assert report.n_errors == 0 and {row["attempt"] for row in rows} == {1, 2, 3}
    # The untrained model reads the conversation: its prompts grow, within what was computed beforehand.
    assert read_run(report.path)["observed"]["prompt_tokens"] > 500
    single = run(RunConfig(str(llava), "s", readout, limit=4, max_new_tokens=6), topblock, tmp_path / "one")
    same = ("item_id", "raw", "answer", "logprobs", "success")
    firsts = [[row[k] for k in same] for row in rows if row["attempt"] == 1]
    assert firsts == [[row[k] for k in same] for row in read_trials(single.path)]


def test_a_context_that_is_too_short_is_refused_before_anything_is_asked(
    topblock: StimulusSet, llava: Path, tmp_path: Path
) -> None:
    config = RunConfig(str(llava), "s", attempts=12)
    with pytest.raises(
        ModelError, match=r"reads 2048 tokens, and 12 attempts .* take up to \d+: give fewer --attempts"
    ):
        run(config, topblock, tmp_path / "r")
    assert not (tmp_path / "r").exists()
    model: Any = load_model(str(llava))
    model._model.config.text_config.max_position_embeddings = 10_000
    run(RunConfig(str(llava), "s", limit=1, attempts=12), topblock, tmp_path / "r", model=model)
    needed = read_run(tmp_path / "r")["observed"]["prompt_tokens"]
    assert needed > 2048  # it would indeed not have fitted
    run(RunConfig(str(llava), "s", limit=1, attempts=12, memory="last-1"), topblock, tmp_path / "short")


def test_what_cannot_be_tried_several_times_is_refused(
    topblock: StimulusSet, stability: StimulusSet, tmp_path: Path
) -> None:
    model = make_observer("chance")
    with pytest.raises(PresentationError, match="need an action"):
        run(RunConfig("chance", "s", attempts=2), stability, tmp_path / "r", model=model)
    with pytest.raises(PresentationError, match="not with blank"):
        run(RunConfig("chance", "s", attempts=2, design="blank"), topblock, tmp_path / "r", model=model)
    with pytest.raises(OutOfRange, match="memory must be"):
        RunConfig("chance", "s", attempts=2, memory="some")
    painted = StimulusSet(topblock.path, topblock.card | {"versions": {"renderer": "Blender Cycles"}})
    with pytest.raises(PresentationError, match="by Blender Cycles"):
        run(RunConfig("chance", "s", attempts=2), painted, tmp_path / "r", model=model)
    unknown = StimulusSet(topblock.path, topblock.card | {"renderer": "gl"})
    with pytest.raises(PresentationError, match="no renderer 'gl'"):
        run(RunConfig("chance", "s", attempts=2), unknown, tmp_path / "r", model=model)


def test_what_happens_is_drawn_as_the_set_was(tmp_path: Path) -> None:
    stimuli = make_set("towers-topblock", 4, 0, tmp_path / "set", size=64, renderer="raycast")
    _, model = played(stimuli, tmp_path / "r")
    second = next(trial for (_, attempt), trial in model.shown.items() if attempt == 2)
    assert second.item.scene is not None and second.image is not None
    first = np.asarray(stimuli.image(next(item for item in stimuli.items if item.item_id == second.item.item_id)))
    shown = [np.asarray(image) for turn in second.context for image in turn.images] + [np.asarray(second.image)]
    sky = first[0, 0]  # far from all that moves
    assert all((image[0, 0] == sky).all() for image in shown)
    assert any((image != first).any() for image in shown)


def test_runs_of_earlier_versions_are_read_and_gone_on_with(topblock: StimulusSet, tmp_path: Path) -> None:
    out = tmp_path / "r"
    run(RunConfig("chance", "s", limit=8), topblock, out, model=make_observer("chance"))
    expected = read_trials(out)
    old = [{k: v for k, v in row.items() if k not in ("attempt", "attempts", "memory")} for row in expected[:5]]
    (out / TRIALS).write_text("".join(json.dumps(row) + "\n" for row in old))
    assert [(row["attempt"], row["attempts"], row["memory"]) for row in read_trials(out)] == [(1, 1, "none")] * 5
    run(RunConfig("chance", "s", limit=8), topblock, out, model=make_observer("chance"))
    assert [row["key"] for row in read_trials(out)] == [row["key"] for row in expected]
    assert "attempts" not in read_run(out)["fingerprint"]
