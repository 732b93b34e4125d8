"""Decodability over depth before and after training: a panel per task and quantity, at the last token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from vlm_probe.analysis.style import COLUMN_MM, GREY, LIGHT, drawing, legend_above, look, name_of

DASHES: tuple[Any, ...] = ("-", (0, (3, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
METRICS = {"R2": "R²", "balanced accuracy": "Balanced accuracy"}


def decoding(sites: pd.DataFrame, stem: Path) -> None:
    """Grey with its 95 % band: the untrained model; colours: after training, one line per training.

    Args:
        sites: `panel`, `metric`, `chance`, `part`, `position`, `layer`, `method`, `training`, `score`, `low`, `high`.
        stem: Where to write, without suffix.
    """
    own = sites[(sites["part"] == "language") & (sites["position"] == "last")]
    panels = list(dict.fromkeys(own["panel"]))
    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    trainings = list(dict.fromkeys(own.loc[own["method"] != "none", "training"]))
    dashes = {name: DASHES[i % len(DASHES)] for i, name in enumerate(trainings)}
    with drawing(stem, 20 + 33 * rows, COLUMN_MM, nrows=rows, ncols=columns, squeeze=False, sharex=True) as (
        figure,
        grid,
    ):
        named: set[str] = set()
        for axes, panel in zip(grid.flat, panels, strict=False):
            of_panel = own[own["panel"] == panel]
            axes.axhline(float(of_panel["chance"].iloc[0]), color=LIGHT, lw=0.7, ls=(0, (1, 1.5)), zorder=0)
            base = of_panel[of_panel["method"] == "none"].sort_values("layer")
            axes.fill_between(base["layer"], base["low"], base["high"], color=GREY, alpha=0.2, lw=0, zorder=1)
            axes.plot(
                base["layer"],
                base["score"],
                color=GREY,
                marker="o",
                ms=2.4,
                lw=1.1,
                zorder=2,
                label=_once("base", named),
            )
            trained = of_panel[of_panel["method"] != "none"]
            for (method, training), line in trained.groupby(["method", "training"], sort=False):
                colour, marker = look(str(method))
                line = line.sort_values("layer")
                axes.plot(
                    line["layer"],
                    line["score"],
                    color=colour,
                    marker=marker,
                    ms=2.2,
                    lw=0.9,
                    ls=dashes[training],
                    zorder=3,
                    label=_once(name_of(str(method)), named),
                )
            axes.set_title(panel, loc="left")
            axes.set_ylabel(METRICS.get(str(of_panel["metric"].iloc[0]), str(of_panel["metric"].iloc[0])), fontsize=7)
            axes.set_xticks(sorted(set(of_panel["layer"])))
        if len(trainings) > 1:  # lines by training, colours by method
            for training in trainings:
                grid[0, 0].plot([], [], color="black", lw=0.9, ls=dashes[training], label=f"on {training}")
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("Layer")
        legend_above(figure, grid[0, 0], ncols=3)


def _once(name: str, named: set[str]) -> str:
    """A label for the legend, the first time that it comes."""
    if name in named:
        return "_"
    named.add(name)
    return name
