"""One row of a trial log: whether the trial took place, how the item was asked, and what was answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def failed(row: Row) -> bool:
    """Whether the trial never took place: a broken image or a model error, which is not a wrong answer."""
    return bool(row.get("error"))


def succeeded(row: Row) -> bool:
    """Whether the answer was right (judgements) or worked (actions). A reply without a legal answer is wrong."""
    outcome = row.get("success")
    return bool(row.get("correct") if outcome is None else outcome)


def manner_of(row: Row) -> str:
    """Code of the manner in which the item was presented; empty for the plain one (also in logs without manners)."""
    return str((row.get("manner") or {}).get("code", ""))


def attempt_of(row: Row) -> int:
    """Number of the attempt, from 1 (also in logs without attempts)."""
    return int(row.get("attempt") or 1)


def first_attempts(rows: Sequence[Row]) -> list[Row]:
    """The rows of first attempts, which are what a run with one attempt would have."""
    return [row for row in rows if attempt_of(row) == 1]


def plain_rows(rows: Sequence[Row]) -> list[Row]:
    """First attempts in the manner that the others are compared with: the first that was asked."""
    reference = manner_of(rows[0]) if rows else ""
    return [row for row in first_attempts(rows) if manner_of(row) == reference]


def two_options(rows: Sequence[Row]) -> tuple[str, str] | None:
    """The two semantic answers of a judgement, signal first; None if the rows are not one two-option judgement.

    The signal is what "yes" means in the wording of polarity 0 with the options in order 0: "stands" for stability. It
    does not depend on the wording that an item happens to have.
    """
    pairs: set[tuple[str, str]] = set()
    for row in rows:
        options = row.get("options")
        if not isinstance(options, list | tuple) or len(options) != 2 or not all(isinstance(o, str) for o in options):
            return None
        variant = row.get("variant") or {}
        turned = bool(variant.get("order", 0)) != bool(variant.get("polarity", 0))
        pairs.add((options[1], options[0]) if turned else (options[0], options[1]))
    if len({frozenset(pair) for pair in pairs}) != 1:
        return None
    # More than one order: the task does not turn its options round with the polarity, and any fixed choice will do.
    return min(pairs)


def signal_probability(row: Row, signal: str) -> float:
    """The probability of the signal answer: graded where it is logged, else 0 or 1; nan if there is no answer."""
    graded = row.get("p_correct")
    if graded is not None:
        return float(graded) if row["truth"] == signal else 1.0 - float(graded)
    return math.nan if row.get("answer") is None else float(row["answer"] == signal)


def catch_items(rows: Sequence[Row]) -> list[Row]:
    """The trials of a judgement that are farthest from the boundary, on either side: whoever looks and understands the question
    has them right. Empty where there are fewer than four margin bins, so that none stands out."""
    bins = sorted({edges for row in rows if (edges := margin_bin(row)) is not None})
    if len(bins) < 4 or two_options(rows) is None:
        return []
    return [row for row in rows if margin_bin(row) in (bins[0], bins[-1])]


def margin_bin(row: Row) -> tuple[float, float] | None:
    """The designed bin of signed margins (low, high) that the item is from; None if it is from none."""
    edges = (row.get("condition") or {}).get("margin_bin")
    if not edges or row.get("margin") is None or tuple(edges) == (0.0, 0.0):
        return None
    return float(edges[0]), float(edges[1])
