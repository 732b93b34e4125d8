"""Transfer: what every source changes on every target and in which direction, and the matrix of every training run on every test."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pandas as pd

from vlm_probe.analysis.frame import METHODS
from vlm_probe.analysis.levels import TRANSFER, family_of
from vlm_probe.analysis.section import MissingData
from vlm_probe.analysis.sections.transfer import signed_figure
from vlm_probe.analysis.source_target import Transfer
from vlm_probe.analysis.style import name_of
from vlm_probe.analysis.tables import proportion
from vlm_probe.analysis.transfer import transfer_matrix
from vlm_probe.analysis.transfer_verdicts import ALL, LEARNING, before_correction, chosen
from vlm_probe.paper.figures.matrix import matrix
from vlm_probe.paper.latex import Rows, in_math, table, text
from vlm_probe.paper.names import condition_keys, task_name, test_name, training_name
from vlm_probe.paper.numbers import Numbers, interval, listed, records
from vlm_probe.paper.part import Draw, Part
from vlm_probe.paper.study_results import Study
from vlm_probe.paper.verdicts import verdict
from vlm_probe.stimuli.tasks import FAMILIES, task_names

OUTCOMES = ("reversed", "higher", "lower")
"""Verdicts that say that training on the source changed the target."""


def part(study: Study) -> Part:
    """The transfer matrix. Raises Unanswerable if nothing was trained."""
    plain = study.plain
    if set(plain["method"].astype(str)) == {"none"}:
        raise MissingData("no trained model was tested")
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
    directed = study.material.transfer
    _directed(numbers, directed, study.settings.alpha)
    first = directed.table[directed.table["model"] == directed.table["model"].iloc[0]]
    figures: dict[str, Draw] = {
        "matrix": partial(matrix, cells(found.table, plain, study.settings.alpha)),
        "signed": signed_figure(first, study.settings.alpha).draw,
    }
    return Part(numbers, figures, {"directed": _table(directed)})


def _directed(numbers: Numbers, found: Transfer, alpha: float) -> None:
    """Which sources changed which targets, by verdict, in sentences."""
    counted = found.table[(found.table["method"] == ALL) & ~found.table["transfer"].isin(LEARNING)]
    numbers.count("directed.contrasts", len(counted))
    for word in OUTCOMES:
        own = chosen(found, word)
        numbers.count(f"directed.{word}", int((counted["verdict"] == word).sum()))
        numbers.latex(f"directed.{word}.list", listed([_phrase(row) for row in own]) or "none")
    for word in ("equivalent", "inconclusive"):
        numbers.count(f"directed.{word}", int((counted["verdict"] == word).sum()))
    limited = dict.fromkeys(counted.loc[counted["verdict"] == "uninformative", "target"])
    numbers.latex("directed.uninformative.list", listed([text(task_name(str(name))) for name in limited]) or "none")
    early = before_correction(found, alpha)
    numbers.latex("directed.uncorrected.list", listed([_phrase(row) for row in early]) or "none")
    there = [word for word in ("reversed", "higher") if chosen(found, word)]
    numbers.verdict("directed.found", "+".join(there) or "none", ("reversed+higher", "reversed", "higher", "none"))
    numbers.rate("directed.ruled-out", float(counted.loc[counted["verdict"] == "equivalent", "ruled_out"].max()))


def _pair(row: dict[str, Any]) -> str:
    """Source and target."""
    source = text(training_name(str(row["train_tasks"]), str(row["regime"])))
    method = "" if row["method"] == ALL else f" ({text(name_of(str(row['method'])))})"
    return rf"{source}{method} $\rightarrow$ {text(task_name(str(row['target'])))}"


def _phrase(row: dict[str, Any]) -> str:
    """A contrast, with the signed score and success of both sides."""
    signed = f"signed score {_two(row['signed'])}, untrained {_two(row.get('signed_untrained'))}"
    return f"{_pair(row)} ({signed}; success {_two(row['rate'])}, untrained {_two(row.get('untrained'))})"


def _two(value: Any) -> str:
    return "--" if value is None or value != value else in_math(proportion(float(value), 2))


def _table(found: Transfer) -> str:
    """The contrasts with a verdict other than inconclusive, and every target that is uninformative once."""
    groups = []
    for word in (*OUTCOMES, "equivalent"):
        rows = [
            [
                _pair(row),
                _two(row["rate"]),
                f"{_two(row.get('difference'))} {_interval(row, 'difference')}",
                f"{_two(row['signed'])} {_interval(row, 'signed')}",
                _two(row.get("information")),
                _two(row.get("ruled_out")),
                str(row["n_runs"]),
            ]
            for row in chosen(found, word)
            if word != "equivalent" or row["method"] == ALL
        ]
        groups += [Rows(word, rows)] if rows else []
    header = ("Source, target", "Rate", r"$\Delta$ rate", "Signed score", "$V$", "Ruled out", "Runs")
    return table("lllllrr", header, groups)


def cells(found: pd.DataFrame, plain: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """The cells of the figure: conditions of training as groups of rows, families as groups of columns.

    Args:
        found: Of `vlm_probe.analysis.transfer.transfer_matrix`.
        plain: The trials that it is of, for the order of conditions.
        alpha: Level of the tests.
    """
    conditions = condition_keys(plain)
    order, families = list(task_names()), list(FAMILIES)
    rows: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for row in records(found):
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


def _interval(row: dict[str, Any], name: str) -> str:
    """The interval of a column, where it has one."""
    low, high = row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan)
    return interval(low, high) if low == low and high == high else ""
