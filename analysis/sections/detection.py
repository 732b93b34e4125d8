"""Signal detection: sensitivity and criterion on two-option judgements."""

from __future__ import annotations

from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.section import MissingData, Section
from vlm_probe.analysis.signal_detection import sensitivity


def section(material: ReportData) -> Section:
    """d' and criterion by training and test. Raises Unanswerable if there is no two-option judgement."""
    plain = material.plain
    if plain.empty or plain["signal"].isna().all():
        raise MissingData("no run is of a two-option judgement, such as towers-stability: add one")
    if plain.loc[plain["signal"].notna(), "answer"].isna().all():
        raise MissingData("no reply to a two-option judgement could be read: look at `raw` in the log")
    result = sensitivity(plain)
    table = result.table
    told = table[(table["d_low"] > 0) | (table["d_high"] < 0)]
    biased = table[(table["c_low"] > 0) | (table["c_high"] < 0)]
    answer = (
        f"d′ differs from 0 in {len(told)} of {len(table)} cells, the criterion in {len(biased)} (95 % intervals).",
        "Success rates confound the two: a model that always gives the same answer has d′ = 0 and an extreme criterion.",
    )
    return Section(
        "detection",
        "Sensitivity and bias",
        "Can the two outcomes be told apart, and which answer is preferred whatever the outcome?",
        answer,
        {"cells": result},
    )
