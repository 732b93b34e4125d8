"""Archived logs: all runs below a folder as two Parquet files, from which every log comes back byte for byte.

FOLDER/logs.parquet    the rows of all logs in their order, with the folder of the run in front
FOLDER/runs.parquet    the folder of every run, and its run.json, with the names of sets in place of absolute paths

`vlm_probe.probes.trials` looks here for a run whose folder is not on the disk; so everything that reads runs reads archived ones as
well. Because logs come back byte for byte, the hash that a run noted when it ended still tells whether it was edited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_probe.probes.columns import COLUMNS, LOG, line_of
from vlm_probe.stimuli.errors import ProbeError, reading
from vlm_probe.stimuli.output import whole_file
from vlm_probe.stimuli.plain_json import dumps, parse

if TYPE_CHECKING:
    import pyarrow as pa

LOGS, RUNS = "logs.parquet", "runs.parquet"
FOLDER, RECORD = "folder", "run_json"
_PLAIN = {column.name: column.log for column in LOG if column.log in ("text", "number", "whole", "truth")}
"""Columns whose values Parquet holds as they are; all others are JSON in text."""


class ArchiveError(ProbeError, ValueError):
    """Logs cannot be archived, or an archive cannot be read; the message says which and what to do."""


def write_archive(out: Path, runs: Iterable[tuple[str, str, Sequence[Mapping[str, Any]], bytes]]) -> int:
    """Write the archive of some runs.

    Args:
        out: Folder of the archive; made if it is not there.
        runs: Folder (relative, as it will be named), text of run.json, rows, and the log that must come back.

    Returns:
        Number of rows.

    Raises:
        ArchiveError: If a log would not come back as it is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    records: dict[str, list[str]] = {FOLDER: [], RECORD: []}
    tables = []
    for folder, record, rows, log in runs:
        records[FOLDER].append(folder)
        records[RECORD].append(record)
        try:
            arrays = [_array(name, [row[name] for row in rows]) for name in COLUMNS]
        except (pa.ArrowException, KeyError) as error:
            raise ArchiveError(
                f"{folder}: its rows cannot be archived ({error}); do it anew with this version"
            ) from error
        made = pa.Table.from_arrays([pa.array([folder] * len(rows), pa.string()), *arrays], [FOLDER, *COLUMNS])
        if "".join(map(line_of, _rows(made))).encode() != log:
            raise ArchiveError(
                f"{folder}: its log would not come back as it is, since another version wrote it: score it anew with"
                " `probe score`, which writes it as this one does"
            )
        tables.append(made)
    if not tables:
        raise ArchiveError("there is no finished run to archive")
    out.mkdir(parents=True, exist_ok=True)
    rows_of_all = pa.concat_tables(tables)
    options = {"compression": "zstd", "compression_level": 19}
    for name, table in ((LOGS, rows_of_all), (RUNS, pa.table(records))):
        with whole_file(out / name) as partial:
            pq.write_table(table, partial, **options)
    _open.cache_clear()
    return int(rows_of_all.num_rows)


def archived_runs(folder: Path) -> list[Path]:
    """The runs of all archives below a folder, as the paths that they had."""
    return [
        path.parent / run
        for path in sorted(folder.rglob(RUNS))
        if (path.parent / LOGS).is_file()
        for run in _opened(path.parent).records
    ]


def archived_record(folder: Path) -> str | None:
    """The run.json of an archived run; None if there is no such run."""
    found = _find(folder)
    return None if found is None else found[0].records[found[1]]


def archived_rows(folder: Path) -> list[dict[str, Any]] | None:
    """The rows of an archived run; None if there is no such run. Raises ArchiveError if the archive is damaged."""
    found = _find(folder)
    with reading(f"the archive of {folder}", ArchiveError, "restore it"):
        return None if found is None else found[0].rows(found[1])


class _Archive:
    """An archive that is open: its tables in memory, which are small until they become rows."""

    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        with reading(folder / LOGS, ArchiveError, f"restore it, and {RUNS} next to it"):
            runs, self._logs = pq.read_table(folder / RUNS), pq.read_table(folder / LOGS)
            self.records: dict[str, str] = dict(zip(runs[FOLDER].to_pylist(), runs[RECORD].to_pylist(), strict=True))
            folders = self._logs[FOLDER].to_pylist()
            for name in self.records:
                if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
                    raise ValueError(f"it has a run {name!r}, which lies outside its folder")
        self._places: dict[str, tuple[int, int]] = {}
        for place, name in enumerate(folders):  # the rows of a run stand together
            start, n = self._places.get(name, (place, 0))
            self._places[name] = (start, n + 1)

    def rows(self, run: str) -> list[dict[str, Any]]:
        start, n = self._places.get(run, (0, 0))
        return _rows(self._logs.slice(start, n))


def _find(folder: Path) -> tuple[_Archive, str] | None:
    for parent in folder.parents:
        if (parent / LOGS).is_file() and (parent / RUNS).is_file():
            archive, name = _opened(parent), folder.relative_to(parent).as_posix()
            return (archive, name) if name in archive.records else None
    return None


def _opened(folder: Path) -> _Archive:
    facts = (folder / LOGS).stat(), (folder / RUNS).stat()
    return _open(folder.resolve(), tuple((stat.st_mtime_ns, stat.st_size) for stat in facts))


@lru_cache(maxsize=4)
def _open(folder: Path, state: tuple[tuple[int, int], ...]) -> _Archive:
    """`state`: so that an archive that was written again is read again."""
    return _Archive(folder)


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    types = {"text": pa.string(), "number": pa.float64(), "whole": pa.int64(), "truth": pa.bool_()}
    if name in _PLAIN:
        return pa.array(values, types[_PLAIN[name]])
    return pa.array([None if value is None else dumps(value, ascii_only=True) for value in values], pa.string())


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    names = [name for name in table.column_names if name != FOLDER]
    columns = [_values(table[name], None if name in _PLAIN else parse) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray, read: Callable[[str], Any] | None) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values if read is None else [None if value is None else read(value) for value in values]
