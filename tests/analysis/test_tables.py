"""Tables: numbers as the APA writes them, and LaTeX that compiles."""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_probe.analysis import tables
from vlm_probe.stimuli.plain_csv import read_csv

TABLE = pd.DataFrame(
    {
        "term": ["method[sft]", "50 % & more_or_less | {x}", "naïve → “σ²”"],
        "estimate": [1.234, -0.004, np.nan],
        "se": [0.5, 0.012, np.nan],
        "ci_low": [0.25, -0.03, np.nan],
        "ci_high": [2.214, 0.02, np.inf],
        "df": [4.0, 12.34, np.inf],
        "statistic": [2.468, -0.33, 1.0],
        "p": [0.0004, 0.742, 1.0],
        "accuracy": [0.5, 1.0, 0.0],
        "n_trials": [12, 123456, 0],
        "told": [True, False, True],
    }
)


def test_numbers_are_written_as_the_apa_asks() -> None:
    assert [tables.p_value(p) for p in (0.0004, 0.001, 0.0465, 0.9999, 1.0)] == [
        "< .001",
        ".001",
        ".046",
        "1.000",
        "1.000",
    ]
    assert [tables.number(x) for x in (1.234, -0.004, 123.456, 0.0, -0.0001, math.inf, math.nan)] == [
        "1.23", "−0.004", "123.5", "0.00", "0.000", "∞", "–"
    ]  # fmt: skip
    assert [tables.proportion(x) for x in (0.5, 1.0, 0.0, -0.25, 0.0001)] == [".500", "1.000", ".000", "−.250", ".000"]
    assert [tables.degrees(x) for x in (4.0, 12.34, math.inf)] == ["4", "12.3", "∞"]


def test_a_printed_table() -> None:
    printed = tables.printed(TABLE)
    assert list(printed) == ["Term", "b", "SE", "95 % CI", "df", "t", "p", "Accuracy", "Trials", "told"]
    assert list(printed["95 % CI"]) == ["[0.25, 2.21]", "[−0.030, 0.020]", "–"]
    assert list(printed["p"]) == ["< .001", ".742", "1.000"] and list(printed["Trials"]) == ["12", "123,456", "0"]
    assert list(printed["told"]) == ["yes", "no", "yes"]
    intervals = pd.DataFrame(
        {"rate": [0.5], "rate_low": [0.4], "rate_high": [0.6], "slope": [2.0], "slope_low": [1.0], "slope_high": [3.0]}
    )
    assert tables.printed(intervals).iloc[0].tolist() == [".500", "[.400, .600]", "2.00", "[1.00, 3.00]"]


def test_markdown_has_one_cell_per_value() -> None:
    lines = tables.markdown(TABLE).splitlines()
    assert len(lines) == 2 + len(TABLE)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {11}
    assert tables.markdown(TABLE.iloc[:0]) == "(no rows)\n"


def test_csv_has_all_digits() -> None:
    again = pd.read_csv(io.StringIO(tables.csv(TABLE)))
    pd.testing.assert_frame_equal(again, TABLE)
    assert "\r" not in tables.csv(TABLE)


def test_csv_runs_nothing() -> None:
    table = pd.DataFrame({"model": ['=HYPERLINK("x")', "@a", "-1"], "=x": [-0.5, 1.0, -math.inf]})
    text = tables.csv(table)
    assert text == 'model,\'=x\n"\'=HYPERLINK(""x"")",-0.5\n\'@a,1\n-1,-inf\n'
    header, rows = read_csv(text)
    assert header == ["model", "=x"] and [row[0] for _, row in rows] == table["model"].tolist()


@given(st.text(max_size=30))
def test_any_text_is_escaped(text: str) -> None:
    escaped = tables.escape(text)
    assert escaped.isascii()
    # What is left of the special characters after the escapes are taken away would change the table.
    bare = re.sub(r"\\(?:[&%$#_{}]|text\w+\{\})|\$[^$]*\$", "", escaped)
    assert not re.search(r"[&%$#_{}^~\\]", bare)


def test_latex_is_well_formed() -> None:
    text = tables.latex(TABLE, "What is shown: 95 % intervals.", "tab:x", ["A note with a_b & c."])
    assert text.count(r"\begin{") == text.count(r"\end{") and r"\toprule" in text and r"\bottomrule" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {9}
    assert text.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed (texlive-latex-base)")
def test_latex_compiles(tmp_path: Path) -> None:
    table = tables.latex(TABLE, "What is shown: 95 % intervals & more.", "tab:x", ["A note with a_b & c."])
    head, end = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n", "\\end{document}\n"
    document = head + table + end
    (tmp_path / "t.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout[-2000:]
    assert (tmp_path / "t.pdf").stat().st_size > 5000
