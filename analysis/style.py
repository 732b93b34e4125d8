"""The look of all figures: one column wide and legible at that size, the same colour for the same thing, the same bytes for
the same data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_probe.stimuli.output import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MM = 1 / 25.4
COLUMN_MM, PAGE_MM = 84.0, 174.0
"""One column (3.3 inches) and a whole page."""
DPI = 300
FORMATS = (".pdf", ".png")

# Okabe & Ito's colour-blind safe palette without its yellow; markers differ too, so that grey prints can be read.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, LIGHT = "#5A5A5A", "#B8B8B8"
DIVERGING = "PuOr_r"
"""From worse (purple) through no difference (white) to better (orange); told apart by all readers, and in grey by its numbers."""

LOOKS = {
    "none": (GREY, "o"),
    "sft": (PALETTE[0], "s"),
    "ppo": (PALETTE[1], "^"),
    "grpo": (PALETTE[2], "D"),
    "rloo": (PALETTE[3], "v"),
}
NAMES = {"none": "base", "sft": "SFT", "ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO"}

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so that figures are the same everywhere
    "font.size": 7.5,
    "axes.labelsize": 8,
    "axes.titlesize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 6.8,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # editable text in the journal's tools
    "svg.hashsalt": "probe",
}


def look(method: str, others: Sequence[str] = ()) -> tuple[str, str]:
    """Colour and marker of a method, the same in every figure.

    Args:
        method: The method.
        others: All methods of the figure; those without a colour of their own get the free ones in this order.
    """
    if method in LOOKS:
        return LOOKS[method]
    unknown = [name for name in others if name not in LOOKS]
    index = unknown.index(method) if method in unknown else 0
    return PALETTE[(4 + index) % len(PALETTE)], MARKERS[(4 + index) % len(MARKERS)]


def name_of(method: str) -> str:
    """A method as figures and tables write it."""
    return NAMES.get(method, method)


@contextmanager
def drawing(stem: Path, height_mm: float, width_mm: float = COLUMN_MM, **subplots: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure in this style, written as PDF and PNG when the block ends.

    Args:
        stem: Where to write, without a suffix.
        height_mm, width_mm: Size.
        **subplots: For `matplotlib.pyplot.subplots`.

    Yields:
        The figure, and its axes.
    """
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width_mm * MM, height_mm * MM), layout="constrained", **subplots)
        try:
            yield figure, axes
            for suffix in FORMATS:
                save(figure, stem.with_name(stem.name + suffix))
        finally:
            plt.close(figure)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all, and without dates, so that equal data give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=DPI, metadata=metadata)
    return path


def proportions(axes: Axes, axis: str = "y") -> None:
    """An axis from 0 to 1, without the zeros that every proportion has."""
    set_limits, set_ticks = (axes.set_ylim, axes.set_yticks) if axis == "y" else (axes.set_xlim, axes.set_xticks)
    set_limits(-0.03, 1.03)
    set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])


def margins(axes: Axes, reach: float) -> None:
    """A horizontal axis of signed margins."""
    axes.set_xlim(-reach, reach)
    step = 0.25 if reach < 0.7 else 0.5 if reach < 1.6 else 1.0
    ticks = [step * k for k in range(-int(reach / step), int(reach / step) + 1)]
    axes.set_xticks(ticks, [signed(tick) for tick in ticks])


def signed(value: float) -> str:
    """A number with its sign, a true minus, and no sign at 0."""
    return f"{value:+g}".replace("-", "−") if value else "0"


def legend_above(figure: Figure, axes: Axes | None = None, ncols: int = 3) -> None:
    """One legend above the whole figure, of one panel or (None) of all together; points with intervals first.

    Args:
        figure: The figure.
        axes: The panel; None for all of them.
        ncols: Columns of the legend.
    """
    known: dict[str, Any] = {}
    for panel in [axes] if axes is not None else figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    labels = sorted(known, key=lambda label: not hasattr(known[label], "has_yerr"))
    figure.legend(
        [known[label] for label in labels],
        labels,
        loc="outside upper left",
        ncols=ncols,
        handlelength=1.8,
        columnspacing=1.2,
    )
