"""The transfer matrix over the width of a page: training runs in groups of rows, tests in groups of columns, one per family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from vlm_probe.analysis.style import DIVERGING, GREY, MM, PAGE_MM, drawing
from vlm_probe.analysis.tables import proportion
from vlm_probe.paper.numbers import records

ROW_MM, GAP = 4.3, 0.45
"""Height of a row, and the gap between groups in rows and columns."""


def matrix(cells: pd.DataFrame, stem: Path) -> None:
    """Numbers are success rates; bold where they are told from the untrained model's, framed where task and test are the same.

    Args:
        cells: `group` and `row`, `family` and `test` (in their order), `rate`, `difference` (nan: unknown), `reliable`, `within`.
        stem: Where to write, without suffix.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    down, across = _places(cells, "group", "row"), _places(cells, "family", "test")
    largest = (
        float(np.nanmax(np.abs(cells["difference"].to_numpy(float)))) if cells["difference"].notna().any() else 0.0
    )
    reach = max(0.1, float(np.ceil(largest * 10) / 10))
    colours, norm = colormaps[DIVERGING].with_extremes(bad="#E4E4E4"), Normalize(-reach, reach)
    height = 34 + ROW_MM * (max(down.values()) + 1)
    with drawing(stem, height, PAGE_MM) as (figure, axes):
        for row in records(cells):
            y, x = down[(row["group"], row["row"])], across[(row["family"], row["test"])]
            known = bool(np.isfinite(row["difference"]))
            face = colours(norm(row["difference"])) if known else "#EDEDED"
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=face, ec="white", lw=0.4))
            if row["within"]:
                axes.add_patch(Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, ec="black", lw=0.9, zorder=3))
            axes.text(
                x,
                y,
                proportion(float(row["rate"]), 2),
                ha="center",
                va="center",
                color="white" if known and abs(row["difference"]) > 0.65 * reach else "black",
                fontsize=5.6,
                fontweight="bold" if row["reliable"] else "normal",
            )
        axes.set_xlim(-0.6, max(across.values()) + 0.6)
        axes.set_ylim(max(down.values()) + 0.6, -0.6)
        axes.set_xticks(
            list(across.values()), [test for _, test in across], rotation=42, ha="left", rotation_mode="anchor"
        )
        axes.xaxis.tick_top()
        axes.set_yticks(list(down.values()), [row for _, row in down])
        axes.tick_params(length=0, labelsize=6.2, pad=1.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for group in dict.fromkeys(cells["group"]):
            own = [place for (name, _), place in down.items() if name == group]
            if group:
                axes.text(
                    -0.056,
                    np.mean(own),
                    group.replace(", ", ",\n").replace(" jointly", "\njointly"),
                    transform=axes.get_yaxis_transform(),
                    ha="right",
                    va="center",
                    fontsize=6.5,
                )
        for family in dict.fromkeys(cells["family"]):
            own = [place for (name, _), place in across.items() if name == family]
            axes.annotate(
                family,
                (float(np.mean(own)), 0),
                (0, -4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=7,
                fontweight="bold",
            )
        bar = figure.colorbar(
            ScalarMappable(norm, colours),
            ax=axes,
            orientation="horizontal",
            location="bottom",
            fraction=3 * MM,
            aspect=50,
            pad=0.06,
            shrink=0.5,
        )
        bar.set_label("Difference from the untrained model", fontsize=6.5)
        bar.ax.tick_params(labelsize=6)
        bar.outline.set_edgecolor(GREY)
        bar.outline.set_linewidth(0.5)


def _places(cells: pd.DataFrame, group: str, name: str) -> dict[tuple[str, str], float]:
    """Where rows or columns stand, with a gap before every group."""
    place, places, last = -1.0, {}, None
    pairs = cells[[group, name]].drop_duplicates()
    # Groups in their order, and within them the order of appearance.
    order = {value: i for i, value in enumerate(dict.fromkeys(cells[group]))}
    for g, n in sorted(pairs.itertuples(index=False), key=lambda pair: order[pair[0]]):
        place += 1.0 + (GAP if last is not None and g != last else 0.0)
        places[(str(g), str(n))] = place
        last = g
    return places
