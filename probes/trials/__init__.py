"""The trial log: `RUN/trials.jsonl`, one row per trial, appended as it happens, and `RUN/run.json`, what made it.

A row is on its way to the disk before the next trial is asked, so a run that is killed at any byte resumes where it
was: a torn last line is cut off and its trial asked again. A trial that failed has an `error` and is asked again on
resume; the later row then stands for it. Runs in an archive (`vlm_probe.probes.trials.archive`) are read like those on the disk. Everything
here works without torch, and without pandas except for `load_frame`.
"""

from vlm_probe.probes.columns import COLUMNS, TABLE, TRANSFER, Column
from vlm_probe.probes.trials.reading import (
    KIND,
    RUN,
    TRIALS,
    RunError,
    is_run,
    load_frame,
    parser_of,
    read_run,
    read_trials,
    runs_below,
    shard_name,
    trials_hash,
    was_edited,
)
from vlm_probe.probes.trials.writing import ShardLog, TrialLog, archive_runs, rewrite_trials

__all__ = [
    "COLUMNS",
    "KIND",
    "RUN",
    "TABLE",
    "TRANSFER",
    "TRIALS",
    "Column",
    "RunError",
    "ShardLog",
    "TrialLog",
    "archive_runs",
    "is_run",
    "load_frame",
    "parser_of",
    "read_run",
    "read_trials",
    "rewrite_trials",
    "runs_below",
    "shard_name",
    "trials_hash",
    "was_edited",
]
