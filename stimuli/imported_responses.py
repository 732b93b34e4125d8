"""Human responses in imported tables: as counts in columns of the items' own table, or one per row of a table next to it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlm_probe.stimuli.answer_cells import meaning, read_answer
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.responses import Response
from vlm_probe.stimuli.tables import Report, Row, find_columns, number, read_table

RESPONSE_ROLES = {
    "item": "the item's id, or its picture",
    "participant": "who answered",
    "response": "what was answered",
    "rt": "reaction time, seconds",
}
COUNT_PREFIXES = ("n_", "response_")
"""Columns of the table that hold how many participants gave an answer: n_yes, response_stands, ..."""


def counted_responses(table: Path, row: Row, header: Sequence[str], item: Item, report: Report) -> Iterator[Response]:
    """Responses to an item that its table gives as counts, in columns like n_yes.

    Args:
        table: Its file, for messages.
        row: Of the item.
        header: Columns of the table.
        item: The item.
        report: Told what is wrong.
    """
    for column in header:
        prefix = next((p for p in COUNT_PREFIXES if column.startswith(p)), None)
        text = row.cells.get(column, "")
        if prefix is None or not text:
            continue
        try:
            answer = read_answer(item.question.grammar, column.removeprefix(prefix), column)
        except ValueError as error:
            report.problem(table, row, column, f"counts an answer that does not exist: {error}")
            continue
        if not text.isdecimal() or len(text) > 9:
            report.problem(
                table, row, column, f"{text[:20]!r} is not a count (a whole number below a thousand million)"
            )
        elif int(text):
            yield Response(item.item_id, "", meaning(item.question.grammar, answer), None, int(text))


def listed_responses(path: Path, mapping: Mapping[str, str], items: Sequence[Item], report: Report) -> list[Response]:
    """Responses from a table with one row each.

    Args:
        path: The table.
        mapping: Role -> the column's name, where it is not that of the role (`RESPONSE_ROLES`).
        items: To which they may be.
        report: Told what is wrong.

    Raises:
        StimulusError: If the table cannot be read, or lacks a column.
    """
    rows, header = read_table(path)
    places = find_columns(path, header, mapping, RESPONSE_ROLES, ("item", "participant", "response"))
    by_name: dict[str, Item | None] = {}
    for item in items:
        source = str(item.question.about["source"])
        # An image names its item as long as it has only one.
        by_name[source] = item if source not in by_name else None
    by_name |= {item.item_id: item for item in items}
    found = []
    for row in rows:
        cells = {role: row.cells.get(column, "") for role, column in places.items()}
        known = by_name.get(cells["item"])
        if known is None:
            close = difflib.get_close_matches(cells["item"], by_name, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            report.problem(path, row, places["item"], f"there is no item {cells['item']!r}{hint}")
            continue
        if not cells["participant"]:
            report.problem(path, row, places["participant"], "is empty")
            continue
        if not cells["response"]:
            report.notes["human responses left out, because they are empty"] += 1
            continue
        grammar = known.question.grammar
        try:
            answer = read_answer(grammar, cells["response"], "response")
        except ValueError as error:
            report.problem(path, row, places["response"], str(error))
            continue
        seconds: float | None = None
        if cells.get("rt"):
            seconds = number(cells["rt"], 0.0, lambda text, row=row: report.problem(path, row, places["rt"], text))  # type: ignore[misc]
            if seconds < 0:
                report.problem(path, row, places["rt"], f"{cells['rt']!r} is negative")
        found.append(Response(known.item_id, cells["participant"], meaning(grammar, answer), seconds))
    return found
