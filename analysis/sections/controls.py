"""Control conditions: blank, mirrored and shuffled images, descriptions, stated physics, worked examples."""

from __future__ import annotations

from vlm_probe.analysis.controls import controls
from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.section import MissingData, Section
from vlm_probe.analysis.style import name_of

CELL = ("model", "method", "train_tasks", "regime", "test_task")


def section(material: ReportData) -> Section:
    """Controls against the plain manner. Raises Unanswerable if there are none."""
    models = material.models
    if models.empty or not ((models["manner"] != "") | (models["examples"] > 0)).any():
        raise MissingData("no control conditions were asked: add runs with `probe run --design controls`")
    found = controls(models, by=CELL)
    blind = found.table[found.table["manner"].isin(["blank", "shuffled", "other-picture"])]
    answer = [
        f"{name_of(str(row['method']))} ({row['train_tasks']}) on {row['test_task']}, {row['manner']}: {row['rate']:.2f} against"
        f" {row['intact_rate']:.2f} intact, the same answer to {row['same_answer']:.0%} of the items."
        for row in blind.head(6).to_dict("records")
    ]
    if len(blind):
        answer.append("What stays of the success without a picture, or with a wrong one, is not vision.")
    return Section(
        "controls",
        "Control conditions",
        "What happens to success when the picture is taken away, changed, described or explained?",
        tuple(answer),
        {"manners": found},
    )
