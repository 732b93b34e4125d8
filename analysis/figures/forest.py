"""A forest plot: estimates with their intervals, one line each, and the bound within which they would not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from vlm_probe.analysis.style import COLUMN_MM, GREY, LIGHT, PALETTE, drawing, signed

LINE_MM = 6.5


def forest(estimates: pd.DataFrame, stem: Path, axis: str, bound: float | None = None) -> None:
    """Filled symbols are estimates that a test tells from 0, or, without one, those whose interval does not contain 0.

    Args:
        estimates: `label`, `estimate`, `low`, `high`; optionally `group`, whose name stands above its lines, and `told`,
            whether a test tells them from 0.
        stem: Where to write, without suffix.
        axis: What the estimates are, with their unit.
        bound: Half width of the band around 0 that is shaded, if there is one.
    """
    grouped = "group" in estimates
    lines: list[tuple[str, int | None]] = []
    for group in dict.fromkeys(estimates["group"]) if grouped else [""]:
        own = estimates[estimates["group"] == group] if grouped else estimates
        lines += [(str(group), None)] if group else []
        lines += [(str(row.label), int(index)) for index, row in zip(own.index, own.itertuples(), strict=True)]
    with drawing(stem, 18 + LINE_MM * len(lines), COLUMN_MM) as (_, axes):
        if bound is not None:
            axes.axvspan(-bound, bound, color=LIGHT, alpha=0.35, lw=0, zorder=0)
        axes.axvline(0, color=GREY, lw=0.7, zorder=1)
        for place, (_, index) in enumerate(lines):
            if index is None:
                continue
            estimate, low, high = estimates.loc[index, ["estimate", "low", "high"]].to_numpy(float)
            if not np.isfinite(estimate):
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
                axes.text(0, place, "not estimable", ha="center", va="center", fontsize=6.5, color=GREY, bbox=box)
                continue
            clear = np.isfinite([low, high]).all() and not low <= 0 <= high
            if "told" in estimates:
                clear = bool(estimates.loc[index, "told"])
            if np.isfinite([low, high]).all():
                axes.plot([low, high], [place, place], color=PALETTE[0], lw=1.1, zorder=2)
            axes.plot(
                estimate, place, "o", ms=4.4, mew=0.9, mec=PALETTE[0], mfc=PALETTE[0] if clear else "white", zorder=3
            )
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_yticks(range(len(lines)), [label for label, _ in lines])
        for label, (_, index) in zip(axes.get_yticklabels(), lines, strict=True):
            if index is None:
                label.set_fontweight("bold")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        ticks = axes.get_xticks()
        axes.set_xticks(ticks, [signed(round(float(tick), 10)) for tick in ticks])
        axes.set_xlabel(axis)
