"""Pictures of items in a row, with what is asked about them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_probe.analysis.style import PAGE_MM, drawing

HEIGHT_MM, TEXT_MM = 64.0, 19.0
"""Of the figure, and of the questions below the pictures."""
WRAP = 44
"""Characters that fit below a picture."""


@dataclass(frozen=True)
class Shown:
    """A picture, and its question."""

    title: str
    picture: Path
    prompt: str


def stimuli(shown: Sequence[Shown], stem: Path) -> None:
    """Pictures side by side over the width of a page.

    Args:
        shown: The items.
        stem: Where to write, without suffix.
    """
    from matplotlib.image import imread
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with drawing(stem, HEIGHT_MM, PAGE_MM, ncols=len(shown), squeeze=False) as (figure, grid):
        below = TEXT_MM / HEIGHT_MM
        engine = figure.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine)
        engine.set(rect=(0, below, 1, 1 - below))
        for axes, item in zip(grid[0], shown, strict=True):
            axes.imshow(imread(item.picture))
            axes.set_axis_off()
            axes.set_title(item.title, loc="left", fontweight="bold")
            wrapped = "\n".join(textwrap.wrap(item.prompt, WRAP))
            text = axes.text(0, -0.04, wrapped, transform=axes.transAxes, ha="left", va="top", fontsize=5.0)
            text.set_in_layout(False)  # questions are longer than pictures are wide, and would shrink them
