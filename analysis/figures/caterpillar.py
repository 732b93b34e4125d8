"""A caterpillar plot: the random effects of every grouping factor in order of their size, with intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from vlm_probe.analysis.style import COLUMN_MM, GREY, PAGE_MM, PALETTE, drawing, signed

NAMED = 24
"""Levels that are named on the axis; more would not be legible."""
NONE = 1e-3
"""Effects (log odds) below which there are none."""


def caterpillar(effects: pd.DataFrame, stem: Path) -> None:
    """Conditional modes with 95 % intervals (mode ± 1.96 conditional SD); filled where the interval does not contain 0.

    Args:
        effects: `group`, `level`, `name`, `mode`, `sd`, as `FitResult.random_effects` has them.
        stem: Where to write, without suffix.
    """
    panels = list(dict.fromkeys(zip(effects["group"], effects["name"], strict=True)))
    counts = [int(((effects["group"] == g) & (effects["name"] == n)).sum()) for g, n in panels]
    height = 24 + max(min(2.7 * max(min(c, NAMED) for c in counts), 90), 34)
    with drawing(stem, height, COLUMN_MM if len(panels) == 1 else PAGE_MM, ncols=len(panels), squeeze=False) as (
        _,
        grid,
    ):
        for axes, (group, name), count in zip(grid[0], panels, counts, strict=True):
            own = effects[(effects["group"] == group) & (effects["name"] == name)]
            own = own.sort_values(["mode", "level"], kind="stable")
            place, mode = np.arange(count), own["mode"].to_numpy(float)
            half = 1.96 * own["sd"].to_numpy(float)
            clear = np.abs(mode) > half
            axes.axvline(0, color=GREY, lw=0.7, zorder=0)
            axes.hlines(
                place, mode - half, mode + half, color=PALETTE[0], lw=0.8 if count <= NAMED else 0.35, alpha=0.8
            )
            size = 3.2 if count <= NAMED else 1.2
            for chosen, fill in ((clear, PALETTE[0]), (~clear, "white")):
                axes.plot(mode[chosen], place[chosen], "o", ms=size, mew=0.6, mec=PALETTE[0], mfc=fill, ls="", zorder=3)
            if count <= NAMED:
                axes.set_yticks(place, [str(level) for level in own["level"]], fontsize=6)
            else:
                axes.set_yticks([])
                axes.set_ylabel(f"{count} levels, by size")
            axes.set_ylim(-0.8, count - 0.2)
            axes.set_title(str(group) if name in ("1", "(Intercept)", "Intercept") else f"{group}: {name}", loc="left")
            axes.set_xlabel("Effect (log odds)")
            if np.abs(mode).max() + half.max() < NONE:
                # The axis would be stretched to rounding errors.
                axes.set_xlim(-1, 1)
                axes.set_title("variance estimated as 0", loc="right", fontsize=6.5, color=GREY)
            ticks = axes.get_xticks()
            low, high = axes.get_xlim()
            axes.set_xticks(ticks, [signed(round(float(tick), 10)) for tick in ticks])
            axes.set_xlim(low, high)
