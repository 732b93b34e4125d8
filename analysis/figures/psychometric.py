"""Psychometric curves of several methods: fitted functions with their bands over the observed proportions, a panel per test."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vlm_probe.analysis.style import (
    COLUMN_MM,
    LIGHT,
    PAGE_MM,
    drawing,
    legend_above,
    look,
    margins,
    name_of,
    proportions,
)


def psychometric_curves(points: pd.DataFrame, curves: pd.DataFrame, stem: Path) -> None:
    """Points are proportions per margin bin over all runs; lines are mean fitted functions with 95 % bands.

    Args:
        points: `panel`, `signal`, `other`, `method`, `margin`, `p_signal`, `low`, `high`.
        curves: `panel`, `method`, `margin`, `p_signal`, `low`, `high`; may lack methods that could not be fitted.
        stem: Where to write, without suffix.
    """
    panels = list(dict.fromkeys(points["panel"]))
    methods = list(dict.fromkeys(points["method"]))
    columns = 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3
    rows = -(-len(panels) // columns)
    width = COLUMN_MM if columns == 1 else PAGE_MM
    reach = 1.06 * float(points["margin"].abs().max())
    with drawing(stem, 12 + 50 * rows, width, nrows=rows, ncols=columns, squeeze=False) as (figure, grid):
        for axes, panel in zip(grid.flat, panels, strict=False):
            own, fitted = points[points["panel"] == panel], curves[curves["panel"] == panel]
            axes.plot([-reach, 0, 0, reach], [0, 0, 1, 1], color=LIGHT, lw=1.1, zorder=1, label="ideal observer")
            axes.axhline(0.5, color=LIGHT, lw=0.6, ls=(0, (1, 2)), zorder=0)
            for index, method in enumerate(methods):
                colour, marker = look(method, methods)
                line = fitted[fitted["method"] == method]
                if len(line):
                    axes.fill_between(
                        line["margin"], line["low"], line["high"], color=colour, alpha=0.18, lw=0, zorder=2
                    )
                    axes.plot(line["margin"], line["p_signal"], color=colour, lw=1.1, zorder=3)
                dots = own[own["method"] == method].sort_values("margin")
                if not len(dots):
                    continue
                # Methods stand a little next to each other, or their intervals would hide one another.
                x = dots["margin"] + 0.008 * reach * (index - (len(methods) - 1) / 2) * 2
                y = dots["p_signal"].to_numpy(float)
                errors = [(y - dots["low"]).clip(lower=0), (dots["high"] - y).clip(lower=0)]
                axes.errorbar(
                    x,
                    y,
                    yerr=errors,
                    fmt=marker,
                    color=colour,
                    ms=3.4,
                    mew=0.4,
                    mec="white",
                    elinewidth=0.7,
                    zorder=4,
                    label=name_of(str(method)),
                )
            margins(axes, reach)
            proportions(axes)
            signal, other = own[["signal", "other"]].iloc[0]
            axes.set_xlabel(f"← {other}     margin     {signal} →")
            axes.set_ylabel(f"P(“{signal}”)")
            if len(panels) > 1:
                axes.set_title(str(panel), loc="left")
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        legend_above(figure, ncols=4 if columns == 1 else 6)
