"""Whole trainings with everything beside the task: mixtures, curricula, auxiliary objectives, warm starts, full weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vlm_probe.finetune.config import TrainConfig
from vlm_probe.finetune.monitor import Monitor
from vlm_probe.finetune.train import train
from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.adapter_folder import adapter_hash
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.model_folder import weights_hash

ROOT = Path(__file__).parents[2]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def settings(llava: Path, method: str, **changes: Any) -> TrainConfig:
    """A run of six rollouts of 8 replies, or of six batches of 8 demonstrations."""
    given: dict[str, Any] = {
        "model": str(llava),
        "tasks": ("towers-stability",),
        "method": method,
        "items": 24,
        "size": 32,
        "batch": 8,
        "rollout": 8,
        "generations": 1 if method == "ppo" else 2,
        "budget": "samples=48",
        "learning_rate": 1e-3,
        "save_every": 16,
        "device": "cpu",
    }
    return TrainConfig(**(given | changes))


def stopped_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Have trainings end after that step as if they were killed."""
    went_on = Monitor.on_step_end

    def on_step_end(self: Monitor, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        went_on(self, args, state, control, **more)

    patch.setattr(Monitor, "on_step_end", on_step_end)


@pytest.mark.parametrize("method", ["sft", *(pytest.param(m, marks=pytest.mark.slow) for m in ("ppo", "grpo", "rloo"))])
def test_everything_at_once_resumes_exactly(
    method: str, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(
        llava,
        method,
        tasks=("towers-stability", "towers-topblock"),
        weights=(2.0, 1.0),
        curriculum="adaptive",
        auxiliary=0.5,
        diversity="conditions=2,wordings=1",
        shift="light:1",
    )
    monkeypatch.setattr(
        "vlm_probe.finetune.curriculum.EVIDENCE", 2
    )  # so that the curriculum moves within so few blocks
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped")
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-4" / "auxiliary.pt").is_file()
    resumed = train(config, tmp_path / "stopped")
    assert resumed["presentation"] == whole["presentation"]
    for name, tensor in load_file(tmp_path / "whole" / WEIGHTS).items():
        assert torch.allclose(load_file(tmp_path / "stopped" / WEIGHTS)[name], tensor, atol=1e-6), name
    timed = {"step_s", "simulator_s", "step_time"}
    for one, other in zip(whole["curves"], resumed["curves"], strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == pytest.approx(
            {k: v for k, v in other.items() if k not in timed}, abs=1e-5
        )
    # The mixture, the limits and the objective are what was asked for, and nothing of the head is left.
    assert whole["presentation"]["realised"]["towers-stability"] == pytest.approx(2 / 3, abs=0.05)
    assert {name for row in whole["curves"] for name in row} >= {
        "auxiliary_loss",
        "success",
        "success/towers-stability",
        "success/towers-topblock",
    }
    data = whole["data"]["towers-stability"]
    assert data["items"] == 16 and data["conditions"] <= 2 and data["wordings"] == 1
    assert set(data["shifts"]) <= {"light:1"} and data["labels"] == {"falls": 8, "stands": 8}
    assert whole["auxiliary_objective"] == {"target": "margin", "layer": 1, "weight": 0.5}
    assert all(".lora_" in name for name in load_file(tmp_path / "whole" / WEIGHTS))
    assert not list((tmp_path / "whole").rglob("auxiliary.pt"))


def test_learning_goes_on_from_an_adapter(llava: Path, save_model: Callable[..., Path], tmp_path: Path) -> None:
    """Watching, then acting: the reference of the KL divergence is the adapter that acting starts from."""
    first = train(settings(llava, "sft", rank=4, learning_rate=1e-2), tmp_path / "first")
    config = settings(
        llava,
        "ppo",
        tasks=("towers-topblock",),
        init=str(tmp_path / "first"),
        beta=0.05,
        entropy_bonus=0.1,
        budget="samples=32",
    )
    second = train(config, tmp_path / "second")
    assert second["curves"][0]["kl"] == pytest.approx(0.0, abs=1e-7)
    assert second["curves"][0]["kl_reply"] == pytest.approx(0.0, abs=1e-6)
    assert second["curves"][-1]["kl"] > 0
    assert second["capacity"]["rank"] == 4
    assert second["init"] == first["adapter_sha256"] == adapter_hash(tmp_path / "first")
    assert second["lineage"] == [
        {
            "method": "sft",
            "tasks": ["towers-stability"],
            "seed": 0,
            "samples": 48,
            "sha256": adapter_hash(tmp_path / "first"),
        }
    ]
    # The frozen copy is not saved beside what was learned.
    assert [path.parent for path in (tmp_path / "second").rglob("adapter_config.json")] == [tmp_path / "second"]
    assert load_model(str(llava), adapter=tmp_path / "second", device="cpu").identity.adapter_sha256
    third = settings(llava, "sft", init=str(tmp_path / "second"), budget="samples=8")
    assert [entry["method"] for entry in train(third, tmp_path / "third")["lineage"]] == ["sft", "ppo"]
    other = save_model(tmp_path / "other", hidden=32)
    with pytest.raises(ModelError, match="was trained on other weights"):
        train(settings(other, "sft", init=str(tmp_path / "first")), tmp_path / "fourth")


def test_all_weights_are_saved_as_a_model(llava: Path, tmp_path: Path) -> None:
    made = train(settings(llava, "sft", where="full", budget="samples=24"), tmp_path / "full")
    assert made["capacity"]["trainable"] == made["capacity"]["total"] and "rank" not in made["capacity"]
    model = load_model(str(tmp_path / "full"), device="cpu")
    assert model.identity.weights_sha256 == weights_hash(tmp_path / "full") != weights_hash(llava)
    assert json.loads((tmp_path / "full" / "training.json").read_text())["method"] == "sft"
    again = settings(llava, "sft", model=str(tmp_path / "full"), budget="samples=8")
    assert [entry["method"] for entry in train(again, tmp_path / "again")["lineage"]] == ["sft"]


@pytest.mark.slow
def test_two_processes_show_and_count_what_one_does(llava: Path, tmp_path: Path) -> None:
    import os
    import socket
    import subprocess
    import sys

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    options = (
        "--method sft --tasks towers-stability:2,towers-topblock --budget samples=48 --items 24 --size 32 --batch 8"
    )
    options += " --learning-rate 1e-3 --curriculum adaptive --auxiliary 0.5 --device cpu --jobs 1"
    made = []
    for head in ([], launcher):
        out = tmp_path / f"run{len(made)}"
        command = [
            sys.executable,
            *head,
            "-m",
            "vlm_probe",
            "train",
            "--model",
            str(llava),
            "--out",
            str(out),
            *options.split(),
        ]
        ended = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
        made.append(json.loads((out / "training.json").read_text()))
    one, two = made
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["presentation"] == two["presentation"]
    same = (
        "loss",
        "auxiliary_loss",
        "success",
        "success/towers-stability",
        "success/towers-topblock",
        "samples",
        "tokens",
    )
    for alone, both in zip(one["curves"], two["curves"], strict=True):
        assert [alone.get(name) for name in same] == pytest.approx([both.get(name) for name in same], abs=1e-4)
