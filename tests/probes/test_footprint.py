"""What `probe doctor --model` says of a model before it is loaded, against the model once it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_probe.probes.cli import main
from vlm_probe.probes.models import ModelError, footprint
from vlm_probe.probes.models.footprint import read_weights
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.option_scoring import find_cache

SaveFamily = Callable[[str], Path]


@pytest.mark.parametrize("name", ["llava", "qwen3-vl", "smolvlm", "gemma3"])
def test_parameters_and_prompt_are_those_of_the_loaded_model(name: str, save_family: SaveFamily) -> None:
    """Counted from the heads of files in several parts; tied weights once."""
    from PIL import Image

    from vlm_probe.probes.models import Turn

    folder = save_family(name)
    found = footprint.footprint(str(folder))
    model: object = load_model(str(folder))
    total = sum(p.numel() for p in model._model.parameters())  # type: ignore[attr-defined]
    assert found.parameters == total and found.weight_bytes["float32"] == 4 * total
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert found.stored_bytes is not None and 0.8 * size < found.stored_bytes < size
    picture = Image.new("RGB", (224, 224))
    inputs = model._prompter.inputs([[Turn("user", footprint.QUESTION, (picture,))]])  # type: ignore[attr-defined]
    assert found.prompt_tokens == inputs["input_ids"].shape[1]
    assert found.picture == model._prompter.picture_size((224, 224))  # type: ignore[attr-defined]
    assert found.timing == "measured" and found.seconds > 0 and found.dtype == "float32"


def test_keys_and_values_are_those_of_a_real_cache(save_family: SaveFamily) -> None:
    folder = save_family("qwen2.5-vl")
    found = footprint.footprint(str(folder), batch_size=3)
    model: object = load_model(str(folder))
    out = model._model.generate(  # type: ignore[attr-defined]
        **model.probe_inputs(),
        max_new_tokens=1,
        return_dict_in_generate=True,  # type: ignore[attr-defined]
    )
    _, held = find_cache(out)
    cache = [tensor for layer in held.layers for tensor in (layer.keys, layer.values)]
    per_token = sum(tensor.numel() * 4 for tensor in cache) / cache[0].shape[-2]
    assert found.cache_bytes == per_token * 3 * (found.prompt_tokens + footprint.NEW_TOKENS)


def test_vision_weights_are_told_apart(save_family: SaveFamily) -> None:
    for name in ("llava", "llava-next", "llava-onevision", "qwen3-vl", "smolvlm", "internvl", "paligemma"):
        folder = save_family(name)
        network = load_model(str(folder))._model  # type: ignore[attr-defined]
        towers = [
            m for n, m in network.named_modules() if n.split(".")[-1] in ("vision_tower", "visual", "vision_model")
        ]
        matrices = [
            p
            for n, p in towers[0].named_parameters()
            if p.ndim >= 2 and not any(word in n for word in ("position_embedding", "pos_embed"))
        ]
        assert read_weights(folder).vision == sum(p.numel() for p in matrices), name


PACKED: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "GPTQ": (
        {
            "a.qweight": "int32 8 64",
            "a.qzeros": "int32 1 8",
            "a.scales": "float16 1 64",
            "a.g_idx": "int32 64",
        },
        {"bits": 4},
    ),
    "AWQ": ({"a.qweight": "int32 64 8", "a.qzeros": "int32 1 8", "a.scales": "float16 1 64"}, {"w_bit": 4}),
    "compressed-tensors": (
        {"a.weight_packed": "int32 64 8", "a.weight_scale": "float16 64 1", "a.weight_shape": "int32 2"},
        {},
    ),
    "MXFP4": ({"a_blocks": "uint8 64 2 16", "a_scales": "uint8 64 2"}, {}),
    "8 bits": ({"a.weight": "int8 64 64", "a.SCB": "float32 64", "a.weight_format": "uint8 1"}, {}),
    "FP8": ({"a.weight": "float8_e4m3fn 64 64", "a.weight_scale_inv": "float32 1 1"}, {}),
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_weights_are_counted_one_by_one(tmp_path: Path, kind: str) -> None:
    """A matrix of 64 x 64 and a norm, as they lie in quantised checkpoints."""
    from safetensors.torch import save_file

    tensors, quantised = PACKED[kind]
    made = {"norm.weight": torch.zeros(64)}
    for name, text in tensors.items():
        dtype, *shape = text.split()
        made[name] = torch.zeros([int(size) for size in shape], dtype=getattr(torch, dtype))
    save_file(made, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantised | {"quant_method": "any"}}))
    assert read_weights(tmp_path).parameters == 64 * 64 + 64


def test_a_model_that_is_not_here_is_described_from_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "cached_snapshot", lambda *_: None)
    monkeypatch.setattr(footprint, "free_memory", lambda: 24_000_000_000)
    alias = footprint.footprint("qwen2.5-vl", device="cpu", dtype="bfloat16", batch_size=1)
    assert alias.source == "catalogue" and alias.stored_bytes is None and alias.timing == "estimate"
    assert alias.weight_bytes["bfloat16"] == pytest.approx(2 * 8.3e9) and alias.fits
    assert not footprint.footprint("Qwen/Qwen2.5-VL-7B-Instruct", device="cpu").fits
    # 2 x 28 layers x 4 heads x 128 numbers x 2 bytes a token
    tokens = alias.prompt_tokens + footprint.NEW_TOKENS
    assert alias.cache_bytes == 2 * 28 * 4 * 128 * 2 * tokens
    small = footprint.footprint("qwen2.5-vl", device="cpu", load_in_4bit=True)
    assert small.dtype == "4bit" and small.weight_bytes["4bit"] < 8e9
    with pytest.raises(ModelError, match="hf download some/thing"):
        footprint.footprint("some/thing")


def test_every_hub_entry_of_the_catalogue_has_a_published_shape() -> None:
    from vlm_probe.probes.models.catalog import ENTRIES

    assert {entry.name for entry in ENTRIES if entry.kind == "hub"} == set(footprint.PUBLISHED)


def test_errors_name_the_fix(save_family: SaveFamily, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="observer"):
        footprint.footprint("chance")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="--device cpu"):
            footprint.footprint("tiny", device="cuda")
    broken = Path(shutil.copytree(save_family("llava"), tmp_path / "broken"))
    part = next(broken.glob("*-00002-*.safetensors"))
    part.write_bytes(b"\x10\x00")
    with pytest.raises(ModelError, match="is damaged"):
        footprint.footprint(str(broken))
    part.unlink()
    with pytest.raises(ModelError, match="copy the missing files"):
        footprint.footprint(str(broken))


def test_the_doctor_says_whether_a_model_fits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["doctor", "--model", "tiny"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and "tiny fits" in text and "2.2 million" in text and "measured" in text
    monkeypatch.setattr(footprint, "free_memory", lambda: 1000)
    with pytest.raises(SystemExit) as done:
        main(["doctor", "--model", "llava", "--device", "cpu", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert done.value.code == 1 and found["fits"] is False and found["needed_bytes"] > 28e9
