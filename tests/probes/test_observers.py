"""Observers: they answer every task in its own grammar, as well as their name says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm_probe.probes.models import Generation, ModelError, Trial
from vlm_probe.probes.models.observers import Noise, make_observer, noisy_simulation
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import read_trials
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.tasks import FAMILIES, task_names

NAMES = ("chance", "heuristic", "ideal", "noisy-simulation")


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> StimulusSet:
    """72 items of towers-stability."""
    return make_set("towers-stability", 72, 1, tmp_path_factory.mktemp("sets") / "towers", size=16)


def accuracy(name: str, stimuli: StimulusSet, out: Path, readout: str = "generate") -> float:
    report = run(RunConfig(name, "s", readout), stimuli, out, model=make_observer(name))  # type: ignore[arg-type]
    assert report.n_errors == 0
    return float(np.mean([row["correct"] for row in read_trials(out)]))


@pytest.mark.parametrize("task", task_names())
def test_every_observer_answers_every_task(task: str, tmp_path: Path) -> None:
    stimuli = make_set(task, 4, 0, tmp_path / "set", size=16)
    trials = [Trial(item, None) for item in stimuli.items]
    for name in NAMES:
        observer = make_observer(name)
        observer.check(stimuli.items)
        for trial, reply, scores in zip(
            trials, observer.generate(trials, Generation()), observer.score_options(trials), strict=True
        ):
            assert trial.item.question.parse(reply).status == "ok"
            assert np.exp(scores).sum() == pytest.approx(1)
            assert np.isfinite(scores).all()
    assert accuracy("ideal", stimuli, tmp_path / "ideal") == 1.0


@pytest.fixture(scope="module")
def noisy(towers: StimulusSet, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of noisy-simulation on those items."""
    out = tmp_path_factory.mktemp("runs") / "noisy"
    run(RunConfig("noisy-simulation", "s", "options"), towers, out, model=make_observer("noisy-simulation"))
    return read_trials(out)


def test_accuracies_are_in_order(towers: StimulusSet, noisy: list[dict[str, Any]], tmp_path: Path) -> None:
    assert accuracy("ideal", towers, tmp_path / "ideal") == 1.0
    chance = accuracy("chance", towers, tmp_path / "chance")
    assert 0.35 < chance < 0.65
    assert accuracy("heuristic", towers, tmp_path / "heuristic") < 0.9
    assert chance + 0.1 < np.mean([row["p_correct"] for row in noisy]) < 0.95


def test_the_noisy_observer_is_less_sure_near_the_boundary(noisy: list[dict[str, Any]]) -> None:
    right = np.array([row["p_correct"] for row in noisy])
    size = np.abs([row["margin"] for row in noisy])
    near, middle, far = (right[(size > low) & (size < high)].mean() for low, high in ((0.1, 0.2), (0.2, 0.4), (0.4, 1)))
    assert 0.5 < near < middle < far < 1


def test_without_noise_the_noisy_observer_is_ideal(stability: StimulusSet) -> None:
    observer = noisy_simulation(Noise(sigma=0.0, phi=0.0, samples=1))
    for item in stability.items:
        scores = observer.score_options([Trial(item, None)])[0]
        best = item.question.grammar.candidates()[int(scores.argmax())][1]
        assert best == item.answer


def test_replies_do_not_depend_on_batches_but_on_the_seed(stability: StimulusSet) -> None:
    observer = noisy_simulation(Noise(samples=2))
    trials = [Trial(item, None) for item in stability.items]
    together = observer.generate(trials, Generation())
    assert together == [observer.generate([trial], Generation())[0] for trial in reversed(trials)][::-1]
    chance = make_observer("chance")
    assert chance.generate(trials, Generation(seed=0)) != chance.generate(trials, Generation(seed=1))


def test_all_observers_but_chance_need_scenes(stability: StimulusSet, tmp_path: Path) -> None:
    imported = [Item.from_row(row | {"scene": None}) for row in stability.rows()]
    make_observer("chance").check(imported)
    for name in set(NAMES) - {"chance"}:
        with pytest.raises(ModelError, match="needs the scene"):
            make_observer(name).check(imported)


def test_parameters_are_part_of_the_identity() -> None:
    hashes = {noisy_simulation(Noise(sigma=sigma)).identity.weights_sha256 for sigma in (0.01, 0.02)}
    assert len(hashes) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_noisy_view_in_which_the_order_is_unclear_is_answered_as_well(family: str, tmp_path: Path) -> None:
    stimuli = make_set(f"{family}-grounding", 48, 0, tmp_path / "set", size=16)
    asked = [item for item in stimuli.items if item.question.about["ask"] == "nth-colour"]
    assert asked
    scores = noisy_simulation(Noise(sigma=0.05)).score_options([Trial(item, None) for item in asked])
    assert [np.exp(row).sum() for row in scores] == pytest.approx([1.0] * len(asked))
