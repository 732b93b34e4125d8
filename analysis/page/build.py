"""Building the page: the data of runs as one JSON block, images as another, next to the page's own script and style."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from vlm_probe.analysis.frame import METHODS, OBSERVERS, Trials, load
from vlm_probe.analysis.labels import test_name, training_name
from vlm_probe.analysis.logs import Source
from vlm_probe.analysis.material import Settings, select
from vlm_probe.analysis.page.motion import Motions, motion_key
from vlm_probe.analysis.page.pictures import KEY, Pictures
from vlm_probe.analysis.page.trials import Shown, is_mirrored, shown_trials
from vlm_probe.analysis.result import plain
from vlm_probe.analysis.sets import find_sets
from vlm_probe.analysis.style import look
from vlm_probe.analysis.transfer import transfer_matrix
from vlm_probe.probes.trials import is_run, read_run
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.plain_json import dumps

ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def script_json(data: Any) -> str:
    """JSON for a `<script>` block: ASCII, and without the characters that could end the block or open a tag.

    Raises:
        ValueError: If the data holds a number that JSON does not have.
    """
    text = dumps(data, compact=True, ascii_only=True)
    # None of them is part of JSON's own syntax, so they occur within strings only, where the escape means the same.
    for character, escaped in ESCAPED.items():
        text = text.replace(character, escaped)
    return text


def packed(values: Iterable[Hashable]) -> dict[str, Any]:
    """A column as its different values (`levels`, by first occurrence) and which of them each row has (`codes`)."""
    levels: dict[Hashable, int] = {}
    codes = [levels.setdefault(value, len(levels)) for value in values]
    return {"levels": list(levels), "codes": codes}


def packed_columns(rows: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Attributes of objects as packed columns by name."""
    return {name: packed(getattr(row, name) for row in rows) for name in names}


SCRIPTS = ("data.js", "tables.js", "chart.js", "gallery.js", "detail.js", "main.js")
"""Files in `analysis/page/assets`, one after the other in one scope."""
CELLS = (
    "model",
    "transfer",
    "estimate",
    "estimate_low",
    "estimate_high",
    "difference",
    "difference_low",
    "difference_high",
    "p_holm",
    "verdict",
    "n_runs",
    "n_trials",
)
"""What the page says of a cell of the transfer matrix, from `vlm_probe.analysis.transfer`."""


@dataclass(frozen=True)
class Page:
    """A page, ready to be written or served.

    Attributes:
        html: All of it.
        n_trials, n_pictures, n_motions: What is in it.
        notes: What a reader has to know about the data.
    """

    html: str
    n_trials: int
    n_pictures: int
    n_motions: int
    notes: tuple[str, ...]


def build(paths: Iterable[str | Path], pictures: Pictures, motions: Motions, stamp: str = "") -> Page:
    """The page of runs and tables.

    Args:
        paths: As for `vlm_probe.analysis.frame.load`.
        pictures, motions: What is known of them already, and how many there may be.
        stamp: Of the state of the logs, where the page is served and may ask whether there is news; empty in a file.

    Raises:
        FrameError: If the runs cannot be made into one table.
        RunError: If a folder holds no run.
    """
    trials = load(paths)
    sets = find_sets(trials)
    items = _items(trials, sets)
    shown = list(shown_trials(trials, {key: item.question.grammar for key, item in items.items()}))
    found = pictures.collect(shown, sets, items)
    moved = motions.collect(shown, items)
    notes = (*trials.notes, *_missing(trials, sets))
    names = [field.name for field in fields(Shown)]
    data = {
        "format": 1,
        "stamp": stamp,
        "notes": notes,
        "n": len(shown),
        "key": KEY,
        "columns": packed_columns(shown, names)
        | {"motion": packed(map(motion_key, shown)), "works": _works(shown, items)},
        "sources": [_source(source, trials) for source in trials.sources],
        "transfer": _transfer(trials),
        "motions": {key: [motion.picture, motion.words] for key, motion in moved.items()},
    }
    return Page(_html(data, found, bool(stamp)), len(shown), len(found), len(moved), notes)


def _items(trials: Trials, sets: Mapping[str, StimulusSet]) -> dict[tuple[str, str], Item]:
    """The items that were asked, by set and id, of the sets that are there."""
    asked = trials.table[["stimuli", "item_id"]].drop_duplicates().astype(str)
    wanted = {code: set(rows["item_id"]) for code, rows in asked.groupby("stimuli")}
    return {
        (code, str(row["item_id"])): Item.from_row(row)
        for code, stimuli in sets.items()
        for row in stimuli.rows()
        if str(row["item_id"]) in wanted.get(code, ())
    }


def _missing(trials: Trials, sets: Mapping[str, StimulusSet]) -> list[str]:
    """Which sets are not where their runs found them, so that the page has no images of their trials."""
    gone = {s.set_path: None for s in trials.sources if s.set_path and s.stimuli[:12] not in sets}
    return [f"no pictures of {path}: the set is not there, seen from this folder, or is another one" for path in gone]


def _works(shown: Iterable[Shown], items: Mapping[tuple[str, str], Item]) -> dict[str, Any]:
    """Of every trial, the answers that work, as the item's certificate has them; empty where it has none."""
    return packed(
        "; ".join(", ".join(map(str, w)) if isinstance(w, list | tuple) else str(w) for w in working)
        if not is_mirrored(trial)
        and (item := items.get((trial.stimuli, trial.item)))
        and (working := item.certificate.get("working"))
        else ""
        for trial in shown
    )


def _source(source: Source, trials: Trials) -> dict[str, Any]:
    """A log: who answered in it, what its set can be scored at without physics, and everything that `run.json` says."""
    rows = trials.table[trials.table["folder"] == source.path]
    first = rows.iloc[0] if len(rows) else None
    record = read_run(source.path) if is_run(source.path) else {}
    baselines = source.baselines or {}
    name = str(first["run"]) if first is not None else source.model or source.path
    training = "" if first is None else _training(first, trials)
    method = "none" if first is None else str(first["method"])
    observer = first is not None and bool(first["observer"])
    return {
        "path": source.path,
        "run": name,
        "training": training,
        "observer": observer,
        "colour": _colour(method, observer),
        "place": len(METHODS) if observer or method not in METHODS else METHODS.index(method),
        "levels": {
            test_name(task, shift, grade): str(level)
            for task, shift, grade, level in rows[["test_task", "shift", "shift_level", "transfer"]]
            .drop_duplicates()
            .dropna()
            .itertuples(index=False)
        },
        "n": source.n,
        "expected": source.expected,
        "status": str(record.get("status", "")),
        "shortcuts": dict(baselines.get("shortcuts") or {}),
        "facts": dumps(_facts(record, source), indent=1),
    }


def _training(row: Mapping[Hashable, Any] | pd.Series[Any], trials: Trials) -> str:
    """What a row of the matrix is called, the same for what is counted and for what is fitted."""
    if row["model"] in OBSERVERS:
        return str(row["model"])
    name = training_name(row["method"], row["train_tasks"], row["regime"])
    models = trials.table.loc[trials.table["observer"] == 0, "model"].nunique()
    return f"{row['model']}: {name}" if models > 1 else name


def _colour(method: str, observer: bool) -> str:
    """The colour that figures give a method; greys that can be seen on dark ground too for those without training."""
    return "var(--other)" if observer else "var(--soft)" if method == "none" else look(method)[0]


def _facts(record: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """What `run.json` says, without what is there for the program alone, or fills pages."""
    facts = {name: value for name, value in record.items() if name not in ("fingerprint", "format")}
    training = facts.get("training")
    if isinstance(training, Mapping):
        facts["training"] = {k: v for k, v in training.items() if k not in ("presentation", "curves", "format")}
    return {"log": source.path, "trials_sha256": source.sha256} | facts


def _transfer(trials: Trials) -> dict[str, Any] | None:
    """The transfer matrix as the report has it; None if nothing was trained, or nothing to compare it with."""
    material = select(trials, Settings())
    table = material.plain
    methods = set(table["method"].astype(str))
    if "none" not in methods or methods == {"none"}:
        return None
    result = transfer_matrix(table, material.baselines())
    rows = []
    for row in result.table.to_dict("records"):
        test = test_name(row["test_task"], row["shift"], row["shift_level"], row.get("test_set", ""))
        rows.append({name: plain(row[name]) for name in CELLS} | {"training": _training(row, trials), "test": test})
    return {"rows": rows, "how": result.how, "notes": list(result.notes)}


def _html(data: Mapping[str, Any], pictures: Mapping[str, str], live: bool) -> str:
    """The page. Its policy admits its own script and style, images within it, and nothing else."""
    assets = files("vlm_probe.analysis.page") / "assets"
    style = (assets / "page.css").read_text(encoding="utf-8")
    body = "".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{body}}})();\n'
    policy = (
        f"default-src 'none'; img-src data:; script-src '{_digest(script)}'; style-src '{_digest(style)}';"
        f" connect-src {chr(39) + 'self' + chr(39) if live else chr(39) + 'none' + chr(39)}; base-uri 'none'; form-action 'none'"
    )
    runs = len({source["run"] for source in data["sources"]})
    page = (assets / "page.html").read_text(encoding="utf-8")
    parts = {
        "policy": policy,
        "title": escape(f"{data['n']} trials of {runs} run{'s' * (runs != 1)}"),
        "style": style,
        "data": script_json(data),
        "pictures": script_json(pictures),
        "script": script,
    }
    # One pass over the template, so that nothing in the data can be taken for a place to fill.
    pieces = page.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))


def _digest(text: str) -> str:
    """A script or style as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
