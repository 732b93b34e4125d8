"""Learning curves: success in training over samples seen, a panel per condition of training."""

from __future__ import annotations

from functools import partial

import pandas as pd

from vlm_probe.analysis.figures.learning import learning_curves
from vlm_probe.analysis.frame import METHODS
from vlm_probe.analysis.learning import KIND, learning
from vlm_probe.analysis.section import MissingData
from vlm_probe.analysis.style import name_of
from vlm_probe.paper.names import condition_keys, key_of, training_name
from vlm_probe.paper.numbers import Numbers, listed, records
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study

WINDOW, PANELS = 5, 3
"""Logged points over which success in training is averaged, since a batch is small; and how many conditions are drawn."""


def part(study: Study) -> Part:
    """Learning curves. Raises Unanswerable if training runs have left none."""
    curves = study.material.trials.curves
    curves = curves.assign(success=pd.to_numeric(curves["success"])) if len(curves) else curves
    known = curves.dropna(subset=["success"]) if len(curves) else curves
    if known.empty:
        raise MissingData("the trainings have left no learning curves")
    found = learning(known, study.settings.criterion, by=KIND, window=WINDOW, seed=study.settings.seed)
    numbers = Numbers()
    numbers.rate("criterion", study.settings.criterion)
    for row in records(found.table):
        name = f"learning.{key_of(training_name(str(row['train_tasks']), str(row['regime'])))}.{row['method']}"
        numbers.count(f"{name}.reached", int(row["n_reached"]))
        numbers.count(f"{name}.runs", int(row["n_runs"]))
        numbers.rate(f"{name}.area", float(row["area"]))
    for method, own in found.table.groupby("method", observed=True, sort=False):
        numbers.count(f"learning.{method}.reached", int(own["n_reached"].sum()))
        numbers.count(f"learning.{method}.runs", int(own["n_runs"].sum()))
        numbers.rate(f"learning.{method}.area", float(own["area"].mean()))
        final = found.runs.loc[found.runs["method"] == method, "final"]
        numbers.rate(f"learning.{method}.final", float(final.mean()))
        did = (found.runs["method"] == method) & found.runs["reached"].astype(bool)
        if did.any():
            median = float(found.runs.loc[did, "samples_to_criterion"].median())
            numbers.count(f"learning.{method}.samples", round(median))
    methods = [m for m in METHODS if f"learning.{m}.runs" in numbers]
    numbers.latex("learning.reached", listed([_reached(numbers, m) for m in methods]))
    smooth = known.sort_values(["run", "samples"], kind="stable")
    averaged = smooth.groupby("run", observed=True)["success"].rolling(WINDOW, min_periods=1).mean()
    smooth = smooth.assign(value=averaged.reset_index(level=0, drop=True))
    order = _shown(known)
    runs, means = _with_panel(smooth, order), _with_panel(found.means, order)
    return Part(
        numbers,
        {
            "learning": partial(
                learning_curves, runs, means, ylabel="Success in training", criterion=study.settings.criterion
            )
        },
    )


def _reached(numbers: Numbers, method: str) -> str:
    """How many runs of a method reached the criterion, in words."""
    did, runs = (numbers[f"learning.{method}.{name}"] for name in ("reached", "runs"))
    if runs.value == 1:
        return f"the one run of {name_of(method)}" if did.value else f"no run of {name_of(method)} (of one)"
    return f"{did.text} of {runs.text} runs of {name_of(method)}"


def _shown(curves: pd.DataFrame) -> list[str]:
    """The conditions of the figure, as many as fit side by side: those with most runs, in their order."""
    conditions = condition_keys(curves)
    runs = {
        c: curves.loc[(curves["train_tasks"] == c[0]) & (curves["regime"] == c[1]), "run"].nunique() for c in conditions
    }
    most = sorted(conditions, key=lambda c: -runs[c])[:PANELS]
    return [training_name(*c) for c in conditions if c in most]


def _with_panel(table: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    names = [training_name(str(t), str(r)) for t, r in zip(table["train_tasks"], table["regime"], strict=True)]
    found = table.assign(panel=names)
    found = found[found["panel"].isin(order)]
    known = [*METHODS, *sorted(set(found["method"].astype(str)) - set(METHODS))]
    places = [(order.index(p), known.index(str(m))) for p, m in zip(found["panel"], found["method"], strict=True)]
    return (
        found.assign(_place=pd.Series(places, index=found.index))
        .sort_values("_place", kind="stable")
        .drop(columns="_place")
    )
