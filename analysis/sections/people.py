"""Agreement with participants, where a set came with human responses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from vlm_probe.analysis.alignment import THIN, alignment
from vlm_probe.analysis.alignment_model import alignment_model
from vlm_probe.analysis.kappa import FEWEST_SHARED
from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import MissingData, Section
from vlm_probe.analysis.sets import human_responses

CELL = ("model", "method", "train_tasks", "regime", "test_task")


def section(material: ReportData) -> Section:
    """Alignment with participants. Raises Unanswerable if no set has human responses."""
    responses = human_responses(material.sets)
    asked = pd.concat([material.plain, material.observers]) if len(material.observers) else material.plain
    if responses.empty or asked.empty:
        raise MissingData(
            "no stimulus set of these runs has human responses, or it is not where the runs found it: see"
            " `probe stimuli import --responses`"
        )
    settings = material.settings
    found = alignment(asked, responses, by=CELL, resamples=settings.resamples, seed=settings.seed)
    ceilings = Result(title="What people reach among each other", table=found.ceilings, how=found.how)
    predicted = alignment_model(asked, responses)
    answer = [in_words(row, found.items) for row in found.table.head(8).to_dict("records")]
    return Section(
        "people",
        "Agreement with people",
        "Do models answer as people do, item by item, and as well as people predict each other?",
        tuple(answer),
        {"runs": found, "ceilings": ceilings} | ({"predicted": predicted} if len(predicted.table) else {}),
    )


def in_words(row: Mapping[Any, Any], items: pd.DataFrame) -> str:
    """What a run has in common with participants, as a sentence; or why that cannot be said.

    Args:
        row: A row of the table of `alignment`.
        items: The items of the same alignment.
    """
    of_task = items[items["test_task"] == row["test_task"]]
    answers, shares = (of_task.loc[of_task["run"] == who, "p_signal"].dropna() for who in (row["run"], "people"))
    r, kappa = f"r = {row['r']:.2f} with the share of people", f"Cohen's κ = {row['kappa']:.2f} with single people"
    if math.isnan(row["r"]):
        same = [who for who, values in (("the run", answers), ("people", shares)) if values.nunique() < 2]
        r = "r with the share of people is undefined" + (
            f" ({' and '.join(same)} said the same about every item, and a correlation needs both to vary)"
            if same
            else f" ({THIN})"
        )
    if math.isnan(row["kappa"]):
        kappa = (
            f"Cohen's κ with single people is undefined (nobody answered {FEWEST_SHARED} of the items, or neither side ever"
            " changed its answer)"
        )
    return f"{row['run']} on {row['test_task']}: {r}, {kappa}, {row['n_items']} items."
