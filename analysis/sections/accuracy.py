"""Success rates on every test, run by run and over runs, next to what needs no physics."""

from __future__ import annotations

from functools import partial

import pandas as pd

from vlm_probe.analysis.figures.means import means
from vlm_probe.analysis.labels import file_part, with_test, with_trained_on
from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.rates import HOW, by_cell, by_run
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import Figure, MissingData, Section
from vlm_probe.analysis.selection import CELL, TEST, present
from vlm_probe.analysis.style import name_of

LEGAL = 0.95
"""Share of replies with a legal answer below which a cell is named."""
TWO_RUNS = (
    "cells with two runs: the interval knows how runs differ from these two alone (t with 1 df), and is wide; those of contrasts and of the"
    " transfer matrix take it from all trained runs, and are narrower"
)


def section(material: ReportData) -> Section:
    """Success rates. Raises Unanswerable if no model was asked a physics task."""
    plain = material.plain
    if plain.empty:
        raise MissingData("no model was asked a physics task in the plain manner: give runs of `probe run` with one")
    table, runs = by_cell(plain, CELL), by_run(plain, CELL)
    if "status" in plain:
        read = plain.assign(parse_rate=plain["status"].astype(str) == "ok")
        keys = present(plain, CELL)
        table = table.merge(read.groupby(keys, observed=True)["parse_rate"].mean().reset_index(), on=keys)
    baselines = material.baselines()
    if len(baselines):
        tests = present(baselines, TEST)
        of_test = baselines.drop_duplicates(tests).drop(columns="stimuli")
        table = table.merge(of_test, on=tests, how="left")
    how = f"{HOW}; {len(plain)} trials of {plain['run'].nunique()} runs"
    notes = (TWO_RUNS,) if (table["n_runs"] == 2).any() else ()
    results = {
        "cells": Result(
            title="Success rate by training and test, with 95 % intervals", table=table, how=how, notes=notes
        ),
        "runs": Result(title="Success rate of every run, with 95 % Wilson intervals", table=runs, how=how),
    }
    if len(material.observers):
        watched = by_cell(material.observers, ("model", *TEST))
        results["observers"] = Result(title="Success rate of observers, with 95 % intervals", table=watched, how=HOW)
    figures = [_figure(table, runs, baselines, model) for model in dict.fromkeys(table["model"])]
    return Section(
        "accuracy",
        "Success rates",
        "How often is each test solved, and how often could it be without physics?",
        (*_answer(table), *_unread(table)),
        results,
        tuple(figures),
    )


def _figure(table: pd.DataFrame, runs: pd.DataFrame, baselines: pd.DataFrame, model: object) -> Figure:
    own, single = (with_trained_on(with_test(t[t["model"] == model])) for t in (table, runs))
    several = table["model"].nunique() > 1
    counts = ", ".join(
        f"{name_of(str(method))} {rows['run'].nunique()}"
        for method, rows in single.groupby("method", observed=True, sort=False)
    )
    caption = (
        f"Success rate of {model} by test and method. Large symbols: means over runs with 95 % intervals (runs: {counts};"
        f" {int(single['n_trials'].sum())} trials; see “how” of the table). Small dots: runs. Dotted: chance; dashed: the best"
        " baseline without physics (constant answer or shortcut rule), where it is known."
    )
    reference = with_test(baselines) if len(baselines) else pd.DataFrame({"test": []})
    name = f"means-{file_part(str(model))}" if several else "means"
    return Figure(name, caption, partial(means, own, single, reference))


def _unread(table: pd.DataFrame) -> tuple[str, ...]:
    """Where many replies state no legal answer, and a low rate is not one of judgement alone."""
    lost = table[table["parse_rate"] < LEGAL] if "parse_rate" in table else table[:0]
    if lost.empty:
        return ()
    named = "; ".join(
        f"{name_of(str(r.method))} trained on {r.train_tasks}, tested on {r.test_task} ({r.parse_rate:.0%})"
        for r in lost.nsmallest(6, "parse_rate").itertuples()
    )
    more = f", and {len(lost) - 6} more" if len(lost) > 6 else ""
    return (
        f"Less than {LEGAL:.0%} of the replies state a legal answer in {len(lost)} of {len(table)} cells: {named}{more}. The others count as wrong,"
        " so that these rates are of the form of answers, too.",
    )


def _answer(table: pd.DataFrame) -> tuple[str, ...]:
    if "best_baseline" not in table or table["best_baseline"].isna().all():
        return ()
    known = table[table["best_baseline"].notna()]
    above = known[known["rate_low"] > known["best_baseline"].astype(float)]
    return (
        f"The interval lies above the best baseline without physics (chance, constant answer or shortcut rule) in {len(above)} of {len(known)} cells"
        + (
            ": "
            + "; ".join(
                f"{name_of(str(r.method))} trained on {r.train_tasks}, tested on {r.test_task} ({r.baseline}: {r.best_baseline:.3f})"
                for r in above.itertuples()
            )
            + "."
            if 0 < len(above) <= 6
            else "."
        ),
    )
