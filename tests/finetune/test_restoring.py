"""A training goes on with the adapter of its checkpoint, also where transformers does not read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from vlm_probe.finetune.config import TrainingError
from vlm_probe.finetune.trl_adapter import RestoringMixin

FILE = "adapter_model.safetensors"


class Forgetful:
    """A trainer that reads nothing from a checkpoint, as transformers 5.17 does beside a second adapter."""

    def __init__(self, model: Any) -> None:
        self.model, self.accelerator = model, Accelerator(cpu=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        pass


class Trainer(RestoringMixin, Forgetful):
    """The same, mended."""


def adapted(base: Path) -> Any:
    network = AutoModelForImageTextToText.from_pretrained(base)
    return get_peft_model(network, LoraConfig(r=2, target_modules=r".*language_model.*\.[qv]_proj"))


def test_the_adapter_of_the_checkpoint_is_the_one_that_is_trained(llava: Path, tmp_path: Path) -> None:
    before = adapted(llava)
    with torch.no_grad():
        for name, tensor in before.named_parameters():
            if "lora_" in name:
                tensor.normal_()
    before.save_pretrained(tmp_path)
    after = adapted(llava)
    after.add_adapter("ref", after.peft_config["default"])
    Trainer(after)._load_from_checkpoint(str(tmp_path))
    now = dict(after.named_parameters())
    for name, tensor in before.named_parameters():
        torch.testing.assert_close(now[name], tensor, rtol=0, atol=0)
    assert all(now[name].requires_grad for name, tensor in before.named_parameters() if tensor.requires_grad)


def test_an_adapter_of_another_model_is_refused(llava: Path, tmp_path: Path) -> None:
    adapted(llava).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / FILE)
    save_file({name.replace("layers", "blocks"): tensor for name, tensor in tensors.items()}, tmp_path / FILE)
    with pytest.raises(TrainingError, match="delete the checkpoints to begin anew"):
        Trainer(adapted(llava))._load_from_checkpoint(str(tmp_path))
