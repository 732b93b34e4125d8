"""The trial log: `RUN/trials.jsonl`, one row per trial, appended as it happens, and `RUN/run.json`, what made it.

A row is on its way to the disk before the next trial is asked, so a run that is killed at any byte goes on where it
was: a torn last line is cut off and its trial asked again. A trial that failed has an `error` and is asked again on
resume; the later row then stands for it. Runs in an archive (`probes.archive`) are read like those on the disk. Everything
here works without torch, and without pandas but for `load_frame`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.archive import ArchiveError, archived_record, archived_rows, archived_runs, line_of, write_archive
from probes.models import Generation, Identity
from stimuli.dataset import Item
from stimuli.plain_json import parse_object

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

TRIALS, RUN, LOCK = "trials.jsonl", "run.json", ".lock"
SHARDS = "trials.*.jsonl"
"""Logs of further processes of the same run (`probes.sharding`), until the first takes their rows over."""
SYNC_INTERVAL = 2.0
"""Seconds between two forced writes to the disk. A row outlives its process at once, a power cut after this time."""

COLUMNS = (
    "key",
    "item_id",
    "task",
    "task_version",
    "model",
    "readout",
    "prompt",
    "raw",
    "answer",
    "answer_text",
    "status",
    "logprobs",
    "options",
    "p_correct",
    "truth",
    "correct",
    "success",
    "reward",
    "detail",
    "n_candidates",
    "chance",
    "margin",
    "condition",
    "variant",
    "manner",
    "examples",
    "attempt",
    "attempts",
    "memory",
    "pair_id",
    "group_id",
    "role",
    "image_sha256",
    "scene_sha256",
    "latency_s",
    "error",
    "time",
)
"""The columns of a row, all always present.

key: identifies the trial (see `trial_key`). raw: the reply, null with the options readout. answer: its meaning, null
if it could not be read; status: how reading went, "error" if the trial failed. logprobs: of every legal answer in the
order of the grammar's candidates, which `options` names where they are not numbers. p_correct: probability of the
answers that are right, out of all legal ones. truth: the right answer. reward: in [0, 1], 0 if unread. chance: what a
random legal answer is expected to score. manner: how the item was presented (see `probes.presentation.Manner`), with its
code, which is empty for the plain one. examples: ids of the worked examples that came first. attempt: number of the
attempt, from 1, of at most `attempts`; memory: what of the earlier ones the model was told. latency_s: seconds, the batch's time shared evenly. error: null or "Type:
message". time: UTC, when it was written.
"""

_TEXT, _NUMBER, _MAYBE = (str,), (int, float), (str, type(None))
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("key", "item_id", "task", "model", "readout", "prompt", "status"), _TEXT),
    **dict.fromkeys(("raw", "answer_text", "pair_id", "group_id", "role", "image_sha256", "scene_sha256"), _MAYBE),
    **dict.fromkeys(("error", "time", "memory"), _MAYBE),
    **dict.fromkeys(("answer", "truth"), (str, int, list, type(None))),
    **dict.fromkeys(("correct", "success"), (bool, type(None))),
    **dict.fromkeys(("task_version", "n_candidates", "attempt", "attempts"), (int, type(None))),
    **dict.fromkeys(("p_correct", "reward", "chance", "margin", "latency_s"), (*_NUMBER, type(None))),
    **dict.fromkeys(("logprobs", "options", "examples"), (list, type(None))),
    **dict.fromkeys(("detail", "condition", "variant", "manner"), (dict, type(None))),
}
"""What the columns hold; a row with something else in one of them was not written here."""
_RUN_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("status", "trials_sha256"), _MAYBE),
    **dict.fromkeys(("config", "model", "stimuli", "versions", "fingerprint", "observed"), (dict,)),
    **dict.fromkeys(("training", "git", "hardware"), (dict, type(None))),
    **dict.fromkeys(("n", "n_errors", "resumed", "seed"), (int,)),
    "edited": (list,),
}
"""The same of the entries of `run.json` that the program reads."""

LATER: dict[str, Any] = {"manner": None, "examples": None, "attempt": 1, "attempts": 1, "memory": "none"}
"""Columns that logs of earlier versions do not have, and what goes for a row without them: plain manner, one attempt."""


class RunError(RuntimeError):
    """A run's folder cannot be used; the message says why and what to do."""


def trial_key(identity: Identity, item: Item, readout: str, settings: Generation, manner: Sequence[Any] = ()) -> str:
    """The hash that identifies a trial: who answered, what was shown and asked, and how the answer was read.

    Args:
        identity: Of the model that answered, down to its weights.
        item: What was shown and asked.
        readout: "generate" or "options".
        settings: Of generation; they do not matter to options.
        manner: Everything about the presentation that is not in the item; empty for the plain one.
    """
    question = item.question
    asked = [question.prompt, question.grammar.to_dict(), question.style]
    parts = [
        [identity.name, identity.revision, identity.weights_sha256, identity.adapter_sha256],
        # The item's id keeps two items with the same picture and prompt apart; observers look at the scene.
        [item.item_id, item.image_sha256, item.scene_sha256, _sha256(json.dumps(asked))],
        [readout, asdict(settings) if readout == "generate" else {}],
        *([list(manner)] if manner else []),
    ]
    return _sha256(json.dumps(parts))


class TrialLog:
    """The log of one run, open for appending, by one process at a time. A context manager.

    Args:
        folder: The run's folder; made if it is not there.
        run: What goes into `run.json`. Its "fingerprint" (flat) must equal that of the run which is there already.

    Raises:
        RunError: If the folder cannot be written, another process has it open, or it holds another run.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(folder)
        except OSError as error:
            raise RunError(
                f"cannot write a run to {folder}: {error.strerror}; choose another folder with --out"
            ) from error
        self._file = -1
        try:
            self.run = _noting_edits(folder, self._adopt(dict(run)))
            self._file = os.open(folder / TRIALS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            rows, end = _read(folder / TRIALS)
            os.ftruncate(self._file, end)
        except (OSError, RunError) as error:
            for descriptor in (self._file, self._lock):
                if descriptor >= 0:
                    os.close(descriptor)
            if isinstance(error, RunError):
                raise
            raise RunError(f"cannot write to {folder}: {error.strerror}") from error
        self._end = end
        self._synced = time.monotonic()
        self.done = {row["key"] for row in rows if row["error"] is None}
        """Keys of the trials that need not be asked again."""
        try:
            self.absorb()
        except RunError:
            self.close()
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row. Raises RunError if the disk does not take it; the rows before it stay."""
        data = _line(row).encode()
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
                f"cannot write to {self.folder / TRIALS}: {error.strerror}; the rows written so far are kept:"
                " make room and give the same command again"
            ) from error
        self._end += len(data)

    def absorb(self) -> None:
        """Take over the rows of further processes that have ended, and remove their logs.

        Raises:
            RunError: If one of them is still writing.
        """
        for path in sorted(self.folder.glob(SHARDS)):
            lock = lock_folder(self.folder, path.name)
            try:
                # A kill may have come after some rows were taken over, and before the log was removed.
                known = {_line(row) for row in _read(self.folder / TRIALS)[0]}
                for row in _read(path)[0]:
                    if _line(row) not in known:
                        self.append(row)
                    if row["error"] is None:
                        self.done.add(row["key"])
                os.fsync(self._file)
                path.unlink()
            except OSError as error:
                raise RunError(f"cannot take over {path}: {error.strerror}") from error
            finally:
                os.close(lock)

    def update(self, **changes: Any) -> None:
        """Change entries of `run.json`. Raises RunError if it cannot be written."""
        self.run.update(changes)
        write_json(self.folder / RUN, self.run)

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
            raise RunError(f"cannot write to {self.folder / TRIALS}: {error.strerror}") from error
        finally:
            os.close(self._file)
            os.close(self._lock)
            self._file = -1

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _adopt(self, run: dict[str, Any]) -> dict[str, Any]:
        """The description of the run that is here already, if it is the same one; else the new one, written."""
        if not (self.folder / RUN).exists():
            if (self.folder / TRIALS).exists() and (self.folder / TRIALS).stat().st_size:
                raise RunError(
                    f"{self.folder} has {TRIALS} but no {RUN}: not a run to go on with; choose another --out"
                )
            write_json(self.folder / RUN, run)
            return run
        found = read_run(self.folder)
        old, new = found.get("fingerprint", {}), run["fingerprint"]
        differ = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if differ:
            changes = ", ".join(f"{name} ({_brief(old.get(name))}, now {_brief(new.get(name))})" for name in differ)
            raise RunError(f"{self.folder} holds a run with another configuration: {changes}; choose another --out")
        return found


def read_trials(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run, one per trial: of a trial that was asked again, the last, but no error in place of an answer.

    A torn last line, as a run that is going on or was killed may have, is left out.

    Raises:
        RunError: If there is no log, or a line in its middle is damaged.
    """
    path = Path(folder) / TRIALS
    if path.is_file():
        logs = [_read(file)[0] for file in (path, *sorted(Path(folder).glob(SHARDS)))]
    else:
        found = _archived(archived_rows, folder)
        if found is None:
            raise RunError(f"{folder} is not a run: it has no {TRIALS}; make one with `probe run --out {folder}`")
        try:
            for row in found:
                _check_kinds(row, _KINDS)
        except ValueError as error:
            raise RunError(f"the archived log of {folder} is damaged ({error}): restore it") from error
        logs = [found]
    rows: dict[str, dict[str, Any]] = {}
    for row in (row for log in logs for row in log):
        if row["error"] is None or rows.get(row["key"], row)["error"] is not None:
            rows[row["key"]] = row
    return list(rows.values())


def _portable(record: str) -> str:
    """A run.json in which sets of this machine's cache have their name in place of their path, which nobody else has."""
    run = json.loads(record)
    path = Path(str((run.get("stimuli") or {}).get("path", "")))
    if not path.is_absolute():
        return record
    run["stimuli"]["path"] = path.name
    return json.dumps(run, indent=2) + "\n"


def is_run(folder: str | Path) -> bool:
    """Whether a folder, on the disk or in an archive, is one of a run."""
    return (Path(folder) / TRIALS).is_file() or _archived(archived_record, folder) is not None


def runs_below(folder: str | Path) -> list[Path]:
    """The folders of all runs below a folder, on the disk and in archives, sorted."""
    found = {path.parent for path in Path(folder).rglob(TRIALS)} | set(_archived(archived_runs, folder))
    return sorted(found)


def archive_runs(folders: Iterable[Path], root: Path, out: Path) -> int:
    """Write runs into an archive, from which they are read as if they were in `out`.

    Logs are kept to the byte; run.json too, but for absolute paths of sets, of which the name is kept.

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
        rows, end = _read(folder / TRIALS)
        read_run(folder)  # says what is wrong with it, if anything is
        record = _portable((folder / RUN).read_text(encoding="utf-8"))
        return folder.relative_to(root).as_posix(), record, rows, (folder / TRIALS).read_bytes()[:end]

    try:
        return write_archive(out, map(read, folders), COLUMNS)
    except (ArchiveError, OSError) as error:
        raise RunError(f"runs cannot be archived in {out}: {error}") from error


def read_run(folder: str | Path) -> dict[str, Any]:
    """The contents of `run.json`. Raises RunError if it is missing or damaged."""
    path = Path(folder) / RUN
    try:
        text = None if path.is_file() else _archived(archived_record, folder)
        run = parse_object(path.read_bytes() if text is None else text)
        _check_kinds(run, _RUN_KINDS)
    except OSError as error:
        raise RunError(f"{folder} is not a run: cannot read its {RUN} ({error.strerror})") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); restore it, or make the run anew with another --out") from error
    return run


def trials_hash(folder: str | Path) -> str:
    """SHA-256 of a run's log. `run.json` keeps it when a run ends, so that a log edited by hand can be told.

    Raises:
        RunError: If the log cannot be read.
    """
    path = Path(folder) / TRIALS
    rows = None if path.is_file() else _archived(archived_rows, folder)
    if rows is not None:
        return _sha256("".join(map(line_of, rows)))
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


def _archived(look: Callable[[Path], Any], folder: str | Path) -> Any:
    """What an archive says of a folder. Raises RunError if it is damaged."""
    try:
        return look(Path(folder))
    except ArchiveError as error:
        raise RunError(str(error)) from error


def was_edited(run: Mapping[str, Any], found: str) -> bool:
    """Whether a log is not the one that its run left when it last ended.

    Args:
        run: The contents of its `run.json`.
        found: The hash of the log.
    """
    noted = run.get("trials_sha256")
    return bool(noted) and run.get("status") != "running" and noted != found


def _noting_edits(folder: Path, run: dict[str, Any], found: str = "") -> dict[str, Any]:
    """The entries of `run.json`, with a note for good where the log was edited: a new hash must not make it forgotten."""
    if not run.get("trials_sha256") or not (folder / TRIALS).is_file():
        return run
    found = found or trials_hash(folder)
    if not was_edited(run, found):
        return run
    log.warning("%s was edited after the run had ended: noted in its %s", folder / TRIALS, RUN)
    return run | {"edited": [*run.get("edited", ()), {"noted": run["trials_sha256"], "found": found}]}


def load_frame(folders: Iterable[str | Path]) -> pd.DataFrame:
    """The trials of several runs as one table.

    Beside `COLUMNS` it has `run` (the folder's path), `adapter` (hash, or ""), `seed`, and every entry of `condition`,
    `variant` and `manner` as a column of its own (`condition_count`, `variant_polarity`, `manner_control`, ...).
    """
    import pandas as pd

    rows = []
    for folder in folders:
        run = read_run(folder)
        of_run = {
            "run": str(folder),
            "adapter": run.get("model", {}).get("adapter_sha256", ""),
            "seed": run.get("seed", 0),
        }
        for row in read_trials(folder):
            levels = {
                f"{of}_{k}": v for of in ("condition", "variant", "manner") for k, v in (row.get(of) or {}).items()
            }
            rows.append({**of_run, **row, **levels})
    return pd.DataFrame(rows, columns=None if rows else ["run", "adapter", "seed", *COLUMNS])


def rewrite_trials(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> tuple[int, int]:
    """Put `change(row)` in place of every row of a run's log, all of them or none.

    Returns:
        Number of rows, and of those that came out differently.

    Raises:
        RunError: If another process is writing to the run, or it cannot be written.
    """
    if any(folder.glob(SHARDS)):
        TrialLog(folder, read_run(folder)).close()  # takes them over
    try:
        lock = lock_folder(folder)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        old, before = [dict.fromkeys(COLUMNS) | row for row in read_trials(folder)], trials_hash(folder)
        lines = [_line(change(row)) for row in old]
        _write_whole(folder / TRIALS, "".join(lines))
        run = _noting_edits(folder, read_run(folder), before)
        if "trials_sha256" in run:
            write_json(folder / RUN, run | {"trials_sha256": trials_hash(folder)})
    finally:
        os.close(lock)
    return len(lines), sum(_line(row) != line for row, line in zip(old, lines, strict=True))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all. Raises RunError if that is not possible."""
    _write_whole(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def open_append(folder: Path, name: str) -> tuple[int, int, int]:
    """Take a further log of a run for this process.

    Returns:
        Descriptor that holds its lock, descriptor to append to, and the log's end (bytes).

    Raises:
        RunError: If another process has it, or it cannot be written.
    """
    try:
        lock = lock_folder(folder, name)
        file = os.open(folder / name, os.O_RDWR | os.O_APPEND)
        end = _read(folder / name)[1]
        os.ftruncate(file, end)
    except OSError as error:
        raise RunError(f"cannot write to {folder / name}: {error.strerror}") from error
    return lock, file, end


def lock_folder(folder: Path, name: str = LOCK) -> int:
    """Take a folder for this process.

    Args:
        folder: What is written to; it must be there.
        name: Of the file in it that is locked.

    Returns:
        A descriptor. The lock goes when it is closed, or with the process.

    Raises:
        RunError: If another process has it.
        OSError: If the folder cannot be written.
    """
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise RunError(f"another process is writing to {folder}: wait for it, or choose another --out") from error
    except OSError as error:  # some network file systems have no locks
        log.warning("cannot lock %s (%s): do not start a second run there", folder, error.strerror)
    return descriptor


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All whole rows of a log, and where they end (bytes)."""
    data = path.read_bytes()
    rows: list[dict[str, Any]] = []
    end = 0
    while (newline := data.find(b"\n", end)) >= 0:
        try:
            row = parse_object(data[end:newline])
            row["key"], row["error"], row["item_id"], row["task"]
            _check_kinds(row, _KINDS)
        except (ValueError, KeyError) as error:
            # A power cut can leave a block of zeros at the end; anywhere else this is not our doing.
            if data.find(b"\n", newline + 1) < 0:
                break
            raise RunError(
                f"{path}, line {len(rows) + 1}: damaged ({_why(error)}); remove the line to have its trial asked again"
            ) from error
        rows.append(row | {name: value for name, value in LATER.items() if name not in row})
        end = newline + 1
    return rows, end


def _check_kinds(data: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raise ValueError if an entry holds something of another kind than is written there."""
    for name, value in data.items():
        if name in kinds and not isinstance(value, kinds[name]):
            raise ValueError(f"{name} is {_brief(value)!r}")


def _why(error: Exception) -> str:
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)


def _line(row: Mapping[str, Any]) -> str:
    whole = {**LATER, **row}
    return json.dumps({name: whole[name] for name in COLUMNS}, allow_nan=False) + "\n"


def _brief(value: Any) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) > 40 else text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
