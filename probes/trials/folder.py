"""The folder of a run: what its files are called."""

from __future__ import annotations

import re
from pathlib import Path

from vlm_probe.stimuli.errors import ProbeError
from vlm_probe.stimuli.output import files_of

KIND = "run"
TRIALS, RUN = "trials.jsonl", "run.json"
_SHARD = re.compile(r"trials\.\d+\.jsonl")


class RunError(ProbeError, RuntimeError):
    """A run's folder cannot be used; the message says why and what to do."""


def shard_name(rank: int) -> str:
    """The log of a further process of the same run (`vlm_probe.probes.sharding`), until the first takes its rows over."""
    return TRIALS.replace(".", f".{rank}.")


def shards(folder: Path) -> list[Path]:
    """Logs of further processes that are there. Only what the run itself has announced is one, whatever it is called."""
    listed = (name for name in files_of(folder) if _SHARD.fullmatch(name))
    return sorted(path for path in (folder / name for name in listed) if path.is_file())
