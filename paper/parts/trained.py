"""The trained tasks: success of every method on new items, run by run, next to what needs no physics."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from vlm_probe.analysis import tables
from vlm_probe.analysis.figures.means import means
from vlm_probe.analysis.rates import by_cell, by_run
from vlm_probe.analysis.section import MissingData
from vlm_probe.analysis.style import name_of
from vlm_probe.paper import latex
from vlm_probe.paper.names import key_of, test_name
from vlm_probe.paper.numbers import Numbers, records
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study
from vlm_probe.stimuli.tasks import task_names

CELL = ("method", "test_task")


def part(study: Study) -> Part:
    """Success on the trained tasks. Raises Unanswerable if no model was tested on a task that it was trained on."""
    trained = within(study)
    if trained.empty:
        raise MissingData("no model was tested on the task that it was trained on")
    asked = set(trained["test_task"].astype(str))
    tasks = [task for task in task_names() if task in asked] + sorted(asked - set(task_names()))
    base = study.plain[
        (study.plain["method"] == "none") & study.plain["test_task"].isin(tasks) & (study.plain["shift"] == "none")
    ]
    both = pd.concat([base, trained])
    both = both.assign(test_task=pd.Categorical(both["test_task"].astype(str), tasks))
    cells, runs = by_cell(both, CELL), by_run(both, CELL)
    references = study.material.baselines()
    references = references[references["shift"].astype(str) == "none"] if len(references) else references
    numbers = Numbers()
    for row in records(cells):
        name = f"trained.{key_of(str(row['test_task']))}.{row['method']}"
        numbers.rate(name, row["rate"], row["rate_low"], row["rate_high"])
        numbers.count(f"{name}.runs", row["n_runs"])
    for row in records(references):
        for column in ("chance", "constant", "best_shortcut", "best_baseline"):
            numbers.rate(f"{column.replace('_', '-')}.{row['test_task']}", _number(row.get(column)))
        if row.get("shortcut"):
            numbers.phrase(f"best-shortcut.{row['test_task']}.name", str(row["shortcut"]))
    for method in study.methods:
        own = cells[cells["method"] == method]
        if len(own):
            numbers.rate(f"trained.lowest.{method}", float(own["rate"].min()))
            numbers.rate(f"trained.highest.{method}", float(own["rate"].max()))
    numbers.verdict("trained.beyond-shortcuts", _beyond(cells, references), ("all", "some", "none", "unknown"))
    return Part(
        numbers,
        {"trained": partial(_draw, cells, runs, references)},
        {"trained": _table(cells, references, tasks, study)},
    )


def within(study: Study) -> pd.DataFrame:
    """Trials of models trained on one task and nothing special, on new items of it."""
    plain = study.plain
    single = ~plain["train_tasks"].astype(str).str.contains("+", regex=False) & (plain["regime"].astype(str) == "")
    return plain[single & (plain["transfer"] == "within")]


def _beyond(cells: pd.DataFrame, references: pd.DataFrame) -> str:
    """Whether trained models do better than the best baseline without physics: the lower end of the interval lies above it."""
    if references.empty or references["best_baseline"].isna().all():
        return "unknown"
    best = dict(zip(references["test_task"].astype(str), references["best_baseline"].astype(float), strict=True))
    trained = records(cells[cells["method"] != "none"])
    above = [row["rate_low"] > best.get(str(row["test_task"]), math.nan) for row in trained]
    return "all" if all(above) else "some" if any(above) else "none"


def _table(cells: pd.DataFrame, references: pd.DataFrame, tasks: list[str], study: Study) -> str:
    methods = ["none", *study.methods]
    by_task = references.set_index(references["test_task"].astype(str)).to_dict("index") if len(references) else {}
    rows = []
    for task in tasks:
        row = [latex.text(test_name(task, "none"))]
        for method in methods:
            own = cells[(cells["test_task"] == task) & (cells["method"] == method)]
            row.append(latex.rate(records(own)[0]) if len(own) else "--")
        for column in ("chance", "best_baseline"):
            row.append(latex.in_math(tables.proportion(_number(by_task.get(task, {}).get(column)), 2)))
        rows.append(row)
    header = ["Task", *(name_of(m) if m == "none" else latex.text(name_of(m)) for m in methods), "Chance", "Baseline"]
    return latex.table("l" + "l" * len(methods) + "rr", header, [latex.Rows("", rows)])


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _draw(cells: pd.DataFrame, runs: pd.DataFrame, references: pd.DataFrame, stem: Path) -> None:
    def named(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(test=[test_name(str(task), "none") for task in table["test_task"]])

    # Every method was trained on the task that it is tested on: one panel, whatever the training runs.
    panel = {"trained_on": ["none" if m == "none" else "trained" for m in cells["method"]]}
    of_runs = {"trained_on": ["none" if m == "none" else "trained" for m in runs["method"]]}
    reference = named(references) if len(references) else pd.DataFrame({"test": []})
    means(named(cells).assign(**panel), named(runs).assign(**of_runs), reference, stem)
