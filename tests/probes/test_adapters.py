"""LoRA adapters: the right one changes the answers; a wrong, lost or empty one is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlm_probe.probes.models import Generation, ModelError, Trial
from vlm_probe.probes.models.loading import load_model
from vlm_probe.stimuli.dataset import StimulusSet

SaveModel = Callable[..., Path]


@pytest.fixture(scope="module")
def adapter(llava: Path, save_adapter: SaveModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(llava, tmp_path_factory.mktemp("adapters") / "right")


def refused(base: Path, adapter: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_model(str(base), adapter=adapter)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_adapter_changes_the_answers(llava: Path, adapter: Path, stability: StimulusSet) -> None:
    base, adapted = load_model(str(llava)), load_model(str(llava), adapter=adapter)
    trials = [Trial(item, stability.image(item)) for item in stability.items[:4]]
    difference = [
        np.abs(a - b).max() for a, b in zip(base.score_options(trials), adapted.score_options(trials), strict=True)
    ]
    assert min(difference) > 0.01
    assert base.generate(trials, Generation()) != adapted.generate(trials, Generation())
    assert adapted.identity.weights_sha256 == base.identity.weights_sha256
    assert len(adapted.identity.adapter_sha256) == 64 and base.identity.adapter_sha256 == ""


def test_scores_with_an_adapter_are_exact_as_well(llava: Path, adapter: Path, topblock: StimulusSet) -> None:
    adapted: Any = load_model(str(llava), adapter=adapter)
    trials = [Trial(item, topblock.image(item)) for item in topblock.items[:2]]
    few = [adapted._prompter.replies(trial)[::10] for trial in trials]
    inputs = adapted._inputs(trials)
    with torch.inference_mode():
        expected = adapted._scorer._generated(inputs, few)
    for a, b in zip(expected, adapted._scorer.score(inputs, few), strict=True):
        assert np.abs(a - b).max() < 1e-4
    assert adapted._scorer._use_tree


def test_an_adapter_for_another_architecture_is_refused(
    llava: Path, adapter: Path, save_model: SaveModel, tmp_path: Path
) -> None:
    narrow = save_model(tmp_path / "narrow", hidden=32)
    assert "does not fit this model (size mismatch for " in refused(narrow, adapter)
    config = (adapter / "adapter_config.json").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text(config.replace("[qv]_proj", "[qv]_projection"))
    (other / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    assert "does not fit this model" in refused(llava, other)


def test_a_tensor_without_a_place_is_refused(llava: Path, adapter: Path, tmp_path: Path) -> None:
    """The keys of an adapter were renamed: PEFT loads it with a warning, and it would do nothing."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("language_model", "text_model"): tensor for name, tensor in tensors.items()}
    (tmp_path / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    assert "found no place" in refused(llava, tmp_path)


def test_an_adapter_without_effect_is_refused(llava: Path, save_adapter: SaveModel, tmp_path: Path) -> None:
    assert "changes nothing" in refused(llava, save_adapter(llava, tmp_path / "empty", trained=False))


def test_an_incomplete_or_damaged_adapter_is_refused(llava: Path, adapter: Path, tmp_path: Path) -> None:
    assert "has no adapter_config.json and no adapter_model.safetensors" in refused(llava, tmp_path)
    (tmp_path / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    assert "has no adapter_model.safetensors" in refused(llava, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"damaged")
    assert "is damaged" in refused(llava, tmp_path)


def test_an_adapter_of_other_weights_is_refused(
    llava: Path, adapter: Path, save_model: SaveModel, tmp_path: Path
) -> None:
    """It has the same shape, so that nothing but the hash that its training wrote down could tell."""
    import json
    import shutil

    from vlm_probe.probes.models.huggingface import weights_hash

    own = Path(shutil.copytree(adapter, tmp_path / "own"))
    base = {"name": "small", "weights_sha256": weights_hash(llava)}
    (own / "training.json").write_text(json.dumps({"base": base}))
    assert load_model(str(llava), adapter=own).identity.adapter_sha256
    other = save_model(tmp_path / "other")
    from safetensors.torch import load_file, save_file

    tensors = load_file(other / "model.safetensors")
    tensors[next(name for name in tensors if name.endswith("norm.weight"))] *= 1.5
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    assert "was trained on other weights (small, sha256" in refused(other, own)
