"""CSV in which no spreadsheet finds a formula: such texts are written with an apostrophe before them, and read back without it."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""What a spreadsheet would run, or what looks like something that was made inert."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+|inf)([eE][+-]?\d+)?", re.ASCII)


def inert(value: Any) -> Any:
    """A cell that a spreadsheet takes for what it is: a text that begins like a formula gets an apostrophe, all else is left."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def restored(text: str) -> str:
    """The text that `inert` made a cell of."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as the text of a CSV file.

    Args:
        header: Names of its columns.
        rows: Their cells; None is an empty one.
    """
    return "".join(_line(map(inert, row)) for row in (header, *rows))


def read_csv(text: str, delimiter: str = ",") -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns of a CSV file, and its rows.

    Args:
        text: Of the file.
        delimiter: Between two cells.

    Returns:
        Names of the columns, and of each row that is not blank the line at which it ends and a cell per column; rows are read
        as they are asked for.

    Raises:
        ValueError: If two columns have the same name, or a row has more cells than there are columns; the message says where.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines = _lines(reader)
    _, header = next(lines, (0, list[str]()))
    double = [name for name, n in Counter(header).items() if n > 1]
    if double:
        raise ValueError(f"two columns are called {double[0]!r}: give each a name of its own")
    return header, _rows(lines, len(header))


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO(newline="")
    # With these ends of lines, both of their characters are quoted within texts.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue()[:-2] + "\n"


def _lines(reader: Any) -> Iterator[tuple[int, list[str]]]:
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, [restored(cell) for cell in cells]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _rows(lines: Iterator[tuple[int, list[str]]], width: int) -> Iterator[tuple[int, list[str]]]:
    for line, cells in lines:
        if len(cells) > width:
            raise ValueError(f"line {line}: more cells than columns (a comma without quotes?)")
        yield line, cells + [""] * (width - len(cells))
