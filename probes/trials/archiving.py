"""Archiving runs: their logs, whole and unchanged, into an archive from which they are read as if they were still there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlm_probe.probes.archive import ArchiveError, write_archive
from vlm_probe.probes.trials.folder import RUN, TRIALS, RunError
from vlm_probe.probes.trials.reading import read_log, read_run
from vlm_probe.stimuli.plain_json import dumps, parse


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
