"""Whole runs on the embedded model: every method, killed and gone on with, in two processes, in four bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlm_probe.finetune.config import TrainConfig, TrainingError
from vlm_probe.finetune.monitor import last_checkpoint
from vlm_probe.finetune.policy import load_policy
from vlm_probe.finetune.train import KIND, train
from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.dummy_inputs import dummy_inputs
from vlm_probe.probes.tiny import WEIGHTS
from vlm_probe.stimuli.output import OutputError, claim

ROOT = Path(__file__).parents[2]
METHODS = ("sft", "ppo", "grpo", "rloo")
SLOW = [pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
ENTRIES = {
    *("format", "method", "model", "tasks", "weights", "seed", "shift", "attempts", "memory", "init", "curriculum"),
    *("auxiliary", "budget", "config", "data_sha256", "versions", "hardware", "started", "ended", "curves"),
    "adapter_sha256",
}


def settings(method, **changes):
    """A run of four rollouts of 16 replies, or of four batches of 16 demonstrations."""
    given = {
        "model": "tiny",
        "tasks": ("towers-topblock",),
        "method": method,
        "items": 16,
        "size": 48,
        "batch": 16,
        "rollout": 16,
        "generations": 1 if method == "ppo" else 4,
        "epochs": 2 if method == "ppo" else 1,
        "budget": "samples=64",
        "learning_rate": 1e-3,
        "save_every": 16,
    }
    return TrainConfig(**(given | changes))


def options(config):
    """The settings as options of the command line."""
    given = []
    for name, value in config.to_dict().items():
        option = "--" + ("load-in-4bit" if name == "load_in_4bit" else name.replace("_", "-"))
        if isinstance(value, bool):
            given += [option] if value else []
        elif value not in ("", []):
            given += [option, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return given


def start(config, out, *, processes=1):
    """Start `probe train` as a user would."""
    command = [sys.executable, "-m", "vlm_probe", "train", *options(config), "--out", str(out), "--json"]
    if processes > 1:
        head = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        rest = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
        command = [*head, *rest, *command[1:]]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def weights(folder):
    """Everything that was learned, by file and name."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=0, msg=name)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("method", ["ppo", *[p for p in SLOW if p.values != ("ppo",)]])
def test_a_run_that_is_killed_goes_on_exactly_where_it_was(method, tmp_path):
    config = settings(method)
    running = start(config, tmp_path / "killed")
    try:
        deadline = time.monotonic() + 900
        while not list((tmp_path / "killed" / "checkpoints").glob("checkpoint-*/complete")):
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    assert not (tmp_path / "killed" / "training.json").exists()
    killed, whole = train(config, tmp_path / "killed"), train(config, tmp_path / "whole")
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    timing = {"step_s", "simulator_s"}
    untimed = [[{k: v for k, v in row.items() if k not in timing} for row in r["curves"]] for r in (killed, whole)]
    assert untimed[0] == untimed[1]
    assert killed["budget"] == whole["budget"]
    _check_folder(tmp_path / "whole", whole, config)


def test_a_damaged_record_of_a_training_is_one_line(tmp_path):
    config = settings("sft", micro_batch=16)
    stored = {"method": "sft", "model": "tiny", "tasks": [], "budget": {"samples": 64}, "curves": [{"samples": 16.0}]}
    with claim(tmp_path, KIND) as output:
        output.track("settings.json", "training.json")
    (tmp_path / "settings.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "training.json").write_text(json.dumps(stored))
    assert train(config, tmp_path) == stored
    damaged = [stored | {"curves": [{"samples": None}]}, stored | {"budget": []}, {"curves": []}, [], 7]
    texts = [json.dumps(data) for data in damaged] + ["", "[" * 100_000, json.dumps(stored)[:40], "\x00"]
    for file in ("training.json", "settings.json"):
        for text in texts:
            (tmp_path / file).write_text(text)
            with pytest.raises(TrainingError) as told:
                train(config, tmp_path)
            assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json", "adapter_model.safetensors", "monitor.json"])
def test_a_training_whose_newest_checkpoint_is_damaged_ends_alike(name, tmp_path, caplog):
    config = settings("sft")
    running = start(config, tmp_path / "killed")
    deadline = time.monotonic() + 900
    while len(list((tmp_path / "killed" / "checkpoints").glob("checkpoint-*/complete"))) < 2:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    newest = last_checkpoint(tmp_path / "killed" / "checkpoints")
    os.truncate(newest / name, (newest / name).stat().st_size // 2)
    train(config, tmp_path / "killed")
    assert f"{newest / name} is damaged" in caplog.text
    train(config, tmp_path / "whole")
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def _check_folder(folder, result, config):
    """The folder of a run holds what it says, and nothing else."""
    stored = json.loads((folder / "training.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert set(stored) >= ENTRIES
    assert stored["budget"]["samples"] == 64
    assert stored["budget"]["tokens"] > 64 * 90, "a prompt with its picture has more than 90 tokens"
    assert [row["samples"] for row in stored["curves"]] == [16, 32, 48, 64]
    names = {"adapter_config.json", "adapter_model.safetensors", "training.json", "settings.json", "curves.png"}
    assert {p.name for p in folder.iterdir()} - {".lock", ".vlm-probe.json"} == names | (
        {"critic"} if config.method == "ppo" else set()
    )
    # It is finished: the same command gives the same result, and another one is refused.
    assert train(config, folder) == stored
    with pytest.raises(TrainingError, match=r"other settings \(learning_rate\)"):
        train(replace(config, learning_rate=2e-3), folder)


@pytest.mark.parametrize("method", SLOW)
def test_two_processes_see_the_same_data_and_learn_the_same(method, tmp_path):
    config = settings(method, budget="samples=32")
    running = start(config, tmp_path / "two", processes=2)
    printed, errors = running.communicate(timeout=1800)
    assert running.returncode == 0, errors[-2000:]
    two, one = json.loads(printed), train(config, tmp_path / "one")
    assert two["processes"] == 2
    assert (two["data_sha256"], two["presentation"]) == (one["data_sha256"], one["presentation"])
    assert [row["samples"] for row in two["curves"]] == [row["samples"] for row in one["curves"]] == [16, 32]
    moved = weights(tmp_path / "two")
    assert any(tensor.abs().max() > 0 for name, tensor in moved.items() if "lora_B" in name)
    if method == "sft":
        # Nothing is sampled: the two processes' mean gradient is that of the whole batch, as far as all answers have the
        # same number of tokens.
        assert two["budget"]["tokens"] == one["budget"]["tokens"]
        assert two["curves"][0]["gradient_norm"] == pytest.approx(one["curves"][0]["gradient_norm"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_four_bits_on_a_cpu(method, tmp_path):
    result = train(settings(method, load_in_4bit=True, budget="samples=32"), tmp_path / "run")
    assert result["config"]["load_in_4bit"] is True
    assert all(row["gradient_norm"] > 0 for row in result["curves"])
    assert any(t.abs().max() > 0 for name, t in weights(tmp_path / "run").items() if "lora_B" in name)


def test_a_run_whose_model_has_changed_is_not_resumed(tmp_path):
    """It was stopped before its end; then somebody changed a setting of the model that weights do not show."""
    model, out = Path(shutil.copytree(WEIGHTS, tmp_path / "model")), tmp_path / "run"
    config = settings("sft", model=str(model), budget="samples=16")
    result = train(config, out)
    assert result["base"]["files"] == json.loads((out / "settings.json").read_text())["base_files"]
    assert result["base"]["files"].keys() >= {"config.json", "tokenizer.json", "model.safetensors"}
    for name in ("training.json", "adapter_config.json", "adapter_model.safetensors"):
        (out / name).unlink()
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace('"vision_feature_layer": -1', '"vision_feature_layer": -2'))
    with pytest.raises(TrainingError, match=r"holds a run of another model \(config.json of .* differ\)"):
        train(config, out)


def test_prompts_of_a_run_state_one_date(tmp_path):
    """Wherever they are rendered, also by the trainers."""
    model = Path(shutil.copytree(WEIGHTS, tmp_path / "model"))
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + template)
    policy = load_policy(settings("sft", model=str(model)), "cpu", "2024-02-29T12:34:56")
    assert policy.prompter.moment == "2024-02-29T12:34:56"
    assert policy.prompter.text([dummy_inputs()]).startswith("29 Feb 2024")
    assert load_policy(settings("sft"), "cpu", "2024-02-29T12:34:56").prompter.moment == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_all_weights_are_trained_in_single_precision(dtype):
    """Half precision would round away steps of a usual learning rate."""
    policy = load_policy(settings("sft", where="full", dtype=dtype), "cpu")
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}
    with pytest.raises(ModelError, match="would train nothing"):
        load_policy(settings("sft", where="full", dtype="float16"), "cpu")


def test_a_template_that_never_ends_is_noticed_before_anything_is_made(tmp_path):
    model = Path(shutil.copytree(WEIGHTS, tmp_path / "model"))
    loops = "{% for a in range(50000) %}{% for b in range(50000) %}{% endfor %}{% endfor %}"
    (model / "chat_template.jinja").write_text((model / "chat_template.jinja").read_text() + loops)
    with pytest.raises(ModelError, match=r"chat_template.jinja failed \(it takes more than 3 s"):
        train(settings("sft", model=str(model)), tmp_path / "run")


def test_what_is_wrong_is_said_before_anything_starts(tmp_path, save_adapter, llava):
    for config, words in (
        (settings("sft", tasks=("towers-count",)), "is held out"),
        (settings("ppo", model=str(tmp_path / "nothing")), "nothing"),
        (settings("ppo", init=str(save_adapter(llava, tmp_path / "other"))), "does not fit this model"),
    ):
        with pytest.raises(Exception, match=words) as caught:
            train(config, tmp_path / "run")
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        train(settings("ppo"), tmp_path / "file" / "run")


def test_a_full_disk_is_noticed_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(TrainingError, match="free some space"):
        train(settings("sft"), tmp_path / "run")
