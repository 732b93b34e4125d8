"""What an analysis gives back: a table, how it was computed, and what to beware of."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

P_VALUES = re.compile(
    r"^p(_(holm|adjusted|runs|means|difference|equivalence|slope|baseline|each|learned|valid|reversed|information|signed))*$|_p(_holm|_each|_equivalence|_equivalence_holm)?$"
)
"""Names of columns that are p-values, and are printed as such."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The answer to one question. Printing it gives the table with its caption.

    Attributes:
        title: What the table shows, in one line.
        table: One row per estimate.
        how: Method, formula, rows used, seed: what it takes to compute the table again.
        notes: What to beware of; empty if nothing is.
    """

    title: str
    table: pd.DataFrame
    how: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data; see `plain` for numbers that JSON does not have."""
        return {
            "title": self.title,
            "how": self.how,
            "notes": list(self.notes),
            "table": [plain(row) for row in self.table.to_dict("records")],
        }

    def __str__(self) -> str:
        parts = [self.title, format_table(self.table), f"How: {self.how}", *(f"Note: {note}" for note in self.notes)]
        return "\n\n".join(parts[:2]) + "\n\n" + "\n".join(parts[2:])


def plain(value: Any) -> Any:
    """Data as JSON can hold it: what is not defined becomes null, infinities the words "inf" and "-inf"."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray | pd.Series):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        infinite = "inf" if value > 0 else "-inf"
        return value if math.isfinite(value) else infinite
    return value if isinstance(value, bool | int | str) else str(value)


def format_table(table: pd.DataFrame) -> str:
    """A table for the terminal: three decimals, four for p-values, a dash for what is not defined."""
    if table.empty:
        return "(no rows)"
    text = pd.DataFrame({name: [_cell(str(name), value) for value in table[name]] for name in table.columns})
    return text.to_string(index=False)


def _p(p: float) -> str:
    """A p-value: four decimals, "< .0001" below them."""
    return "< .0001" if p < 0.0001 else f"{p:.4f}".lstrip("0") if p < 1 else "1.0000"


def _cell(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        number = float(value)
        if P_VALUES.search(name):
            return _p(number)
        if math.isinf(number):
            return "inf" if number > 0 else "-inf"
        return f"{number:.3f}" if abs(number) < 1000 else f"{number:.0f}"
    return str(value)
