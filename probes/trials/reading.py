"""Reading runs: their rows and their run.json, from the disk or from an archive, checked on the way, and whether they were edited."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_probe.probes.columns import COLUMNS, NATURAL, Kinds, check_kinds, line_of, read_row, row_of
from vlm_probe.probes.trials.archive import ArchiveError, archived_record, archived_rows, archived_runs
from vlm_probe.stimuli.errors import ProbeError, is_text, reading
from vlm_probe.stimuli.output import files_of
from vlm_probe.stimuli.plain_json import parse_object

if TYPE_CHECKING:
    import pandas as pd


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


_RUN_KINDS: Kinds = {
    **dict.fromkeys(("status", "trials_sha256"), (str, type(None))),
    **dict.fromkeys(("config", "model", "stimuli", "versions", "fingerprint", "observed"), (dict,)),
    **dict.fromkeys(("training", "git", "hardware"), (dict, type(None))),
    **dict.fromkeys(("n", "n_errors", "resumed", "seed"), (int,)),
    "edited": (list,),
    "moment": (str,),
}
"""What the entries of `run.json` hold that the program reads."""


def read_trials(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run, one per trial: of a trial that was asked again, the last, but no error in place of an answer.

    A torn last line, as a run that is going on or was killed may have, is left out.

    Raises:
        RunError: If there is no log, or a line in its middle is damaged.
    """
    path = Path(folder) / TRIALS
    if path.is_file():
        logs = [read_log(file)[0] for file in (path, *shards(Path(folder)))]
    else:
        found = in_archive(archived_rows, folder)
        if found is None:
            raise RunError(f"{folder} is not a run: it has no {TRIALS}; make one with `probe run --out {folder}`")
        logs = [[_archived(folder, number, row) for number, row in enumerate(found, 1)]]
    rows: dict[str, dict[str, Any]] = {}
    for row in (row for log in logs for row in log):
        if row["error"] is None or rows.get(row["key"], row)["error"] is not None:
            rows[row["key"]] = row
    return list(rows.values())


def _archived(folder: str | Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    try:
        return read_row(row)
    except ValueError as error:
        raise RunError(f"the archived log of {folder}, row {number}: damaged ({error}); restore it") from error


def read_run(folder: str | Path) -> dict[str, Any]:
    """The contents of a run's `run.json`.

    Raises:
        RunError: If it is missing or damaged.
    """
    path = Path(folder) / RUN
    text = None if path.is_file() else in_archive(archived_record, folder)
    if text is None and not path.exists():
        raise RunError(f"{folder} is not a run: it has no {RUN}; make one with `probe run --out {folder}`")
    with reading(path, RunError, "restore it, or make the run again with another --out"):
        run = parse_object(path.read_bytes() if text is None else text)
        check_kinds(run, _RUN_KINDS)
        for name in ("n", "n_errors", "resumed", "seed"):
            NATURAL.check(name, run.get(name, 0))
    return run


def parser_of(run: Mapping[str, Any]) -> str:
    """The version of the parser that has read a run's replies; "1" of a run that does not say.

    Args:
        run: The contents of its `run.json`.
    """
    return str(run.get("versions", {}).get("parser", "1"))


def is_run(folder: str | Path) -> bool:
    """Whether a folder, on the disk or in an archive, is one of a run."""
    return (Path(folder) / TRIALS).is_file() or in_archive(archived_record, folder) is not None


def runs_below(folder: str | Path) -> list[Path]:
    """The folders of all runs below a folder, on the disk and in archives, sorted."""
    found = {path.parent for path in Path(folder).rglob(TRIALS)} | set(in_archive(archived_runs, folder))
    for path in found:
        if not is_text(str(path)):
            raise RunError(f"the run {path} has a name that is not UTF-8: rename its folder")
    return sorted(found)


def load_frame(folders: Iterable[str | Path]) -> pd.DataFrame:
    """The trials of several runs as one table.

    Args:
        folders: The runs.

    Returns:
        A row per trial. Next to `COLUMNS` it has `run` (the folder's path), `adapter` (hash, or ""), `seed`, and every entry
        of `condition`, `variant` and `manner` as a column of its own (`condition_count`, `variant_polarity`,
        `manner_control`, ...).

    Raises:
        RunError: If a folder holds no run, or a damaged one.
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


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All whole rows of one file, as they were appended: a trial that was asked again has several.

    Returns:
        The rows, and where they end (bytes).

    Raises:
        RunError: If a line in its middle is damaged.
        OSError: If it cannot be read.
    """
    data = path.read_bytes()
    rows: list[dict[str, Any]] = []
    end = 0
    while (newline := data.find(b"\n", end)) >= 0:
        try:
            rows.append(row_of(data[end:newline]))
        except ValueError as error:
            # A power cut can leave a block of zeros at the end; anywhere else, and in a whole row, this is not our doing.
            if data.find(b"\n", newline + 1) < 0 and not data[end:newline].rstrip().endswith(b"}"):
                break
            raise RunError(
                f"{path}, line {len(rows) + 1}: damaged ({error}); remove the line to have its trial asked again"
            ) from error
        end = newline + 1
    return rows, end


def in_archive(look: Callable[[Path], Any], folder: str | Path) -> Any:
    """What an archive says of a folder.

    Args:
        look: One of the functions of `vlm_probe.probes.trials.archive`.
        folder: Of a run, or of many.

    Raises:
        RunError: If the archive is damaged.
    """
    try:
        return look(Path(folder))
    except ArchiveError as error:
        raise RunError(str(error)) from error


log = logging.getLogger(__name__)


def trials_hash(folder: str | Path) -> str:
    """SHA-256 of a run's log. `run.json` keeps it when a run ends, so that a log edited by hand can be told.

    Raises:
        RunError: If the log cannot be read.
    """
    path = Path(folder) / TRIALS
    rows = None if path.is_file() else in_archive(archived_rows, folder)
    if rows is not None:
        try:
            return hashlib.sha256("".join(map(line_of, rows)).encode()).hexdigest()
        except ValueError as error:
            raise RunError(f"the archived log of {folder} is damaged ({error}): restore it") from error
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


def was_edited(run: Mapping[str, Any], found: str) -> bool:
    """Whether a log is not the one that its run left when it last ended.

    Args:
        run: The contents of its `run.json`.
        found: The hash of the log.
    """
    noted = run.get("trials_sha256")
    return bool(noted) and run.get("status") != "running" and noted != found


def noting_edits(folder: Path, run: dict[str, Any], found: str = "") -> dict[str, Any]:
    """The entries of `run.json`, with a note for good where the log was edited: a new hash must not make it forgotten.

    Args:
        folder: Of the run.
        run: The contents of its `run.json`.
        found: The hash of the log, if it is known already.

    Raises:
        RunError: If the log cannot be read.
    """
    if not run.get("trials_sha256") or not (folder / TRIALS).is_file():
        return run
    found = found or trials_hash(folder)
    if not was_edited(run, found):
        return run
    log.warning("%s was edited after the run had ended: noted in its %s", folder / TRIALS, RUN)
    return run | {"edited": [*run.get("edited", ()), {"noted": run["trials_sha256"], "found": found}]}
