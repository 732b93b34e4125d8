"""LoRA adapters: attached through PEFT, and checked to be all there and to do something."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.adapter_folder import WEIGHTS, read_adapter


def attach_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """The model with the adapter of that folder on it.

    Args:
        model: The base model.
        folder: Of the adapter.
        trainable: Whether training goes on with it; else it is frozen and in evaluation mode.

    Raises:
        ModelError: If the folder is no adapter, or one for another architecture, or a tensor of it found no place.
    """
    read_adapter(folder)
    # Where bitsandbytes is installed, importing peft loads it, and it complains of an optional kernel on some CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from peft import PeftModel, get_peft_model_state_dict

    try:
        stored = load_file(folder / WEIGHTS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing keys, which are an error below
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        placed = get_peft_model_state_dict(adapted)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"the adapter {folder} does not fit this model ({_reason(error)}); use the base model that it was trained on"
        ) from error
    lost = sorted(set(stored) ^ set(placed))
    lost += [name for name in set(stored) & set(placed) if not _same(stored[name], placed[name])]
    if lost:
        raise ModelError(
            f"the adapter {folder} does not fit this model: {len(lost)} of its tensors found no place, such as"
            f" {lost[0]}; use the base model that it was trained on, and the version of peft that wrote it"
        )
    return adapted if trainable else adapted.eval()


def check_effect(model: Any, inputs: Any, folder: Path) -> float:
    """Make sure that an adapter changes what the model says about some input.

    Args:
        model: With the adapter.
        inputs: Of the model.
        folder: Of the adapter, for the message.

    Returns:
        The largest change of any next token's log-probability, in nats.

    Raises:
        ModelError: If nothing changes.
    """
    with torch.inference_mode():
        with_adapter = model(**inputs).logits[:, -1]
        with model.disable_adapter():
            without = model(**inputs).logits[:, -1]
    if torch.equal(with_adapter, without):
        raise ModelError(f"the adapter {folder} changes nothing: it is untrained, or was saved without its weights")
    return float((with_adapter.float().log_softmax(-1) - without.float().log_softmax(-1)).abs().max())


def _reason(error: Exception) -> str:
    """The first line that says something: torch puts a heading above the tensors that do not fit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1 if lines[0].endswith(":") and len(lines) > 1 else 0].rstrip(".")[:200]


def _same(stored: torch.Tensor, placed: torch.Tensor) -> bool:
    return stored.shape == placed.shape and torch.equal(stored.to(placed), placed)
