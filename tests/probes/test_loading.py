"""Names of models, and what is said where a model cannot be loaded: one line, with the fix, soon."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.families import SMALL, tokenizer_of
from vlm_probe.finetune.config import TrainingError, make_config
from vlm_probe.finetune.train import train
from vlm_probe.probes.models import Generation, ModelError, Trial
from vlm_probe.probes.models.catalog import ENTRIES, is_available, lookup
from vlm_probe.probes.models.device import choose_dtype
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import read_trials
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
        ("zzz", "see `probe models` for the short names"),
        ("", "see `probe models` for the short names"),
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


def config_only(folder: Path, **config: object) -> str:
    """A folder with a configuration, and weights that are of no use."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"some.weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    return str(folder)


UNSUPPORTED = {
    "timm": (
        {"model_type": "fast_vlm", "vision_config": {"model_type": "timm_wrapper"}},
        "its vision tower needs timm, which is not installed: pip install 'vlm-probe[timm]'",
    ),
    "timm by default": ({"model_type": "gemma3n"}, "pip install 'vlm-probe[timm]'"),
    "code": ({"model_type": "own", "auto_map": {"AutoModel": "own.Model"}}, "it runs code of its own (model_type own)"),
    "unknown": ({"model_type": "of_next_year"}, "does not know its model_type of_next_year"),
    "encoder and decoder": ({"model_type": "florence2"}, "it is an encoder with a decoder (model_type florence2)"),
    "part": (
        {"model_type": "blip-2", "text_config": {"model_type": "t5"}},
        "it is an encoder with a decoder (model_type blip-2)",
    ),
    "sounds": ({"model_type": "wav2vec2"}, "a wav2vec2 model does not answer questions"),
    "packed": (
        {"model_type": "kimi_k25", "text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}},
        "its weights are stored by compressed-tensors, which is not installed: pip install compressed-tensors",
    ),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_cannot_be_used_is_known_from_the_configuration(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder before it is loaded, of the hub before more than the configuration is fetched."""
    import huggingface_hub

    missing = ("timm", "compressed_tensors")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "vlm_probe.probes.models.support.find_spec", lambda name: None if name in missing else find(name)
    )
    config, told = UNSUPPORTED[kind]
    folder = config_only(tmp_path / "model", **config)
    assert told in refused(folder)
    siblings = [SimpleNamespace(rfilename=name) for name in ("config.json", "model.safetensors")]
    about = SimpleNamespace(siblings=siblings, sha="0" * 40)
    fetched: list[str] = []

    def fetch(hub_id: str, file: str, **_: object) -> str:
        fetched.append(file)
        return f"{folder}/{file}"

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: about)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: fetched.append("everything") or folder)
    assert told in refused("some/model")
    assert fetched == ["config.json"]


def test_a_language_model_is_asked_descriptions_alone(tmp_path: Path, stability: StimulusSet) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = tokenizer_of("<turn>")
    tokenizer.chat_template = (
        "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}<turn>assistant\n"
    )
    folder = tmp_path / "words"
    LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for design in ("plain", "controls", "description,blank"):
        with pytest.raises(ModelError, match="is a language model, which takes no images: give --design description"):
            run(RunConfig(str(folder), "s", design=design, limit=4), stability, tmp_path / design)
    for readout in ("generate", "options"):
        config = RunConfig(str(folder), "s", readout, design="description", limit=4)  # type: ignore[arg-type]
        report = run(config, stability, tmp_path / readout)
        rows = list(read_trials(report.path))
        assert report.n == 4 and report.n_errors == 0
        assert {row["manner"]["control"] for row in rows} == {"description"}
    with pytest.raises(TrainingError, match="is a language model, which takes no images: train a vision-language"):
        train(make_config({"model": str(folder), "tasks": ("towers-topblock",), "method": "sft"}), tmp_path / "run")


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
