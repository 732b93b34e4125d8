"""The parts of a report: a question, the answer in words, tables and figures; or what is missing to answer it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.result import Result, plain


class Unanswerable(ValueError):
    """A question that these trials cannot answer; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Figure:
    """A figure that a report will draw.

    Attributes:
        name: File name without suffix.
        caption: What is shown, how many runs and trials, and what the intervals are.
        draw: Draws it, given the path without suffix.
    """

    name: str
    caption: str
    draw: Callable[[Path], None]


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
            "figures": {figure.name: figure.caption for figure in self.figures},
        }
