"""The backend on untrained models of all families: what differs between them must not differ in the answers."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.families import FAMILIES
from vlm_probe.probes.models import Generation, ModelError, Trial, Turn
from vlm_probe.probes.models.activations import HiddenStates, Site
from vlm_probe.probes.models.huggingface import HuggingFaceModel
from vlm_probe.probes.models.loading import load_model
from vlm_probe.stimuli.dataset import StimulusSet

SETTINGS = Generation(max_new_tokens=4)


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    family: str = request.param
    return family


@pytest.fixture(scope="module")
def model(name: str, save_family: Callable[[str], Path]) -> Any:
    return load_model(str(save_family(name)))


def conversations(stimuli: StimulusSet) -> list[Trial]:
    """Five trials: prompts of different lengths with one, two or three pictures."""
    items = stimuli.items[:24:5]
    pictures = [stimuli.image(item) for item in items]
    example = [
        turn
        for item, picture in zip(items[:2], pictures[:2], strict=True)
        for turn in (Turn("user", item.question.prompt, (picture,)), Turn("assistant", "red"))
    ]
    contexts = ((), tuple(example), (), tuple(example[:2]), tuple(example))
    return [Trial(item, image, context) for item, image, context in zip(items, pictures, contexts, strict=True)]


def alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True)) < 1e-4


def test_answers_do_not_depend_on_batches_nor_on_the_tree(
    name: str, model: Any, grounding: StimulusSet, families: Any
) -> None:
    """One against five, with one to three pictures in a prompt; the tree against plain generation."""
    trials = conversations(grounding)
    assert model.generate(trials, SETTINGS) == [model.generate([trial], SETTINGS)[0] for trial in trials]
    scores = model.score_options(trials)
    assert model._scorer._use_tree is True and model._scorer._trimmed
    # Qwen's positions and the masks of Gemma's kind hold for whole prompts: there the tree is read behind the cache.
    assert model._scorer.at_once == (not name.startswith(("qwen", "gemma", "pali")))
    assert alike(scores, [model.score_options([trial])[0] for trial in trials])
    few = [model._prompter.replies(trial)[:2] for trial in trials]
    with torch.inference_mode():
        assert alike([row[:2] for row in scores], model._scorer._generated(model._inputs(trials), few))
    assert model._prompter._tokenizer.decode(few[0][0][-1:]) == families[name].end
    # All pictures are looked at: another one in an earlier turn changes the scores.
    longest = trials[1]
    first = longest.context[0]
    changed = (Turn("user", first.text, (Image.new("RGB", first.images[0].size, "white"),)), *longest.context[1:])
    other = model.score_options([Trial(longest.item, longest.image, changed)])[0]
    assert np.abs(other - scores[1]).max() > 1e-3


def test_hidden_states_do_not_depend_on_batches(model: Any, grounding: StimulusSet) -> None:
    trials = conversations(grounding)
    sites = [Site("vision", 2, "image"), *(Site("language", layer, "last") for layer in (0, 1, 2))]
    sites.append(Site("language", 1, "image"))
    together = HiddenStates(model, sites).read(trials)
    alone = [HiddenStates(model, sites).read([trial]) for trial in trials]
    for site in sites:
        assert together[site].shape == (5, 32 if site.part == "vision" else 64)
        assert np.abs(together[site] - np.concatenate([one[site] for one in alone])).max() < 1e-3
    deep = together[Site("language", 2, "last")]
    assert np.abs(deep[0] - deep[2]).max() > 1e-3


def test_small_pictures_are_shown_as_the_processor_wants(
    name: str, model: Any, grounding: StimulusSet, families: Any
) -> None:
    """Below the smallest size that the vision tower can take; what it got is in the run's log."""
    item = grounding.items[0]
    model.observed = {}
    small = Image.fromarray(np.arange(45, dtype=np.uint8).reshape(3, 5, 3) * 5)
    model.generate([Trial(item, small), Trial(item, grounding.image(item))], SETTINGS)
    model.score_options([Trial(item, small)])
    family = families[name]
    assert model.observed["pictures"] == [f"5 x 3 seen as {family.small}", f"64 x 64 seen as {family.seen}"]


def test_without_a_picture(name: str, model: Any, grounding: StimulusSet, families: Any) -> None:
    """Beside trials that have one, and the same as alone; or refused in words that say why."""
    item = grounding.items[0]
    trials = [Trial(item, grounding.image(item)), Trial(item, None)]
    if not families[name].text_only:
        with pytest.raises(ModelError, match="cannot be asked without a picture"):
            model.generate(trials, SETTINGS)
        return
    together = model.score_options(trials)
    assert model.generate(trials, SETTINGS) == [model.generate([trial], SETTINGS)[0] for trial in trials]
    assert alike(together, [model.score_options([trial])[0] for trial in trials])
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_without_a_chat_template(
    model: Any, save_family: Any, name: str, grounding: StimulusSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The fallback is used, and logged; the picture gets into it."""
    folder = Path(shutil.copytree(save_family(name), tmp_path / "bare"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with caplog.at_level(logging.WARNING):
        bare: Any = load_model(str(folder))
    assert "has no chat template: it is asked in the form" in caplog.text
    trials = conversations(grounding)[:2]
    prompt = bare._prompter.text(trials[1].turns)
    if name == "paligemma":  # as its makers document it
        assert prompt.endswith(f"<image>answer en {trials[1].prompt}") and prompt.count("\nred\n") == 2
    else:
        assert prompt.endswith(f"{trials[1].prompt}\nAnswer:") and prompt.count("Answer: red\n") == 2
    scores = bare.score_options(trials)
    assert bare._scorer._use_tree and alike(scores, [bare.score_options([trial])[0] for trial in trials])
    blank = Trial(trials[0].item, Image.new("RGB", (64, 64), "white"))
    assert np.abs(bare.score_options([blank])[0] - scores[0]).max() > 1e-3


def test_adapters(name: str, model: Any, save_family: Any, grounding: StimulusSet, tmp_path: Path) -> None:
    """The right one changes the answers; one without effect, or with tensors that find no place, is refused."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText

    base = save_family(name)
    targets = r".*(language_model|text_model).*\.[qv]_proj"
    adapted = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), LoraConfig(r=2, target_modules=targets))
    adapted.save_pretrained(tmp_path / "empty")
    torch.manual_seed(1)
    with torch.no_grad():
        for place, tensor in adapted.named_parameters():
            if "lora_B" in place:
                tensor.normal_(std=0.5)
    adapted.save_pretrained(tmp_path / "right")
    loaded: Any = load_model(str(base), adapter=tmp_path / "right")
    trials = conversations(grounding)[:2]
    scores = loaded.score_options(trials)
    assert loaded._scorer._use_tree
    assert min(np.abs(a - b).max() for a, b in zip(scores, model.score_options(trials), strict=True)) > 1e-3
    with pytest.raises(ModelError, match="changes nothing"):
        load_model(str(base), adapter=tmp_path / "empty")
    tensors = load_file(tmp_path / "right" / "adapter_model.safetensors")
    renamed = {place.replace("layers", "blocks"): tensor for place, tensor in tensors.items()}
    save_file(renamed, tmp_path / "right" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="found no place"):
        load_model(str(base), adapter=tmp_path / "right")


def test_prompts_longer_than_the_window_are_scored_without_the_tree(
    save_network: Callable[..., Path], windowed: Any, grounding: StimulusSet, tmp_path: Path
) -> None:
    """Gemma 3 looks back through a window in most of its layers."""
    model: Any = load_model(str(save_network(windowed, tmp_path / "gemma3")))
    assert isinstance(model, HuggingFaceModel)
    trials = [Trial(item, grounding.image(item)) for item in grounding.items[:24:8]]
    scores = model.score_options(trials)
    assert model._scorer._use_tree is None
    assert alike(scores, [model.score_options([trial])[0] for trial in trials])
