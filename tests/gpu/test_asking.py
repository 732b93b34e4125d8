"""Asking on a GPU: the answers of a processor, half precision, four bits, and memory that runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.families import FAMILIES
from vlm_probe.probes.models import Generation, ModelError, Trial
from vlm_probe.probes.models.activations import HiddenStates, Site
from vlm_probe.probes.models.footprint import footprint
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> StimulusSet:
    """120 items of towers-topblock."""
    return make_set("towers-topblock", 120, 5, tmp_path_factory.mktemp("gpu") / "set", size=96)


def trials_of(stimuli: StimulusSet, count: int) -> list[Trial]:
    return [Trial(item, stimuli.image(item)) for item in stimuli.items[:count]]


def close(one: Any, other: Any) -> float:
    """The largest difference of log-probabilities (nats)."""
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def test_single_precision_gives_the_answers_of_a_processor(towers: StimulusSet) -> None:
    trials = trials_of(towers, 120)
    here, there = (load_model("tiny", device=device) for device in ("cuda", "cpu"))
    assert here.identity.details["device"] == "cuda" and here.identity.details["dtype"] == "float32"
    assert here.generate(trials, Generation()) == there.generate(trials, Generation())
    assert close(here.score_options(trials), there.score_options(trials)) < 1e-3
    sampled = Generation(temperature=1.0)
    assert here.generate(trials[:32], sampled) == there.generate(trials[:32], sampled)


def test_batches_do_not_matter_in_single_precision(towers: StimulusSet) -> None:
    trials, model = trials_of(towers, 32), load_model("tiny")
    assert model.generate(trials, Generation()) == [model.generate([trial], Generation())[0] for trial in trials]
    assert close(model.score_options(trials), [model.score_options([trial])[0] for trial in trials]) < 1e-4


def test_hidden_states_are_those_of_a_processor(towers: StimulusSet) -> None:
    trials = trials_of(towers, 8)
    site = Site("language", 3, "last")
    here, there = (HiddenStates(load_model("tiny", device=device), [site]).read(trials) for device in ("cuda", "cpu"))
    assert np.abs(here[site] - there[site]).max() < 1e-3 * np.abs(there[site]).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_answers_nearly_the_same(dtype: str, towers: StimulusSet) -> None:
    trials = trials_of(towers, 120)
    half, single = load_model("tiny", dtype=dtype), load_model("tiny", dtype="float32")
    assert half.identity.details["dtype"] == dtype
    pairs = zip(half.generate(trials, Generation()), single.generate(trials, Generation()), strict=True)
    assert np.mean([one == other for one, other in pairs]) > 0.85
    assert close(half.score_options(trials), single.score_options(trials)) < 1.0


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"load_in_4bit": True}], ids=["bfloat16", "4bit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_in_half_precision_and_in_four_bits(
    family: str, settings: dict[str, Any], save_family: Callable[[str], Path], grounding: StimulusSet, tmp_path: Path
) -> None:
    """A run to its end, by both readouts; in bfloat16 scores near those of single precision."""
    folder = save_family(family)
    for readout in ("generate", "options"):
        config = RunConfig(str(folder), "s", readout, **settings)
        report = run(config, grounding, tmp_path / readout)
        assert report.n_errors == 0 and len(read_trials(report.path)) == len(grounding)
        details = read_run(report.path)["model"]["details"]
        assert ("load_in_4bit" in settings) == ("bitsandbytes" in read_run(report.path)["versions"])
        assert details["device"] == "cuda" and details["load_in_4bit"] == ("load_in_4bit" in settings)
        assert read_run(report.path)["hardware"]["gpu"]
    if "dtype" in settings:
        trials = trials_of(grounding, 6)
        half, single = load_model(str(folder), **settings), load_model(str(folder), dtype="float32")
        assert close(half.score_options(trials), single.score_options(trials)) < 2.0


def test_four_bits_take_less_memory_and_still_see(towers: StimulusSet) -> None:
    held = {}
    for name, settings in {"4bit": {"load_in_4bit": True}, "single": {"dtype": "float32"}}.items():
        before = torch.cuda.memory_allocated()
        model = load_model("tiny", **settings)  # type: ignore[arg-type]
        held[name] = torch.cuda.memory_allocated() - before
        replies = model.generate(trials_of(towers, 64), Generation())
        items = towers.items[:64]
        read = [item.question.parse(reply).status == "ok" for item, reply in zip(items, replies, strict=True)]
        assert np.mean(read) > 0.9
        del model
        torch.cuda.empty_cache()
    assert held["4bit"] < 0.6 * held["single"]


def test_a_batch_that_does_not_fit_is_halved(towers: StimulusSet, caplog: pytest.LogCaptureFixture) -> None:
    """With a limit on what the process may take, as on a card that is full."""
    model: Any = load_model("tiny")
    trials = trials_of(towers, 120) * 4
    expected = model.generate(trials[:120], Generation())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model.generate(trials[:120], Generation())
    enough = torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.2 * enough)
    try:
        with caplog.at_level(logging.WARNING):
            replies = model.generate(trials, Generation())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert replies == expected * 4
    assert "a batch of 480 does not fit in memory" in caplog.text


def test_gpus_that_are_not_there(towers: StimulusSet) -> None:
    with pytest.raises(ModelError, match=r"there is no GPU cuda:97 on this machine: use --device cuda:0"):
        load_model("tiny", device="cuda:97")
    assert load_model("tiny", device="cuda:0").generate(trials_of(towers, 1), Generation())


def test_the_footprint_is_that_of_the_gpu() -> None:
    estimate = footprint("tiny")
    assert estimate.device == "cuda" and estimate.device_name == torch.cuda.get_device_name()
    assert estimate.fits and estimate.timing == "measured"
