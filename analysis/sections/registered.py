"""The registered contrasts: what was planned before anything was trained, tested as it was planned."""

from __future__ import annotations

import pandas as pd

from vlm_probe.analysis.contrasts import Contrasts
from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.registration import registered_conditions, registered_contrasts
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import MissingData, Section, some_columns
from vlm_probe.analysis.sections.contrasts import MEANS, MODEL, SIZE, sentences
from vlm_probe.analysis.tables import interval, number

CELL = ["model", "training", "transfer", "contrast"]


def section(material: ReportData) -> Section:
    """The registered contrasts. Raises Unanswerable if nothing was trained."""
    registration, plain = material.registration, material.plain
    assert registration is not None
    if plain.empty or plain["transfer"].isna().all():
        raise MissingData("nothing that was registered has been trained and tested: `probe study run` does it")
    results: dict[str, Result] = {}
    lines = [f"Registered on {registration.registered}, SHA-256 {registration.sha256[:16]}."]
    if registration.method_contrasts:
        found = registered_contrasts(plain, registration, material.settings.alpha)
        results |= _of_methods(found)
        for training in dict.fromkeys(found.table["training"]):
            own = found.table[found.table["training"] == training]
            lines += [f"{training}: {line}" for line in sentences(own)]
    if registration.condition_contrasts:
        results["conditions"] = registered_conditions(plain, registration, material.settings.alpha)
    lines += _conditions(results["conditions"].table) if "conditions" in results else []
    return Section(
        "registered",
        "Registered contrasts",
        "What was planned before anything was trained: does training help within its task, and does anything carry over?",
        tuple(lines),
        results,
    )


def _of_methods(found: Contrasts) -> dict[str, Result]:
    """The contrasts of methods in three tables."""
    return {
        "tests": some_columns(found, [*CELL, *MODEL, "n_tests", "n_runs"], found.title),
        "sizes": some_columns(
            found, [*CELL, *SIZE], "Effect sizes of the registered contrasts, and evidence for no difference"
        ),
        "run_means": some_columns(
            found,
            [*CELL, *MEANS],
            "The registered contrasts tested on means: over runs and items, and over runs on these items",
        ),
    }


def _conditions(table: pd.DataFrame) -> list[str]:
    """The contrasts of conditions in words."""
    return [
        f"{row['contrast']}, {row['transfer']}: difference in success rate {number(row['difference'])}"
        f" {interval(row['difference_low'], row['difference_high'])}: {row['verdict']}{_measure(row['measure'])}."
        for row in table.to_dict("records")
    ]


def _measure(name: str) -> str:
    return f" ({name})" if name else ""
