"""From a run's folder to the columns of the tidy trial table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vlm_probe.analysis.levels import family_of, shift_name, transfer_level
from vlm_probe.analysis.rows import Row, failed, manner_of, succeeded, two_options
from vlm_probe.analysis.training import TRAINING, model_name, training_of, who
from vlm_probe.probes.trials import (
    RUN,
    TRIALS,
    RunError,
    is_run,
    read_run,
    read_trials,
    runs_below,
    trials_hash,
    was_edited,
)
from vlm_probe.stimuli.errors import is_text, reading

GROUNDING = "grounding"
"""Folder, inside that of a battery of controls, of the run of grounding questions that came first."""


@dataclass(frozen=True)
class Source:
    """One log, or one table, that trials came from.

    Attributes:
        path: Folder or file.
        sha256: Hash of the trials as they are on the disk.
        n: Trials, failed ones included.
        expected: Trials that the run has when it is finished; None if that is not known.
        model: Model, as the user named it; empty for a table.
        stimuli: Hash of the stimulus set's content; empty if it is not known.
        set_path: Where the set was when it was asked.
        baselines: What chance, the best constant answer and shortcut rules score on the set.
        facts: Readout, temperature, versions and weights behind the trials, as run.json has them.
        edited: Whether the log was edited by hand at some time after the run had ended, and the run resumed.
    """

    path: str
    sha256: str
    n: int
    expected: int | None = None
    model: str = ""
    stimuli: str = ""
    set_path: str = ""
    baselines: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] | None = None
    edited: bool = False


def find(folder: Path) -> tuple[list[Path], list[Path]]:
    """The runs and the training runs that a folder holds, on the disk or in an archive: itself, or else all below it.

    Of runs inside another run, only its `GROUNDING` is one of its own.

    Raises:
        RunError: If there is neither.
    """
    if is_run(folder):
        return [path for path in (folder, folder / GROUNDING) if is_run(path)], []
    if (folder / TRAINING).is_file():
        return [], [folder]
    runs: list[Path] = []
    for path in runs_below(folder):
        if path.name == GROUNDING or not any(run in path.parents for run in runs):
            runs.append(path)
    trainings = sorted(path.parent for path in folder.rglob(TRAINING))
    for path in trainings:
        if not is_text(str(path)):
            raise RunError(f"the training {path} has a name that is not UTF-8: rename its folder")
    if not runs and not trainings:
        raise RunError(
            f"{folder} holds no run ({TRIALS} and {RUN}): make one with `probe run --out {folder}`, or check the path"
        )
    return runs, trainings


def read_log(folder: Path) -> tuple[pd.DataFrame, Counter[str], Source]:
    """The trials of a run that took place, one row each, those that did not by reason, and where they came from.

    Raises:
        RunError: If it is no run, is damaged, or its log was edited after the run had ended.
    """
    record = read_run(folder)
    log = _unedited(folder, record)
    # Of files that were not written by a run, what can be told apart at sight is told when they are read.
    with reading(f"the run {folder}", RunError, "restore its files, or run again with another --out"):
        return _read(folder, record, log)


def _read(folder: Path, record: Mapping[str, Any], log: str) -> tuple[pd.DataFrame, Counter[str], Source]:
    rows = read_trials(folder)
    held = [row for row in rows if not failed(row)]
    dropped = Counter(f"failed: {str(row['error']).partition(':')[0]}" for row in rows if failed(row))
    model, stimuli = record.get("model") or {}, record.get("stimuli") or {}
    facts = {
        "temperature": (record.get("config") or {}).get("temperature", 0.0),
        "weights_sha256": model.get("weights_sha256", ""),
        "adapter_sha256": model.get("adapter_sha256", ""),
        "versions": record.get("versions") or {},
    }
    source = Source(
        path=str(folder),
        sha256=log,
        n=len(rows),
        expected=record.get("n"),
        model=str(model.get("name", "")),
        stimuli=str(stimuli.get("content_sha256", "")),
        set_path=str(stimuli.get("path", "")),
        baselines=stimuli.get("baselines"),
        facts=facts,
        edited=bool(record.get("edited")),
    )
    return pd.DataFrame(_columns(held, record)).assign(folder=str(folder)), dropped, source


def _unedited(folder: Path, record: Mapping[str, Any]) -> str:
    """The hash of the log, which must be the one that the run noted when it ended, if it noted one."""
    found = trials_hash(folder)
    if was_edited(record, found):
        raise RunError(
            f"{folder / TRIALS} is not what the run wrote (its hash differs from the one in {RUN}): restore it, score it"
            f" anew with `probe score {folder}`, or run again with another --out"
        )
    return found


def _columns(rows: Sequence[Row], record: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the tidy table, except for what only all the runs together decide."""
    training = training_of(record)
    conditions = [row.get("condition") or {} for row in rows]
    variants = [row.get("variant") or {} for row in rows]
    shifts = [tuple((str(n), level) for n, level in c.get("shifts") or ()) for c in conditions]
    tasks = [str(row["task"]) for row in rows]
    signals = {task: two_options([r for r in rows if r["task"] == task]) for task in dict.fromkeys(tasks)}
    temperature = float((record.get("config") or {}).get("temperature") or 0.0)
    sample = int(record.get("seed") or 0) if temperature > 0 else 0
    model = model_name(str((record.get("model") or {}).get("name") or (rows[0]["model"] if rows else "")))
    constant = {
        **training.columns(),
        **who(model, training, sample, record),
        "model": model,
        "sample": sample,
        "stimuli": str((record.get("stimuli") or {}).get("content_sha256", ""))[:12],
    }
    columns: dict[str, Any] = {
        "key": [row["key"] for row in rows],
        "readout": [row["readout"] for row in rows],
        "test_task": tasks,
        "test_family": [family_of(task) for task in tasks],
        "shift": [shift_name(s)[0] for s in shifts],
        "shift_level": [shift_name(s)[1] for s in shifts],
        "transfer": [
            transfer_level(task, s, training.tasks, training.shifts) if training.tasks else None
            for task, s in zip(tasks, shifts, strict=True)
        ],
        "item_id": [row["item_id"] for row in rows],
        "pair_id": [row.get("pair_id") for row in rows],
        "group_id": [row.get("group_id") for row in rows],
        "role": [row.get("role") for row in rows],
        "margin": [row.get("margin") for row in rows],
        "margin_bin": [_bin(c.get("margin_bin")) for c in conditions],
        "mirrored": [c.get("mirrored") for c in conditions],
        "count": [c.get("count") for c in conditions],
        "build": [_text(c.get("build")) for c in conditions],
        "polarity": [v.get("polarity") for v in variants],
        "order": [v.get("order") for v in variants],
        "manner": [manner_of(row) for row in rows],
        "examples": [len(row.get("examples") or ()) for row in rows],
        "attempt": [row.get("attempt") for row in rows],
        "attempts": [row.get("attempts") for row in rows],
        "memory": [row.get("memory") for row in rows],
        "answer": [_text(row.get("answer")) for row in rows],
        "truth": [_text(row.get("truth")) for row in rows],
        "signal": [None if (pair := signals[task]) is None else pair[0] for task in tasks],
        "correct": [int(bool(row.get("correct"))) for row in rows],
        "success": [int(succeeded(row)) for row in rows],
        "reward": [row.get("reward") for row in rows],
        "p_correct": [row.get("p_correct") for row in rows],
        "confidence": [_confidence(row) for row in rows],
        "chance": [row.get("chance") for row in rows],
        "status": [row.get("status") for row in rows],
    }
    return columns | {name: [value] * len(rows) for name, value in constant.items()}


def _bin(edges: Any) -> str | None:
    if not edges or tuple(edges) == (0.0, 0.0):
        return None
    return f"{float(edges[0]):+.2f} to {float(edges[1]):+.2f}"


def _confidence(row: Row) -> float | None:
    """The probability of the answer given, which is the likeliest, among all legal ones."""
    logprobs = row.get("logprobs")
    if not logprobs or row.get("answer") is None:
        return None
    highest = max(logprobs)
    return 1 / math.fsum(math.exp(value - highest) for value in logprobs)


def _text(value: Any) -> str | None:
    """An answer as a level: words as they are, numbers written out, pairs of them with a space between."""
    if value is None:
        return None
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
