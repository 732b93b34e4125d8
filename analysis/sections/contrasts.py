"""The planned contrasts: what training runs do within their task and beyond it, and reinforcement learning against imitation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from vlm_probe.analysis.contrasts import planned_contrasts
from vlm_probe.analysis.labels import file_part, joined, span
from vlm_probe.analysis.material import ReportData, Settings
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import Figure, MissingData, Section, some_columns
from vlm_probe.analysis.style import COLUMN_MM, GREY, LIGHT, PALETTE, drawing, signed
from vlm_probe.analysis.tables import interval, number, p_value

CELL = ["model", "transfer", "contrast"]
MODEL = [
    "b",
    "b_low",
    "b_high",
    "se",
    "df",
    "statistic",
    "p",
    "p_holm",
    "odds_ratio",
    "odds_low",
    "odds_high",
    "interval",
]
SIZE = [
    "difference",
    "difference_low",
    "difference_high",
    "h",
    "p_equivalence",
    "verdict",
    "bf01",
    "evidence",
    "bf01_bic",
]
MEANS = [
    "run_difference",
    "means_se",
    "means_df",
    "p_means",
    "about",
    "run_se",
    "run_df",
    "p_runs",
    "n_tests",
    "n_runs",
]


def section(material: ReportData) -> Section:
    """The planned contrasts. Raises Unanswerable if nothing was trained."""
    plain, settings = material.plain, material.settings
    if plain.empty or plain["transfer"].isna().all():
        raise MissingData(
            "no run is of a trained model whose training tasks are known: train one (`probe train`), and run it with"
            " `probe run --adapter DIR` beside the base"
        )
    found = planned_contrasts(plain, settings.bound, settings.alpha)
    table = found.table
    results: dict[str, Result] = {
        "tests": some_columns(found, [*CELL, *MODEL, "n_tests", "n_runs"], found.title),
        "sizes": some_columns(
            found, [*CELL, *SIZE], "Effect sizes of the planned contrasts, and evidence for no difference"
        ),
        "run_means": some_columns(
            found,
            [*CELL, *MEANS],
            "The planned contrasts tested on means: over runs and items, and over runs on these items",
        ),
    }
    if len(found.omnibus):
        results["omnibus"] = Result(
            title="Likelihood-ratio tests of training as a whole", table=found.omnibus, how=found.how
        )
    figures = tuple(_figure(table[table["model"] == model], settings) for model in dict.fromkeys(table["model"]))
    return Section(
        "contrasts",
        "Planned contrasts",
        "Does training help within its task, and does anything carry over?",
        tuple(sentences(table)),
        results,
        figures,
    )


def sentences(table: pd.DataFrame) -> list[str]:
    """The contrasts of a table in words."""
    lines = []
    for row in table.to_dict("records"):
        if row["difference"] != row["difference"]:
            lines.append(
                f"{row['transfer']}, {row['contrast']}: could not be estimated by the mixed model; see the tests on means."
            )
            continue
        lines.append(
            f"{row['transfer']}, {row['contrast']}: difference in success rate {number(row['difference'])}"
            f" {interval(row['difference_low'], row['difference_high'])}, p (Holm) {_equals(row['p_holm'])}, p (equivalence)"
            f" {_equals(row['p_equivalence'])}: {row['verdict']}."
        )
    return lines


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _figure(table: pd.DataFrame, settings: Settings) -> Figure:
    model = str(table["model"].iloc[0])
    lines = table.rename(columns={"difference_low": "low", "difference_high": "high", "contrast": "label"})
    lines = lines.rename(columns={"difference": "estimate", "transfer": "group"})
    lines = lines.assign(told=(table["p_holm"] < settings.alpha).to_numpy(bool))
    shown = lines[["group", "label", "estimate", "low", "high", "told"]].reset_index(drop=True)
    told = table[table["n_tests"] > 0] if (table["n_tests"] > 0).any() else table
    caption = (
        f"Planned contrasts of {model} by level of transfer: differences in success rate with 95 % intervals from those of the"
        f" rates (Zou & Donner, 2008), t between runs"
        f" ({span(told['n_runs'])} runs of trained models a contrast). Filled: told from 0"
        f" (log odds, Holm, p < {settings.alpha:g}; intervals are not corrected). Grey band: differences within ±{settings.bound:g}, too small to"
        " matter."
    )
    return Figure(
        joined("contrasts", file_part(model)),
        caption,
        partial(forest, shown, axis="Difference in success rate", bound=settings.bound),
    )


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
