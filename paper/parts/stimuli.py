"""What the model is shown: one scene of every family, with a question about it."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_probe.analysis.levels import family_of
from vlm_probe.analysis.section import MissingData
from vlm_probe.analysis.style import PAGE_MM, drawing
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.tasks import FAMILIES, get_task

ITEMS, SEED, SIZE = 8, 4, 256


def part(study: Study) -> Part:
    """One item of every family that was tested. Raises Unanswerable if none of the tasks is one of ours."""
    asked = [str(t) for t in dict.fromkeys(study.plain["test_task"].astype(str)) if not get_task(str(t)).held_out]
    tasks = {family_of(task): task for task in sorted(asked, key=lambda t: get_task(t).kind)}
    if not set(tasks) & set(FAMILIES):
        raise MissingData("none of the tasks that were tested can be drawn")
    return Part(figures={"stimuli": lambda stem: _draw([tasks[f] for f in FAMILIES if f in tasks], stem)})


def _draw(tasks: list[str], stem: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shown = []
        for task in tasks:
            opened: StimulusSet = make_set(task, ITEMS, SEED, Path(folder) / task, size=SIZE)
            item = opened.items[0]
            shown.append(Shown(family_of(task), opened.path / item.file_name, item.question.prompt))
        stimuli(shown, stem)


HEIGHT_MM, TEXT_MM = 64.0, 19.0
"""Of the figure, and of the questions below the images."""
WRAP = 44
"""Characters that fit below an image."""


@dataclass(frozen=True)
class Shown:
    """An image, and its question."""

    title: str
    picture: Path
    prompt: str


def stimuli(shown: Sequence[Shown], stem: Path) -> None:
    """Images side by side over the width of a page.

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
            text.set_in_layout(False)  # questions are longer than images are wide, and would shrink them
