"""Where a model computes, and in which number format: what settings stand for, checked before anything is loaded."""

from __future__ import annotations

import math
from typing import Any

from vlm_probe.probes.models import ModelError
from vlm_probe.stimuli.errors import is_installed

KINDS = ("cpu", "cuda", "mps", "xpu")
"""Of devices of torch, those on which models can answer."""
SMALL = 300_000_000
"""Parameters below which a call costs as much as its arithmetic, so that half precision saves nothing."""


def choose_device(name: str) -> str:
    """The device that a setting stands for.

    Args:
        name: "auto" (a GPU, if there is one), or a device of torch: "cpu", "cuda", "cuda:1".

    Raises:
        ModelError: If there is no such device; one line with the fix.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = name.partition(":")
    if kind not in KINDS or bool(colon) != number.isdecimal():
        raise ModelError(f"--device is {name!r}: use auto, cpu, cuda, or cuda:0 for one GPU of several")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ModelError("there is no GPU of Apple's (mps) on this machine: use --device cpu")
    if kind == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not there:
            raise ModelError(f"there is no GPU {name} on this machine: use --device cpu")
        if number and int(number) >= there:
            raise ModelError(f"there is no GPU {name} on this machine: use --device cuda:0 to cuda:{there - 1}")
    return name


def check_four_bits() -> None:
    """Refuse to quantise without the package that does it.

    Raises:
        ModelError: If bitsandbytes is not installed.
    """
    if not is_installed("bitsandbytes"):
        raise ModelError(
            "--load-in-4bit needs bitsandbytes, which is not installed: pip install 'vlm-probe[quantized]'"
        )


def choose_dtype(name: str, device: str, stored: str, parameters: int) -> str:
    """The number format that a setting stands for.

    Args:
        name: "auto", or a format. "auto" is float32 on a CPU, where half precision is slower on most, and not the same from one to
            the next; float32 for small models anywhere, so that a GPU gives the answers of a laptop; else that of the checkpoint.
        device: Of `choose_device`.
        stored: The format of the checkpoint.
        parameters: Of the model.
    """
    if name != "auto":
        return name
    return "float32" if device == "cpu" or parameters < SMALL else stored


def quantisation(network: Any) -> str:
    """How the weights of a loaded network are quantised, such as "bitsandbytes 4-bit nf4"; "none" if they are not.

    Args:
        network: Of transformers, with an adapter on it or without. What it was asked to be does not count, only what it is.
    """
    method = getattr(network, "quantization_method", None)
    if method is None:
        return "none"
    config = getattr(network.config, "quantization_config", None) or {}
    settings = config if isinstance(config, dict) else config.to_dict()
    bits = next((settings[name] for name in ("bits", "w_bit") if settings.get(name)), None)
    if getattr(network, "is_loaded_in_4bit", False):
        bits = 4
    elif getattr(network, "is_loaded_in_8bit", False):
        bits = 8
    kind = settings.get("bnb_4bit_quant_type") if bits == 4 else None
    parts = (getattr(method, "value", method), bits and f"{bits}-bit", kind)
    return " ".join(str(part) for part in parts if part)


def parameter_count(network: Any) -> int:
    """Number of weights of a network, those of 4-bit layers counted one by one although they are packed two to a byte."""
    return sum(parameter_size(parameter) for parameter in network.parameters())


def parameter_size(parameter: Any) -> int:
    """Number of weights that a parameter stands for: 4-bit weights know the shape that they have unpacked."""
    state = getattr(parameter, "quant_state", None)
    return int(math.prod(state.shape)) if state is not None else int(parameter.numel())
