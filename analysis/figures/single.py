"""The figure of a single run: a psychometric function, or success by condition."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_probe.analysis.proportions import Cell, by_answer_size, by_condition, by_margin
from vlm_probe.analysis.rows import Row, plain_rows, two_options
from vlm_probe.analysis.style import (
    COLUMN_MM,
    GREY,
    LIGHT,
    MARKERS,
    MM,
    PALETTE,
    STYLE,
    legend_above,
    margins,
    proportions,
    save,
)
from vlm_probe.stimuli.errors import InvalidInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    runs: Mapping[str, Sequence[Row]], out: str | Path, references: Mapping[str, Sequence[Row]] | None = None
) -> Path | None:
    """The figure that fits the task: a psychometric function, or success by condition; of the first manner only.

    Args:
        runs: Label -> trial rows, all of one task.
        out: Where to write; the suffix (.png or .pdf) chooses the format.
        references: Label -> trial rows of observers to compare with.

    Returns:
        The path, or None if there is nothing to draw.
    """
    runs = {label: plain_rows(members) for label, members in runs.items()}
    rows = [row for members in runs.values() for row in members]
    options = two_options(rows) if rows else None
    if options is not None and by_margin(rows):
        return psychometric(runs, out, references)
    return success(runs, out, references) if rows else None


def psychometric(
    runs: Mapping[str, Sequence[Row]], out: str | Path, references: Mapping[str, Sequence[Row]] | None = None
) -> Path:
    """P(signal answer) over the signed margin: points per bin with Wilson intervals, observers as reference lines.

    The ideal observer, who knows the physics exactly, is the step at margin 0. References are drawn from their graded
    response probabilities where they log them.

    Args:
        runs: Label -> trial rows of a two-option judgement.
        out: Where to write; the suffix (.png or .pdf) chooses the format.
        references: Label -> trial rows of observers on the same set.

    Raises:
        ValueError: If the rows are not a two-option judgement with margins.
    """
    import matplotlib.pyplot as plt

    options = two_options([row for rows in runs.values() for row in rows])
    if options is None:
        raise InvalidInput(
            "a psychometric function needs the trials of one two-option judgement, such as towers-stability"
        )
    signal = options[0]
    curves = {label: by_margin(rows, signal) for label, rows in runs.items()}
    if not any(curves.values()):
        raise InvalidInput("a psychometric function needs trials in at least two margin bins")
    reach = 1.06 * max(abs(cell.x) for found in curves.values() for cell in found)

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_MM * MM, 60 * MM), layout="constrained")
        # Where most trials of the boundary fall, a step hides nothing: it lies behind everything else.
        axes.plot([-reach, 0, 0, reach], [0, 0, 1, 1], color=LIGHT, lw=1.2, zorder=1, label="ideal observer")
        axes.axhline(0.5, color=LIGHT, lw=0.6, ls=(0, (1, 2)), zorder=0)
        for label, rows in (references or {}).items():
            found = by_margin(rows, signal)
            axes.plot(
                [c.x for c in found], [c.p_signal for c in found], color=GREY, lw=1.1, ls="--", zorder=2, label=label
            )
        for index, (label, found) in enumerate(curves.items()):
            colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            _points(axes, [c for c in found if c.signal.n], colour, marker, label)
        margins(axes, reach)
        proportions(axes)
        axes.set_xlabel(f"← {options[1]}      Physical margin      {options[0]} →")
        axes.set_ylabel(f"P(“{signal}”)")
        legend_above(figure)
        return _finished(figure, out)


def success(
    runs: Mapping[str, Sequence[Row]], out: str | Path, references: Mapping[str, Sequence[Row]] | None = None
) -> Path:
    """Success rate by kind of build, or by the size of the correct answer where all builds are alike.

    Args:
        runs: Label -> trial rows.
        out: Where to write; the suffix (.png or .pdf) chooses the format.
        references: Label -> trial rows of observers on the same set.
    """
    import matplotlib.pyplot as plt

    def grouped(rows: Sequence[Row]) -> tuple[str, list[Cell]]:
        for name, found in (("Condition", by_condition(rows, "build")), ("|correct answer|", by_answer_size(rows))):
            if len(found) > 1:
                return name, found
        return "Number of objects", by_condition(rows, "count")

    everything = {**runs, **(references or {})}
    name, axis = grouped([row for rows in everything.values() for row in rows])
    place = {cell.level: index for index, cell in enumerate(axis)}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_MM * MM, 60 * MM), layout="constrained")
        for index, (label, rows) in enumerate(everything.items()):
            reference = label not in runs
            colour = GREY if reference else PALETTE[index % len(PALETTE)]
            offset = 0.12 * (index - (len(everything) - 1) / 2)
            found = grouped(rows)[1]
            x = [place[c.level] + offset for c in found if c.level in place]
            _bars(
                axes, x, [c.accuracy for c in found if c.level in place], colour, MARKERS[index % len(MARKERS)], label
            )
        levels = [_spaced(cell.label) for cell in axis]
        chance = [float(row["chance"]) for rows in runs.values() for row in rows if row.get("chance") is not None]
        if chance:
            axes.axhline(sum(chance) / len(chance), color=LIGHT, lw=0.8, ls=(0, (1, 2)), zorder=0, label="chance")
        axes.set_xticks(range(len(axis)), levels)
        if max(map(len, levels)) * len(axis) > 44:
            axes.tick_params(axis="x", rotation=30)
        axes.set_xlim(-0.5, len(axis) - 0.5)
        proportions(axes)
        axes.set_xlabel(name)
        axes.set_ylabel("Proportion successful")
        legend_above(figure)
        return _finished(figure, out)


def _points(axes: Axes, found: Sequence[Cell], colour: str, marker: str, label: str) -> None:
    x, y = [c.x for c in found], [c.signal.value for c in found]
    axes.plot(x, y, color=colour, lw=0.8, alpha=0.55, zorder=3)
    _bars(axes, x, [c.signal for c in found], colour, marker, label)


def _bars(axes: Axes, x: Sequence[float], values: Sequence[Any], colour: str, marker: str, label: str) -> None:
    y = [v.value for v in values]
    # An interval need not contain a rounded proportion of exactly 0 or 1 in floating point.
    errors = [[max(v.value - v.low, 0.0) for v in values], [max(v.high - v.value, 0.0) for v in values]]
    axes.errorbar(
        x, y, yerr=errors, fmt=marker, color=colour, ms=3.6, mew=0.5, mec="white", elinewidth=0.9, zorder=4, label=label
    )


def _spaced(level: str) -> str:
    """ "5to7cm" as "5–7 cm"; other levels as they are."""
    return re.sub(r"^(\d+)to(\d+)([a-z]+)$", r"\1–\2 \3", level)


def _finished(figure: Any, out: str | Path) -> Path:
    import matplotlib.pyplot as plt

    try:
        return save(figure, Path(out))
    finally:
        plt.close(figure)
