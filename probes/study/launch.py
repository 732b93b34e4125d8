"""Launching: a step that trains or asks a model, started by accelerate on as many GPUs as a cell has."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vlm_probe.probes.study.fields import StudyError, did_you_mean

SHARED = ("train", "run")
"""Commands that several processes can share."""


@dataclass(frozen=True)
class Launch:
    """How accelerate starts steps.

    Attributes:
        config: Its configuration file; empty: steps run in the process of their cell.
        processes: Number of processes (GPUs); 0: as the file says.
    """

    config: str = ""
    processes: int = 0

    def is_for(self, arguments: Sequence[str]) -> bool:
        """Whether a command line is started by accelerate. Observers have no weights, and need no GPU."""
        return bool(self.config) and arguments[0] in SHARED and not arguments[-1].startswith("observers/")

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line of a step's processes."""
        number = ["--num_processes", str(self.processes)] if self.processes else []
        launcher = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file", self.config, *number]
        return [*launcher, "-m", "vlm_probe", *arguments]


IN_PROCESS = Launch()
"""Without accelerate: steps run in the process of their cell."""


def launch_names() -> list[str]:
    """The configurations of accelerate that ship with the package."""
    return sorted(Path(file.name).stem for file in _shipped().iterdir() if file.name.endswith(".yaml"))


def find_launch(name: str, processes: int) -> Launch:
    """A configuration by its name, or by the path of its file.

    Args:
        name: Of the configuration; empty for none.
        processes: Number of processes (GPUs); 0: as the file says.

    Raises:
        StudyError: If there is no such thing.
    """
    if not name:
        return IN_PROCESS
    if name in launch_names():
        return Launch(str(_shipped() / f"{name}.yaml"), processes)
    if Path(name).is_file():
        return Launch(str(Path(name).resolve()), processes)
    raise StudyError(
        f"--launch: no configuration {name!r}: {did_you_mean(name, launch_names())}; or give the path of a file that"
        " `accelerate config` wrote"
    )


def call(command: Sequence[str], write: Callable[[str], object]) -> int:
    """Do a command in processes of its own, and hand on what it says.

    Args:
        command: The command line.
        write: Takes its output, line by line.

    Returns:
        The exit code.
    """
    write(f"$ {shlex.join(command)}\n")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                write(line)
        except BaseException:
            process.terminate()
            raise
    return process.returncode


def _shipped() -> Path:
    return Path(str(resources.files("vlm_probe.finetune") / "launch"))
