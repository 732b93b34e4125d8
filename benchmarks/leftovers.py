"""What commands leave: the faults of a folder whose command was killed, and the facts of one whose command has ended.

Faults are things that a folder may not be, however its command was stopped: a log that cannot be gone on with or has a trial twice, a
set, adapter or report that is half and passes for whole. Facts are all that must be the same however often a command
was stopped before it ended: rows of logs, bytes of sets and reports, weights of adapters; times are no facts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from vlm_probe.probes.trials import RUN, TRIALS, RunError, read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusError, StimulusSet

TIMES = ("latency_s", "time")
"""Columns of a trial that say when it took place, and nothing about it."""
CLOCKED = ("step_s", "simulator_s")
"""The same of the curves of a training."""

Facts = Any
"""Compared as JSON."""


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def log_faults(folder: Path) -> list[str]:
    """A log may be cut off anywhere, and hold no trial twice."""
    if not (folder / RUN).exists():
        return []
    try:
        read_run(folder)
        keys = [row["key"] for row in read_trials(folder)] if (folder / TRIALS).exists() else []
    except RunError as error:
        return [str(error)]
    whole = (folder / TRIALS).read_bytes().count(b"\n") if keys else 0
    return [f"{folder.name}: {whole} rows of {len(keys)} trials"] if whole != len(keys) else []


def log_facts(folder: Path) -> Facts:
    """The rows of a log as they are in it, but for times, and what its `run.json` says of how it ended."""
    lines = [json.loads(line) for line in (folder / TRIALS).read_text().splitlines()]
    rows = sorted(json.dumps({k: v for k, v in line.items() if k not in TIMES}, sort_keys=True) for line in lines)
    record = read_run(folder)
    return [rows, record["status"], record["n"], record["n_errors"], "edited" in record]


def log_ended(folder: Path) -> bool:
    """Whether a log passes for whole."""
    return (folder / RUN).exists() and read_run(folder)["status"] == "finished"


def set_faults(folder: Path) -> list[str]:
    """A set is whole or absent."""
    if not folder.exists():
        return []
    try:
        opened = StimulusSet.load(folder)
        for item in opened.items:
            opened.image(item)
    except StimulusError as error:
        return [str(error)]
    return []


def files(folder: Path) -> Facts:
    """Every byte of every file, but for hidden ones, which are locks and what kills have left."""
    return {
        str(path.relative_to(folder)): digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def training_faults(folder: Path) -> list[str]:
    """A training that says that it has ended has everything."""
    if not (folder / "training.json").exists():
        return []
    made = json.loads((folder / "training.json").read_text())
    there = ("adapter_model.safetensors", "adapter_config.json", "curves.png")
    whole = all((folder / name).is_file() for name in there) and made["adapter_sha256"]
    return [] if whole else [f"{folder.name}: half an adapter passes for a whole one"]


def training_facts(folder: Path) -> Facts:
    """The adapter's bytes, and the curves but for what is measured by the clock."""
    made = json.loads((folder / "training.json").read_text())
    curves = [{k: v for k, v in row.items() if k not in CLOCKED} for row in made["curves"]]
    return [digest(folder / "adapter_model.safetensors"), made["data_sha256"], curves]


def report_faults(folder: Path) -> list[str]:
    """A folder with a report has all that belongs to it."""
    if not (folder / "report.md").exists():
        return []
    missing = [name for name in ("analysis.json", "figures", "tables") if not (folder / name).exists()]
    return [f"{folder.name}: a report without {', '.join(missing)}"] if missing else []


def study_faults(folder: Path) -> list[str]:
    """Every step that passes for done is whole."""
    faults = []
    for mark in folder.rglob("step.json"):
        with contextlib.suppress(ValueError):
            if not json.loads(mark.read_text()).get("done"):
                continue
            home = mark.parent
            faults += set_faults(home) if (home / "card.json").exists() else log_faults(home)
            if not any((home / name).exists() for name in ("card.json", TRIALS)):
                faults.append(f"{home.name}: a step without its results passes for done")
    return faults


def study_facts(folder: Path) -> Facts:
    """The logs of all runs of a study."""
    return {str(path.parent.relative_to(folder)): log_facts(path.parent) for path in sorted(folder.rglob(TRIALS))}
