"""The tidy trial table: any number of runs, and external tables, as one row per trial that took place.

Every analysis starts here. Three rules hold for all of them. A trial that failed (a broken image, an error of the
model) never took place: it is left out, counted and listed by reason. A reply that states no legal answer took place and
was wrong: `correct`, `success` and `reward` are 0, and `status` says how reading it went. A trial that is there twice is
refused, because it would count as two observations.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.labels import natural_key
from vlm_probe.analysis.levels import TRANSFER, families, family_of
from vlm_probe.analysis.logs import GROUNDING, Source, find, read_log
from vlm_probe.analysis.training import CURVE_COLUMNS, read_curves
from vlm_probe.probes.trials import TABLE, TRIALS, Column
from vlm_probe.stimuli.errors import ProbeError, reading
from vlm_probe.stimuli.plain_csv import read_csv

METHODS = ("none", "sft", "ppo", "grpo", "rloo")
OBSERVERS = ("chance", "heuristic", "ideal", "noisy-simulation")
"""Models without weights (`vlm_probe.probes.models.observers`): reference lines, never a base that training starts from."""

COLUMNS = tuple(column.name for column in TABLE)
"""The columns of the table, all always present; `vlm_probe.probes.trials.TABLE` declares what they hold and mean."""

REQUIRED = tuple(column.name for column in TABLE if column.required)
"""What an external table must have; everything else has a default."""

_IDENTITY = ["run", "readout", "stimuli", "test_task", "item_id", "manner", "attempts", "memory", "attempt", "sample"]
_MISSING = frozenset(("", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None"))
"""What other programs write into a cell of a CSV that has no value."""

Place = Callable[[int], str]
"""Where the row of a table at a position is, in words."""


class FrameError(ProbeError, ValueError):
    """The trials cannot be made into one table; the message says why and what to do."""


NAMED = 3
"""Runs that are named one by one when trials of theirs are left out for the same reason."""


@dataclass(frozen=True)
class Dropped:
    """Trials that are not in the table, and why.

    Attributes:
        reason: Why.
        n: How many.
        source: The log or table that they are in.
    """

    reason: str
    n: int
    source: str


@dataclass(frozen=True)
class Trials:
    """The tidy table, and the outcome of everything that was read.

    Attributes:
        table: One row per trial, with `COLUMNS`, sorted; independent of the order in which runs were named.
        dropped: What is not in it, by reason and source.
        sources: The logs and tables that were read.
        curves: Curves of the training runs that were named, with `vlm_probe.analysis.training.CURVE_COLUMNS`.
    """

    table: pd.DataFrame
    dropped: tuple[Dropped, ...]
    sources: tuple[Source, ...]
    curves: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(CURVE_COLUMNS)))

    @property
    def notes(self) -> list[str]:
        """What a reader has to know about the data: what was dropped, and runs that are not finished."""
        lines = []
        for reason in dict.fromkeys(d.reason for d in self.dropped):
            own = [d for d in self.dropped if d.reason == reason]
            if len(own) > NAMED:
                n = sum(d.n for d in own)
                lines.append(f"{n} trials of {len(own)} runs, {own[0].source} first, left out ({reason})")
            else:
                lines += [f"{d.n} trials of {d.source} left out ({reason})" for d in own]
        lines += [
            f"{source.path} was edited by hand before it was finished" for source in self.sources if source.edited
        ]
        for source in self.sources:
            if source.expected is not None and source.n < source.expected:
                lines.append(f"{source.path} is not finished: {source.n} of {source.expected} trials")
        return lines


def load(paths: Iterable[str | Path]) -> Trials:
    """Read runs and tables.

    Args:
        paths: Folders of runs, folders that hold runs, folders of adapters (for the curves of their training), and tables
            (.csv or .parquet) with the columns of this module, of which `REQUIRED` must be there.

    Raises:
        FrameError: If there are none, a table lacks something, or a trial is there twice.
        RunError: If a folder holds no run, or its log is damaged or was edited.
    """
    tables: list[tuple[pd.DataFrame, Counter[str], Source]] = []
    logs: list[tuple[pd.DataFrame, Counter[str], Source]] = []
    curves: list[tuple[Path, pd.DataFrame]] = []
    for path in _different(paths):
        if not path.exists():
            raise FrameError(f"{path} does not exist: name folders that `probe run` made, or a table (.csv, .parquet)")
        if path.is_file():
            tables.append(_read_table(path))
        else:
            runs, trainings = find(path)
            curves += [(folder, read_curves(folder)) for folder in trainings]
            logs += map(read_log, runs)
    if not tables and not logs:
        raise FrameError("no runs given: name the folders that `probe run` made")
    parts = [table for table, _, _ in tables]
    if logs:
        logged = _together([table for table, _, _ in logs])
        parts.append(checked(logged, lambda at: f"{_log_of(logged, at)}, trial of {logged['item_id'].iloc[at]}"))
    sources = [source for _, _, source in (*tables, *logs)]
    dropped = [
        Dropped(reason, n, source.path) for _, lost, source in (*tables, *logs) for reason, n in sorted(lost.items())
    ]
    table, repeated = _without_repeats(_named(_together(parts)))
    dropped += repeated
    _refuse_doubles(table)
    return Trials(
        table=_typed(table),
        dropped=tuple(sorted(dropped, key=lambda d: (d.source, d.reason))),
        sources=tuple(sorted(sources, key=lambda source: source.path)),
        curves=_joined(curves),
    )


def _together(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def _log_of(table: pd.DataFrame, at: int) -> Path:
    return Path(table["folder"].iloc[at]) / TRIALS


def _joined(curves: Sequence[tuple[Path, pd.DataFrame]]) -> pd.DataFrame:
    """Curves of all training runs as one table.

    A training whose record lies in two folders, as merging leaves it, has one curve; training runs that would be called alike, since they
    differ in something that no name tells, get that of their folder.
    """
    alike: dict[str, list[tuple[Path, pd.DataFrame]]] = {}
    for folder, curve in curves:
        if len(curve):
            others = alike.setdefault(str(curve["run"].iloc[0]), [])
            if not any(curve.equals(other) for _, other in others):
                others.append((folder, curve))
    known = [
        curve if len(same) == 1 else curve.assign(run=f"{run} ({folder.name})")
        for run, same in alike.items()
        for folder, curve in same
    ]
    if not known:
        return pd.DataFrame(columns=list(CURVE_COLUMNS))
    return pd.concat(known, ignore_index=True).sort_values(["run", "samples"], kind="stable", ignore_index=True)


def from_table(table: pd.DataFrame) -> Trials:
    """The tidy table from a table in memory that has at least `REQUIRED`.

    Raises:
        FrameError: As `load`.
    """
    filled, lost = _filled(table, "the table", _row_of("the table"))
    _refuse_doubles(filled)
    digest = hashlib.sha256(
        pd.util.hash_pandas_object(filled[list(COLUMNS)], index=False).to_numpy().tobytes()
    ).hexdigest()
    dropped = tuple(Dropped(reason, n, "the table") for reason, n in sorted(lost.items()))
    return Trials(_typed(filled), dropped, (Source("the table", digest, len(table)),))


def _different(paths: Iterable[str | Path]) -> list[Path]:
    """Paths in a fixed order, each once."""
    found = {Path(path).resolve(): Path(path) for path in paths}
    return [found[place] for place in sorted(found)]


def _read_table(path: Path) -> tuple[pd.DataFrame, Counter[str], Source]:
    with reading(path, FrameError, "give a trial table as a .csv or .parquet file"):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            table, place = pd.read_parquet(io.BytesIO(data)), _row_of(str(path))
        else:
            table, place = _from_csv(path, data)
    filled, lost = _filled(table, str(path), place)
    return filled.assign(folder=str(path)), lost, Source(str(path), hashlib.sha256(data).hexdigest(), len(table))


def _from_csv(path: Path, data: bytes) -> tuple[pd.DataFrame, Place]:
    """The cells of a CSV as texts, None where there is no value, so that ids and answers stay as they are written."""
    header, rows = read_csv(data.decode("utf-8-sig"))
    found = list(rows)
    columns = list(zip(*(cells for _, cells in found), strict=True)) or [()] * len(header)
    table = {
        name: [None if cell in _MISSING else cell for cell in cells]
        for name, cells in zip(header, columns, strict=True)
    }
    return pd.DataFrame(table, dtype=object), lambda at: f"{path}, row {at + 1} (line {found[at][0]})"


def _row_of(name: str) -> Place:
    return lambda at: f"{name}, row {at + 1}"


def _filled(table: pd.DataFrame, name: str, place: Place) -> tuple[pd.DataFrame, Counter[str]]:
    """An external table with every column, checked, and what had to be left out of it."""
    double = table.columns[table.columns.duplicated()]
    if len(double):
        raise FrameError(f"{name} has two columns called {double[0]!r}: give each a name of its own")
    missing = [column for column in REQUIRED if column not in table]
    if missing:
        raise FrameError(
            f"{name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: a trial table needs"
            f" {', '.join(REQUIRED)}, and may have {', '.join(c for c in COLUMNS if c not in REQUIRED)}"
        )
    filled = checked(table.reset_index(drop=True), place)
    scored = filled["correct"].notna()
    lost: Counter[str] = Counter({"no score in `correct`": int((~scored).sum())} if not scored.all() else {})
    filled = filled[scored]
    for column in ("success", "reward"):
        filled[column] = filled[column].fillna(filled["correct"].astype(filled[column].dtype))
    if filled["test_family"].isna().any():
        own = filled["test_task"].map({task: family_of(task) for task in filled["test_task"].unique()})
        filled["test_family"] = filled["test_family"].fillna(own)
    if filled["train_family"].isna().any():
        tasks = filled["train_tasks"].unique()
        own = filled["train_tasks"].map({t: "none" if t == "none" else families(t.split("+")) for t in tasks})
        filled["train_family"] = filled["train_family"].fillna(own)
    return filled, lost


def checked(table: pd.DataFrame, place: Place) -> pd.DataFrame:
    """A table with every declared column, as it holds its values; other columns are left as they are.

    Args:
        table: With some of the columns.
        place: Says where a row is.

    Raises:
        FrameError: If a value is not allowed in its column; the message names the row, the column and the range.
    """
    columns = {column.name: _values(column, table, place) for column in TABLE}
    others = [name for name in table.columns if name not in columns]
    return pd.concat([pd.DataFrame(columns, index=table.index), table[others]], axis=1)


def _values(column: Column, table: pd.DataFrame, place: Place) -> pd.Series:
    """The values of a column, each different one looked at once."""
    kind: Any = {"number": float, "text": object}.get(column.table or "", "Int64" if column.default is None else int)
    if column.name not in table:
        return pd.Series([column.read(None)] * len(table), index=table.index, dtype=kind)
    cells = table[column.name].astype(object)
    cells = cells.where(cells.notna(), None)
    try:
        codes, different = pd.factorize(cells.to_numpy(), use_na_sentinel=False)
    except TypeError:  # of lists as cells
        codes, different = np.arange(len(cells)), cells.to_numpy()
    values = []
    for code, value in enumerate(different):
        try:
            # The codes of missing values lead to a nan.
            values.append(column.read(None if isinstance(value, float) and math.isnan(value) else value))
        except ValueError as error:
            at = int(np.flatnonzero(codes == code)[0])
            fix = "correct it" if column.needed else "correct it, or leave it empty"
            raise FrameError(f"{place(at)}, column {column.name}: {error}; {fix}") from error
    return pd.Series(np.array([*values, None], dtype=object)[codes], index=table.index, dtype=kind)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with runs told apart: two that would be called alike (other weights, say) get a piece of their hash."""
    if "identity" not in table:
        return table
    kinds = table[["run", "identity"]].drop_duplicates()
    doubled = kinds.loc[kinds["run"].duplicated(keep=False) & kinds["identity"].notna()]
    names = {identity: f"{run} #{identity[:6]}" for run, identity in doubled.itertuples(index=False)}
    return table.assign(run=table["identity"].map(names).fillna(table["run"])) if names else table


def _without_repeats(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Dropped]]:
    """The table without trials that a battery of controls has asked again, with the same answer.

    Every battery asks the plain question again, to compare with, and begins with grounding questions; where another run of
    the model has asked them as well, they are the same trials, and count once. Any other repetition is a mistake, for
    `_refuse_doubles`.
    """
    if "key" not in table:
        return table, []
    doubled = table[table["key"].notna() & table["key"].duplicated(keep=False)]
    manners = table.groupby("folder", observed=True)["manner"].nunique()
    battery = (doubled["folder"].map(manners) > 1) & (doubled["manner"] == "")
    again = battery | (doubled["folder"].map(lambda folder: Path(folder).name) == GROUNDING)
    ordered = doubled.assign(_again=again).sort_values(["_again", "folder"], kind="stable")
    repeats = ordered[ordered["key"].duplicated() & ordered["_again"]]
    first = ordered.drop_duplicates("key").set_index("key").loc[repeats["key"]]
    # A reply that could not be read has no answer, and two missing values are not equal.
    then, now = (t[["answer", "status", "success"]].astype(object).fillna("") for t in (first, repeats))
    same = (then.astype(str).to_numpy() == now.astype(str).to_numpy()).all(axis=1)
    repeats = repeats[same]
    reason = "plain or grounding trials that another run has as well, with the same answer"
    counts = repeats.groupby("folder", observed=True, sort=True).size()
    dropped = [Dropped(reason, int(n), str(folder)) for folder, n in counts.items()]
    return table.drop(index=repeats.index), dropped


def _refuse_doubles(table: pd.DataFrame) -> None:
    """Raise FrameError if a trial is there twice: the same key in two logs, or the same everything in a table."""
    for columns in (["key"], _IDENTITY):
        if columns[0] not in table:
            continue
        candidates = table[table[columns[0]].notna()] if columns == ["key"] else table
        twice = candidates[candidates.duplicated(columns, keep=False)]
        if len(twice):
            first = twice.iloc[0]
            same = twice[(twice[columns] == first[columns]).all(axis=1)]
            places = " and ".join(dict.fromkeys(same["folder"].dropna().astype(str)))
            raise FrameError(
                f"{int(candidates.duplicated(columns).sum())} trials are there twice, such as {first['item_id']} of"
                f" {first['run']}{f' in {places}' if places else ''}: give every run once (in a table, tell repeated"
                " presentations apart by `sample` or `attempt`)"
            )


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Columns in their order with their types, rows in an order that does not depend on how they were read."""
    table = table.assign(observer=table["model"].isin(OBSERVERS).astype(int))
    columns: dict[str, Any] = {}
    for column in TABLE:
        name, values = column.name, table[column.name]
        if column.table != "text":
            columns[name] = values.astype(int) if column.table == "truth" else values
        else:
            levels = [str(level) for level in pd.unique(values.dropna())]
            columns[name] = pd.Categorical(values, _ordered(name, levels), ordered=name in ("transfer", "margin_bin"))
    tidy = pd.DataFrame(columns)
    # Runs in the order of their training runs, the untrained model first; so are all tables and figures.
    of_run = tidy.drop_duplicates("run").sort_values(["model", "method", "train_tasks", "regime", "seed", "run"])
    tidy["run"] = tidy["run"].cat.reorder_categories([str(run) for run in of_run["run"]])
    return tidy.sort_values(_IDENTITY, kind="stable", ignore_index=True)


def _ordered(name: str, levels: Sequence[str]) -> list[str]:
    """The levels of a factor in the order in which tables and figures show them."""
    fixed = {"method": METHODS, "transfer": TRANSFER}.get(name, ("none", ""))
    known = [level for level in fixed if level in levels]
    return known + sorted(set(levels) - set(known), key=_by_number if name == "margin_bin" else natural_key)


def _by_number(level: str) -> tuple[float, str]:
    number = re.match(r"[+-]?(\d+\.?\d*|\.\d+)", level, re.ASCII)
    return (float(number.group()) if number else float("inf"), level)
