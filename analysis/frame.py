"""The tidy trial table: any number of runs, and tables of other people, as one row per trial that took place.

Every analysis starts here. Three rules hold for all of them. A trial that failed (a broken picture, an error of the
model) never took place: it is left out, counted and listed by reason. A reply that states no legal answer took place and
was wrong: `correct`, `success` and `reward` are 0, and `status` says how reading it went. A trial that is there twice is
refused, because it would count as two observations.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vlm_probe.analysis.labels import natural_key
from vlm_probe.analysis.levels import TRANSFER, families, family_of
from vlm_probe.analysis.logs import GROUNDING, Source, find, read_log
from vlm_probe.analysis.training import CURVE_COLUMNS, read_curves
from vlm_probe.stimuli.errors import ProbeError, reading

METHODS = ("none", "sft", "ppo", "grpo", "rloo")
OBSERVERS = ("chance", "heuristic", "ideal", "noisy-simulation")
"""Models without weights (`vlm_probe.probes.models.observers`): reference lines, never a base that training starts from."""

COLUMNS = (
    "run",
    "model",
    "method",
    "train_tasks",
    "train_family",
    "regime",
    "seed",
    "samples",
    "test_task",
    "test_family",
    "shift",
    "shift_level",
    "transfer",
    "item_id",
    "pair_id",
    "group_id",
    "role",
    "margin",
    "margin_bin",
    "mirrored",
    "count",
    "build",
    "polarity",
    "order",
    "manner",
    "examples",
    "readout",
    "attempt",
    "attempts",
    "memory",
    "sample",
    "answer",
    "truth",
    "signal",
    "correct",
    "success",
    "reward",
    "p_correct",
    "confidence",
    "chance",
    "status",
    "observer",
    "stimuli",
    "folder",
)
"""The columns of the table, all always present.

run: who answered: one trained adapter, or one untrained model (of one that is sampled, one seed); the unit between which
methods are compared, whatever number of folders it has. method: "none" if untrained. train_tasks, train_family: joined by
"+", "none" if untrained. regime: what else was special about the training, empty if nothing. seed: of the training, or of
sampling. samples: that the training has seen. shift, shift_level: names joined by "+", and the highest grade; "none" and 0.
transfer: see `vlm_probe.analysis.levels.transfer_level`; missing if untrained. margin: signed, dimensionless. margin_bin: ordered.
mirrored: 0 or 1. polarity, order: of the wording. manner: empty for the plain one. examples: number of worked examples.
attempt: 1 for the first, of at most `attempts`. memory: what of earlier attempts was told. sample: seed of sampled replies, 0 for greedy ones. answer, truth: as text; answer is missing if
unread. signal: the answer that signal detection and psychometric functions count, of a two-option judgement. correct,
success: 0 or 1. reward, p_correct, chance: in [0, 1]. confidence: probability of the answer given among all legal ones, where
they were scored. status: "ok" if an answer was read. observer: whether the model is one
without weights. stimuli: hash of the set. folder: where the trial is logged.
"""

REQUIRED = ("run", "test_task", "item_id", "correct")
"""What a table of other people must have; everything else has a default."""

_NUMBERS = ("margin", "reward", "p_correct", "confidence", "chance", "samples")
_COUNTS = (
    "seed",
    "shift_level",
    "mirrored",
    "examples",
    "attempt",
    "attempts",
    "sample",
    "correct",
    "success",
    "observer",
)
_MAYBE_COUNTS = ("count", "polarity", "order")
_DEFAULTS: dict[str, Any] = {
    "model": "",
    "method": "none",
    "train_tasks": "none",
    "regime": "",
    "seed": 0,
    "shift": "none",
    "shift_level": 0,
    "mirrored": 0,
    "manner": "",
    "examples": 0,
    "readout": "generate",
    "attempt": 1,
    "attempts": 1,
    "memory": "none",
    "sample": 0,
    "status": "ok",
    "stimuli": "",
}
_IDENTITY = ["run", "readout", "stimuli", "test_task", "item_id", "manner", "attempts", "memory", "attempt", "sample"]


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
    """The tidy table, and what became of everything that was read.

    Attributes:
        table: One row per trial, with `COLUMNS`, sorted; independent of the order in which runs were named.
        dropped: What is not in it, by reason and source.
        sources: The logs and tables that were read.
        curves: Curves of the trainings that were named, with `vlm_probe.analysis.training.CURVE_COLUMNS`.
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
    parts: list[pd.DataFrame] = []
    curves: list[tuple[Path, pd.DataFrame]] = []
    dropped: list[Dropped] = []
    sources: list[Source] = []
    for path in _different(paths):
        if not path.exists():
            raise FrameError(f"{path} does not exist: name folders that `probe run` made, or a table (.csv, .parquet)")
        runs, trainings = ([], []) if path.is_file() else find(path)
        curves += [(folder, read_curves(folder)) for folder in trainings]
        for table, lost, source in [_read_table(path)] if path.is_file() else map(read_log, runs):
            parts.append(table)
            sources.append(source)
            dropped += [Dropped(reason, n, source.path) for reason, n in sorted(lost.items())]
    if not parts:
        raise FrameError("no runs given: name the folders that `probe run` made")
    table = _named(pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True))
    table, repeated = _without_repeats(table)
    dropped += repeated
    _refuse_doubles(table)
    return Trials(
        table=_typed(table),
        dropped=tuple(sorted(dropped, key=lambda d: (d.source, d.reason))),
        sources=tuple(sorted(sources, key=lambda source: source.path)),
        curves=_joined(curves),
    )


def _joined(curves: Sequence[tuple[Path, pd.DataFrame]]) -> pd.DataFrame:
    """Curves of all trainings as one table.

    A training whose record lies in two folders, as merging leaves it, has one curve; trainings that would be called alike, since they
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
    filled, lost = _filled(table, "the table")
    _refuse_doubles(filled)
    digest = hashlib.sha256(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes()).hexdigest()
    dropped = tuple(Dropped(reason, n, "the table") for reason, n in sorted(lost.items()))
    return Trials(_typed(filled), dropped, (Source("the table", digest, len(table)),))


def _different(paths: Iterable[str | Path]) -> list[Path]:
    """Paths in a fixed order, each once."""
    found = {Path(path).resolve(): Path(path) for path in paths}
    return [found[place] for place in sorted(found)]


def _read_table(path: Path) -> tuple[pd.DataFrame, Counter[str], Source]:
    with reading(path, FrameError, "give a trial table as a .csv or .parquet file"):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, keep_default_na=True)
        filled, lost = _filled(table, str(path))
        return filled.assign(folder=str(path)), lost, Source(str(path), sha256, len(table))


def _filled(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, Counter[str]]:
    """A table of other people with every column, and what had to be left out of it."""
    missing = [column for column in REQUIRED if column not in table]
    if missing:
        raise FrameError(
            f"{name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: a trial table needs"
            f" {', '.join(REQUIRED)}, and may have {', '.join(c for c in COLUMNS if c not in REQUIRED)}"
        )
    lost: Counter[str] = Counter()
    scored = pd.to_numeric(table["correct"], errors="coerce")
    odd = scored.notna() & ~scored.isin([0, 1])
    if odd.any():
        raise FrameError(f"{name}: `correct` must be 0 or 1, found {scored[odd].iloc[0]:g} in row {odd.idxmax()}")
    if scored.isna().any():
        lost["no score in `correct`"] = int(scored.isna().sum())
    filled = table[scored.notna()].assign(correct=scored[scored.notna()].astype(int))
    # Parquet keeps categories, and a category that a table lacks cannot be filled in.
    categorical = filled.select_dtypes("category").columns
    filled = filled.astype(dict.fromkeys(categorical, object))
    for column, value in _DEFAULTS.items():
        filled[column] = filled[column].fillna(value) if column in filled else value
    for column in ("success", "reward"):
        filled[column] = filled[column].fillna(filled["correct"]) if column in filled else filled["correct"]
    if "test_family" not in filled:
        filled["test_family"] = filled["test_task"].map(lambda task: family_of(str(task)))
    if "train_family" not in filled:
        tasks = filled["train_tasks"].astype(str)
        filled["train_family"] = tasks.map(
            {t: "none" if t == "none" else families(t.split("+")) for t in tasks.unique()}
        )
    for column in COLUMNS:
        if column not in filled and column != "observer":
            filled[column] = None
    return filled, lost


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with runs told apart: two that would be called alike (other weights, say) get a piece of their hash."""
    if "identity" not in table:
        return table
    kinds = table[["run", "identity"]].drop_duplicates()
    doubled = kinds.loc[kinds["run"].duplicated(keep=False) & kinds["identity"].notna()]
    names = {identity: f"{run} #{identity[:6]}" for run, identity in doubled.itertuples(index=False)}
    return table.assign(run=table["identity"].map(names).fillna(table["run"])) if names else table


def _without_repeats(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Dropped]]:
    """The table without trials that a battery of controls has asked once more, with the same answer.

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
    table = table.assign(observer=table["model"].isin(OBSERVERS))
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        values = table[name]
        if name in (*_NUMBERS, *_COUNTS, *_MAYBE_COUNTS):
            kind: Any = float if name in _NUMBERS else int if name in _COUNTS else "Int64"
            try:
                columns[name] = pd.to_numeric(values).astype(kind)
            except (ValueError, TypeError, OverflowError) as error:
                raise FrameError(f"`{name}` must hold {'' if kind is float else 'whole '}numbers: {error}") from error
        else:
            texts = values.astype(object).where(values.notna(), None)
            levels = [str(level) for level in pd.unique(texts) if level is not None]
            columns[name] = pd.Categorical(
                texts.map(str, na_action="ignore"), _ordered(name, levels), ordered=name in ("transfer", "margin_bin")
            )
    tidy = pd.DataFrame(columns)
    # Runs in the order of their trainings, the untrained model first; so are all tables and figures.
    of_run = tidy.drop_duplicates("run").sort_values(["model", "method", "train_tasks", "regime", "seed", "run"])
    tidy["run"] = tidy["run"].cat.reorder_categories([str(run) for run in of_run["run"]])
    return tidy.sort_values(_IDENTITY, kind="stable", ignore_index=True)


def _ordered(name: str, levels: Sequence[str]) -> list[str]:
    """The levels of a factor in the order in which tables and figures show them."""
    fixed = {"method": METHODS, "transfer": TRANSFER}.get(name, ("none", ""))
    known = [level for level in fixed if level in levels]
    return known + sorted(set(levels) - set(known), key=_by_number if name == "margin_bin" else natural_key)


def _by_number(level: str) -> tuple[float, str]:
    number = re.match(r"[+-]?[0-9.]+", level)
    return (float(number.group()) if number else float("inf"), level)
