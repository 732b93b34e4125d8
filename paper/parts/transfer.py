"""The transfer matrix: every training on every test, as a figure, and how many of its cells are better or the same."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from vlm_probe.analysis.frame import METHODS
from vlm_probe.analysis.levels import TRANSFER, family_of
from vlm_probe.analysis.section import Unanswerable
from vlm_probe.analysis.style import name_of
from vlm_probe.analysis.transfer import transfer_matrix
from vlm_probe.paper.figures.matrix import matrix
from vlm_probe.paper.names import condition_keys, test_name, training_name
from vlm_probe.paper.numbers import Numbers, records
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study
from vlm_probe.paper.verdicts import verdict
from vlm_probe.stimuli.tasks import FAMILIES, task_names


def part(study: Study) -> Part:
    """The transfer matrix. Raises Unanswerable if nothing was trained."""
    plain = study.plain
    if set(plain["method"].astype(str)) == {"none"}:
        raise Unanswerable("no trained model was tested")
    found = transfer_matrix(plain, study.material.baselines(), study.settings.bound, study.settings.alpha)
    trained = found.table[found.table["method"].astype(str) != "none"]
    numbers = Numbers()
    numbers.count("matrix.cells", len(trained))
    for level in TRANSFER:
        own = trained[trained["transfer"].astype(str) == level]
        words = [_verdict(row, study.settings.alpha) for row in records(own)]
        numbers.count(f"matrix.{level}.cells", len(own))
        for word in ("higher", "lower", "trivial", "equivalent", "undecided"):
            numbers.count(f"matrix.{level}.{word}", words.count(word))
        for row in records(own.sort_values("difference", ascending=False).head(1)):
            numbers.phrase(
                f"matrix.{level}.best",
                f"{name_of(str(row['method']))} on {training_name(str(row['train_tasks']), str(row['regime']))}, tested on {test_name(str(row['test_task']), str(row['shift']))}",
            )
            numbers.rate(
                f"matrix.{level}.best.difference", row["difference"], row["difference_low"], row["difference_high"]
            )
    return Part(numbers, {"matrix": partial(matrix, cells(found.table, plain, study.settings.alpha))})


def cells(table: pd.DataFrame, plain: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """The cells of the figure: conditions of training as groups of rows, families as groups of columns.

    Args:
        table: Of `vlm_probe.analysis.transfer.transfer_matrix`.
        plain: The trials that it is of, for the order of conditions.
        alpha: Level of the tests.
    """
    conditions = condition_keys(plain)
    order, families = list(task_names()), list(FAMILIES)
    rows: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for row in records(table):
        method, task, shift = str(row["method"]), str(row["test_task"]), str(row["shift"])
        condition = (str(row["train_tasks"]), str(row["regime"]))
        untrained = method == "none"
        place = (
            -1 if untrained else conditions.index(condition),
            METHODS.index(method) if method in METHODS else len(METHODS),
            families.index(family_of(task)) if family_of(task) in families else len(families),
            shift != "none",
            order.index(task) if task in order else len(order),
            shift,
        )
        cell = {
            "group": "" if untrained else training_name(*condition),
            "row": name_of(method),
            "family": family_of(task),
            "test": test_name(task, shift),
            "rate": row["rate"],
            "difference": row["difference"],
            "reliable": bool(row["p_holm"] < alpha),
            "within": str(row["transfer"]) == "within",
        }
        rows.append((place, cell))
    return pd.DataFrame([cell for _, cell in sorted(rows, key=lambda pair: pair[0])])


def _verdict(row: dict[str, Any], alpha: float) -> str:
    return verdict(row["difference"], row["p_holm"], row["p_equivalence"], alpha)
