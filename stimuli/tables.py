"""Tables of other people: rows with the line they came from, columns by what they are for, and a list of what is wrong."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlm_probe.stimuli.dataset import StimulusError
from vlm_probe.stimuli.plain_csv import read_csv
from vlm_probe.stimuli.plain_json import parse_object, whole_characters


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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StimulusError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise StimulusError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.split("\n"), 1):  # other ends of lines may stand within texts
            if not line.strip():
                continue
            try:
                found = parse_object(line, finite=False, whole=False)
            except ValueError as error:
                raise StimulusError(f"{path}, line {number}: not a JSON object ({error})") from error
            cells = {k: "" if v is None else _cell(v) for k, v in found.items()}
            for column, text in cells.items():
                if whole_characters(column + text) != column + text:
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
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(header)}"
            raise StimulusError(f"{table} has no column {column!r}: {hint}")
    places = {role: mapping.get(role, role) for role in roles if mapping.get(role, role) in header}
    for role in needed:
        if role not in places:
            raise StimulusError(
                f"{table} has no column {role!r} ({roles[role]}); it has {', '.join(header)}: map one with"
                f" --columns {role}={header[0] if header else 'NAME'} (of a table of responses: --response-columns)"
            )
    return places


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
