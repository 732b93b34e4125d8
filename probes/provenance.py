"""Where numbers come from: versions, state of the code, hardware, and an adapter's training, as run.json records them."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vlm_probe.probes.models.adapter_folder import TRAINING
from vlm_probe.stimuli import replies
from vlm_probe.stimuli.errors import InvalidInput, reading
from vlm_probe.stimuli.plain_json import parse_object

log = logging.getLogger(__name__)

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


TOOLS = ("docs", "test")
"""Extras of this package with which no number is made."""


@dataclass(frozen=True)
class Dependency:
    """A package that this one declares, and the version that is installed.

    Attributes:
        name: Of the package.
        tested: The versions that were tested, as a specifier such as ">=5.15,<5.25".
        extra: The optional part of this package that needs it; empty if every run does.
        installed: Its version; empty if it is not installed.
    """

    name: str
    tested: str
    extra: str = ""
    installed: str = ""

    @property
    def outside(self) -> bool:
        """Whether a version is installed that was not tested."""
        return bool(self.installed) and not SpecifierSet(self.tested).contains(self.installed, prereleases=True)

    @property
    def newer(self) -> bool:
        """Whether that version is newer than the tested ones."""
        other = SpecifierSet(",".join(part for part in self.tested.split(",") if not part.startswith("<")))
        return self.outside and other.contains(self.installed, prereleases=True)


def dependencies() -> list[Dependency]:
    """Every package that the metadata of the installed vlm-probe declares for this Python: pyproject.toml, as it was installed.

    Raises:
        PackageNotFoundError: If vlm-probe is not installed.
    """
    found = []
    for line in requires("vlm-probe") or ():
        declared = Requirement(line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        name = extra.group(1) if extra else ""
        if declared.marker is not None and not declared.marker.evaluate({"extra": name}):
            continue
        try:
            installed = version(declared.name)
        except PackageNotFoundError:
            installed = ""
        tested = ",".join(sorted(map(str, declared.specifier), reverse=True))  # the lower end first
        found.append(Dependency(declared.name, tested, name, installed))
    return found


def untested() -> dict[str, str]:
    """Package -> installed version and tested range, for those that lie outside it; packages of `TOOLS` do not count."""
    try:
        declared = dependencies()
    except PackageNotFoundError:
        return {}
    return {
        one.name: f"{one.installed}, tested with {one.tested}"
        for one in declared
        if one.outside and one.extra not in TOOLS
    }


def origin(*further: str) -> dict[str, Any]:
    """Where numbers come from: versions, those of them that were not tested, the state of the code, and hardware.

    Args:
        further: Packages next to `PACKAGES` whose versions count.
    """
    outside = untested()
    if outside:
        listed = "; ".join(f"{name} {text}" for name, text in sorted(outside.items()))
        log.warning("versions that were not tested: %s (see `probe doctor`)", listed)
    return {"versions": versions(*further), "untested": outside, "git": git_state(), "hardware": hardware()}


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
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
        ).stdout.strip()

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
        InvalidInput: If the file is damaged, or about another adapter.
    """
    if folder is None or not (path := folder / TRAINING).is_file():
        return None
    with reading(path, InvalidInput, "restore it, or remove it to run without these facts"):
        facts = parse_object(path.read_bytes())
    if "method" not in facts:
        return None  # of a pretraining
    noted = facts.get("adapter_sha256")
    if adapter_sha256 and noted and noted != adapter_sha256:
        raise InvalidInput(
            f"{path} is about another adapter than the one beside it (the hashes differ): restore the folder as it was"
            " trained, or remove the file to run without these facts"
        )
    return {name: value for name, value in facts.items() if name not in NOT_FACTS}
