"""The trial log: `RUN/trials.jsonl`, one row per trial, appended as it happens, and `RUN/run.json`, what made it.

A row is on its way to the disk before the next trial is asked, so a run that is killed at any byte goes on where it
was: a torn last line is cut off and its trial asked again. A trial that failed has an `error` and is asked again on
resume; the later row then stands for it. Runs in an archive (`vlm_probe.probes.archive`) are read like those on the disk. Everything
here works without torch, and without pandas but for `load_frame`.
"""

from vlm_probe.probes.columns import TABLE, TRANSFER, Column
from vlm_probe.probes.row_format import COLUMNS
from vlm_probe.probes.trials.archiving import archive_runs
from vlm_probe.probes.trials.edits import trials_hash, was_edited
from vlm_probe.probes.trials.folder import KIND, RUN, TRIALS, RunError, shard_name
from vlm_probe.probes.trials.key import trial_key
from vlm_probe.probes.trials.reading import is_run, load_frame, parser_of, read_run, read_trials, runs_below
from vlm_probe.probes.trials.rewriting import rewrite_trials
from vlm_probe.probes.trials.writing import ShardLog, TrialLog

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
    "trial_key",
    "trials_hash",
    "was_edited",
]
