"""Agreement with people, where a set came with human responses."""

from __future__ import annotations

import pandas as pd

from analysis.alignment import alignment
from analysis.alignment_model import alignment_model
from analysis.material import Material
from analysis.result import Result
from analysis.section import Section, Unanswerable
from analysis.sets import human_responses

CELL = ("model", "method", "train_tasks", "regime", "test_task")


def section(material: Material) -> Section:
    """Alignment with people. Raises Unanswerable if no set has human responses."""
    responses = human_responses(material.sets)
    asked = pd.concat([material.plain, material.observers]) if len(material.observers) else material.plain
    if responses.empty or asked.empty:
        raise Unanswerable(
            "no stimulus set of these runs has human responses, or it is not where the runs found it: see"
            " `probe stimuli import --responses`"
        )
    settings = material.settings
    found = alignment(asked, responses, by=CELL, resamples=settings.resamples, seed=settings.seed)
    ceilings = Result(title="What people reach among each other", table=found.ceilings, how=found.how)
    answer = [
        f"{row['run']} on {row['test_task']}: r = {row['r']:.2f} with the share of people, Cohen's κ = {row['kappa']:.2f} with single"
        f" people, {row['n_items']} items."
        for row in found.table.head(8).to_dict("records")
    ]
    return Section(
        "people",
        "Agreement with people",
        "Do models answer as people do, item by item, and as well as people predict each other?",
        tuple(answer),
        {"runs": found, "ceilings": ceilings, "predicted": alignment_model(asked, responses)},
    )
