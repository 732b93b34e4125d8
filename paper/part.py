"""A part of the paper: the numbers, figures and tables that one question gives, or why there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vlm_probe.paper.numbers import Numbers

Draw = Callable[[Path], None]
"""Draws a figure, given its path without suffix."""


@dataclass(frozen=True)
class Part:
    """What one question gives.

    Attributes:
        numbers: By name.
        figures: File name without suffix -> how it is drawn.
        tables: File name without suffix -> LaTeX.
    """

    numbers: Numbers = field(default_factory=Numbers)
    figures: dict[str, Draw] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
