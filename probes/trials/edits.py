"""Edits by hand: whether a log is the one that its run left, and a note for good where it is not."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_probe.probes.archive import archived_rows
from vlm_probe.probes.row_format import line_of
from vlm_probe.probes.trials.folder import RUN, TRIALS, RunError
from vlm_probe.probes.trials.reading import in_archive

log = logging.getLogger(__name__)


def trials_hash(folder: str | Path) -> str:
    """SHA-256 of a run's log. `run.json` keeps it when a run ends, so that a log edited by hand can be told.

    Raises:
        RunError: If the log cannot be read.
    """
    path = Path(folder) / TRIALS
    rows = None if path.is_file() else in_archive(archived_rows, folder)
    if rows is not None:
        try:
            return hashlib.sha256("".join(map(line_of, rows)).encode()).hexdigest()
        except ValueError as error:
            raise RunError(f"the archived log of {folder} is damaged ({error}): restore it") from error
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


def was_edited(run: Mapping[str, Any], found: str) -> bool:
    """Whether a log is not the one that its run left when it last ended.

    Args:
        run: The contents of its `run.json`.
        found: The hash of the log.
    """
    noted = run.get("trials_sha256")
    return bool(noted) and run.get("status") != "running" and noted != found


def noting_edits(folder: Path, run: dict[str, Any], found: str = "") -> dict[str, Any]:
    """The entries of `run.json`, with a note for good where the log was edited: a new hash must not make it forgotten.

    Args:
        folder: Of the run.
        run: The contents of its `run.json`.
        found: The hash of the log, if it is known already.

    Raises:
        RunError: If the log cannot be read.
    """
    if not run.get("trials_sha256") or not (folder / TRIALS).is_file():
        return run
    found = found or trials_hash(folder)
    if not was_edited(run, found):
        return run
    log.warning("%s was edited after the run had ended: noted in its %s", folder / TRIALS, RUN)
    return run | {"edited": [*run.get("edited", ()), {"noted": run["trials_sha256"], "found": found}]}
