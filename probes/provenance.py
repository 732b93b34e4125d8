"""Where numbers come from: versions, state of the code, and hardware, as run.json and decode.json record them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
    """Versions of Python, of `PACKAGES` and of further packages, as far as they are installed."""
    found = {"python": platform.python_version()}
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
