"""LoRA adapters: attached through PEFT, and checked to be all there and to do something."""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from probes.models import ModelError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def attach_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter of that folder on it.

    Raises:
        ModelError: If the folder is no adapter, or one for another architecture, or a tensor of it found no place.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} is not an adapter: it has no {' and no '.join(missing)}; give a folder made by PEFT"
        )
    # Where bitsandbytes is installed, importing peft loads it, and it complains of an optional kernel on some CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from peft import PeftModel, get_peft_model_state_dict

    try:
        stored = load_file(folder / WEIGHTS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing keys, which are an error below
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
        placed = get_peft_model_state_dict(adapted)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ModelError(
            f"the adapter {folder} does not fit this model ({reason}); use the base model that it was trained on"
        ) from error
    lost = sorted(set(stored) ^ set(placed))
    lost += [name for name in set(stored) & set(placed) if not _same(stored[name], placed[name])]
    if lost:
        raise ModelError(
            f"the adapter {folder} does not fit this model: {len(lost)} of its tensors found no place, such as"
            f" {lost[0]}; use the base model that it was trained on, and the version of peft that wrote it"
        )
    return adapted.eval()


def check_effect(model: Any, inputs: Any, folder: Path) -> None:
    """Make sure that an adapter changes what the model says about some input. Raises ModelError if it does not."""
    with torch.inference_mode():
        with_adapter = model(**inputs).logits[:, -1]
        with model.disable_adapter():
            without = model(**inputs).logits[:, -1]
    if torch.equal(with_adapter, without):
        raise ModelError(f"the adapter {folder} changes nothing: it is untrained, or was saved without its weights")


def adapter_hash(folder: Path) -> str:
    """SHA-256 over the adapter's configuration and weights."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def _same(stored: torch.Tensor, placed: torch.Tensor) -> bool:
    return stored.shape == placed.shape and torch.equal(stored.to(placed), placed)
