"""Room on the disk: whether the checkpoints of a training will fit, and what is said when they did not."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlm_probe.finetune.config import TrainingError

SPARE = 50_000_000
"""Bytes that must be free beside what the checkpoints take."""


def check_room(folder: Path, model: Any, checkpoints: int) -> None:
    """Make sure that the checkpoints of a training fit on the disk.

    Args:
        folder: Where they are written.
        model: Its parameters that are trained are what a checkpoint holds, with Adam's moments.
        checkpoints: Most that are kept at a time.

    Raises:
        TrainingError: If they do not.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # Weights and Adam's two moments, for each checkpoint and the one that is being written.
    needed = SPARE + 3 * 4 * trained * (checkpoints + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TrainingError(
            f"{folder} has {free / 1e9:.1f} GB free, and this run needs {needed / 1e9:.1f} GB for its checkpoints: free some"
            " space, or choose another --out"
        )


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Tell of a disk that does not take a checkpoint as such.

    Raises:
        TrainingError: In place of the errors that safetensors and torch have for it; all others pass.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise TrainingError(
            f"cannot write to {folder}: {reason}; the last whole checkpoint is kept: make room and give the same command again"
        ) from error


def _refusal(error: Exception) -> str | None:
    """Why the disk did not take something; None if the error is another."""
    if isinstance(error, OSError):
        return error.strerror if error.filename is None else None  # those with a name say themselves what to do
    if number := re.search(r"os error (\d+)", str(error)):  # safetensors, in the words of Rust
        return os.strerror(int(number[1]))
    # torch.save goes through a writer of its own (c10's inline_container), which does not say why.
    is_writer = any(name in str(error) for name in ("PytorchStreamWriter", "inline_container"))
    return "the disk takes no more" if is_writer else None
