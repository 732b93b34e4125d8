"""LoRA adapters: the right one changes the answers; a wrong, lost or empty one is refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

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
    from vlm_probe.probes.models.model_folder import weights_hash

    own = Path(shutil.copytree(adapter, tmp_path / "own"))
    base = {"name": "small", "weights_sha256": weights_hash(llava)}
    (own / "training.json").write_text(json.dumps({"base": base}))
    assert load_model(str(llava), adapter=own).identity.adapter_sha256
    other = save_model(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors[next(name for name in tensors if name.endswith("norm.weight"))] *= 1.5
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    assert "was trained on other weights (small, sha256" in refused(other, own)


LAYERS = "model.language_model.layers"


def changed(
    adapter: Path, folder: Path, rename: Callable[[str], str] = str, leave_out: str = "", **config: Any
) -> Path:
    """A copy of an adapter with other names of tensors, without some of them, or with other settings."""
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = {rename(key): tensor for key, tensor in tensors.items() if not leave_out or leave_out not in key}
    save_file(kept, folder / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


MOVED: dict[str, Callable[[str], str]] = {
    "transformers before 4.52": lambda key: key.replace(LAYERS, "language_model.model.layers"),
    "the language model alone": lambda key: key.replace(LAYERS, "model.layers"),
    "the decoder alone": lambda key: key.replace(LAYERS, "layers"),
    "with all wrappers": lambda key: (
        "module._orig_mod." + key.replace(LAYERS, "language_model.model.layers").replace(".weight", ".default.weight")
    ),
}
WRAPPED: dict[str, Callable[[str], str]] = {
    "with the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "with another name": lambda key: key.replace(".weight", ".stage-2.weight"),
    "compiled": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "compiled inside": lambda key: key.replace("language_model.", "_orig_mod.language_model."),
    "several GPUs": lambda key: f"module.{key}",
    "without PEFT's beginning": lambda key: key.removeprefix("base_model.model."),
}
TARGETS: dict[str, dict[str, Any]] = {
    "": {},
    "by the last name": {"target_modules": ["q_proj", "v_proj"]},
    "by the old name": {
        "target_modules": r"(base_model\.)?(language_model\.)?(model\.)?layers\.[0-9]+\.self_attn\.[qv]_proj"
    },
}
CASES = [(kind, target) for kind in MOVED for target in TARGETS] + [(kind, "") for kind in WRAPPED]


@pytest.mark.parametrize(("kind", "targets"), CASES)
def test_old_names_of_tensors_find_their_places(
    llava: Path, adapter: Path, stability: StimulusSet, tmp_path: Path, kind: str, targets: str
) -> None:
    old = changed(adapter, tmp_path / "old", (MOVED | WRAPPED)[kind], **TARGETS[targets])
    trials = [Trial(item, stability.image(item)) for item in stability.items[:2]]
    expected = load_model(str(llava), adapter=adapter).score_options(trials)
    for row, other in zip(load_model(str(llava), adapter=old).score_options(trials), expected, strict=True):
        assert np.abs(row - other).max() < 1e-5


def test_old_names_in_every_part_of_the_model(
    llava: Path, save_adapter: SaveModel, stability: StimulusSet, tmp_path: Path
) -> None:
    """Vision tower, projector and language model, with a scale of its own for one layer."""
    new = save_adapter(llava, tmp_path / "new", targets=r".*\.(?:[qv]_proj|linear_1)")
    new = changed(new, tmp_path / "scaled", alpha_pattern={f"{LAYERS}.0.self_attn.q_proj": 80})

    def rename(key: str) -> str:
        key = key.replace(LAYERS, "language_model.model.layers").replace(
            "model.vision_tower.", "vision_tower.vision_model."
        )
        return key.replace("model.multi_modal_projector", "multi_modal_projector")

    scales = {"language_model.model.layers.0.self_attn.q_proj": 80}
    old = changed(new, tmp_path / "old", rename, target_modules=["q_proj", "v_proj", "linear_1"], alpha_pattern=scales)
    trials = [Trial(item, stability.image(item)) for item in stability.items[:2]]
    expected = load_model(str(llava), adapter=new).score_options(trials)
    for row, other in zip(load_model(str(llava), adapter=old).score_options(trials), expected, strict=True):
        assert np.abs(row - other).max() < 1e-5


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.replace("language_model", "text_model"),
        lambda key: key.replace("layers", "blocks"),
        lambda key: key.replace("layers.1", "layers.7"),
        lambda key: key.replace(LAYERS, "model.layers").replace("layers.1", "layers.7"),
        lambda key: key.replace(LAYERS, "model.layers").replace("q_proj", "o_proj"),
        lambda key: key.replace(LAYERS, "language_model.model.layers").replace("self_attn", "attention"),
    ],
)
def test_names_that_fit_nothing_are_refused(
    llava: Path, adapter: Path, tmp_path: Path, rename: Callable[[str], str]
) -> None:
    assert "does not fit this model" in refused(llava, changed(adapter, tmp_path / "wrong", rename))


def test_a_lost_layer_is_noticed_whatever_the_names(llava: Path, adapter: Path, tmp_path: Path) -> None:
    lost = changed(adapter, tmp_path / "new", leave_out="layers.1")
    assert "4 of its tensors found no place" in refused(llava, lost)
    rename = MOVED["the language model alone"]
    lost = changed(adapter, tmp_path / "old", rename, "layers.1", target_modules=["q_proj", "v_proj"])
    assert f"not for the same layers, such as {LAYERS}.1.self_attn.q_proj" in refused(llava, lost)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", ["pissa"]])
def test_an_adapter_that_changes_its_base_is_refused(llava: Path, adapter: Path, tmp_path: Path, init: Any) -> None:
    message = refused(llava, changed(adapter, tmp_path / "own-base", init_lora_weights=init))
    assert "init_lora_weights" in message and "path_initial_model_for_weight_conversion" in message


def test_an_adapter_that_pissa_made_is_that_adapter_once_it_is_converted(
    llava: Path, stability: StimulusSet, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(llava)
    targets = r".*language_model.*\.[qv]_proj"
    made = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights="pissa"))
    made.peft_config[
        "default"
    ].init_lora_weights = True  # PEFT must not repeat the decomposition when it compares with it
    made.save_pretrained(tmp_path / "begun")
    made.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if "lora_" in name:
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    made.save_pretrained(tmp_path / "pissa")
    assert "changes the weights of the base as well" in refused(llava, tmp_path / "pissa")
    made.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "begun"))
    loaded: Any = load_model(str(llava), adapter=tmp_path / "plain")
    inputs = loaded.probe_inputs()
    with torch.inference_mode():
        expected, found = (network(**inputs).logits.log_softmax(-1) for network in (made.eval(), loaded._model))
    assert float((expected - found).abs().max()) < 1e-3


def test_settings_that_peft_does_not_know_are_told(
    llava: Path, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_model(str(llava), adapter=changed(adapter, tmp_path / "newer", setting_of_the_future=1))
    assert "setting_of_the_future" in caplog.text
    caplog.clear()
    load_model(str(llava), adapter=adapter)
    assert str(adapter) not in caplog.text


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": "("}, "target_modules"),
    ({"target_modules": r"(.*)*(.*)*(.*)*(.*)*(.*)*x"}, "target_modules is no pattern that names can be matched with"),
    ({"target_modules": 7}, "target_modules is '7'"),
    ({"exclude_modules": "["}, "exclude_modules"),
    ({"rank_pattern": {"(": 4}}, "rank_pattern.("),
    ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern.q_proj is 1,000,000,000"),
    ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern.q_proj is NaN"),
    ({"alpha_pattern": [1]}, "alpha_pattern"),
    ({"layers_pattern": "(", "layers_to_transform": [0], "target_modules": ["q_proj"]}, "layers_pattern"),
    ({"modules_to_save": ["("]}, "modules_to_save"),
    ({"lora_alpha": float("nan")}, "lora_alpha is NaN"),
    ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
    ({"lora_alpha": "large"}, "lora_alpha is 'large'"),
    ({"lora_dropout": []}, "lora_dropout is '[]'"),
    ({"r": 10**9}, "r is 1,000,000,000"),
    ({"r": -1}, "positive"),
    ({"peft_type": "no such thing"}, "no such thing"),
    ({"layer_replication": [[0, 10**9]]}, "layer_replication"),
    ({"base_model_name_or_path": "\ud83d"}, "half a character"),
]


@pytest.mark.parametrize(("entries", "told"), SETTINGS, ids=[str(ascii(row[0]))[:60] for row in SETTINGS])
def test_settings_that_cannot_be_are_named(
    llava: Path, adapter: Path, tmp_path: Path, entries: dict[str, Any], told: str
) -> None:
    start = time.process_time()
    message = refused(llava, changed(adapter, tmp_path / "bad", **entries))
    assert told in message and str(tmp_path / "bad") in message and time.process_time() - start < 20


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "training.json"])
def test_files_of_an_adapter_may_hold_anything(llava: Path, adapter: Path, tmp_path: Path, file: str) -> None:
    """Cut off, nested, of other kinds, with half a surrogate pair: refused in one line that names the file."""
    whole = (adapter / file).read_bytes() if (adapter / file).is_file() else b"{}"
    texts = (b"", whole[: len(whole) // 2], b"[" * 100_000, b"[1]", b"null", b"\xff\xfe", b"\0" * 64)
    for number, text in enumerate((*texts, b'{"a": "\\ud83d"}', b'{"a": NaN}', b"\xff" * 8 + b"{}")):
        bad = Path(shutil.copytree(adapter, tmp_path / str(number)))
        (bad / file).write_bytes(text)
        assert str(bad / file) in refused(llava, bad)


def test_a_tensor_by_two_names_is_refused(llava: Path, adapter: Path, tmp_path: Path) -> None:
    bad = changed(adapter, tmp_path / "bad")
    tensors = load_file(bad / "adapter_model.safetensors")
    both = tensors | {key.replace(LAYERS, "model.layers"): tensor + 1 for key, tensor in tensors.items()}
    save_file(both, bad / "adapter_model.safetensors")
    assert "twice, by several names" in refused(llava, bad)


def test_an_adapter_that_is_not_finite_is_refused(llava: Path, adapter: Path, tmp_path: Path) -> None:
    bad = changed(adapter, tmp_path / "bad")
    tensors = load_file(bad / "adapter_model.safetensors")
    save_file({key: tensor * float("nan") for key, tensor in tensors.items()}, bad / "adapter_model.safetensors")
    assert "the logits are not finite" in refused(llava, bad)
