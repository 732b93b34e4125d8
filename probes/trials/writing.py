"""Writing runs: rows are appended as trials happen, by one process per log, and none is lost or doubled by a kill."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_probe.probes.columns import COLUMNS, brief, check_row, line_of, whole_row
from vlm_probe.probes.trials.archive import ArchiveError, write_archive
from vlm_probe.probes.trials.reading import (
    KIND,
    RUN,
    TRIALS,
    RunError,
    noting_edits,
    parser_of,
    read_log,
    read_run,
    read_trials,
    shard_name,
    shards,
    trials_hash,
)
from vlm_probe.stimuli.errors import reading
from vlm_probe.stimuli.output import OutputError, OutputFolder, claim, lock
from vlm_probe.stimuli.plain_json import dumps, parse

SYNC_INTERVAL = 2.0
"""Seconds between two forced writes to the disk. A row outlives its process at once, a power cut after this time."""


class TrialLog:
    """The log of one run, open for appending, by one process at a time. A context manager.

    Args:
        folder: The run's folder, made if it is not there; or one that is claimed already, and stays so.
        run: What goes into `run.json`. Its "fingerprint" (flat) must equal that of the run which is there already.

    Attributes:
        done: Keys of the trials that need not be asked again.

    Raises:
        OutputError: If the folder cannot be written, another process has it open, or it holds something else.
        RunError: If it holds another run.
    """

    _path: Path
    _end: int
    _synced: float

    def __init__(self, folder: Path | OutputFolder, run: Mapping[str, Any]) -> None:
        self._is_own = not isinstance(folder, OutputFolder)
        self.output = folder if isinstance(folder, OutputFolder) else claim(folder, KIND)
        self.folder = self.output.path
        self._file = -1
        try:
            self.output.track(RUN, TRIALS)
            self.run = noting_edits(self.folder, self._adopt(dict(run)))
            rows = self._open(TRIALS)
            self.done = {row["key"] for row in rows if row["error"] is None}
            self.absorb()
        except (OSError, RunError, OutputError) as error:
            self._release()
            if isinstance(error, RunError | OutputError):
                raise
            raise RunError(f"cannot write to {self.folder}: {error.strerror}") from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row.

        Args:
            row: All columns of `vlm_probe.probes.columns`.

        Raises:
            RunError: If the disk does not take it; the rows before it stay.
            ValueError: If a column holds what is not allowed there.
        """
        check_row(row)
        data = line_of(whole_row(row)).encode()
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            if time.monotonic() - self._synced > SYNC_INTERVAL:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            # Half a line in the middle of the log would damage it once there is room again.
            os.ftruncate(self._file, self._end)
            raise RunError(
                f"cannot write to {self._path}: {error.strerror}; the rows written so far are kept:"
                " make room and give the same command again"
            ) from error
        self._end += len(data)

    def absorb(self) -> None:
        """Take over the rows of further processes that have ended, and remove their logs.

        Raises:
            OutputError: If one of them is still writing.
            RunError: If the disk does not take them.
        """
        for path in shards(self.folder):
            held = lock(self.folder, path.name)
            try:
                # A kill may have come after some rows were taken over, and before the log was removed.
                known = {line_of(whole_row(row)) for row in read_log(self._path)[0]}
                for row in read_log(path)[0]:
                    if line_of(whole_row(row)) not in known:
                        self.append(row)
                    if row["error"] is None:
                        self.done.add(row["key"])
                os.fsync(self._file)
                self.output.remove(path.name)
            except OSError as error:
                raise RunError(f"cannot take over {path}: {error.strerror}") from error
            finally:
                os.close(held)

    def update(self, **changes: Any) -> None:
        """Change entries of `run.json`.

        Raises:
            OutputError: If it cannot be written.
        """
        self.run.update(changes)
        self.output.write_json(RUN, self.run)

    def close(self) -> None:
        """Force everything to the disk and let other processes have the folder. The second time, nothing.

        Raises:
            RunError: If the disk does not take it.
        """
        if self._file < 0:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            raise RunError(f"cannot write to {self._path}: {error.strerror}") from error
        finally:
            self._release()

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, name: str) -> list[dict[str, Any]]:
        """Open one of the folder's logs, without its torn last line if it has one, and give its rows."""
        self._path = self.folder / name
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        rows, self._end = read_log(self._path)
        os.ftruncate(self._file, self._end)
        self._synced = time.monotonic()
        return rows

    def _release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        if self._is_own:
            self.output.close()

    def _adopt(self, run: dict[str, Any]) -> dict[str, Any]:
        """The description of the run that is here already, if it is the same one; else the new one, written."""
        if not (self.folder / RUN).exists():
            if (self.folder / TRIALS).exists() and (self.folder / TRIALS).stat().st_size:
                raise RunError(
                    f"{self.folder} has {TRIALS} but no {RUN}: not a run to go on with; choose another --out"
                )
            self.output.write_json(RUN, run)
            return run
        found = read_run(self.folder)
        old, new = found.get("fingerprint", {}), run["fingerprint"]
        differ = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if differ:
            changes = ", ".join(f"{name} ({brief(old.get(name))}, now {brief(new.get(name))})" for name in differ)
            raise RunError(f"{self.folder} holds a run with another configuration: {changes}; choose another --out")
        before, now = parser_of(found), parser_of(run)
        if before != now and new.get("readout") != "options":
            raise RunError(
                f"the replies in {self.folder} were read by parser {before}, and this is parser {now}: read them again with"
                f" `probe score {self.folder}`, then give the same command"
            )
        return run | found  # entries that are missing there have the values of a run that begins


class ShardLog(TrialLog):
    """The log of a further process of a run (`vlm_probe.probes.sharding`): rows only, next to the run's own log.

    Nothing is read from it before the first process takes it over.

    Args:
        folder: The run's folder, as the first process has made it.
        rank: Number of the process.
        run: What the first process has in `run.json`.
        done: Keys of the trials that need not be asked again, as the first process has them.

    Raises:
        OutputError: If another process has the log.
        RunError: If it cannot be written.
    """

    def __init__(self, folder: Path, rank: int, run: Mapping[str, Any], done: set[str]) -> None:
        self.folder, self.run, self.done = folder, dict(run), done
        name = shard_name(rank)
        self._file = -1
        try:
            self._lock = lock(folder, name)
        except OSError as error:
            raise RunError(f"cannot write to {folder / name}: {error.strerror}") from error
        try:
            self._open(name)
        except (OSError, RunError) as error:
            self._release()
            if isinstance(error, RunError):
                raise
            raise RunError(f"cannot write to {folder / name}: {error.strerror}") from error

    def _release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        os.close(self._lock)

    def update(self, **changes: Any) -> None:
        """Nothing: `run.json` is the first process's."""


def rewrite_trials(
    run: Path | OutputFolder, change: Callable[[dict[str, Any]], dict[str, Any]], parser: str
) -> tuple[int, int]:
    """Put `change(row)` in place of every row of a run's log, all of them or none.

    Args:
        run: Its folder, or that which is claimed already.
        change: From an old row to a new one.
        parser: Version of the parser that has read the new rows, for `run.json`.

    Returns:
        Number of rows, and of those that came out differently.

    Raises:
        OutputError: If another process is writing to the run, or it cannot be written.
        RunError: If it is damaged, or there is none on the disk.
    """
    if not isinstance(run, OutputFolder):
        if not (run / TRIALS).is_file():
            raise RunError(f"{run} holds no {TRIALS} that could be changed: give the folder of a run on the disk")
        with claim(run, KIND) as output:
            return rewrite_trials(output, change, parser)
    folder = run.path
    if shards(folder):
        TrialLog(run, read_run(folder)).close()  # takes them over
    old, before = [dict.fromkeys(COLUMNS) | row for row in read_trials(folder)], trials_hash(folder)
    new = [whole_row(change(row)) for row in old]
    with reading(folder / TRIALS, RunError, "restore it"):
        for row in new:
            check_row(row)
        lines = [line_of(row) for row in new]
    run.write(TRIALS, "".join(lines))
    record = noting_edits(folder, read_run(folder), before)
    record["versions"] = record.get("versions", {}) | {"parser": parser}
    if "trials_sha256" in record:
        record["trials_sha256"] = trials_hash(folder)
    run.write_json(RUN, record)
    return len(lines), sum(line_of(whole_row(row)) != line for row, line in zip(old, lines, strict=True))


def archive_runs(folders: Iterable[Path], root: Path, out: Path) -> int:
    """Write runs into an archive, from which they are read as if they were in `out`.

    Logs are kept to the byte; run.json too, except for absolute paths of sets, of which the name is kept.

    Args:
        folders: Of runs below `root`.
        root: What their names are relative to.
        out: Folder of the archive.

    Returns:
        Number of rows.

    Raises:
        RunError: If one of them is damaged, or would not come back as it is.
    """

    def read(folder: Path) -> tuple[str, str, list[dict[str, Any]], bytes]:
        rows, end = read_log(folder / TRIALS)
        read_run(folder)  # says what is wrong with it, if anything is
        record = _portable((folder / RUN).read_text(encoding="utf-8"))
        return folder.relative_to(root).as_posix(), record, rows, (folder / TRIALS).read_bytes()[:end]

    try:
        return write_archive(out, map(read, folders))
    except (ArchiveError, OSError) as error:
        raise RunError(f"runs cannot be archived in {out}: {error}") from error


def _portable(record: str) -> str:
    """A run.json in which sets of this machine's cache have their name in place of their path, which nobody else has."""
    run = parse(record)
    path = Path(str((run.get("stimuli") or {}).get("path", "")))
    if not path.is_absolute():
        return record
    run["stimuli"]["path"] = path.name
    return dumps(run, indent=2, ascii_only=True) + "\n"
