"""Rewriting a log: every row replaced, all of them or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_probe.probes.columns import check_row
from vlm_probe.probes.row_format import COLUMNS, line_of, whole
from vlm_probe.probes.trials.edits import noting_edits, trials_hash
from vlm_probe.probes.trials.folder import KIND, RUN, TRIALS, RunError, shards
from vlm_probe.probes.trials.reading import read_run, read_trials
from vlm_probe.probes.trials.writing import TrialLog
from vlm_probe.stimuli.errors import reading
from vlm_probe.stimuli.output import OutputFolder, claim


def rewrite_trials(
    run: Path | OutputFolder, change: Callable[[dict[str, Any]], dict[str, Any]], parser: str
) -> tuple[int, int]:
    """Put `change(row)` in place of every row of a run's log, all of them or none.

    Args:
        run: Its folder, or that which is claimed already.
        change: From an old row to a new one.
        parser: Version of the parser that has read the new rows, for `run.json`.

    Returns:
        Number of rows, and of those that came out differently.

    Raises:
        OutputError: If another process is writing to the run, or it cannot be written.
        RunError: If it is damaged, or there is none on the disk.
    """
    if not isinstance(run, OutputFolder):
        if not (run / TRIALS).is_file():
            raise RunError(f"{run} holds no {TRIALS} that could be changed: give the folder of a run on the disk")
        with claim(run, KIND) as output:
            return rewrite_trials(output, change, parser)
    folder = run.path
    if shards(folder):
        TrialLog(run, read_run(folder)).close()  # takes them over
    old, before = [dict.fromkeys(COLUMNS) | row for row in read_trials(folder)], trials_hash(folder)
    new = [whole(change(row)) for row in old]
    with reading(folder / TRIALS, RunError, "restore it"):
        for row in new:
            check_row(row)
        lines = [line_of(row) for row in new]
    run.write(TRIALS, "".join(lines))
    record = noting_edits(folder, read_run(folder), before)
    record["versions"] = record.get("versions", {}) | {"parser": parser}
    if "trials_sha256" in record:
        record["trials_sha256"] = trials_hash(folder)
    run.write_json(RUN, record)
    return len(lines), sum(line_of(whole(row)) != line for row, line in zip(old, lines, strict=True))
