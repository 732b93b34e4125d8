"""Tables of a manuscript as LaTeX (booktabs): groups of rows under a heading, and a note below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vlm_probe.analysis.tables import escape, interval, proportion


@dataclass(frozen=True)
class Rows:
    """Rows under one heading; an empty one is not written. Cells are LaTeX already."""

    heading: str
    cells: Sequence[Sequence[str]]


def table(align: str, header: Sequence[str], groups: Sequence[Rows], spaced: bool = False) -> str:
    """The inside of a table; caption, label and note stand in the manuscript, whose words they are.

    Args:
        align: Of the columns, as for `tabular`.
        header: Of the columns, as LaTeX.
        groups: The rows.
        spaced: Whether rows stand apart, as they have to where cells have several lines.
    """
    end = r" \\ \addlinespace" if spaced else r" \\"
    lines = [rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule"]
    for number, group in enumerate(groups):
        if group.heading:
            lines += [r"\addlinespace"] * (number > 0)
            lines.append(rf"\multicolumn{{{len(header)}}}{{@{{}}l}}{{\emph{{{group.heading}}}}} \\")
        lines += [" & ".join(cells) + end for cells in group.cells]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def text(plain: object) -> str:
    """Plain text as LaTeX; a dash for nothing."""
    return escape(str(plain)) if plain is not None and str(plain) else "--"


def in_math(number: str) -> str:
    """A number as `vlm_probe.analysis.tables` writes it, in mathematics; dashes as they are."""
    return "--" if number == "–" else "$" + number.replace("−", "-").replace("∞", r"\infty") + "$"


def rate(row: Mapping[str, Any]) -> str:
    """A success rate with its interval, from a row of `vlm_probe.analysis.rates`."""
    form = partial(proportion, digits=2)
    return f"{in_math(form(row['rate']))} {in_math(interval(row['rate_low'], row['rate_high'], form))}"
