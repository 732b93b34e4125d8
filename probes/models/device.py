"""Where a model computes, and in which number format: what settings stand for, checked before anything is loaded."""

from __future__ import annotations

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
