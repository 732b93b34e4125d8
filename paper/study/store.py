"""What is there of a study: which steps are done, which cells are at work, and the outcome of those that failed.

STUDY/sets, adapters, runs, observers, decoding    results, as `probe stimuli make`, `train`, `run` and `decode` leave them
STUDY/.../step.json                                in every folder of a step: its hash, and what it took once it is done
STUDY/cells/<cell>/                                log.txt, and how the cell's last try ended
STUDY/aside/                                       results of earlier designs

Nothing else is kept, and in particular no list of what is done: the folders say it, however a study was stopped.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlm_probe.paper.study.cells import KINDS, Cell, Step
from vlm_probe.paper.study.fields import StudyError
from vlm_probe.stimuli.output import Busy, OutputFolder, claim, kind_of, write_json
from vlm_probe.stimuli.plain_json import parse_object

MARK, LOCK, LOG, ENDED, WORK, JOB = "step.json", ".lock", "log.txt", "ended.json", "work.json", "job.json"
CELLS, ASIDE = "cells", "aside"
KIND = "study"

State = Literal["done", "running", "failed", "blocked", "missing"]


@dataclass(frozen=True)
class Failure:
    """A step that failed: why, and the command line that repeats it by hand."""

    step: str
    reason: str
    command: str


@dataclass(frozen=True)
class Ended:
    """How the last try of a cell ended.

    Attributes:
        failures: Steps that failed.
        blocked: Steps that could not be begun, since what they need is not there.
        seconds: That it took, by the clock.
    """

    failures: tuple[Failure, ...] = ()
    blocked: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Look:
    """What a cell looks like now.

    Attributes:
        state: "done"; "running": a process is at it; "failed": its last try failed; "blocked": it waits for what failed;
            "missing": not done yet.
        done: Number of its steps that are done.
        ended: Its last try.
        seconds: What its finished steps took.
    """

    state: State
    done: int
    ended: Ended | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Store:
    """The folder of a study."""

    folder: Path
    _marks: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def mark(self, step: Step) -> dict[str, Any]:
        """What the folder of a step says of it; empty if it holds nothing, or another step's results."""
        kept = self._marks.get(step.id)
        if kept is None or kept.get("sha256") != step.sha256:
            found = read_json(self.folder / step.id / MARK)
            if found.get("sha256") != step.sha256 or (found.get("done") and not _is_whole(found)):
                return {}
            if found.get("done"):
                self._marks[step.id] = found  # it does not change any more
            return found
        return kept

    def done(self, step: Step) -> bool:
        """Whether a step is done."""
        return bool(self.mark(step).get("done"))

    def cell_folder(self, cell_id: str) -> Path:
        """Where the log of a cell is."""
        return self.folder / CELLS / cell_id

    def ended(self, cell: Cell) -> Ended | None:
        """How the last try of a cell ended, if it concerned its steps as they are now."""
        found = read_json(self.cell_folder(cell.id) / ENDED)
        if found.get("sha256") != fingerprint(cell):
            return None
        try:
            failures = tuple(Failure(**failure) for failure in found["failures"])
            return Ended(failures, tuple(map(str, found["blocked"])), float(found["seconds"]))
        except (KeyError, TypeError, ValueError):  # a note that is damaged is no note
            return None

    def look(self, cell: Cell) -> Look:
        """What a cell looks like now."""
        marks = [mark for mark in map(self.mark, cell.steps) if mark.get("done")]
        seconds = sum(mark["seconds"] for mark in marks)
        if len(marks) == len(cell.steps):
            return Look("done", len(marks), None, seconds)
        if self.at_work(cell.id):
            return Look("running", len(marks), None, seconds)
        ended = self.ended(cell)
        state: State = "missing"
        if ended is not None:
            state = "failed" if ended.failures else "blocked" if ended.blocked else "missing"
        return Look(state, len(marks), ended, seconds)

    def at_work(self, cell_id: str) -> bool:
        """Whether a process is at a cell."""
        path = self.cell_folder(cell_id) / LOCK
        if not path.exists():
            return False
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:  # a file system without locks
                return False
        return False

    def write_ended(self, cell_id: str, sha256: str, ended: Ended) -> None:
        """Note how a try of a cell ended.

        Args:
            cell_id: The cell.
            sha256: The fingerprint of its steps.
            ended: How the try ended.
        """
        self.cell_folder(cell_id).mkdir(parents=True, exist_ok=True)
        write_json(self.cell_folder(cell_id) / ENDED, {"sha256": sha256, **asdict(ended)})

    def tidy(self, cells: Sequence[Cell], output: OutputFolder) -> list[str]:
        """Move aside what the design does not say any more, and back what it says again; cells at work are left alone.

        Args:
            cells: All cells of the study.
            output: The study's folder, as `held` gives it.

        Returns:
            Folders that were moved aside.
        """
        output.track(*(f"{CELLS}/{cell.id}/{name}" for cell in cells for name in (LOG, ENDED, WORK, JOB, LOCK)))
        wanted = {step.id: step for cell in cells for step in cell.steps}
        busy = {step.id for cell in cells if self.at_work(cell.id) for step in cell.steps}
        moved = []
        for kind in KINDS:
            for path in sorted(self._results(self.folder / kind)):
                name = str(path.relative_to(self.folder))
                step = wanted.get(name)
                right = step is not None and read_json(path / MARK).get("sha256") == step.sha256
                if not right and name not in busy:
                    self._set_aside(path, name)
                    moved.append(name)
        for step in wanted.values():
            kept, here = self.folder / ASIDE / f"{step.id}-{step.sha256[:8]}", self.folder / step.id
            if kept.is_dir() and not here.exists():
                here.parent.mkdir(parents=True, exist_ok=True)
                kept.rename(here)
        return moved

    def make_room(self, step: Step) -> None:
        """Move aside what is in the folder of a step and is not its own: results of another design, or of a kill."""
        path, mark = self.folder / step.id, read_json(self.folder / step.id / MARK)
        same = mark.get("sha256") == step.sha256 and mark.get("arguments") == list(step.arguments)
        if not same and is_ours(path):
            self._set_aside(path, step.id)

    def _results(self, folder: Path) -> Iterator[Path]:
        """Folders of steps: those with a mark, and those without one that a kill has left; nobody else's."""
        if not folder.is_dir():
            return
        nested = folder.name in ("runs", "observers", "decoding")
        for path in folder.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                yield from (p for p in (path.iterdir() if nested else (path,)) if is_ours(p))

    def _set_aside(self, path: Path, name: str) -> None:
        sha256 = str(read_json(path / MARK).get("sha256", "unknown"))[:8]
        base = self.folder / ASIDE / f"{name}-{sha256}"
        places = (base, *(base.with_name(f"{base.name}.{number}") for number in range(1, 10_000)))
        free = next(place for place in places if not place.exists())
        free.parent.mkdir(parents=True, exist_ok=True)
        path.rename(free)

    @contextmanager
    def held(self) -> Iterator[OutputFolder]:
        """Keep other drivers away while this one is at work.

        Raises:
            OutputError: If the folder holds something else, or cannot be written.
            StudyError: If there is one.
        """
        try:
            output = claim(self.folder, KIND)
        except Busy as error:
            raise StudyError(
                f"another `probe study run` is at work in {self.folder}: watch it with `probe study status`, or stop it"
            ) from error
        with output:
            yield output


def is_ours(folder: Path) -> bool:
    """Whether a folder holds results of this program, whole or half written."""
    return kind_of(folder) is not None


def _is_whole(mark: Mapping[str, Any]) -> bool:
    """Whether the mark of a step that is done says what it took; a damaged one does not count, and the step is done again."""
    return all(isinstance(mark.get(name), int | float) for name in ("seconds", "cpu_seconds", "bytes", "amount"))


def take(descriptor: int, patience: float) -> bool:
    """Lock a file for this process; whether that could be done within so many seconds.

    Args:
        descriptor: Of the open file.
        patience: Seconds to wait for whoever has it.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Somebody who only looks holds it for a moment.
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        except OSError:
            return True  # a file system without locks: the logs of runs have locks of their own
        else:
            return True


def fingerprint(cell: Cell) -> str:
    """The hashes of a cell's steps as one text, to know whether a note is about them."""
    return " ".join(step.sha256[:12] for step in cell.steps)


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file; empty if it is not there, or not whole."""
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError):
        return {}


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
