"""Where numbers come from: versions, state of the code, hardware, and an adapter's training, as run.json records them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlm_probe.probes.models.adapter_folder import TRAINING
from vlm_probe.stimuli import replies
from vlm_probe.stimuli.plain_json import parse_object

PACKAGES = (
    "vlm-probe",
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "pillow",
    "pybullet",
    "openai",
)


def versions(*further: str) -> dict[str, str]:
    """Versions of Python, of the parser of replies, of `PACKAGES` and of further packages, as far as they are installed."""
    found = {"python": platform.python_version(), "parser": str(replies.VERSION)}
    for package in (*PACKAGES, *further):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of the code that runs, and whether it was changed since; None where it is not a git checkout."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Platform and processors, and threads and GPU where torch is loaded."""
    facts: dict[str, Any] = {"platform": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()}
    torch = sys.modules.get("torch")  # a run of an observer has no reason to load it
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
    return facts


NOT_FACTS = ("curves",)
"""Entries of `training.json` that say how a training went, step by step; too long for every run of its adapter."""


def training_facts(folder: Path | None, adapter_sha256: str) -> dict[str, Any] | None:
    """How an adapter, or a whole model, was trained, from the `training.json` in its folder.

    Args:
        folder: Of the adapter or model; None if there is no folder.
        adapter_sha256: Hash of the adapter that was loaded; empty for a whole model.

    Returns:
        Method, tasks, seed, budget and so on; None if nobody wrote down how it came about.

    Raises:
        ValueError: If the file is damaged, or about another adapter.
    """
    if folder is None or not (path := folder / TRAINING).is_file():
        return None
    try:
        facts = parse_object(path.read_bytes(), finite=False)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or remove it to run without these facts") from error
    if "method" not in facts:
        return None  # of a pretraining
    noted = facts.get("adapter_sha256")
    if adapter_sha256 and noted and noted != adapter_sha256:
        raise ValueError(
            f"{path} is about another adapter than the one beside it (the hashes differ): restore the folder as it was"
            " trained, or remove the file to run without these facts"
        )
    return {name: value for name, value in facts.items() if name not in NOT_FACTS}
