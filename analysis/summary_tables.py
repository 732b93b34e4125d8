"""The summary of one run as the tables that `probe run` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlm_probe.analysis.proportions import Cell
from vlm_probe.analysis.summary import Summary


def tables_of(summary: Summary) -> RenderableType:
    """Everything that there is to say of a run, one table below the other."""
    parts: list[RenderableType] = [Text(summary.problem, "bold")] if summary.problem else []
    parts.append(_head(summary))
    if summary.n and summary.errors == summary.n:
        return Group(*parts)  # nothing took place that could be counted
    if summary.grounding:
        parts.append(_grounding(summary))
    parts.append(_measures(summary))
    if summary.attempts:
        parts += [_attempts(summary), _guesses(summary)]
    if summary.manners:
        parts.append(_manners(summary))
    if summary.baselines:
        parts.append(_baselines(summary))
    if summary.margins:
        parts.append(_cells(summary, "margin", summary.margins))
    for name, found in (("objects", summary.counts), ("build", summary.builds)):
        if len(found) > 1:
            parts.append(_cells(summary, name, found))
    return Group(*[x for part in parts for x in (part, "")][:-1])


def _head(summary: Summary) -> Text:
    n = f"{summary.n} trials" + (f", {summary.errors} of them failed" if summary.errors else "")
    return Text.assemble(
        (f"{summary.name} on {summary.task}", "bold"), f"  {n}, readout: {summary.readout}\n{summary.run}"
    )


def _grounding(summary: Summary) -> Table:
    table = _table("seen in the images", "n", "right")
    for cell in summary.grounding:
        table.add_row(cell.label, str(cell.accuracy.n), str(cell.accuracy))
    return table


def _measures(summary: Summary) -> Table:
    table = _table("measure", "value")
    if summary.catch is not None:
        table.add_row("catch items right", f"{summary.catch}  ({summary.catch.n} farthest from the boundary)")
    table.add_row(summary.headline, f"{summary.accuracy}  (95 % Wilson)")
    if summary.detection is not None:
        table.add_row("d'", _text(summary.detection.d_prime))
        table.add_row("criterion c", f"{_text(summary.detection.criterion)}  (signal: {summary.signal})")
    if not math.isnan(summary.yes_bias):
        table.add_row("bias towards yes", f"{summary.yes_bias:+.3f}")
    if summary.pairs.n:
        table.add_row("pair accuracy", f"{summary.pairs}  ({summary.pairs.n} pairs)")
    table.add_row("mean reward", _text(summary.reward))
    unread = {k: v for k, v in summary.statuses.items() if k != "ok"}
    if summary.thinking or summary.thoughts:
        table.add_row("thinking", summary.thinking or "by the model itself")
        table.add_row("thoughts cut", f"{summary.thoughts_cut} of {summary.thoughts}")
    note = "  (" + ", ".join(f"{k} {v}" for k, v in unread.items()) + ")" if unread else ""
    table.add_row("parse rate", _text(summary.parse_rate) + note)
    return table


def _baselines(summary: Summary) -> Table:
    # Baselines belong to the set; a run of its first items may be easier or harder.
    part = f" (all {summary.set_size})" if summary.set_size not in (0, summary.n) else ""
    table = _table(f"non-physical baselines{part}", summary.headline)
    if "chance" in summary.baselines:
        table.add_row("chance", _text(summary.baselines["chance"]))
    constant = summary.baselines.get("constant") or {}
    if constant:
        table.add_row(f"always “{constant.get('answer')}”", _text(constant.get("score")))
    for name, score in (summary.baselines.get("shortcuts") or {}).items():
        table.add_row(str(name), _text(score))
    return table


def _attempts(summary: Summary) -> Table:
    table = _table(f"attempts, memory {summary.memory}", summary.headline, "same answer", "parse rate")
    for cell in summary.attempts:
        same = "" if cell.k == 1 else _text(cell.same)
        table.add_row(f"within {cell.k}", str(cell.success), same, _text(cell.parse_rate))
    return table


def _guesses(summary: Summary) -> Table:
    table = _table("without learning", "new first attempts", "chance", "best constants")
    for cell, guess in summary.beside_guesses:
        constants = guess.get("constants") or {}
        scores = (summary.independent(cell.k), guess.get("chance"), constants.get("score"))
        table.add_row(f"within {cell.k}", *map(_text, scores))
    return table


def _manners(summary: Summary) -> Table:
    against = "vs intact" if summary.manners[0].code == "intact" else "vs the first"
    table = _table("manner", "n", summary.headline, against, "same answer", "parse rate")
    # In a narrow terminal, long names are broken, and numbers never.
    table.columns[0].min_width, table.columns[0].no_wrap, table.columns[0].overflow = None, False, "fold"
    for cell in summary.manners:
        difference = "" if math.isnan(cell.difference) else f"{cell.difference:+.3f}"
        same = _text(cell.same.value) if cell.same.n else ""
        table.add_row(cell.code, str(cell.accuracy.n), str(cell.accuracy), difference, same, _text(cell.parse_rate))
    return table


def _cells(summary: Summary, name: str, found: Sequence[Cell]) -> Table:
    table = _table(name, "n", summary.headline, *([f'P("{summary.signal}")'] if summary.signal is not None else []))
    for cell in found:
        row = [cell.label, str(cell.accuracy.n), str(cell.accuracy)]
        table.add_row(*row, *([_text(cell.signal.value)] if summary.signal is not None else []))
    return table


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for index, header in enumerate(headers):
        table.add_column(header, min_width=22 if index == 0 else None, no_wrap=True)
    return table


def _text(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
