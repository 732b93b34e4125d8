"""The parts of a report: a question, the answer in words, tables and figures; or what is missing to answer it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd

from vlm_probe.analysis.result import Result, plain
from vlm_probe.stimuli.errors import ProbeError


class MissingData(ProbeError, ValueError):
    """A question that these trials cannot answer; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Figure:
    """A figure that a report will draw.

    Attributes:
        name: File name without suffix.
        caption: What is shown, how many runs and trials, and what the intervals are.
        draw: Draws it, given the path without suffix; its other arguments are what is drawn.
    """

    name: str
    caption: str
    draw: partial[None]

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """What is drawn, by the name that the drawing function has for it."""
        names = inspect.signature(self.draw.func).parameters
        given = dict(zip(names, self.draw.args, strict=False)) | self.draw.keywords
        return {name: value for name, value in given.items() if isinstance(value, pd.DataFrame)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data: caption and everything that is drawn."""
        drawn = {name: plain(table.to_dict("records")) for name, table in self.tables.items()}
        return {"caption": self.caption, "function": self.draw.func.__name__, "data": drawn}


@dataclass(frozen=True)
class Section:
    """One question of a report.

    Attributes:
        key: Short name, for files and `analysis.json`.
        title: Heading.
        question: What is asked, in one sentence.
        answer: What came out, in sentences; numbers in it come from the tables.
        results: Table name -> result; the first name is the main one.
        figures: Figures.
        missing: Why there is no answer; empty if there is one.
    """

    key: str
    title: str
    question: str
    answer: tuple[str, ...] = ()
    results: dict[str, Result] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    missing: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {
            "title": self.title,
            "question": self.question,
            "answer": list(self.answer),
            "missing": self.missing or None,
            "results": {name: plain(result.to_dict()) for name, result in self.results.items()},
            "figures": {figure.name: figure.to_dict() for figure in self.figures},
        }


def some_columns(result: Result, columns: Sequence[str], title: str) -> Result:
    """Some columns of a table that is too wide for a page, as far as it has them.

    Args:
        result: The whole.
        columns: Which, in their order.
        title: Of the new table.
    """
    chosen = [name for name in columns if name in result.table]
    return Result(title=title, table=result.table[chosen], how=result.how, notes=result.notes)
