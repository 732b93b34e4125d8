"""Which trials an analysis is about: the plain ones, the cells of the design, and what their answers say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from vlm_probe.stimuli.errors import InvalidInput

Floats = npt.NDArray[np.float64]

TEST = ("test_task", "shift", "shift_level", "test_set")
"""Columns that say what was tested; `test_set` is there if a test was asked with several stimulus sets (see `with_sets`)."""
CELL = ("model", "method", "train_tasks", "regime", *TEST)
"""Columns that say what was trained and what was tested; runs of one cell differ in the seed alone."""


def need(trials: pd.DataFrame, *columns: str) -> None:
    """Raise ValueError if the table lacks a column or has no rows."""
    missing = [name for name in columns if name not in trials.columns]
    if missing:
        raise InvalidInput(
            f"the trial table lacks {', '.join(missing)}: see `vlm_probe.analysis.frame.COLUMNS` for the columns of a trial table"
        )
    if trials.empty:
        raise InvalidInput("the trial table has no rows: give runs with trials, or a less narrow selection")


ASKED = ("run", "readout", "stimuli", "test_task", "item_id", "manner", "examples", "sample")
"""Columns that say who was asked what, and how; within them trials differ in their attempts alone."""


def first_attempts(trials: pd.DataFrame) -> pd.DataFrame:
    """First attempts; where an item was asked with one attempt and with several, the one with the fewest.

    A column that is not there leaves out nothing.
    """
    first = trials[(trials["attempt"] == 1).to_numpy(bool)] if "attempt" in trials.columns else trials
    if "attempts" not in first.columns or first["attempts"].nunique() < 2:
        return first
    order = np.argsort(first["attempts"].to_numpy(), kind="stable")
    again = np.zeros(len(first), dtype=bool)
    again[order] = first.iloc[order].duplicated(present(first, ASKED)).to_numpy()
    return first[~again]


def plain_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """First attempts in the plain manner, without worked examples; a column that is not there leaves out nothing."""
    keep = np.ones(len(trials), dtype=bool)
    for column, value in (("manner", ""), ("examples", 0)):
        if column in trials.columns:
            keep &= (trials[column] == value).to_numpy(bool)
    return first_attempts(trials[keep])


def item_groups(trials: pd.DataFrame) -> npt.NDArray[np.str_]:
    """What each trial depends on others by, (n,): its group of foils and mirror images, or else its item.

    external tables may not know groups, and missing ones are no group of their own.
    """
    items = (
        trials["item_id"].astype(str).to_numpy() if "item_id" in trials.columns else np.arange(len(trials)).astype(str)
    )
    if "group_id" not in trials.columns:
        return np.asarray(items)
    known = trials["group_id"].notna().to_numpy(bool)
    return np.where(known, np.char.add("group ", trials["group_id"].astype(str).to_numpy(str)), items)


def cells(trials: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[object, ...], pd.DataFrame]]:
    """The trials of every combination of levels that occurs, in the order of the levels; rows without a level left out."""
    for key, rows in trials.groupby(list(by), observed=True, sort=True):
        yield key if isinstance(key, tuple) else (key,), rows


def present(trials: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Those of the columns that the table has."""
    return [name for name in columns if name in trials.columns]


def judgements(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials of two-option judgements, which have a signal answer. Raises ValueError if there are none."""
    need(trials, "signal", "truth", "answer")
    found = trials[trials["signal"].notna()]
    if found.empty:
        raise InvalidInput(
            "none of the trials is a two-option judgement, such as towers-stability: this analysis needs one"
        )
    return found


def truth_is_signal(trials: pd.DataFrame) -> Floats:
    """1 where the signal answer is right, else 0."""
    same = trials["truth"].astype(object) == trials["signal"].astype(object)
    return np.asarray(same, dtype=float)


def said_signal(trials: pd.DataFrame) -> Floats:
    """1 where the signal was answered, 0 where the other was, nan where the reply could not be read."""
    answer = trials["answer"].astype(object)
    said = np.asarray(answer == trials["signal"].astype(object), dtype=float)
    said[answer.isna().to_numpy(bool)] = np.nan
    return said


def signal_probability(trials: pd.DataFrame) -> Floats:
    """The probability of the signal answer, graded where it is logged (`p_correct`), else 0, 1 or nan."""
    said = said_signal(trials)
    if "p_correct" not in trials.columns:
        return said
    right = trials["p_correct"].to_numpy(float)
    graded = np.where(truth_is_signal(trials) == 1, right, 1 - right)
    return np.where(np.isnan(graded), said, graded)


def signed_margin(trials: pd.DataFrame) -> Floats:
    """The margin of one task's trials, turned so that the signal is right where it is positive.

    Raises:
        ValueError: If the sign of the margin does not say which answer is right.
    """
    need(trials, "margin")
    margin, signal = trials["margin"].to_numpy(float), truth_is_signal(trials) == 1
    known = np.isfinite(margin) & (margin != 0)
    agree = float(np.mean((margin[known] > 0) == signal[known])) if known.any() else float("nan")
    if not (agree > 0.99 or agree < 0.01):
        task = ", ".join(map(str, pd.unique(trials["test_task"]))) if "test_task" in trials.columns else "this task"
        raise InvalidInput(
            f"the sign of the margin does not say which answer of {task} is right: a psychometric function needs that"
        )
    return margin if agree > 0.5 else -margin


def with_sets(trials: pd.DataFrame) -> pd.DataFrame:
    """The table with `test_set` where a task under a shift was asked with several stimulus sets: they are different tests.

    Args:
        trials: A trial table; one whose tests have one set each is returned as it is.
    """
    if "stimuli" not in trials.columns or "test_set" in trials.columns:
        return trials
    keys = [trials[name].astype(str) for name in present(trials, TEST)]
    several = trials["stimuli"].astype(str).groupby(keys).transform("nunique") > 1
    if not several.any():
        return trials
    return trials.assign(test_set=trials["stimuli"].astype(str).where(several, ""))
