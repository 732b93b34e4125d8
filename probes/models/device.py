"""Where a model computes: the device that a setting stands for, checked before anything is loaded."""

from __future__ import annotations

from probes.models import ModelError


def choose_device(name: str) -> str:
    """The device that a setting stands for.

    Args:
        name: "auto" (a GPU, if there is one), or a device of torch: "cpu", "cuda", "cuda:1".

    Raises:
        ModelError: If there is no such GPU; one line with the fix.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not there:
            raise ModelError(f"there is no GPU {name} on this machine: use --device cpu")
        if number and not (number.isdigit() and int(number) < there):
            raise ModelError(f"there is no GPU {name} on this machine: use --device cuda:0 to cuda:{there - 1}")
    return name
