"""Learning curves: success over samples seen, one thin line per run, and the mean over runs with its band."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vlm_probe.analysis.style import COLUMN_MM, GREY, PAGE_MM, drawing, legend_above, look, name_of, proportions


def learning_curves(
    runs: pd.DataFrame, means: pd.DataFrame, stem: Path, ylabel: str = "Success rate", criterion: float | None = None
) -> None:
    """One panel per task.

    Args:
        runs: `panel`, `method`, `run`, `samples`, `value`.
        means: `panel`, `method`, `samples`, `mean`, `low`, `high`.
        stem: Where to write, without suffix.
        ylabel: What the value is.
        criterion: A level to draw a line at.
    """
    panels = list(dict.fromkeys(runs["panel"]))
    methods = list(dict.fromkeys(runs["method"]))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    width = COLUMN_MM if columns == 1 else PAGE_MM
    with drawing(stem, 12 + 48 * rows, width, nrows=rows, ncols=columns, squeeze=False, sharey=True) as (figure, grid):
        for axes, panel in zip(grid.flat, panels, strict=False):
            if criterion is not None:
                axes.axhline(criterion, color=GREY, lw=0.7, ls=(0, (4, 1.5)), zorder=1)
            for method in methods:
                colour, _ = look(method, methods)
                own = runs[(runs["panel"] == panel) & (runs["method"] == method)]
                for _, line in own.groupby("run", observed=True, sort=True):
                    axes.plot(line["samples"], line["value"], color=colour, lw=0.5, alpha=0.45, zorder=2)
                mean = means[(means["panel"] == panel) & (means["method"] == method)].sort_values("samples")
                if len(mean):
                    # With two runs, t has one degree of freedom, and the band says nothing that the two lines do not.
                    if own["run"].nunique() > 2:
                        axes.fill_between(
                            mean["samples"], mean["low"], mean["high"], color=colour, alpha=0.18, lw=0, zorder=2
                        )
                    axes.plot(mean["samples"], mean["mean"], color=colour, lw=1.4, zorder=3, label=name_of(str(method)))
            proportions(axes)
            axes.set_xlim(left=0)
            axes.set_xlabel("Training samples")
            if len(panels) > 1:
                axes.set_title(str(panel), loc="left")
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        grid[0, 0].set_ylabel(ylabel)
        legend_above(figure, ncols=4)
