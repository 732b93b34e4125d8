"""Perception first: a model that does not see what an image shows is not failing at physics."""

from __future__ import annotations

from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.rates import HOW, by_cell
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import MissingData, Section
from vlm_probe.analysis.style import name_of


def section(material: ReportData) -> Section:
    """Grounding questions by kind. Raises Unanswerable if none were asked."""
    grounding = material.grounding
    if grounding.empty:
        raise MissingData(
            "no grounding questions were asked: add `probe run --stimuli FAMILY-grounding`, so that a failure of physics can"
            " be told from one of perception"
        )
    # The build of a grounding item is its kind of question, with what was asked about after a colon.
    kinds = grounding.assign(asked=grounding["build"].astype(str).str.partition(":")[0])
    table = by_cell(kinds, ("model", "method", "train_tasks", "regime", "test_task", "asked"))
    worst = table.sort_values(["rate", "asked"]).iloc[0]
    return Section(
        "perception",
        "Perception",
        "Does the model see what the pictures show?",
        (
            f"The lowest of {len(table)} rates is {worst['rate']:.2f} ({worst['asked']} questions of {worst['test_task']},"
            f" {name_of(str(worst['method']))}, {int(worst['n_trials'])} trials).",
        ),
        {"kinds": Result(title="Grounding questions answered rightly, by kind", table=table, how=HOW)},
    )
