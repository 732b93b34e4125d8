"""What was read: runs, tests, and everything that was left out."""

from __future__ import annotations

import pandas as pd

from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import Section
from vlm_probe.analysis.selection import cells

RULES = (
    "one row per trial that took place; a trial that failed is left out and counted; a reply without a legal answer is wrong;"
    " a run is one adapter, or one untrained model"
)


def section(material: ReportData) -> Section:
    """What was read."""
    table = material.trials.table
    runs = _runs(table)
    tests = _tests(table)
    results = {
        "runs": Result(title="Who was asked", table=runs, how=f"{RULES}; {len(table)} trials"),
        "tests": Result(title="What was asked", table=tests, how=f"{RULES}; {len(table)} trials"),
    }
    if material.trials.dropped:
        lost = pd.DataFrame([{"source": d.source, "reason": d.reason, "n": d.n} for d in material.trials.dropped])
        results["left_out"] = Result(title="Trials that are left out", table=lost, how="counted while reading the logs")
    number = len(material.trials.sources)
    sources = f"{number} log{'s' * (number != 1)} or table{'s' * (number != 1)}"
    read = f"; {(table['status'] == 'ok').mean():.1%} of the replies state one legal answer, the others count as wrong"
    answer = (
        f"{len(table)} trials of {_counted(runs, 'run')} on {_counted(tests, 'test')}, from {sources}"
        f"{read if len(table) else ''}.",
        *(f"{note}." for note in material.trials.notes),
        *material.choices,
    )
    return Section("data", "The data", "Who was asked what?", answer, results)


def _runs(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (run,), own in cells(table, ["run"]):
        first = own.iloc[0]
        rows.append(
            {
                "run": run,
                "method": first["method"],
                "train_tasks": first["train_tasks"],
                "seed": int(first["seed"]),
                "samples": None if pd.isna(first["samples"]) else int(first["samples"]),
                "n_trials": len(own),
                "parse_rate": float((own["status"] == "ok").mean()),
            }
        )
    return pd.DataFrame(rows)


def _tests(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (task, shift, level), own in cells(table, ["test_task", "shift", "shift_level"]):
        rows.append(
            {
                "test_task": task,
                "shift": shift,
                "shift_level": int(str(level)),
                "n_items": int(own["item_id"].nunique()),
                "n_runs": int(own["run"].nunique()),
                "n_trials": len(own),
                "chance": float(own["chance"].mean()),
            }
        )
    return pd.DataFrame(rows)


def _counted(table: pd.DataFrame, noun: str) -> str:
    return f"{len(table)} {noun}{'s' * (len(table) != 1)}"
