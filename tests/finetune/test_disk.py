"""A disk that takes no more is told in one line, whoever was writing; other errors pass."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm_probe.finetune.config import TrainingError
from vlm_probe.finetune.disk import check_room, saving

LIMIT = 10_000


@contextmanager
def no_room() -> Iterator[None]:
    """Beyond some bytes writing fails, as on a full disk; the signal that comes with it is ignored by Python.

    No fixture: the limit would hold for the file into which the test runner writes, too, if it writes into one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_safetensors(file: Path) -> None:
    save_file({"a": torch.zeros(LIMIT)}, str(file))


def write_checkpoint(file: Path) -> None:
    torch.save({"a": torch.zeros(LIMIT)}, file)


def write_text(file: Path) -> None:
    file.write_text("a" * 2 * LIMIT)


@pytest.mark.parametrize("write", [write_safetensors, write_checkpoint, write_text])
def test_a_disk_without_room_is_told(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(TrainingError, match=r"cannot write to .*make room") as told, saving(tmp_path), no_room():
        write(tmp_path / "file")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError(2, "No such file", "a.json")])
def test_other_errors_pass(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as passed, saving(tmp_path):
        raise error
    assert passed.value is error


def test_checkpoints_that_would_not_fit_are_refused(tmp_path: Path) -> None:
    check_room(tmp_path, torch.nn.Linear(2, 2), 2)
    with pytest.raises(TrainingError, match="free some"):
        check_room(tmp_path, torch.nn.Linear(2, 2), 10**15)
