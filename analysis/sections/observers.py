"""Errors of models next to those of observers: who guesses errs elsewhere than who simulates through noise."""

from __future__ import annotations

from vlm_probe.analysis.error_consistency import error_consistency
from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.section import MissingData, Section
from vlm_probe.analysis.selection import CELL


def section(material: ReportData) -> Section:
    """Error consistency with observers. Raises Unanswerable if there is none."""
    if material.plain.empty or material.observers.empty:
        raise MissingData(
            "no observer was asked the same items: add `probe run --model noisy-simulation` and `--model heuristic` on these sets"
        )
    settings = material.settings
    found = error_consistency(
        material.plain, material.observers, by=CELL, resamples=settings.resamples, seed=settings.seed
    )
    told = found.table[found.table["kappa_low"] > 0]
    return Section(
        "observers",
        "Errors beside those of observers",
        "Does a model err where an observer errs who guesses, follows a rule, or simulates through noise?",
        (
            f"Errors are shared beyond chance in {len(told)} of {len(found.table)} pairs of cell and observer (95 % interval of"
            " Cohen's κ of being right above 0).",
        ),
        {"consistency": found},
    )
