"""Manners of presentation: what a control changes, what it leaves alone, and what a run in several manners logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageOps

from vlm_probe.analysis.summary import summarise
from vlm_probe.probes.conditions import CONTROLS, PresentationError, Presenter, PromptCondition, manners
from vlm_probe.probes.models import Generation, Identity, Model, Trial
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.readout import rescore
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import RunError, read_trials
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.picture import panel_boxes
from vlm_probe.stimuli.tasks import get_task


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> StimulusSet:
    return make_set("towers-stability", 24, 99, tmp_path_factory.mktemp("sets") / "examples", size=64)


def trial_of(stimuli: StimulusSet, control: str, index: int = 0) -> Trial:
    manner = PromptCondition(control)
    return Presenter(stimuli, [manner]).trial(stimuli.items[index], manner)


def pixels(trial: Trial) -> Any:
    assert trial.image is not None
    return np.asarray(trial.image)


def test_the_plain_manner_changes_nothing(stability: StimulusSet) -> None:
    item = stability.items[3]
    trial = Presenter(stability).trial(item, PromptCondition())
    assert trial.item == item and trial.manner == "" and trial.preamble == "" and trial.context == ()
    assert np.array_equal(pixels(trial), np.asarray(stability.image(item)))
    assert trial.prompt == item.question.prompt


def test_what_the_controls_show(stability: StimulusSet) -> None:
    item = stability.items[0]
    seen = np.asarray(stability.image(item))
    blank = pixels(trial_of(stability, "blank"))
    assert blank.shape == seen.shape and (blank == 128).all()
    assert np.array_equal(pixels(trial_of(stability, "mirrored")), seen[:, ::-1])
    shuffled = pixels(trial_of(stability, "shuffled"))
    assert not np.array_equal(shuffled, seen)
    assert np.array_equal(np.sort(shuffled.reshape(-1, 3), axis=0), np.sort(seen.reshape(-1, 3), axis=0))
    other = pixels(trial_of(stability, "other-picture"))
    sources = [i for i in stability.items if np.array_equal(np.asarray(stability.image(i)), other)]
    assert sources and all(source.group_id != item.group_id for source in sources)
    described = trial_of(stability, "description")
    assert described.image is None and described.prompt.endswith(item.question.prompt)
    assert item.scene is not None
    for body in item.scene.bodies:
        assert f"A {body.colour} box, 10.0 cm wide and 10.0 cm high" in described.preamble
        assert f"z = {100 * body.position[2]:.1f}" in described.preamble
    facts = trial_of(stability, "facts")
    assert facts.preamble == get_task(item.task).facts + " " and np.array_equal(pixels(facts), seen)


@pytest.mark.parametrize("name", ["stability", "topblock", "grounding"])
def test_the_mirrored_item_is_right_about_the_mirror_image(name: str, request: pytest.FixtureRequest) -> None:
    stimuli: StimulusSet = request.getfixturevalue(name)
    presenter, manner = Presenter(stimuli, [PromptCondition("mirrored")]), PromptCondition("mirrored")
    for item in stimuli.items[:8]:
        asked = presenter.asked(item, manner)
        task = get_task(item.task)
        assert asked.scene is not None
        assert task.score(asked.scene, asked.question, asked.answer).success
        for answer in asked.certificate.get("working", []):
            assert task.score(asked.scene, asked.question, answer).success


def test_a_strip_is_mirrored_panel_by_panel(stability: StimulusSet) -> None:
    item = stability.items[0]
    assert item.scene is not None
    strip = replace(item, scene=replace(item.scene, panels=(-0.3, -0.2, -0.1, 0.0)))
    presenter, manner = Presenter(stability, [PromptCondition("mirrored")]), PromptCondition("mirrored")
    seen, found = stability.image(item), presenter.trial(strip, manner).image
    assert found is not None
    for box in panel_boxes(seen.width):
        assert np.array_equal(np.asarray(found.crop(box)), np.asarray(ImageOps.mirror(seen.crop(box))))


def test_worked_examples_come_first_and_are_worded_alike(stability: StimulusSet, examples: StimulusSet) -> None:
    few, more = PromptCondition(examples=1), PromptCondition(examples=3)
    presenter = Presenter(stability, [few, more], examples)
    item = stability.items[5]
    trial = presenter.trial(item, more)
    assert [turn.role for turn in trial.turns] == ["user", "assistant"] * 3 + ["user"]
    assert all(len(turn.images) == (turn.role == "user") for turn in trial.turns)
    # Every prompt is in the words of the item, and every answer in its grammar.
    assert {turn.text for turn in trial.turns if turn.role == "user"} == {item.question.prompt}
    ids = presenter.example_ids(item, more)
    by_id = {example.item_id: example for example in examples.items}
    for turn, name in zip(trial.context[1::2], ids, strict=True):
        assert item.question.parse(turn.text).value == by_id[name].answer
    # The first k examples are the same for every k, and none shares a group with another.
    assert ids[:1] == presenter.example_ids(item, few)
    assert len({by_id[name].group_id for name in ids}) == 3


def test_examples_may_not_be_test_items(stability: StimulusSet) -> None:
    with pytest.raises(PresentationError, match="as well"):
        Presenter(stability, [PromptCondition(examples=1)], stability)
    with pytest.raises(PresentationError, match="--examples-from"):
        Presenter(stability, [PromptCondition(examples=1)])


def test_wordings_can_be_crossed(stability: StimulusSet) -> None:
    task = get_task("towers-stability")
    asked = manners("variants", variants=task.variants())
    assert len({m.code for m in asked}) == len(task.variants()) == 16
    presenter, item = Presenter(stability, asked), stability.items[0]
    prompts = {presenter.trial(item, m).prompt for m in asked}
    assert len(prompts) == 16
    assert all(presenter.trial(item, m).item.answer == item.answer for m in asked)
    think = PromptCondition(style="think")
    assert "<think>" in Presenter(stability, [think]).trial(item, think).prompt


def test_designs_name_their_manners() -> None:
    assert [m.control for m in manners("controls")] == list(CONTROLS)
    assert [m.code for m in manners("blank", examples=(0, 2))] == ["", "examples2", "blank", "blank_examples2"]
    with pytest.raises(PresentationError, match="unknown control 'blnak': there are intact, blank"):
        manners("blnak")
    assert all(PromptCondition.from_dict(m.to_dict()) == m for m in manners("controls", (0, 1), "think"))


class Looks(Model):
    """Answers by the mean brightness of the picture, so that what it is shown decides."""

    needs_images = True
    identity = Identity("looks")

    def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str]:
        return ["yes" if t.image is None or np.asarray(t.image).mean() % 1 < 0.5 else "no" for t in trials]

    def score_options(self, trials: Sequence[Trial]) -> list[Any]:
        raise NotImplementedError


def test_a_run_in_several_manners(stability: StimulusSet, examples: StimulusSet, tmp_path: Path) -> None:
    config = RunConfig("looks", "s", design="controls", examples=(0, 2))
    report = run(config, stability, tmp_path / "r", model=Looks(), examples=examples)
    assert (report.n, report.n_errors) == (24 * len(CONTROLS) * 2, 0)
    rows = read_trials(report.path)
    assert len({row["key"] for row in rows}) == report.n
    assert {len(row["examples"]) for row in rows} == {0, 2}
    summary = summarise(report.path)
    assert summary.n == 24 and [m.code for m in summary.manners[:2]] == ["intact", "examples2"]
    blank = next(m for m in summary.manners if m.code == "blank")
    answers = {row["answer_text"] for row in rows if row["manner"]["code"] == "blank"}
    assert len(answers) == 1 and blank.accuracy.n == 24
    # Scoring the log again gives the same, mirrored trials included; so does asking again.
    assert rescore(report.path, stability) == (report.n, 0, 0)
    again = run(config, stability, tmp_path / "r", model=Looks(), examples=examples)
    assert again.n == report.n and len(read_trials(report.path)) == report.n


def test_a_model_reads_examples_and_descriptions(
    llava: Path, stability: StimulusSet, examples: StimulusSet, tmp_path: Path
) -> None:
    config = RunConfig(str(llava), "s", limit=4, design="description", examples=(0, 2), readout="options")
    report = run(config, stability, tmp_path / "r", examples=examples)
    rows = {(r["item_id"], r["manner"]["code"]): r["logprobs"] for r in read_trials(report.path)}
    assert report.n_errors == 0 and len({str(v) for v in rows.values()}) == 16
    model: Any = load_model(str(llava))
    manner = PromptCondition(examples=2)
    trial = Presenter(stability, [manner], examples).trial(stability.items[0], manner)
    alone = model.score_options([trial])[0]
    assert np.abs(alone - rows[trial.item.item_id, manner.code]).max() < 1e-4
    assert model._prompter.text(trial.turns).count("<image>") == 3


def test_observers_refuse_to_be_blindfolded(stability: StimulusSet, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="looks at the scene and not at the picture"):
        run(RunConfig("ideal", "s", design="blank"), stability, tmp_path / "r", model=make_observer("ideal"))
    report = run(RunConfig("ideal", "s", design="mirrored"), stability, tmp_path / "r", model=make_observer("ideal"))
    assert all(row["correct"] for row in read_trials(report.path))
