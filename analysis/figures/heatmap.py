"""The transfer matrix as a heat map: every training run on every test, coloured by its difference from the untrained model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from vlm_probe.analysis.figures.means import wrapped
from vlm_probe.analysis.style import COLUMN_MM, DIVERGING, GREY, MM, PAGE_MM, drawing
from vlm_probe.analysis.tables import proportion

CELL_MM = 11.0
"""Height of a row."""
NARROW = 5
"""Tests that fit into one column."""


def heatmap(cells: pd.DataFrame, stem: Path, label: str = "Difference from the untrained model") -> None:
    """Numbers are success rates; bold where they differ from the untrained model, framed where task and test are the same.

    Args:
        cells: `training` and `test` (labels, in their order), `rate`, `difference` (to the untrained model; nan: unknown),
            `reliable` (whether the difference is significantly different from 0) and `within` (the task that was trained).
        stem: Where to write, without suffix.
        label: What the colours show.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    rows, columns = list(dict.fromkeys(cells["training"])), sorted(set(cells["test"]))
    grid = cells.set_index(["training", "test"])
    differences = np.full((len(rows), len(columns)), np.nan)
    for i, training in enumerate(rows):
        for j, test in enumerate(columns):
            if (training, test) in grid.index:
                differences[i, j] = grid.loc[(training, test), "difference"]
    reach = float(np.nanmax(np.abs(differences))) if np.isfinite(differences).any() else 0.0
    reach = max(0.1, float(np.ceil(reach * 10) / 10))
    width = COLUMN_MM if len(columns) <= NARROW else PAGE_MM
    with drawing(stem, 26 + CELL_MM * len(rows), width) as (figure, axes):
        shown = np.ma.masked_invalid(differences)
        colours = colormaps[DIVERGING].with_extremes(bad="#E4E4E4")
        image = axes.imshow(shown, cmap=colours, vmin=-reach, vmax=reach, aspect="auto")
        for i, training in enumerate(rows):
            for j, test in enumerate(columns):
                if (training, test) not in grid.index:
                    continue
                cell = grid.loc[(training, test)]
                dark = abs(cell["difference"]) > 0.65 * reach if np.isfinite(cell["difference"]) else False
                axes.text(
                    j,
                    i,
                    proportion(float(cell["rate"]), 2),
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize=7,
                    fontweight="bold" if cell["reliable"] else "normal",
                )
                if cell["within"]:
                    axes.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, ec="black", lw=1.1))
        axes.set_xticks(range(len(columns)), [test if len(columns) > 9 else wrapped(test) for test in columns])
        if len(columns) > 9:
            axes.tick_params(axis="x", rotation=40)
            for tick in axes.get_xticklabels():
                tick.set_horizontalalignment("right")
                tick.set_rotation_mode("anchor")
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(
            image, ax=axes, orientation="horizontal", location="top", fraction=4 * MM, aspect=40, pad=0.03
        )
        bar.set_label(label, fontsize=7)
        bar.outline.set_edgecolor(GREY)
        bar.outline.set_linewidth(0.5)
