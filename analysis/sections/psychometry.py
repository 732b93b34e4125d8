"""Psychometric functions: how answers depend on the physical margin."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import numpy as np
import pandas as pd

from vlm_probe.analysis.figures.psychometric import psychometric_curves
from vlm_probe.analysis.labels import file_part, joined, with_test, with_trained_on
from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.proportions import wilson
from vlm_probe.analysis.psychometric import psychometric
from vlm_probe.analysis.section import Figure, MissingData, Section
from vlm_probe.analysis.selection import CELL, cells, present, said_signal, signed_margin
from vlm_probe.analysis.style import name_of


def section(material: ReportData) -> Section:
    """Psychometric functions by training and test. Raises Unanswerable if no judgement has margins."""
    plain = material.plain
    judged = plain[plain["signal"].notna() & plain["margin"].notna()] if len(plain) else plain
    if judged.empty:
        raise MissingData("no run is of a two-option judgement with margins, such as towers-stability: add one")
    settings = material.settings
    result = psychometric(judged, by=CELL, resamples=settings.resamples, seed=settings.seed)
    flat = result.runs["flat"]
    answer = (
        f"The answers of {int((~flat).sum())} of {len(flat)} runs of a test depend on the margin (likelihood ratio test of the"
        " slope, p < .05).",
    )
    points = _points(judged)
    # Margins of 0 alone, or of a table that has no bins, are fitted and not drawn.
    reach = float(points["margin"].abs().max()) if len(points) else 1.0
    curves = with_trained_on(with_test(result.curves(np.linspace(-1.04 * reach, 1.04 * reach, 81))))
    figures = []
    for model, training in _groups(points) if len(points) else ():
        shown = points[(points["model"] == model) & points["trained_on"].isin([training, "none"])]
        lines = curves[(curves["model"] == model) & curves["trained_on"].isin([training, "none"])]
        trials = int(shown["n_trials"].sum())
        runs = ", ".join(
            f"{name_of(str(method))} {rows['n_runs'].max()}"
            for method, rows in shown.groupby("method", observed=True, sort=False)
        )
        caption = (
            f"P(signal answer) over the signed margin; {model}, trained on {training}. Points: proportions per margin bin with"
            " 95 % Wilson intervals, all runs together; lines: mean fitted functions with 95 % bootstrap bands of items; runs:"
            f" {runs}; {trials} readable trials. Grey: an observer who knows the physics."
        )
        name = joined("psychometric", *(file_part(part) for part in (model, training) if _several(points, part)))
        figures.append(
            Figure(
                name,
                caption,
                partial(
                    psychometric_curves,
                    shown.rename(columns={"test": "panel"}),
                    lines.rename(columns={"test": "panel"}),
                ),
            )
        )
    return Section(
        "psychometry",
        "Psychometric functions",
        "Do answers follow the physical margin, where is the boundary, and how steeply do they change there?",
        answer,
        {"cells": result},
        tuple(figures),
    )


def _several(points: pd.DataFrame, part: str) -> bool:
    """Whether a model or training has to be named in a file name."""
    column = "model" if part in set(points["model"]) else "trained_on"
    return len(set(points[column]) - {"none"}) > 1


def _groups(points: pd.DataFrame) -> list[tuple[str, str]]:
    """Models and training runs that get a figure of their own; the untrained model is in each."""
    found = list(dict.fromkeys(zip(points["model"].astype(str), points["trained_on"], strict=True)))
    trained = [pair for pair in found if pair[1] != "none"]
    return trained + [pair for pair in found if pair[1] == "none" and pair[0] not in {model for model, _ in trained}]


def _points(trials: pd.DataFrame) -> pd.DataFrame:
    """Proportions of signal answers per margin bin, over runs."""
    sided = []
    for _, of_task in cells(trials, ["test_task"]):
        # A margin without a side for each answer, which `psychometric` leaves out and says so.
        with suppress(ValueError):
            sided.append(of_task.assign(_margin=signed_margin(of_task), _said=said_signal(of_task)))
    if not sided:
        return pd.DataFrame()
    read = pd.concat(sided)
    read = read[read["_said"].notna() & read["margin_bin"].notna()]
    rows = []
    columns = [*present(read, CELL), "signal", "margin_bin"]
    for key, own in cells(read, columns):
        rate = wilson(float(own["_said"].sum()), len(own))
        cell = dict(zip(columns, key, strict=True))
        others = sorted(set(own["truth"].dropna().astype(str)) - {str(cell["signal"])})
        rows.append(
            cell
            | {
                "other": others[0] if others else "",
                "margin": float(own["_margin"].mean()),
                "p_signal": rate.value,
                "low": rate.low,
                "high": rate.high,
                "n_runs": int(own["run"].nunique()),
                "n_trials": len(own),
            }
        )
    return with_trained_on(with_test(pd.DataFrame(rows))) if rows else pd.DataFrame()
