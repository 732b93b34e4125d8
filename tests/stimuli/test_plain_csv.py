"""CSV: what is written is read back unchanged, and no cell begins like a formula."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_probe.stimuli.plain_csv import inert, read_csv, restored, write_csv

FORMULAS = (
    "=SUM(A1:A3)",
    "+49 123",
    "-1+1",
    "@cell",
    "\t=1",
    "\r=1",
    '=HYPERLINK("x")',
    "-3 5",
    "'=1",
    "''@x",
    "\n=1",
    "-",
)
PLAIN = ("", "a=1", "'quoted'", "'", "x\r\ny", 'a "b", c', "-5", "+0.25", "-1e-05", "-inf", "1", " =1", "NA", "ü", "'1")
cells = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(FORMULAS + PLAIN)


@pytest.mark.parametrize("text", FORMULAS, ids=repr)
def test_formulas_are_inert(text: str) -> None:
    assert inert(text) == f"'{text}" and restored(inert(text)) == text


@pytest.mark.parametrize("value", [*PLAIN, -5, -0.25, None, True, float("-inf")], ids=repr)
def test_everything_else_is_left(value: Any) -> None:
    assert inert(value) is value
    assert not isinstance(value, str) or restored(value) == value


@given(st.lists(st.tuples(cells, cells, cells), max_size=5), st.lists(cells, min_size=3, max_size=3, unique=True))
def test_what_is_written_is_read_back(rows: list[tuple[str, ...]], header: list[str]) -> None:
    text = write_csv(header, rows)
    found, lines = read_csv(text)
    assert found == header and [tuple(row) for _, row in lines] == rows
    for row in csv.reader(io.StringIO(text, newline="")):  # as a spreadsheet sees it
        assert not any(cell[:1] in "=@\t\r\n" and cell for cell in row)


def test_cells_that_are_no_text() -> None:
    text = write_csv(["a", "b"], [(None, -1), (0.1, True)])
    assert text == "a,b\n,-1\n0.1,True\n" and write_csv(["a"], [[None]]) == 'a\n""\n'
    assert list(read_csv(text)[1]) == [(2, ["", "-1"]), (3, ["0.1", "True"])]


def test_tables_of_other_programs() -> None:
    header, rows = read_csv('a;b\r\n\r\n1\r\n\'=1;"x\ny"\r\n', ";")
    assert header == ["a", "b"] and list(rows) == [(3, ["1", ""]), (5, ["=1", "x\ny"])]
    assert read_csv("")[0] == []
    with pytest.raises(ValueError, match="two columns are called 'a'"):
        read_csv("a,a\n")
    with pytest.raises(ValueError, match="line 3: more cells than columns"):
        list(read_csv("a\n1\n1,2\n")[1])
    with pytest.raises(ValueError, match="line 1: field larger"):
        read_csv("x" * 200_000)
