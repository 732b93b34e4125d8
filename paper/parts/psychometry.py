"""Psychometric functions of a two-option judgement of a trained family: do answers follow the margin, before and after?"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from vlm_probe.analysis.figures.psychometric import psychometric_curves
from vlm_probe.analysis.levels import held_out
from vlm_probe.analysis.proportions import wilson
from vlm_probe.analysis.psychometric import psychometric
from vlm_probe.analysis.section import MissingData
from vlm_probe.analysis.selection import cells, said_signal, signed_margin
from vlm_probe.paper.names import condition_keys, key_of, task_name, training_name
from vlm_probe.paper.numbers import Numbers, records
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study

CELL = ("method", "train_tasks", "regime", "test_task")
PANELS = 3


def part(study: Study) -> Part:
    """Psychometric functions. Raises Unanswerable if no judgement of a trained family has two options and margins."""
    plain = study.plain
    trained = {family for families in plain["train_family"].astype(str) for family in families.split("+")}
    judged = plain[plain["signal"].notna() & plain["margin"].notna() & (plain["shift"] == "none")]
    judged = judged[judged["test_family"].astype(str).isin(trained) & ~judged["test_task"].astype(str).map(held_out)]
    if judged.empty:
        raise MissingData(
            "no judgement of a trained family has two options and margins, as towers-stability has: test one as well"
        )
    task = str(judged["test_task"].astype(str).iloc[0])
    judged = judged[judged["test_task"] == task]
    near = [c for c in condition_keys(plain) if _is_near(plain, c, task)][:PANELS]
    parts, numbers = [], Numbers()
    for condition in near:
        of_condition = (judged["train_tasks"].astype(str) == condition[0]) & (
            judged["regime"].astype(str) == condition[1]
        )
        parts.append(judged[of_condition | (judged["method"] == "none")].assign(panel=training_name(*condition)))
    together = pd.concat(parts, ignore_index=True)
    settings = study.settings
    fitted = psychometric(
        together, by=("panel", "method", "test_task"), resamples=settings.resamples, seed=settings.seed
    )
    for row in records(fitted.table):
        name = f"psychometric.{key_of(str(row['panel']))}.{row['method']}"
        numbers.count(f"{name}.runs", int(row["n_runs"]))
    for (panel, method), own in fitted.runs.groupby(["panel", "method"], observed=True):
        name = f"psychometric.{key_of(str(panel))}.{method}"
        numbers.count(f"{name}.follow", int((~own["flat"].astype(bool)).sum()))
        numbers.number(f"{name}.slope", float(own["slope"].mean()))
    base = fitted.runs[fitted.runs["method"] == "none"]
    numbers.verdict("psychometric.base", "flat" if bool(base["flat"].all()) else "follows", ("flat", "follows"))
    numbers.phrase("psychometric.task", task_name(task))
    points = _points(together)
    reach = float(points["margin"].abs().max())
    curves = fitted.curves(np.linspace(-1.04 * reach, 1.04 * reach, 81))
    return Part(numbers, {"psychometric": partial(_draw, points, curves)})


def _is_near(plain: pd.DataFrame, condition: tuple[str, str], task: str) -> bool:
    """Whether a condition trained the task or another one of its family."""
    own = plain[(plain["train_tasks"].astype(str) == condition[0]) & (plain["regime"].astype(str) == condition[1])]
    level = own.loc[(own["test_task"] == task) & (own["shift"] == "none"), "transfer"].astype(str)
    return bool(level.isin(["within", "cross-task"]).any())


def _points(judged: pd.DataFrame) -> pd.DataFrame:
    """Proportions of signal answers per margin bin, all runs of a method together."""
    said = judged.assign(_margin=signed_margin(judged), _said=said_signal(judged))
    signal = str(said["signal"].astype(str).iloc[0])
    other = next(iter(sorted(set(said["truth"].dropna().astype(str)) - {signal})), "")
    rows = []
    for (panel, method, _), own in cells(
        said[said["_said"].notna() & said["margin_bin"].notna()], ["panel", "method", "margin_bin"]
    ):
        rate = wilson(float(own["_said"].sum()), len(own))
        margin = float(own["_margin"].mean())
        rows.append((panel, method, signal, other, margin, rate.value, rate.low, rate.high))
    order = list(dict.fromkeys(judged["panel"]))
    rows.sort(key=lambda row: order.index(row[0]))
    return pd.DataFrame(rows, columns=["panel", "method", "signal", "other", "margin", "p_signal", "low", "high"])


def _draw(points: pd.DataFrame, curves: pd.DataFrame, stem: Path) -> None:
    psychometric_curves(
        points.assign(panel="trained on " + points["panel"]), curves.assign(panel="trained on " + curves["panel"]), stem
    )
