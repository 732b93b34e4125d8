"""Means with per-run points: the success rate on every test, by method, one panel per training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vlm_probe.analysis.style import COLUMN_MM, GREY, LIGHT, PAGE_MM, drawing, legend_above, look, name_of, proportions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINES = (("chance", LIGHT, (0, (1, 1.5))), ("best_baseline", GREY, (0, (4, 1.5))))
FEW = 4
"""Tests that fit into one column."""


def means(cells: pd.DataFrame, runs: pd.DataFrame, baselines: pd.DataFrame, stem: Path) -> None:
    """Large symbols are means over runs with their 95 % intervals, small ones are runs.

    Args:
        cells: `trained_on`, `method`, `test`, `rate`, `rate_low`, `rate_high`; untrained models have "none" for both.
        runs: The same for every run, with `run`.
        baselines: `test`, and of `BASELINES` what is known.
        stem: Where to write, without suffix.
    """
    tests = list(dict.fromkeys(cells["test"]))
    trainings = [t for t in dict.fromkeys(cells["trained_on"]) if t != "none"] or ["none"]
    methods = list(dict.fromkeys(cells["method"]))
    width = COLUMN_MM if len(tests) <= FEW else PAGE_MM
    with drawing(stem, 14 + 46 * len(trainings), width, nrows=len(trainings), sharex=True, squeeze=False) as (
        figure,
        grid,
    ):
        for axes, training in zip(grid[:, 0], trainings, strict=True):
            _panel(axes, cells, runs, training, tests, methods)
            _reference(axes, baselines, tests)
            if len(trainings) > 1:
                axes.set_title(f"trained on {training}", loc="left")
        figure.supylabel("Success rate", fontsize=8)
        last = grid[-1, 0]
        # A task name breaks at its hyphen, which leaves room for four of them in a column.
        last.set_xticks(range(len(tests)), [wrapped(test) for test in tests])
        if len(tests) > 7:
            last.tick_params(axis="x", rotation=40)
            for label in last.get_xticklabels():
                label.set_horizontalalignment("right")
                label.set_rotation_mode("anchor")
        legend_above(figure, ncols=4)


def wrapped(test: str) -> str:
    """The name of a test on several short lines."""
    task, _, shift = test.partition("@")
    lines = task.replace("-", "-\n", 1)
    return f"{lines}\n{shift}" if shift else lines


def _panel(
    axes: Axes, cells: pd.DataFrame, runs: pd.DataFrame, training: str, tests: Sequence[str], methods: Sequence[str]
) -> None:
    def of(table: pd.DataFrame, method: str) -> pd.DataFrame:
        wanted = "none" if method == "none" else training
        return table[(table["method"] == method) & (table["trained_on"] == wanted)]

    shown = [m for m in methods if len(of(cells, m))]
    for index, method in enumerate(shown):
        colour, marker = look(method, methods)
        offset = (index - (len(shown) - 1) / 2) * min(0.2, 0.8 / len(shown))
        single = of(runs, method)
        many = single.groupby("test", observed=True)["run"].nunique().max() if len(single) else 0
        if many > 1:
            x = np.array([tests.index(t) for t in single["test"]]) + offset - 0.055
            axes.plot(x, single["rate"], ls="", marker="o", ms=2.2, mew=0.5, mfc="none", color=colour, zorder=3)
        mean = of(cells, method)
        x = np.array([tests.index(t) for t in mean["test"]]) + offset
        y = mean["rate"].to_numpy(float)
        errors = np.vstack([y - mean["rate_low"], mean["rate_high"] - y]).clip(min=0)
        axes.errorbar(
            x,
            y,
            yerr=errors,
            fmt=marker,
            color=colour,
            ms=4.4,
            mew=0.5,
            mec="white",
            elinewidth=0.9,
            zorder=4,
            label=name_of(method),
        )
    axes.set_xlim(-0.5, len(tests) - 0.5)
    proportions(axes)


def _reference(axes: Axes, baselines: pd.DataFrame, tests: Sequence[str]) -> None:
    for column, colour, dashes in BASELINES:
        if column not in baselines:
            continue
        known = baselines.dropna(subset=[column]).drop_duplicates("test")
        label = {"chance": "chance", "best_baseline": "best baseline"}[column]
        for test, level in zip(known["test"], known[column].astype(float), strict=True):
            if test in tests:
                at = tests.index(test)
                axes.plot(
                    [at - 0.42, at + 0.42], [level, level], color=colour, lw=0.9, ls=dashes, zorder=1, label=label
                )
                label = "_"
