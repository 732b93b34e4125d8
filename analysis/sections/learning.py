"""Learning curves and sample efficiency: of training runs that were named, and of checkpoints that were probed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pandas as pd

from vlm_probe.analysis.figures.learning import learning_curves
from vlm_probe.analysis.frame import METHODS
from vlm_probe.analysis.labels import joined, with_test, with_trained_on
from vlm_probe.analysis.learning import KIND, TEST, curves_from_trials, learning
from vlm_probe.analysis.material import ReportData, Settings
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import Figure, MissingData, Section
from vlm_probe.analysis.style import name_of
from vlm_probe.analysis.tables import number, p_value
from vlm_probe.analysis.training import AFTER

WINDOW = 5
"""Logged points over which the success of training batches is averaged: a batch is small."""


def section(material: ReportData) -> Section:
    """Learning curves. Raises Unanswerable if there are none."""
    results: dict[str, Result] = {}
    figures: list[Figure] = []
    answer: list[str] = []
    trained = material.trials.curves
    trained = trained.assign(success=pd.to_numeric(trained["success"])) if len(trained) else trained
    if len(trained) and trained["success"].notna().any():
        caption = "success of the replies sampled in training, on training items"
        _add("training", trained, KIND, WINDOW, caption, material.settings, results, figures, answer)
    plain = material.plain
    stages = plain[plain["method"] != "none"].groupby([*KIND, "seed"], observed=True)["samples"].nunique()
    if len(stages) and stages.max() > 1:
        curves = curves_from_trials(plain[plain["method"] != "none"])
        caption = "success of checkpoints on test items, greedy replies"
        by = (*KIND, *TEST)
        _add("checkpoints", curves, by, 1, caption, material.settings, results, figures, answer)
    if not results:
        raise MissingData(
            "there are no learning curves: name the folders of the adapters as well (their training.json holds the curves), or"
            " runs of the checkpoints of a training"
        )
    return Section(
        "learning",
        "Learning",
        "How fast is a task learned, and by which method?",
        tuple(answer),
        results,
        tuple(figures),
    )


def _add(
    name: str,
    curves: pd.DataFrame,
    by: Sequence[str],
    window: int,
    caption: str,
    settings: Settings,
    results: dict[str, Result],
    figures: list[Figure],
    answer: list[str],
) -> None:
    found = learning(curves, settings.criterion, by=by, window=window, seed=settings.seed)
    results[name] = found
    results[f"{name}_runs"] = Result(title=f"{found.title}: every run", table=found.runs, how=found.how)
    if len(found.comparisons):
        answer += _savings(found.comparisons)
        results[f"{name}_compared"] = Result(
            title="Learning compared between kinds of training",
            table=found.comparisons,
            how=found.how,
            notes=found.notes,
        )
    runs = curves.dropna(subset=["success"]).rename(columns={"success": "value"})
    several = curves["model"].nunique() > 1
    runs = _with_panel(runs.sort_values(["run", "samples"], kind="stable"), several_models=several)
    known = [*METHODS, *sorted(set(runs["method"].astype(str)) - set(METHODS))]
    runs = runs.assign(_place=runs["method"].astype(str).map(known.index))
    runs = runs.sort_values(["panel", "_place"], kind="stable").drop(columns="_place")
    if window > 1:
        smooth = runs.groupby("run", observed=True)["value"].rolling(window, min_periods=1).mean()
        runs = runs.assign(value=smooth.reset_index(level=0, drop=True))
    means = _with_panel(found.means, several_models=several)
    counts = ", ".join(
        f"{name_of(str(method))} {own['run'].nunique()}"
        for method, own in runs.groupby("method", observed=True, sort=False)
    )
    averaged = f", trailing mean of {window} points" if window > 1 else ""
    figures.append(
        Figure(
            joined("learning", "" if name == "training" else name),
            f"Learning curves: {caption}{averaged}. Thin lines: runs ({counts}); thick: means over runs, of three or more with 95 % t intervals"
            f" between runs, over the samples that all runs have seen. Dashed: the criterion of {settings.criterion:g}.",
            partial(learning_curves, runs, means, criterion=settings.criterion),
        )
    )
    for row in _with_panel(found.table, several_models=several).to_dict("records"):
        answer.append(
            f"{name_of(row['method'])} on {row['panel']} ({name}): {row['n_reached']} of {row['n_runs']} runs reach"
            f" {settings.criterion:g}; mean success over training {row['area']:.2f}."
        )


def _savings(comparisons: pd.DataFrame) -> list[str]:
    """What starting from an adapter that had learned something else saves, against starting from the base."""
    lines = []
    for row in comparisons.to_dict("records"):
        warm, cold, ratio = str(row["first"]), str(row["second"]), float(row["samples_ratio"])
        if AFTER in cold:
            warm, cold, ratio = cold, warm, 1 / ratio
        if AFTER not in warm or AFTER in cold or not warm.startswith(cold):
            continue
        needs = (
            f"{number(ratio)} times as many samples"
            if math.isfinite(ratio)
            else "no ratio of samples, since not every run got there"
        )
        lines.append(
            f"Savings on {row['train_tasks']}: {warm}, compared with {cold} from the base, takes {needs} to the criterion"
            f" (p {_equals(row['samples_p'])}, permutation test)."
        )
    return lines


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _with_panel(table: pd.DataFrame, *, several_models: bool) -> pd.DataFrame:
    """The table with `panel`: what was trained, and what checkpoints were tested on, so that a method has one mean curve in each."""
    table = with_trained_on(table)
    panel = table["trained_on"]
    if "test_task" in table:
        panel = panel + " → " + with_test(table)["test"]
    if several_models:
        panel = table["model"].astype(str) + ": " + panel
    return table.assign(panel=panel)
