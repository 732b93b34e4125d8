"""Pictures of items in a row, with what is asked about them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.style import PAGE_MM, drawing

WRAP = 47


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

    with drawing(stem, 66, PAGE_MM, ncols=len(shown), squeeze=False) as (_, grid):
        for axes, item in zip(grid[0], shown, strict=True):
            axes.imshow(imread(item.picture))
            axes.set_axis_off()
            axes.set_title(item.title, loc="left", fontweight="bold")
            wrapped = "\n".join(textwrap.wrap(item.prompt, WRAP * 4 // max(4, len(shown))))
            axes.text(0, -0.03, wrapped, transform=axes.transAxes, ha="left", va="top", fontsize=5.2)
