"""The folder of a run: what its files are called, one process at a time, and files written whole or not at all."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_probe.stimuli.plain_json import dumps

log = logging.getLogger(__name__)

TRIALS, RUN, LOCK = "trials.jsonl", "run.json", ".lock"
SHARDS = "trials.*.jsonl"
"""Logs of further processes of the same run (`vlm_probe.probes.sharding`), until the first takes their rows over."""


class RunError(RuntimeError):
    """A run's folder cannot be used; the message says why and what to do."""


def lock_folder(folder: Path, name: str = LOCK) -> int:
    """Take a folder for this process.

    Args:
        folder: What is written to; it must be there.
        name: Of the file in it that is locked.

    Returns:
        A descriptor. The lock goes when it is closed, or with the process.

    Raises:
        RunError: If another process has it.
        OSError: If the folder cannot be written.
    """
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise RunError(f"another process is writing to {folder}: wait for it, or choose another --out") from error
    except OSError as error:  # some network file systems have no locks
        log.warning("cannot lock %s (%s): do not start a second run there", folder, error.strerror)
    return descriptor


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Args:
        path: The file; its folder must be there.
        data: What goes into it.

    Raises:
        RunError: If the disk does not take it.
        ValueError: If a number in it is not finite.
    """
    write_whole(path, dumps(data, indent=2, ascii_only=True) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Args:
        path: The file; its folder must be there.
        text: What goes into it.

    Raises:
        RunError: If the disk does not take it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}") from error
