"""external tables: rows with the line they came from, columns by what they are for, and a list of what is wrong."""

from __future__ import annotations

import difflib
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlm_probe.stimuli.dataset import StimulusError
from vlm_probe.stimuli.errors import is_text, reading
from vlm_probe.stimuli.plain_csv import read_csv
from vlm_probe.stimuli.plain_json import parse_object


@dataclass(frozen=True)
class Row:
    """A row of a table: its line in the file, and its cells by column."""

    line: int
    cells: dict[str, str]


@dataclass
class Report:
    """Problems and notes found so far."""

    problems: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def problem(self, table: Path, row: Row, column: str, text: str) -> None:
        """Note what is wrong in one cell.

        Args:
            table: Its file.
            row: Of the table.
            column: Of the cell.
            text: What is wrong.
        """
        self.problems.append(f"{table.name}, line {row.line}, column {column!r}: {text}")


def read_table(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a table and its columns.

    Raises:
        StimulusError: If it cannot be read.
    """
    with reading(path, StimulusError, "give a table that is saved as UTF-8"):
        text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.split("\n"), 1):  # other ends of lines may stand within texts
            if not line.strip():
                continue
            with reading(f"{path}, line {number},", StimulusError, "write one JSON object per line"):
                found = parse_object(line, finite=False, whole=False)
                cells = {k: "" if v is None else _cell(v) for k, v in found.items()}
            for column, text in cells.items():
                if not is_text(column + text):
                    raise StimulusError(
                        f"{path}, line {number}, column {column!r}: {text!r} holds half a character: write the whole one"
                    )
            rows.append(Row(number, cells))
        return rows, list(dict.fromkeys(key for row in rows for key in row.cells))
    if path.suffix not in (".csv", ".tsv"):
        raise StimulusError(f"{path}: tables are .csv, .tsv or .jsonl files")
    try:
        header, lines = read_csv(text, "\t" if path.suffix == ".tsv" else ",")
        stripped = [(line, [cell.strip() for cell in row]) for line, row in lines]
    except ValueError as error:
        raise StimulusError(f"{path}, {error}") from error
    return [Row(line, dict(zip(header, row, strict=True))) for line, row in stripped], header


def _cell(value: Any) -> str:
    """A JSON value as the text of a cell."""
    if isinstance(value, list):
        return ";".join(", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in value)
    return str(value).strip()


def find_columns(
    table: Path, header: Sequence[str], mapping: Mapping[str, str], roles: Mapping[str, str], needed: Sequence[str]
) -> dict[str, str]:
    """Role -> column, for the roles that this table has.

    Args:
        table: Its file, for messages.
        header: Its columns.
        mapping: Role -> column where a column is not called like its role.
        roles: All roles, each with what it means.
        needed: Roles without which the table is of no use.

    Raises:
        StimulusError: If a role or column is unknown, or a needed one is missing.
    """
    for role, column in mapping.items():
        if role not in roles:
            raise StimulusError(f"there is no role {role!r} for a column: there are {', '.join(roles)}")
        if column not in header:
            close = difflib.get_close_matches(column, header, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {_listed(header)}"
            raise StimulusError(f"{table} has no column {column!r}: {hint}")
    places = {role: mapping.get(role, role) for role in roles if mapping.get(role, role) in header}
    for role in needed:
        if role not in places:
            raise StimulusError(
                f"{table} has no column {role!r} ({roles[role]}); it has {_listed(header)}: map one with"
                f" --columns {role}=NAME (of a table of responses: --response-columns)"
            )
    return places


def _listed(header: Sequence[str]) -> str:
    """Columns for a message, which must not be as long as a table that is none."""
    return textwrap.shorten(", ".join(name[:40] for name in header) or "none", 200, placeholder=" ...")


def number(text: str, default: float, wrong: Callable[[str], None]) -> float:
    """A finite number; the default for an empty cell.

    Args:
        text: The cell.
        default: What goes for an empty cell, or one that is wrong.
        wrong: Told what is wrong, if anything is.
    """
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        wrong(f"{text!r} is not a number")
        return default
    if not np.isfinite(value):
        wrong(f"{text!r} is not a finite number")
        return default
    return value
