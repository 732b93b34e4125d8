"""`probe adapters`: what is listed and shown is what the folder says; a merged model says what base and adapter say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm_probe.probes.cli import main
from vlm_probe.probes.models import Generation, Trial
from vlm_probe.probes.models.adapter_folder import adapter_hash
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.model_folder import weights_hash
from vlm_probe.probes.tiny import WEIGHTS
from vlm_probe.stimuli.dataset import StimulusSet

TRAINING = {
    "method": "grpo",
    "tasks": ["towers-topblock"],
    "weights": [1.0],
    "seed": 3,
    "budget": {"samples": 6400, "steps": 50, "tokens": 400_000},
    "config": {"shift": "visual:2", "curriculum": "none"},
    "lineage": [{"method": "sft", "tasks": ["towers-stability"]}],
    "curves": [{"step": step, "success": step / 20} for step in range(20)],
}


@dataclass(frozen=True)
class Said:
    stdout: str
    stderr: str


@pytest.fixture
def probe(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line in this process, because loading torch in one of its own for every call takes a minute."""

    def call(*arguments: str, code: int = 0) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        return Said(said.out, said.err)

    return call


@pytest.fixture(scope="module")
def adapters(llava: Path, save_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one adapter of `probe train` and one of PEFT, a checkpoint, and one that does nothing."""
    folder = tmp_path_factory.mktemp("adapters")
    for name in ("trained", "checkpoints/checkpoint-10"):
        save_adapter(llava, folder / name)
    save_adapter(llava, folder / "plain", targets=r".*\.(?:[qv]_proj|linear_1)")
    save_adapter(llava, folder / "empty", trained=False)
    base = {"name": str(llava), "weights_sha256": weights_hash(llava)}
    (folder / "trained" / "training.json").write_text(json.dumps(TRAINING | {"base": base}))
    return folder


def test_adapters_are_listed_with_their_training(probe: Callable[..., Any], adapters: Path, tmp_path: Path) -> None:
    result = probe("adapters", "list", str(adapters), "--json")
    rows = {Path(row["path"]).name: row for row in json.loads(result.stdout)}
    assert set(rows) == {"trained", "plain", "empty"}
    row = rows["trained"]
    assert (row["method"], row["tasks"], row["seed"], row["samples"]) == ("grpo", ["towers-topblock"], 3, 6400)
    assert row["success"] == pytest.approx(np.mean([18 / 20, 19 / 20]))
    assert (row["where"], row["rank"], row["alpha"]) == ("language", 4, 8)
    assert row["adapter_sha256"] == adapter_hash(adapters / "trained")
    assert rows["plain"]["where"] == "all" and rows["plain"]["layers"] == {"language": 4, "projector": 1, "vision": 4}
    assert rows["plain"]["method"] == ""
    table = probe("adapters", "list", str(adapters)).stdout
    assert all(word in table for word in ("grpo", "6400", "r=4", "0.925")), table
    assert "no adapters in" in probe("adapters", "list", str(tmp_path)).stdout
    assert probe("adapters", "list", str(tmp_path / "none"), code=1).stderr.count("\n") == 1


def test_an_adapter_is_shown(probe: Callable[..., Any], adapters: Path) -> None:
    shown = " ".join(probe("adapters", "show", str(adapters / "trained")).stdout.split())
    for text in (
        "LoRA, rank 4, alpha 8: 4 layers of language",
        "6,400 samples",
        "shift visual:2",
        "sft on towers-stability",
    ):
        assert text in shown
    data = json.loads(probe("adapters", "show", str(adapters / "trained"), "--json").stdout)
    assert data["training"]["budget"]["steps"] == 50 and "curves" not in data["training"]
    assert "is not an adapter" in probe("adapters", "show", str(adapters), code=1).stderr


def test_an_adapter_is_verified(probe: Callable[..., Any], llava: Path, adapters: Path) -> None:
    found = json.loads(probe("adapters", "verify", str(adapters / "trained"), "--device", "cpu", "--json").stdout)
    assert found["base"] == str(llava) and found["base_is_known"]
    assert found["tensors"] == 8 and found["largest_change_nats"] > 0.01
    text = probe("adapters", "verify", str(adapters / "plain"), "--model", str(llava), "--device", "cpu").stdout
    assert "which it was trained on is not known" in text
    assert (
        "changes nothing" in probe("adapters", "verify", str(adapters / "empty"), "--model", str(llava), code=1).stderr
    )


def test_a_merged_model_answers_as_base_and_adapter(
    probe: Callable[..., Any], llava: Path, adapters: Path, stability: StimulusSet, tmp_path: Path
) -> None:
    folder = tmp_path / "merged"
    arguments = ("adapters", "merge", str(adapters / "trained"), "--out", str(folder), "--device", "cpu")
    merged = json.loads(probe(*arguments, "--json").stdout)
    assert merged["dtype"] == "float32" and merged["largest_difference_nats"] < 1e-3
    assert merged["weights_sha256"] == weights_hash(folder) != weights_hash(llava)
    trials = [Trial(item, stability.image(item)) for item in stability.items]
    plain, both = load_model(str(folder)), load_model(str(llava), adapter=adapters / "trained")
    for one, other in zip(plain.score_options(trials), both.score_options(trials), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert plain.generate(trials, Generation()) == both.generate(trials, Generation())
    assert json.loads((folder / "training.json").read_text())["merged"]["adapter_sha256"] == adapter_hash(
        adapters / "trained"
    )
    assert list(tmp_path.iterdir()) == [folder]
    assert "exists already" in probe(*arguments, code=1).stderr
    row = json.loads(probe("adapters", "list", str(tmp_path), "--json").stdout)[0]
    assert (row["kind"], row["where"], row["method"]) == ("full", "merged", "grpo")
    assert "give it as --model" in probe("adapters", "verify", str(folder), code=1).stderr
    out = tmp_path / "run"
    probe("run", "--model", str(folder), "--stimuli", str(stability.path), "--limit", "4", "--out", str(out))
    assert len((out / "trials.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_weights_that_are_tied_are_not_merged_apart(
    probe: Callable[..., Any], save_adapter: Callable[..., Path], tmp_path: Path, layer: str, dtype: str
) -> None:
    """Of `tiny`: a change of one would be a change of the other, in any number format."""
    adapter = save_adapter(WEIGHTS, tmp_path / "adapter", targets=rf".*{layer}")
    out = ("--out", str(tmp_path / "merged"), "--dtype", dtype)
    told = probe("adapters", "merge", str(adapter), "--model", "tiny", "--device", "cpu", *out, code=1).stderr
    assert f"changes {layer} alone, and tiny has the same weights for lm_head and embed_tokens" in told
    assert told.endswith("run it with --adapter instead\n") and not (tmp_path / "merged").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_what_was_merged_in_single(
    probe: Callable[..., Any], llava: Path, adapters: Path, tmp_path: Path, dtype: str
) -> None:
    """Every weight is the one that a merge in single precision gives, rounded once."""
    arguments = ("adapters", "merge", str(adapters / "trained"), "--device", "cpu", "--json", "--out")
    probe(*arguments, str(tmp_path / "whole"))
    half = json.loads(probe(*arguments, str(tmp_path / "half"), "--dtype", dtype).stdout)
    assert half["dtype"] == dtype and 1e-3 < half["largest_difference_nats"] < 1
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "half" / "model.safetensors").items():
        assert torch.equal(tensor, whole[name].to(tensor.dtype)) and str(tensor.dtype) == f"torch.{dtype}"


def test_a_weight_that_half_precision_cannot_hold_is_refused(
    probe: Callable[..., Any], llava: Path, adapters: Path, tmp_path: Path
) -> None:
    large = Path(shutil.copytree(adapters / "plain", tmp_path / "large"))
    tensors = load_file(large / "adapter_model.safetensors")
    save_file({name: tensor * 300 for name, tensor in tensors.items()}, large / "adapter_model.safetensors")
    arguments = ("adapters", "merge", str(large), "--model", str(llava), "--device", "cpu", "--out")
    told = probe(*arguments, str(tmp_path / "merged"), "--dtype", "float16", code=1).stderr
    assert "too large for torch.float16" in told and list(tmp_path.iterdir()) == [large]


def test_a_base_in_four_bits_is_not_merged_into(
    probe: Callable[..., Any], save_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    four: Any = load_model("tiny", load_in_4bit=True)
    four._model.save_pretrained(tmp_path / "stored")
    four._prompter._processor.save_pretrained(tmp_path / "stored")
    adapter = save_adapter(WEIGHTS, tmp_path / "adapter")
    arguments = ("adapters", "merge", str(adapter), "--model", str(tmp_path / "stored"), "--device", "cpu")
    told = probe(*arguments, "--out", str(tmp_path / "merged"), code=1).stderr
    assert "is stored quantised (bitsandbytes 4-bit nf4)" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "record",
    [
        {"base": 7},
        {"curves": [7]},
        {"curves": [{"success": "x"}]},
        {"lineage": [7]},
        {"lineage": [{"tasks": 7}]},
        {"tasks": "x"},
        {"tasks": [7]},
        {"budget": {"samples": {}}},
        {"budget": {"samples": float("nan")}},
        {"budget": {"samples": float("inf")}},
        {"config": {"attempts": "x"}},
        {"weights": [None]},
        {"method": [1]},
        {"ended": "\ud83d"},
    ],
    ids=ascii,
)
def test_records_that_cannot_be_are_named(
    probe: Callable[..., Any], adapters: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    bad = Path(shutil.copytree(adapters / "trained", tmp_path / "bad"))
    (bad / "training.json").write_text(json.dumps(TRAINING | record))
    for arguments in (("show",), ("show", "--json"), ("list",)):
        told = probe("adapters", arguments[0], str(bad), *arguments[1:], code=1).stderr
        assert str(bad / "training.json") in told and told.count("\n") == 1


def test_losses_of_a_training_that_went_wrong_may_be_shown(
    probe: Callable[..., Any], adapters: Path, tmp_path: Path
) -> None:
    wild = Path(shutil.copytree(adapters / "trained", tmp_path / "wild"))
    curves = [{"step": 1, "loss": float("nan"), "success": None}, {"step": 2, "loss": float("inf"), "success": 0.5}]
    (wild / "training.json").write_text(json.dumps(TRAINING | {"curves": curves}))
    assert json.loads(probe("adapters", "show", str(wild), "--json").stdout)["success"] == 0.5


def test_settings_of_an_adapter_that_are_no_numbers_are_named(
    probe: Callable[..., Any], adapters: Path, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(adapters / "plain", tmp_path / "bad"))
    config = json.loads((bad / "adapter_config.json").read_text())
    (bad / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": float("nan")}))
    told = probe("adapters", "show", str(bad), "--json", code=1).stderr
    assert "adapter_config.json is damaged (lora_alpha is NaN)" in told


def test_an_adapter_whose_base_is_gone_is_refused(probe: Callable[..., Any], adapters: Path, tmp_path: Path) -> None:
    orphan = Path(shutil.copytree(adapters / "plain", tmp_path / "orphan"))
    config = json.loads((orphan / "adapter_config.json").read_text())
    (orphan / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    for command in (("verify",), ("merge", "--out", str(tmp_path / "merged"))):
        result = probe("adapters", command[0], str(orphan), *command[1:], code=1)
        assert "does not name its base model: give --model" in result.stderr
    assert not (tmp_path / "merged").exists()
