"""Command lines of `probe` in children of this process that can be watched, bounded and killed.

They are forked when everything is imported, so that hundreds of them cost minutes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vlm_probe.probes.cli import main as probe
from vlm_probe.probes.cli import results

TICK = 0.001
"""Seconds between two looks at a child."""


def nothing() -> None:
    """What is done before a command by default."""


def start(arguments: Sequence[str], log: Path, before: Callable[[], None] = nothing) -> int:
    """Start a command line.

    Args:
        arguments: Those of `probe`.
        log: File to which its output is appended.
        before: Called in the child first, so that it can be given limits.

    Returns:
        Its process number.
    """
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        before()
        if arguments[0] == "run":
            # Drawing takes longer than everything else together, and nothing can be lost by it.
            results.write_figure = lambda run, references: None
        probe(list(arguments))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def ended(arguments: Sequence[str], log: Path, before: Callable[[], None] = nothing) -> tuple[int, str]:
    """Run a command line to its end: its exit code, and the last line in which it says what is wrong."""
    seen = log.stat().st_size if log.exists() else 0
    code = os.waitstatus_to_exitcode(os.waitpid(start(arguments, log, before), 0)[1])
    lines = log.read_bytes()[seen:].decode(errors="replace").splitlines()
    told = [line for line in lines if line.startswith("probe: ") or "Traceback" in line]
    return code, told[-1] if told else ""


def make(*arguments: str) -> None:
    """Run a command line that must not fail. Raises SystemExit if it does."""
    with tempfile.NamedTemporaryFile() as file:
        if ended(arguments, Path(file.name))[0]:
            raise SystemExit(f"probe {' '.join(arguments)}: {Path(file.name).read_text()}")


def family_of(process: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [process]
    for member in found:
        found += parents.get(member, [])
    return found


def seconds_of(processes: Sequence[int]) -> float:
    """Processor time that processes have used so far, to the nanosecond where the kernel counts that."""
    used = 0
    for process in processes:
        for thread in Path(f"/proc/{process}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                used += int(thread.read_text().split()[0])
    return used / 1e9


def kill(processes: Sequence[int]) -> None:
    """SIGKILL, which nobody can answer."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
