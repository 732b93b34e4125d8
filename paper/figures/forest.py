"""The contrasts in one column: estimates with intervals by level of transfer, and the difference of every run behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from vlm_probe.analysis.style import GREY, LIGHT, drawing, look, name_of, signed

LINE_MM, SPREAD = 3.3, 0.17
"""Height of a line, and how far the dots of runs stand apart in it."""


def forest(estimates: pd.DataFrame, runs: pd.DataFrame, stem: Path, bound: float) -> None:
    """Filled symbols are estimates that the test tells from 0; small dots are runs, against the untrained model.

    Args:
        estimates: `level`, `side` (the method, or "rl" against SFT), `difference`, `difference_low`, `difference_high`, `told`.
        runs: `level`, `method`, `difference` of every run.
        stem: Where to write, without suffix.
        bound: Half width of the band of differences too small to matter.
    """
    levels = list(dict.fromkeys(estimates["level"]))
    lines: list[tuple[str, int | None]] = []
    for level in levels:
        lines += [(level, None)] + [("", int(i)) for i in estimates.index[estimates["level"] == level]]
    named: set[str] = set()
    with drawing(stem, 20 + LINE_MM * len(lines)) as (figure, axes):
        axes.axvspan(-bound, bound, color=LIGHT, alpha=0.35, lw=0, zorder=0)
        axes.axvline(0, color=GREY, lw=0.7, zorder=1)
        for place, (level, index) in enumerate(lines):
            if index is None:
                axes.text(
                    0.0,
                    place,
                    level,
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontweight="bold",
                    fontsize=6.8,
                    bbox={"fc": "white", "ec": "none", "pad": 0.6},
                    zorder=5,
                )
                continue
            row = estimates.loc[index]
            side = str(row["side"])
            colour, marker = ("black", "P") if side == "rl" else look(side)
            dots = runs.loc[(runs["level"] == row["level"]) & (runs["method"] == side), "difference"].to_numpy(float)
            axes.plot(
                dots, _beside(place, len(dots)), "o", ms=1.9, mew=0.4, mfc="none", color=colour, alpha=0.75, zorder=2
            )
            value, low, high = row[["difference", "difference_low", "difference_high"]].to_numpy(float)
            label = "_" if side in named else ("RL − SFT" if side == "rl" else f"{name_of(side)} − base")
            if np.isfinite([low, high]).all():
                axes.plot([low, high], [place, place], color=colour, lw=1.1, zorder=3)
            if np.isfinite(value):
                fill = colour if row["told"] else "white"
                axes.plot(value, place, ls="", marker=marker, ms=4.4, mew=0.9, mec=colour, mfc=fill, zorder=4)
                axes.plot([], [], ls="", marker=marker, ms=4.4, color=colour, label=label)
                named.add(side)
            else:
                axes.text(0, place, "not estimable", ha="center", va="center", fontsize=6, color=GREY)
        axes.set_ylim(len(lines) - 0.3, -0.7)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, -1.3 * bound), max(high, 1.3 * bound))
        ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        axes.set_xticks(ticks, [signed(round(float(tick), 10)) for tick in ticks])
        axes.set_xlabel("Difference in success rate")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=4,
            handlelength=1.0,
            handletextpad=0.35,
            columnspacing=0.9,
        )


def _beside(place: int, n: int) -> np.ndarray:
    """Places of dots on a line, so that equal ones do not hide each other."""
    return place + (np.linspace(-SPREAD, SPREAD, n) if n > 1 else np.zeros(n))
