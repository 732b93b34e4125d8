"""Where adapters go: exactly the linear layers of the place that is named, in every architecture; misuse is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import FAMILIES
from vlm_probe.finetune.lora import Capacity, lora_config, make_trainable, trained
from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.network import load_network
from vlm_probe.probes.models.parts import part_of
from vlm_probe.stimuli.ranges import OutOfRange

# What every family calls its language model and vision tower, and the last parts of the names of the layers there.
LANGUAGE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
VISION = {
    "qwen2.5-vl": {"qkv", "proj", "gate_proj", "up_proj", "down_proj"},
    "qwen3-vl": {"qkv", "proj", "linear_fc1", "linear_fc2"},
    "internvl": {"q_proj", "k_proj", "v_proj", "projection_layer", "fc1", "fc2"},
}
PROJECTOR = {
    "llava": 2,
    "llava-next": 2,
    "llava-onevision": 2,
    "qwen2.5-vl": 2,
    "qwen3-vl": 6,
    "smolvlm": 1,
    "internvl": 2,
    "gemma3": 0,
    "paligemma": 1,
}
LAYERS = 2


def adapted(model: Any) -> dict[str, set[str]]:
    """Part of the model -> layers that carry an adapter, asked of the model itself."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, set[str]] = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            found.setdefault(str(part_of(name)), set()).add(name)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_every_place_is_exactly_its_linear_layers(name: str, families: dict[str, Any]) -> None:
    has_projector = PROJECTOR[name] > 0
    for where in ("language", "vision", *(["projector"] if has_projector else []), "all"):
        torch.manual_seed(0)
        network, _ = families[name].make()
        model = make_trainable(network, Capacity(where, rank=2))
        layers = adapted(model)
        parts = {"language", "vision"} | ({"projector"} if has_projector else set()) if where == "all" else {where}
        assert set(layers) == parts
        leaves = {part: {layer.rpartition(".")[2] for layer in names} for part, names in layers.items()}
        if "language" in parts:
            assert leaves["language"] == LANGUAGE and len(layers["language"]) == 7 * LAYERS
            assert all(re.search(r"\b(language_model|text_model)\.layers\.", layer) for layer in layers["language"])
        if "vision" in parts:
            expected = VISION.get(name, {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"})
            assert leaves["vision"] == expected and len(layers["vision"]) == len(expected) * LAYERS
            assert not any("merger" in layer for layer in layers["vision"])
        if "projector" in parts:
            assert len(layers["projector"]) == PROJECTOR[name]
        # Nothing but the adapter is trained, and everything of the adapter is.
        names = {n for n, p in model.named_parameters() if p.requires_grad}
        assert names == {n for n, _ in model.named_parameters() if ".lora_" in n}
        count = trained(model)
        assert count.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert count.layers == {part: len(found) for part, found in layers.items()}


def test_a_projector_without_linear_layers_is_refused(families: dict[str, Any]) -> None:
    network, _ = families["gemma3"].make()
    with pytest.raises(ModelError, match=r"the projector of a gemma3 model has no linear layer.*language or vision"):
        lora_config(network, Capacity("projector"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"where": "lm_head"}, "output layer and embeddings carry no adapter; use language"),
        ({"where": "embed_tokens"}, "output layer and embeddings carry no adapter"),
        ({"where": "visoin"}, "did you mean vision"),
        ({"where": "everything"}, "use language, vision, projector, all, full"),
        ({"rank": 0}, "rank must be a whole number from 1"),
        ({"alpha": 0.0}, "alpha must be a number above 0"),
        ({"alpha": float("nan")}, "alpha must be a number above 0"),
        ({"dropout": 1.0}, "dropout must be a number of at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ModelError, OutOfRange), match=message) as error:
        Capacity(**settings)
    assert "\n" not in str(error.value)


def test_all_weights_of_a_small_model_can_be_trained(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _, _ = load_network(llava, "small", device="cpu")
    model = make_trainable(network, Capacity("full"))
    count = trained(model)
    assert count.trainable == count.total == sum(p.numel() for p in model.parameters())
    assert {"language", "vision", "projector"} <= set(count.layers)
    monkeypatch.setattr("vlm_probe.finetune.lora.FULL_LIMIT", 1000)
    with pytest.raises(ModelError, match="train an adapter"):
        make_trainable(network, Capacity("full"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_weights_are_trained_in_single_precision_only(llava: Path, dtype: str) -> None:
    network, _, _ = load_network(llava, "small", device="cpu", dtype=dtype)
    with pytest.raises(ModelError, match=f"--where full with {dtype} weights would train nothing") as error:
        make_trainable(network, Capacity("full"))
    assert "--dtype float32" in str(error.value)
    assert trained(make_trainable(network, Capacity())).trainable  # an adapter has its own precision


def test_an_adapter_learns_with_a_4bit_base(llava: Path) -> None:
    network, _, _ = load_network(llava, "small", device="cpu", load_in_4bit=True)
    with pytest.raises(ModelError, match="4-bit weights cannot be trained"):
        make_trainable(network, Capacity("full"))
    plain, _, _ = load_network(llava, "small", device="cpu")
    model = make_trainable(network, Capacity("all", rank=2))
    assert trained(model).total == trained(make_trainable(plain, Capacity("all", rank=2))).total
    ids = torch.tensor([[1, *[3] * 16, 7, 8, 9]])
    pixels = torch.rand(1, 3, 32, 32)
    model.train()  # in evaluation, bitsandbytes packs weights for some CPUs, which layers narrower than 64 do not survive
    loss = model(input_ids=ids, pixel_values=pixels, labels=ids.clone()).loss
    loss.backward()
    moved = [n for n, p in model.named_parameters() if "lora_B" in n and p.grad is not None and p.grad.abs().sum() > 0]
    assert {part_of(name) for name in moved} == {"language", "vision", "projector"}


def test_training_goes_on_from_an_adapter(llava: Path, save_model: Callable[..., Path], tmp_path: Path) -> None:
    network, _, _ = load_network(llava, "small", device="cpu")
    first = make_trainable(network, Capacity("language", rank=3))
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    first.save_pretrained(tmp_path / "first")
    network, _, _ = load_network(llava, "small", device="cpu")
    # The place and size of the adapter count, not those of the settings.
    second = make_trainable(network, Capacity("vision", rank=16), init=tmp_path / "first")
    assert {n for n, p in second.named_parameters() if p.requires_grad} == {
        n for n, p in first.named_parameters() if p.requires_grad
    }
    stored = dict(first.named_parameters())
    assert all(torch.equal(p, stored[n]) for n, p in second.named_parameters())
    network, _, _ = load_network(save_model(tmp_path / "narrow", hidden=32), "narrow", device="cpu")
    with pytest.raises(ModelError, match="does not fit this model"):
        make_trainable(network, Capacity(), init=tmp_path / "first")
    with pytest.raises(ModelError, match="trains no adapter"):
        make_trainable(network, Capacity("full"), init=tmp_path / "first")
