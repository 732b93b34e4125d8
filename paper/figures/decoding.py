"""Decodability over depth before and after training: a panel per task and quantity, at the last token."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.style import COLUMN_MM, GREY, LIGHT, PAGE_MM, drawing, legend_above, look, name_of

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
    dashes = dict(
        zip(
            dict.fromkeys(own.loc[own["method"] != "none", "training"]),
            ("-", (0, (3, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1))),
            strict=False,
        )
    )
    with drawing(
        stem,
        16 + 33 * rows,
        COLUMN_MM if columns <= 2 else PAGE_MM,
        nrows=rows,
        ncols=columns,
        squeeze=False,
        sharex=True,
    ) as (figure, grid):
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
                ms=2.6,
                lw=1.1,
                zorder=2,
                label=_once("base", named),
            )
            for (method, training), line in of_panel[of_panel["method"] != "none"].groupby(
                ["method", "training"], sort=False
            ):
                colour, marker = look(str(method))
                line = line.sort_values("layer")
                name = f"{name_of(str(method))}, {training}" if len(dashes) > 1 else name_of(str(method))
                axes.plot(
                    line["layer"],
                    line["score"],
                    color=colour,
                    marker=marker,
                    ms=2.6,
                    lw=0.9,
                    ls=dashes.get(training, "-"),
                    zorder=3,
                    label=_once(name, named),
                )
            axes.set_title(panel, loc="left")
            axes.set_ylabel(METRICS.get(str(of_panel["metric"].iloc[0]), str(of_panel["metric"].iloc[0])))
            axes.set_xticks(sorted(set(of_panel["layer"])))
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("Layer of the language model")
        legend_above(figure, grid[0, 0], ncols=3)


def _once(name: str, named: set[str]) -> str:
    """A label for the legend, the first time that it comes."""
    if name in named:
        return "_"
    named.add(name)
    return name
