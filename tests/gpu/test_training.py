"""Training on a GPU: every method in bfloat16 and in four bits, gone on with after an end, and with several GPUs in sight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from safetensors.torch import load_file

from vlm_probe.finetune.config import TrainConfig
from vlm_probe.finetune.reward import RewardScorer, ScoredReply
from vlm_probe.finetune.train import train
from vlm_probe.probes.models import Generation, Trial
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.merging import merge_adapter
from vlm_probe.stimuli.dataset import StimulusSet

pytestmark = pytest.mark.gpu

METHODS = ("sft", "ppo", "grpo", "rloo")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sets of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def settings(method: str, **changes: Any) -> TrainConfig:
    """A run of two rollouts of 32 replies, or of four batches of 16 demonstrations."""
    given: dict[str, Any] = {
        "model": "tiny",
        "tasks": ("towers-topblock",),
        "method": method,
        "items": 16,
        "size": 96,
        "batch": 16,
        "rollout": 32,
        "generations": 1 if method == "ppo" else 4,
        "epochs": 2 if method == "ppo" else 1,
        "budget": "samples=64",
        "learning_rate": 1e-3,
    }
    return TrainConfig(**(given | changes))


def moved(folder: Path) -> bool:
    """Whether the adapter has learned anything, all of it finite."""
    tensors = load_file(folder / "adapter_model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    return any(bool(tensor.abs().max() > 0) for name, tensor in tensors.items() if "lora_B" in name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "precision",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16", "gradient_checkpointing": True},
        {"dtype": "bfloat16", "load_in_4bit": True, "gradient_checkpointing": True, "micro_batch": 4},
    ],
    ids=["float32", "bfloat16", "4bit"],
)
def test_every_method_learns_and_its_adapter_answers_anywhere(
    method: str, precision: dict[str, Any], topblock: StimulusSet, tmp_path: Path
) -> None:
    result = train(settings(method, **precision), tmp_path / "run")
    assert result["budget"]["samples"] == 64 and result["hardware"]["gpu"]
    assert all(row["gradient_norm"] > 0 for row in result["curves"])
    assert moved(tmp_path / "run")
    trials = [Trial(item, topblock.image(item)) for item in topblock.items]
    for device in ("cuda", "cpu"):
        replies = load_model("tiny", adapter=tmp_path / "run", device=device).generate(trials, Generation())
        assert len(replies) == len(trials)


@pytest.mark.parametrize("method", ["sft", "grpo", "ppo"])
@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl", "smolvlm", "llava-onevision", "internvl", "gemma3"])
def test_other_families_learn_in_four_bits(
    family: str, method: str, save_family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random weights say nothing that can be read, and replies that are all worth nothing teach nothing.
    monkeypatch.setattr(
        RewardScorer,
        "_one",
        lambda _, reply, item: ScoredReply(item.question.parse(reply), False, crc32(reply.encode()) % 2),
    )
    given = {"load_in_4bit": True, "dtype": "bfloat16", "gradient_checkpointing": True, "batch": 8, "rollout": 8}
    given |= {"budget": "samples=16", "size": 64, "beta": 0.05, "model": str(save_family(family))}
    result = train(settings(method, **given), tmp_path / "run")
    assert result["budget"]["samples"] == 16
    assert moved(tmp_path / "run")


@pytest.mark.parametrize("method", ["sft", "ppo", "grpo"])
def test_a_run_goes_on_from_its_last_checkpoint(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended after its first checkpoint, it has as many rows and samples as one that was not; the first are the same."""
    config = settings(method, save_every=16 if method == "sft" else 32)

    def end(done: int, total: int) -> None:
        if list((tmp_path / "ended" / "checkpoints").glob("checkpoint-*/complete")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "ended", progress=end)
    ended, whole = train(config, tmp_path / "ended"), train(config, tmp_path / "whole")
    assert [row["samples"] for row in ended["curves"]] == [row["samples"] for row in whole["curves"]]
    assert ended["data_sha256"] == whole["data_sha256"]
    for one, other in zip(ended["curves"], whole["curves"], strict=True):
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=0.05)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_one_process_trains_on_one_gpu_of_several(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    train(settings(method, budget="samples=32"), tmp_path / "run")
    assert moved(tmp_path / "run")


def test_merged_weights_answer_like_the_adapter(topblock: StimulusSet, tmp_path: Path) -> None:
    train(settings("sft"), tmp_path / "run")
    merge_adapter(tmp_path / "run", tmp_path / "merged")
    trials = [Trial(item, topblock.image(item)) for item in topblock.items]
    merged, beside = load_model(str(tmp_path / "merged")), load_model("tiny", adapter=tmp_path / "run")
    assert merged.generate(trials, Generation()) == beside.generate(trials, Generation())


def test_the_command_line_from_training_to_decoding(tmp_path: Path) -> None:
    """As in the documents, in four bits and bfloat16."""

    def probe(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "vlm_probe", *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert torch.cuda.get_device_name() in probe("doctor")
    probe("stimuli", "make", "towers-stability", "-n", "40", "--out", "set")
    preset = ("--preset", "24gb", "--budget", "samples=64", "--items", "32")
    probe("train", "--model", "tiny", "--tasks", "towers-stability", "--method", "grpo", *preset, "--out", "adapter")
    probe("run", "--model", "tiny", "--load-in-4bit", "--adapter", "adapter", "--stimuli", "set", "--out", "run")
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["n_errors"] == 0
    probe(
        "decode", "--model", "tiny", "--dtype", "bfloat16", "--stimuli", "set", "--target", "label", "--out", "states"
    )
