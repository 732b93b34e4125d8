"""Calibration: how often an answer is right, over the probability that the model gave it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vlm_probe.analysis.style import COLUMN_MM, GREY, drawing, legend_above, look, name_of, proportions


def calibration(bins: pd.DataFrame, stem: Path) -> None:
    """Points on the diagonal are calibrated; below it the model is too sure of itself.

    Args:
        bins: `method`, `confidence` (mean probability of the answer given), `rate`, `rate_low`, `rate_high`, `n`.
        stem: Where to write, without suffix.
    """
    methods = list(dict.fromkeys(bins["method"]))
    largest = float(bins["n"].max())
    with drawing(stem, 70, COLUMN_MM) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (4, 1.5)), zorder=1, label="calibrated")
        for method in methods:
            colour, marker = look(method, methods)
            own = bins[bins["method"] == method].sort_values("confidence")
            y = own["rate"].to_numpy(float)
            errors = [(y - own["rate_low"]).clip(lower=0), (own["rate_high"] - y).clip(lower=0)]
            axes.errorbar(
                own["confidence"],
                y,
                yerr=errors,
                color=colour,
                lw=0.8,
                elinewidth=0.7,
                alpha=0.9,
                zorder=2,
                fmt=f"{marker}-",
                ms=0.1,
                label=None,
            )
            sizes = 8 + 22 * own["n"].to_numpy(float) / largest
            axes.scatter(
                own["confidence"],
                y,
                s=sizes,
                color=colour,
                marker=marker,
                ec="white",
                lw=0.4,
                zorder=3,
                label=name_of(str(method)),
            )
        proportions(axes)
        proportions(axes, "x")
        axes.set_xlabel("Probability of the answer given")
        axes.set_ylabel("Proportion right")
        legend_above(figure, ncols=4)
