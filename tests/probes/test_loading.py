"""Names of models, and what is said where a model cannot be loaded: one line, with the fix, soon."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm_probe.probes.models import Generation, ModelError, Trial
from vlm_probe.probes.models.catalog import ENTRIES, is_available, lookup
from vlm_probe.probes.models.device import choose_dtype
from vlm_probe.probes.models.loading import load_model
from vlm_probe.stimuli.dataset import StimulusSet


def refused(name: str, **settings: object) -> str:
    """The message with which a model is refused."""
    with pytest.raises(ModelError) as error:
        load_model(name, **settings)  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_the_catalogue_is_read_without_torch() -> None:
    heavy = "{'torch', 'transformers', 'pybullet', 'pandas', 'huggingface_hub'}"
    code = f"import sys; from vlm_probe.probes.models.catalog import lookup; lookup('llava'); print(sorted({heavy} & {{*sys.modules}}))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_names_are_aliases_folders_or_hub_ids(tmp_path: Path) -> None:
    assert lookup("qwen2.5-vl").source == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert lookup("owner/model").kind == "hub"
    assert lookup(str(tmp_path)).kind == "local"
    assert lookup("ideal").kind == "observer"
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lava", "llava"),
        ("noisy", "noisy-simulation"),
        ("Qwen3", "qwen3-vl"),
        ("zzz", "the short names are tiny"),
        ("", "the short names are"),
        ("./nothing", "no model folder"),
        ("/no/such/folder", "no model folder"),
    ],
)
def test_an_unknown_name_lists_the_closest(name: str, hint: str) -> None:
    assert hint in refused(name)


def test_availability_is_found_out_offline(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert is_available(lookup("chance"))
    assert is_available(lookup(str(llava)))
    assert not is_available(lookup("owner-that-does-not-exist/model"))


def test_a_hub_model_without_a_network_fails_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants
    import huggingface_hub.hf_api

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.hf_api, "ENDPOINT", "http://127.0.0.1:9", raising=False)
    start = time.monotonic()
    message = refused("owner-that-does-not-exist/model")
    assert time.monotonic() - start < 8
    assert "hub cannot be reached" in message and "copy the model here" in message


def test_observers_take_no_adapter(tmp_path: Path) -> None:
    assert "observer" in refused("ideal", adapter=tmp_path)
    assert load_model("ideal").identity.name == "ideal"


def test_a_folder_that_is_no_model_is_named(tmp_path: Path, llava: Path) -> None:
    assert "no config.json" in refused(str(tmp_path))
    (tmp_path / "config.json").write_text((llava / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "safetensors" in refused(str(tmp_path))
    assert "no revisions" in refused(str(llava), revision="main")
    assert "no adapter folder" in refused(str(llava), adapter="nowhere")
    assert "unknown dtype" in refused(str(llava), dtype="float8")


def test_damaged_weights_are_named(tmp_path: Path, llava: Path) -> None:
    folder = Path(shutil.copytree(llava, tmp_path / "model"))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert refused(str(folder)) == f"{weights} is damaged (it is cut off): copy or download it again"
    weights.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))
    assert "copy the missing files" in refused(str(folder))


def test_missing_tensors_are_not_made_up(tmp_path: Path, llava: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(llava, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if "q_proj" in key and "language" in key)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 tensors are missing" in refused(str(folder))


def test_a_model_that_runs_its_own_code_is_refused(tmp_path: Path, llava: Path) -> None:
    folder = Path(shutil.copytree(llava, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('this code must never run')")
    assert "code of its own" in refused(str(folder))


def test_a_text_model_is_refused(tmp_path: Path, llava: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llava).save_pretrained(tmp_path)
    assert "cannot load" in refused(str(tmp_path))


@pytest.mark.parametrize("cards", [0, 2])
def test_a_gpu_that_is_not_there_is_refused(llava: Path, monkeypatch: pytest.MonkeyPatch, cards: int) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cards > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: cards)
    fix = "use --device cpu" if cards == 0 else "use --device cuda:0 to cuda:1"
    assert refused(str(llava), device="cuda:2") == f"there is no GPU cuda:2 on this machine: {fix}"


def test_small_models_compute_alike_everywhere() -> None:
    small, large = 2_000_000, 7_000_000_000
    assert choose_dtype("auto", "cpu", "bfloat16", large) == "float32"
    assert choose_dtype("auto", "cuda", "float16", small) == "float32"
    assert choose_dtype("auto", "cuda", "bfloat16", large) == "bfloat16"
    assert choose_dtype("float16", "cuda", "bfloat16", small) == "float16"


def test_four_bits_need_their_library(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "--load-in-4bit needs bitsandbytes" in refused(str(llava), load_in_4bit=True)


def test_four_bits_load_and_answer_on_a_cpu(stability: StimulusSet) -> None:
    pytest.importorskip("bitsandbytes")
    model = load_model("tiny", load_in_4bit=True)
    item = stability.items[0]
    reply = model.generate([Trial(item, stability.image(item))], Generation())[0]
    assert item.question.parse(reply).status == "ok"
    assert model.identity.details["load_in_4bit"]
