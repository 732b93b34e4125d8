"""The planned contrasts: what trainings do within their task and beyond it, and reinforcement learning against imitation."""

from __future__ import annotations

from functools import partial

import pandas as pd

from vlm_probe.analysis.contrasts import planned_contrasts
from vlm_probe.analysis.figures.forest import forest
from vlm_probe.analysis.labels import file_part, joined, span
from vlm_probe.analysis.material import Material, Settings
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import Figure, Section, Unanswerable, some_columns
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


def section(material: Material) -> Section:
    """The planned contrasts. Raises Unanswerable if nothing was trained."""
    plain, settings = material.plain, material.settings
    if plain.empty or plain["transfer"].isna().all():
        raise Unanswerable(
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
