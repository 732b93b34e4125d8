"""Power over runs, one line per number of items; and how often equivalence is found where there is no difference."""

from __future__ import annotations

from pathlib import Path

from vlm_probe.analysis.power import Power
from vlm_probe.analysis.style import GREY, MARKERS, drawing, proportions
from vlm_probe.analysis.tables import csv
from vlm_probe.stimuli.output import OutputFolder, write_json


def power_curves(found: Power, stem: Path) -> None:
    """Draw both curves.

    Args:
        found: What was simulated.
        stem: Where to write, without suffix.
    """
    import matplotlib

    table = found.table
    counts = sorted(table["items"].unique())
    shades = matplotlib.colormaps["viridis_r"]
    panels = (
        ("power", f"A difference of {found.scenario.effect:g} is found"),
        ("power_equivalence", f"No difference: equivalence within ±{found.scenario.bound:g} is shown"),
    )
    with drawing(stem, 118, nrows=2, ncols=1, sharex=True) as (figure, grid):
        for axes, (column, title) in zip(grid, panels, strict=True):
            axes.axhline(found.target, color=GREY, lw=0.7, ls=(0, (4, 1.5)), zorder=1)
            for number, items in enumerate(counts):
                own = table[table["items"] == items].sort_values("runs")
                colour = shades(0.12 + 0.88 * number / max(len(counts) - 1, 1))
                marker = MARKERS[number % len(MARKERS)]
                axes.plot(own["runs"], own[column], color=colour, marker=marker, ms=3, lw=1.1, label=f"{items}")
            proportions(axes)
            axes.set_title(title, loc="left")
            axes.set_ylabel("Probability")
        grid[-1].set_xlabel("Runs per method")
        grid[-1].set_xticks(sorted(table["runs"].unique()))
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, title="Items", title_fontsize=7, loc="outside upper center", ncols=4)


def write(found: Power, folder: OutputFolder) -> None:
    """Write `power.pdf`, `power.png`, `power.csv` and `power.json`.

    Args:
        found: What was simulated.
        folder: Where to.

    Raises:
        OutputError: If the folder cannot be written.
    """
    with folder.scratch() as made:
        power_curves(found, made / "power")
        (made / "power.csv").write_text(csv(found.table), encoding="utf-8")
        write_json(made / "power.json", found.to_dict())
        folder.replace_all(made)
