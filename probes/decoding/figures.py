"""Figures of a decoding study: decodability over depth, and what follows when states are moved.

They are drawn in whatever style is set (`matplotlib.rc_context`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Result = Mapping[str, Any]

MM = 1 / 25.4
COLUMN, PAGE, HEIGHT = 88 * MM, 180 * MM, 62 * MM
# Okabe & Ito's colours, which colour-blind readers can tell apart; markers differ too.
LINES = {
    "last": ("#0072B2", "o", "last token"),
    "image": ("#D55E00", "s", "image tokens"),
    "question": ("#009E73", "^", "question tokens"),
}
VISION = ("#CC79A7", "D", "vision tower")
GREY, LIGHT = "#5A5A5A", "#B8B8B8"
KINDS = {
    "probe": ("#0072B2", "o", "probe"),
    "readout": ("#D55E00", "s", "the answer's own direction"),
    "weights": ("#CC79A7", "D", "the probe's weights"),
    "permuted": ("#009E73", "^", "permuted probes"),
    "random": (GREY, None, "random directions"),
}
NAMES = {"R2": "R²", "balanced accuracy": "Balanced accuracy"}


def depth(results: Sequence[Result], out: Path) -> Path:
    """Decodability over depth, one panel per result.

    Bands are 95 % bootstrap intervals over groups. Grey: the 95 % quantile of permuted values and the mean of the control
    tasks, at the same sites; dashed levels: probes of the pixels and of the task's cues. Of a comparison, the adapted model's
    lines are hollow and dashed; of an untrained model, dotted.

    Args:
        results: Contents of `decode.json`, of one model and set.
        out: Where to write; the suffix chooses the format.
    """
    import matplotlib.pyplot as plt

    columns = 1 if len(results) == 1 else 2
    rows = -(-len(results) // columns)
    size = (COLUMN * 1.15 if columns == 1 else PAGE, HEIGHT * rows + 10 * MM)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes, result in zip(grid.flat, results, strict=False):
        _panel(axes, result)
    for axes in list(grid.flat)[len(results) :]:
        axes.set_visible(False)
    entries: dict[str, Any] = {}
    for axes in list(grid.flat)[: len(results)]:
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    data = [label for *_, label in (VISION, *LINES.values()) if label in entries]
    order = data + [label for label in entries if label not in data]
    figure.legend([entries[label] for label in order], order, loc="outside upper left", ncols=2 if columns == 1 else 5)
    return _save(figure, out)


def _panel(axes: Axes, result: Result) -> None:
    """One target over depth: the vision tower's layers on the left, the language model's on the right."""
    sites = result["sites"]
    vision = sorted({row["layer"] for row in sites if row["part"] == "vision"})
    language = sorted({row["layer"] for row in sites if row["part"] == "language"})
    gap = 1.0 if vision and language else 0.0
    place = {("vision", layer): float(i) for i, layer in enumerate(vision)}
    place |= {("language", layer): len(vision) + gap + i for i, layer in enumerate(language)}
    series = [("vision", "image", *VISION)] if vision else []
    present = {row["position"] for row in sites if row["part"] == "language"}
    series += [("language", position, *LINES[position]) for position in LINES if position in present]
    others = {"compare": result.get("compare", {}).get("sites", []), "untrained": result.get("untrained", [])}
    for part, position, colour, marker, label in series:
        rows = sorted((r for r in sites if (r["part"], r["position"]) == (part, position)), key=lambda r: r["layer"])
        x = [place[part, row["layer"]] for row in rows]
        axes.fill_between(x, [r["ci"][0] for r in rows], [r["ci"][1] for r in rows], color=colour, alpha=0.18, lw=0)
        style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 3.4, "lw": 1.1}
        axes.plot(x, [r["score"] for r in rows], label=label, zorder=4, **style)
        for kind, dashes in (("compare", "--"), ("untrained", ":")):
            scores = {row["site"]: row["score"] for row in others[kind]}
            if scores:
                y = [scores[row["site"]] for row in rows]
                hollow = style | {"mfc": "white", "ls": dashes, "lw": 0.9, "ms": 3.0}
                axes.plot(x, y, zorder=3, **hollow)
        for key, what, lines, name in (
            ("permuted", "q95", (0, (1, 1.2)), "permuted values (95 %)"),
            ("control_task", "mean", (0, (4, 1.5)), "control task (mean)"),
        ):
            if rows[0][key]:
                # The marker of the line that it controls, so that two positions can be told apart.
                y = [row[key][what] for row in rows]
                marked: dict[str, Any] = {"marker": marker, "ms": 1.8, "mfc": "white", "mew": 0.5}
                axes.plot(x, y, color=GREY, ls=lines, lw=0.7, zorder=2, label=name, **marked)
    for name, pattern in (("pixels", (0, (5, 2))), ("cues", (0, (5, 2, 1, 2)))):
        if name in result["references"]:
            level = result["references"][name]["score"]
            label = {"pixels": "probe on pixels", "cues": "probe on cues"}[name]
            axes.axhline(level, color="black", lw=0.7, ls=pattern, zorder=1, label=label)
    for kind, dashes, name in (("compare", "--", "adapted model"), ("untrained", ":", "untrained model")):
        if others[kind]:
            axes.plot([], [], color="black", ls=dashes, lw=0.9, marker="o", mfc="white", ms=3, label=name)
    axes.axhline(result["chance"], color=LIGHT, lw=0.6, zorder=0)
    shown = [(*key, x) for key, x in place.items()]
    every = max(1, -(-len(shown) // 14))
    ticks = [entry for i, entry in enumerate(shown) if i % every == 0]
    axes.set_xticks([x for *_, x in ticks], [str(layer) for _, layer, _ in ticks])
    if gap:
        axes.axvline(len(vision) - 0.5 + gap / 2, color=LIGHT, lw=0.6)
    axes.set_xlabel("Vision layer" * bool(vision) + "          " * bool(gap) + "Language layer" * bool(language))
    axes.set_ylabel(NAMES[result["metric"]])
    axes.set_title(result["target"]["name"], fontsize=8, loc="left")
    _frame(axes, result)


def _frame(axes: Axes, result: Result) -> None:
    """R2 far below 0 says no more than R2 below 0: such lines leave the panel at the bottom."""
    if result["metric"] == "R2":
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.5), max(min(high, 1.05), 0.1))
    else:
        axes.set_ylim(min(axes.get_ylim()[0], result["chance"] - 0.05), 1.03)


def intervention(result: Result, out: Path) -> Path:
    """Dose and response: how the outcomes change when states are moved along each kind of direction.

    Points and bands are means and 95 % bootstrap intervals over groups; thin grey lines are single random directions.

    Args:
        result: Contents of a `decode.json` with an intervention.
        out: Where to write.
    """
    import matplotlib.pyplot as plt

    found = result["intervention"]
    outcomes = found["outcomes"]
    size = (COLUMN * 1.15 if len(outcomes) == 1 else PAGE, HEIGHT + 8 * MM)
    figure, grid = plt.subplots(1, len(outcomes), figsize=size, layout="constrained", squeeze=False)
    doses = found["doses_sd"]
    zero = next(i for i, dose in enumerate(doses) if dose > 0)
    x = [*doses[:zero], 0.0, *doses[zero:]]

    def whole(values: Sequence[float]) -> list[float]:
        return [*values[:zero], 0.0, *values[zero:]]

    for axes, outcome in zip(grid.flat, outcomes, strict=True):
        for curve in outcome["directions"]["random"]["curve_by_draw"]:
            axes.plot(x, whole(curve), color=LIGHT, lw=0.5, zorder=1)
        for kind, (colour, marker, label) in KINDS.items():
            curve = outcome["directions"][kind]["curve"]
            y = whole([point["mean"] for point in curve])
            low, high = (whole([point["ci"][side] for point in curve]) for side in (0, 1))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0, zorder=2)
            axes.plot(x, y, color=colour, marker=marker, ms=3.2, lw=1.1, zorder=3, label=label)
        axes.axhline(0, color=LIGHT, lw=0.6, zorder=0)
        axes.axvline(0, color=LIGHT, lw=0.6, zorder=0)
        axes.set_xlabel(f"Moved towards {found['towards']} (sd)")
        axes.set_ylabel("Change of the " + outcome["name"].replace(" against ", "\nagainst "))
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2 if len(outcomes) == 1 else 5)
    return _save(figure, out)


def _save(figure: Any, out: Path) -> Path:
    import matplotlib.pyplot as plt

    try:
        # Without dates, so that equal data give equal bytes.
        metadata = {"Software": None} if out.suffix == ".png" else {"CreationDate": None}
        figure.savefig(out, dpi=300, metadata=metadata)
    finally:
        plt.close(figure)
    return out
