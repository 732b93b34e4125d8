"""What training runs and tests are called in figures, tables and file names, and the order in which names stand."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from vlm_probe.analysis.style import name_of


def with_test(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `test`: task and shift as the command line writes them."""
    if table.empty:
        return table.assign(test=pd.Series(dtype=str))
    sets = table["test_set"] if "test_set" in table else [""] * len(table)
    parts = zip(table["test_task"], table["shift"], table["shift_level"], sets, strict=True)
    return table.assign(test=[test_name(*part) for part in parts])


def test_name(task: object, shift: object, level: object, test_set: object = "") -> str:
    """A test as the command line writes it, such as "towers-stability@camera:2"; one of several stimulus sets has its hash behind it."""
    name = str(task) if shift == "none" else f"{task}@{shift}:{level}"
    return f"{name} (set {test_set})" if test_set else name


def trained_on(tasks: object, regime: object = "") -> str:
    """What was trained, whatever the method: the tasks, and what was special."""
    return f"{tasks} ({regime})" if regime else str(tasks)


def with_trained_on(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `trained_on`: tasks and regime of the training run in words, "none" where there was none."""
    pairs = zip(table["train_tasks"], table["regime"], strict=True)
    return table.assign(trained_on=[trained_on(*pair) for pair in pairs])


def training_name(method: object, tasks: object, regime: object = "") -> str:
    """A training run in words, such as "GRPO on towers-topblock"."""
    if method == "none":
        return name_of("none")
    return f"{name_of(str(method))} on {trained_on(tasks, regime)}"


def file_part(text: object) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", str(text)).strip("-")


def joined(*parts: str) -> str:
    """Parts of a file's name."""
    return "-".join(part for part in parts if part)


def span(counts: pd.Series[int]) -> str:
    """The smallest and the largest of counts in words: "2 to 5", or "3" if all are the same."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low} to {high}" if low < high else str(low)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which "seed 2" comes before "seed 10", and "5to7cm" before "11to13cm"."""
    parts = re.split(r"(\d{1,18})", name, flags=re.ASCII)
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts if part]


def task_of(test: str) -> str:
    """The task of a test as `test_name` writes it, with its stimulus set if it names one: shifts are nested within it."""
    return re.sub(r"@\S*", "", test)


def test_shares(tests: Iterable[str]) -> dict[str, float]:
    """Test -> its weight in a mean over tests: tasks weigh the same, and so do tests of a task within it."""
    tasks: dict[str, list[str]] = {}
    for test in dict.fromkeys(tests):
        tasks.setdefault(task_of(test), []).append(test)
    return {test: 1 / len(tasks) / len(own) for own in tasks.values() for test in own}
