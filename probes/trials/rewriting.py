"""Rewriting a log: every row replaced, all of them or none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_probe.probes.row_format import COLUMNS, line_of, whole
from vlm_probe.probes.trials.edits import noting_edits, trials_hash
from vlm_probe.probes.trials.folder import RUN, SHARDS, TRIALS, RunError, lock_folder, write_json, write_whole
from vlm_probe.probes.trials.reading import read_run, read_trials
from vlm_probe.probes.trials.writing import TrialLog


def rewrite_trials(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], parser: str) -> tuple[int, int]:
    """Put `change(row)` in place of every row of a run's log, all of them or none.

    Args:
        folder: Of the run.
        change: From an old row to a new one.
        parser: Version of the parser that has read the new rows, for `run.json`.

    Returns:
        Number of rows, and of those that came out differently.

    Raises:
        RunError: If another process is writing to the run, or it cannot be written.
    """
    if any(folder.glob(SHARDS)):
        TrialLog(folder, read_run(folder)).close()  # takes them over
    try:
        lock = lock_folder(folder)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        old, before = [dict.fromkeys(COLUMNS) | row for row in read_trials(folder)], trials_hash(folder)
        lines = [line_of(whole(change(row))) for row in old]
        write_whole(folder / TRIALS, "".join(lines))
        run = noting_edits(folder, read_run(folder), before)
        run["versions"] = run.get("versions", {}) | {"parser": parser}
        if "trials_sha256" in run:
            run["trials_sha256"] = trials_hash(folder)
        write_json(folder / RUN, run)
    finally:
        os.close(lock)
    return len(lines), sum(line_of(whole(row)) != line for row, line in zip(old, lines, strict=True))
