"""The row of a trial as the line of a log, written and read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_probe.probes.columns import LOG, check_row
from vlm_probe.stimuli.plain_json import dumps, parse_object

COLUMNS = tuple(column.name for column in LOG)
"""The columns of a row, all always present; what they mean is declared in `vlm_probe.probes.columns`."""

Kinds = Mapping[str, tuple[type, ...]]
"""The types that may stand in the entries of an object."""

LATER: dict[str, Any] = {
    column.name: column.default if column.log in ("text", "whole") else None for column in LOG if column.later
}
"""Columns that logs of earlier versions do not have, and what goes for a row without them: plain manner, one attempt."""


def whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all columns, in their order, and nothing else.

    Args:
        row: With all of `COLUMNS` but those of `LATER`.

    Raises:
        KeyError: If a column is missing.
    """
    given = {**LATER, **row}
    return {name: given[name] for name in COLUMNS}


def line_of(row: Mapping[str, Any]) -> str:
    """A row, as it stands, as a line of a log, its end included.

    Raises:
        ValueError: If it is not JSON, such as a number that is not finite.
    """
    return dumps(dict(row), ascii_only=True) + "\n"


def row_of(line: bytes) -> dict[str, Any]:
    """The row that a line of a log holds, in this or an earlier version.

    Raises:
        ValueError: If it is none; the message says why.
    """
    return read_row(parse_object(line))


def read_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a log, checked, with the columns that logs of earlier versions lack.

    Raises:
        ValueError: If it lacks a column that says what it is about, or holds what is not allowed; the message says which.
    """
    for name in ("key", "error", "item_id", "task"):
        if name not in row:
            raise ValueError(f"it has no {name}")
    check_row(row)
    return row | {name: value for name, value in LATER.items() if name not in row}


def check_kinds(data: Mapping[str, Any], kinds: Kinds) -> None:
    """Refuse an object with something of another type in it than is written there.

    Args:
        data: The object; entries that `kinds` does not name may hold anything, and none has to be there.
        kinds: The types by entry.

    Raises:
        ValueError: If an entry holds something else; the message names it.
    """
    for name, value in data.items():
        if name in kinds and not isinstance(value, kinds[name]):
            raise ValueError(f"{name} is {brief(value)!r}")


def brief(value: Any) -> str:
    """The beginning of a value, as a message has room for it."""
    text = str(value)
    return text[:12] + "..." if len(text) > 40 else text
