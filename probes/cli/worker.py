"""One job of a study: the steps of a cell, one after the other in one process, each through the command line of `probe`.

`python -m vlm_probe.probes.cli.worker STUDY CELL` with the steps in STUDY/cells/CELL/work.json. A step that fails does not stop the
others. Exit codes: 0 all done, 3 some failed, 4 another process is at the cell.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from vlm_probe.paper.study.cells import Cell, Step
from vlm_probe.paper.study.launch import Launch, call, read_work
from vlm_probe.paper.study.store import (
    ENDED,
    LOCK,
    MARK,
    WORK,
    Ended,
    Failure,
    Store,
    fingerprint,
    read_json,
    size_of,
    take,
)
from vlm_probe.probes.cli.errors import FAILED_TRIALS, FAILURE, INTERRUPTED, SUCCESS, as_line
from vlm_probe.probes.cli.settings import OTHER_VARIABLES
from vlm_probe.stimuli.errors import ProbeError
from vlm_probe.stimuli.output import OutputError, claim, kind_of

AT_WORK = 4
OUTPUTS = {"train": "training run", "run": "run", "decode": "decoding"}
"""Command -> what the manifest of its folder calls it; a stimulus set's appears when it is whole, and is marked then."""
PATIENCE = 5.0
"""Seconds to wait for a lock that somebody may hold only to look at the cell."""
ERRORS_KEPT = 4
"""Last lines that a step wrote to stderr, among which its reason is looked for."""


def work(folder: Path, cell_id: str) -> int:
    """Do a cell's steps that are not done yet.

    Args:
        folder: Of the study.
        cell_id: The cell; its steps are in its folder.

    Returns:
        The exit code.
    """
    store = Store(folder.resolve())
    home = store.cell_folder(cell_id)
    cell, processes, launch = read_work(home / WORK)
    # The commands name folders inside that of the study, so that it can be moved, and read no settings of another place.
    os.chdir(store.folder)
    for name in [name for name in os.environ if name.startswith("PROBE_") and name not in OTHER_VARIABLES]:
        del os.environ[name]
    with (home / LOCK).open("a+b") as lock:
        if not take(lock.fileno(), PATIENCE):
            return AT_WORK
        (home / ENDED).unlink(missing_ok=True)
        started = time.monotonic()
        failures, blocked = _steps(store, cell, processes, launch)
        ended = Ended(tuple(failures), tuple(blocked), round(time.monotonic() - started, 1))
        store.write_ended(cell.id, fingerprint(cell), ended)
    return FAILED_TRIALS if failures else SUCCESS


def _steps(store: Store, cell: Cell, processes: int, launch: Launch) -> tuple[list[Failure], list[str]]:
    """Do them; those that failed, and those whose needs are not there."""
    failures: list[Failure] = []
    blocked: list[str] = []
    left = [step for step in cell.steps if not store.done(step)]
    # A step that was begun before may be the one that killed its process: others come first.
    for step in sorted(left, key=lambda step: bool(store.mark(step))):
        if any(not is_there(store, need) for need in step.needs):
            blocked.append(step.id)
            continue
        try:
            reason = _do(store, step, processes, launch)
        except (OSError, OutputError) as error:
            reason = as_line(error)
        if reason:
            failures.append(Failure(step.id, reason, step.command))
            _say(f"failed: {reason}")
    return failures, blocked


def is_there(store: Store, step_id: str) -> bool:
    """Whether a step of that name is done; that it is the right one, whoever starts the work has looked after.

    Args:
        store: The study.
        step_id: Of the step.
    """
    return bool(read_json(store.folder / step_id / MARK).get("done"))


def _do(store: Store, step: Step, processes: int, launch: Launch) -> str:
    """Do one step; the reason why it failed, or nothing."""
    out = store.folder / step.id
    mark = {"sha256": step.sha256, "arguments": list(step.arguments), "pace": step.pace, "amount": step.amount}
    _say(f"$ {step.command}")
    store.make_room(step)
    kind = OUTPUTS.get(step.arguments[0])
    if kind is not None:
        _note(out, kind, mark)
    clock, cpu = time.monotonic(), _cpu_seconds()
    code, reason = _call((*step.arguments, "--jobs", str(processes)), launch)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code != SUCCESS:
        return reason or f"ended with exit code {code}"
    took = {"seconds": round(time.monotonic() - clock, 3), "cpu_seconds": round(_cpu_seconds() - cpu, 3)}
    facts = {
        "done": True,
        "unit": step.unit,
        **took,
        "bytes": size_of(out),
        "ended": _now(),
        "host": os.uname().nodename,
    }
    _note(out, str(kind_of(out)), mark | facts)
    return ""


def _note(out: Path, kind: str, mark: dict[str, Any]) -> None:
    """Write down in the folder of a step which one it is. Raises OutputError if the folder is somebody else's."""
    with claim(out, kind) as folder:
        folder.write_json(MARK, mark)


def _call(arguments: tuple[str, ...], launch: Launch) -> tuple[int, str]:
    """Run a command line of `probe`, in this process if it is not launched: its exit code, and the reason if it failed."""
    from vlm_probe.probes.cli import main

    errors = _Tee(sys.stderr)
    if launch.is_for(arguments[:-2]):
        code = call(launch.command(arguments), errors.write)
        return code, errors.reason(code)
    sys.stderr = errors
    try:
        main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        return code, errors.reason(code)
    except Exception as error:  # a bug costs its own step only
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    finally:
        sys.stderr = errors.stream
    return SUCCESS, ""


class _Tee:
    """A stderr that keeps its last lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lines: deque[str] = deque(maxlen=ERRORS_KEPT)
        self._part = ""

    def write(self, text: str) -> int:
        *lines, self._part = (self._part + text).split("\n")
        self._lines.extend(line for line in lines if line.strip())
        return self.stream.write(text)

    def reason(self, code: int) -> str:
        """The last line in which `probe` tells an error, else what the code says."""
        told = [line.partition("probe: ")[2] for line in self._lines if line.startswith("probe: ")]
        if told:
            return told[-1]
        return "some trials failed; their errors are in its trials.jsonl" if code == FAILED_TRIALS else ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _cpu_seconds() -> float:
    """Processor time of this process and of the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _say(text: str) -> None:
    print(f"[{_now()}] {text}", file=sys.stderr, flush=True)  # noqa: T201


def main(arguments: list[str]) -> int:
    """The program."""
    # A polite end (of a driver, or of Slurm) is an interruption: runs and training runs keep what they have.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work(Path(arguments[0]), arguments[1])
    except KeyboardInterrupt:
        _say("interrupted; the same study goes on from here")
        return INTERRUPTED
    except (ProbeError, OSError) as error:
        _say(as_line(error))
        return FAILURE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
