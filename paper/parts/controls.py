"""Control conditions on the trained tasks: what is left of success when the image is taken away, changed or put into words."""

from __future__ import annotations

import pandas as pd

from vlm_probe.analysis import tables
from vlm_probe.analysis.controls import controls
from vlm_probe.analysis.section import MissingData
from vlm_probe.analysis.style import name_of
from vlm_probe.paper import latex
from vlm_probe.paper.names import key_of, task_name
from vlm_probe.paper.numbers import Numbers, records
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study

MANNERS = {
    "blank": "blank picture",
    "other-picture": "another item's picture",
    "shuffled": "shuffled picture",
    "mirrored": "mirrored picture",
    "description": "words in its place",
    "facts": "physics stated",
}
BLIND = ("blank", "other-picture", "shuffled")
"""Manners in which no right image is seen: what success is left there is not vision."""


def part(study: Study) -> Part:
    """Controls of the untrained model, and of models on the task that they were trained on. Raises Unanswerable if none were asked."""
    models = study.material.models
    manners = models["manner"].astype(str)
    if models.empty or not (manners != "").any():
        raise MissingData("no control conditions were asked: name tasks under `controls` in the study's file")
    single = ~models["train_tasks"].astype(str).str.contains("+", regex=False) & (models["regime"].astype(str) == "")
    untrained = models["method"] == "none"
    own = models[untrained | (single & (models["train_tasks"].astype(str) == models["test_task"].astype(str)))]
    # Only items that were asked in other manners as well.
    asked = own.loc[own["manner"].astype(str) != "", ["test_task", "item_id"]].drop_duplicates()
    own = own[(own["shift"] == "none")].merge(asked, on=["test_task", "item_id"])
    found = controls(own, by=("method", "test_task")).table
    numbers = Numbers()
    numbers.count("controls.items", int(asked.groupby("test_task", observed=True)["item_id"].nunique().max()))
    for row in records(found):
        name = f"controls.{key_of(str(row['test_task']))}.{row['method']}.{row['manner']}"
        numbers.rate(name, row["rate"])
        numbers.rate(f"{name}.intact", row["intact_rate"])
        numbers.rate(f"{name}.difference", row["difference"], row["difference_low"], row["difference_high"])
    blind = found[found["manner"].isin(BLIND) & (found["method"] != "none")]
    if len(blind):
        numbers.rate("controls.blind.highest", float(blind["rate"].max()))
        numbers.rate("controls.intact.lowest", float(blind["intact_rate"].min()))
        # Success without the image is told from that with it if the paired interval lies below 0.
        needs = blind["difference_high"] < 0
        numbers.verdict(
            "controls.vision", "all" if needs.all() else "some" if needs.any() else "none", ("all", "some", "none")
        )
    groups = []
    methods = ["none", *study.methods]
    there = [m for m in MANNERS if (found["manner"] == m).any()]
    for task in dict.fromkeys(found["test_task"].astype(str)):
        rows = []
        for method in methods:
            mine = found[(found["test_task"] == task) & (found["method"] == method)]
            if len(mine):
                rows.append(
                    [latex.text(name_of(method)), _rate(mine["intact_rate"].iloc[0]), *(_cell(mine, m) for m in there)]
                )
        groups.append(latex.Rows(latex.text(task_name(task).capitalize()), rows))
    header = ["Model", "intact", *(latex.text(MANNERS[m]) for m in there)]
    return Part(numbers, tables={"controls": latex.table("l" + "r" * (len(there) + 1), header, groups)})


def _cell(mine: pd.DataFrame, manner: str) -> str:
    own = mine[mine["manner"] == manner]
    return _rate(own["rate"].iloc[0]) if len(own) else "--"


def _rate(value: float) -> str:
    return latex.in_math(tables.proportion(value, 2))
