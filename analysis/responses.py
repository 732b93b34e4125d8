"""What was answered: trial rows reduced to the counts and proportions that tables and figures show."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Proportion:
    """A proportion with its 95 % Wilson interval; all three are nan when nothing was counted."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]" if self.n else "-"


def proportion(successes: float, n: int) -> Proportion:
    """`successes` of `n` with the Wilson score interval, which stays inside [0, 1] and holds near its ends.

    Trials are taken as independent. Foils and mirror images of one scene are not quite, which the mixed-effects models
    account for and this interval does not.
    """
    if n == 0:
        return Proportion(math.nan, math.nan, math.nan, 0)
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=0.05, method="wilson")
    return Proportion(successes / n, float(low), float(high), n)


def failed(row: Row) -> bool:
    """Whether the trial never took place: a broken picture or a model error, which is not a wrong answer."""
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


@dataclass(frozen=True)
class Within:
    """Success within so many attempts at an item.

    Attributes:
        k: Attempts.
        success: Proportion of items solved in the first k attempts; items on which an attempt failed to take place before that was
            decided are left out.
        parse_rate: Proportion of k-th attempts that state one legal answer.
        same: Proportion of k-th attempts that repeat the answer of the attempt before; nan for the first.
    """

    k: int
    success: Proportion
    parse_rate: float
    same: float


def within(rows: Sequence[Row]) -> list[Within]:
    """Success within 1, 2, ... attempts; empty if there was one attempt only.

    Args:
        rows: Of one manner.
    """
    most = max((int(row.get("attempts") or 1) for row in rows), default=1)
    if most == 1:
        return []
    items: dict[str, dict[int, Row]] = {}
    for row in rows:
        items.setdefault(str(row["item_id"]), {})[attempt_of(row)] = row
    found = []
    for k in range(1, most + 1):
        decided = [outcome for tried in items.values() if (outcome := _solved(tried, k)) is not None]
        made = [tried[k] for tried in items.values() if k in tried and not failed(tried[k])]
        read = [row for row in made if row.get("answer") is not None]
        again = [row["answer"] == items[str(row["item_id"])][k - 1].get("answer") for row in read if k > 1]
        found.append(
            Within(
                k,
                proportion(sum(decided), len(decided)),
                len(read) / len(made) if made else math.nan,
                sum(again) / len(again) if again else math.nan,
            )
        )
    return found


def _solved(tried: Mapping[int, Row], k: int) -> bool | None:
    """Whether one of the first k attempts succeeded; None if that is not known, because one is missing."""
    for number in range(1, k + 1):
        row = tried.get(number)
        if row is None or failed(row):
            return None
        if succeeded(row):
            return True
    return False


@dataclass(frozen=True)
class MannerCell:
    """Trials of one manner of presentation, beside the same items in the manner of reference.

    Attributes:
        code: The manner; "intact" for the plain one.
        accuracy: Proportion right.
        difference: Accuracy minus that of the reference on the same items; nan for the reference itself.
        same: Proportion of items with the same answer as in the reference, of those answered in both.
        parse_rate: Proportion of replies that state one legal answer.
    """

    code: str
    accuracy: Proportion
    difference: float
    same: Proportion
    parse_rate: float


def by_manner(rows: Sequence[Row]) -> list[MannerCell]:
    """One cell per manner in the order in which they were asked; empty if there is only one."""
    groups: dict[str, list[Row]] = {}
    for row in first_attempts(rows):
        if not failed(row):
            groups.setdefault(manner_of(row), []).append(row)
    if len(groups) < 2:
        return []
    reference = {str(row["item_id"]): row for row in next(iter(groups.values()))}
    found = []
    for number, (code, members) in enumerate(groups.items()):
        both = [(row, reference[str(row["item_id"])]) for row in members if str(row["item_id"]) in reference]
        answered = [(a, b) for a, b in both if a.get("answer") is not None and b.get("answer") is not None]
        gained = sum(succeeded(a) - succeeded(b) for a, b in both)
        found.append(
            MannerCell(
                code=code or "intact",
                accuracy=proportion(sum(map(succeeded, members)), len(members)),
                difference=gained / len(both) if number and both else math.nan,
                same=proportion(sum(a["answer"] == b["answer"] for a, b in answered if number), len(answered))
                if number
                else proportion(0, 0),
                parse_rate=sum(row.get("answer") is not None for row in members) / len(members),
            )
        )
    return found


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


@dataclass(frozen=True)
class Cell:
    """Trials that share a level of one factor.

    Attributes:
        level: The level: a margin bin (low, high), a number or a name.
        x: Where the level lies on an axis (mean margin, mean |answer|, or a running number).
        accuracy: Proportion right, of the trials that took place.
        signal: Proportion of signal answers among those that could be read (two-option judgements only).
        p_signal: Mean probability of the signal answer (graded where it is logged), nan if there is none.
    """

    level: Any
    x: float
    accuracy: Proportion
    signal: Proportion
    p_signal: float

    @property
    def label(self) -> str:
        """The level as it is printed."""
        return f"{self.level[0]:+.2f} to {self.level[1]:+.2f}" if isinstance(self.level, tuple) else str(self.level)


def cells(
    rows: Iterable[Row],
    level: Callable[[Row], Any],
    x: Callable[[Row], float] | None = None,
    signal: str | None = None,
) -> list[Cell]:
    """Trials that took place, grouped by the level of a factor; levels in natural order, rows without one left out.

    Args:
        rows: Of a log.
        level: Of the factor; None leaves the row out.
        x: Where a row lies on the abscissa; the cell has the mean.
        signal: The answer that is counted as such.
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        key = level(row)
        if key is not None and not failed(row):
            groups.setdefault(key, []).append(row)
    result = []
    for number, key in enumerate(sorted(groups, key=_natural)):
        members = groups[key]
        read = [r for r in members if r.get("answer") is not None] if signal is not None else []
        graded = [p for p in (signal_probability(r, signal) for r in members) if not math.isnan(p)] if signal else []
        result.append(
            Cell(
                level=key,
                x=sum(map(x, members)) / len(members) if x else float(number),
                accuracy=proportion(sum(map(succeeded, members)), len(members)),
                signal=proportion(sum(r["answer"] == signal for r in read), len(read)),
                p_signal=sum(graded) / len(graded) if graded else math.nan,
            )
        )
    return result


def by_margin(rows: Sequence[Row], signal: str | None = None) -> list[Cell]:
    """Cells of the designed margin bins; empty if there are fewer than two of them."""
    found = cells(rows, _margin_bin, lambda row: float(row["margin"]), signal)
    return found if len(found) > 1 else []


def catch_items(rows: Sequence[Row]) -> list[Row]:
    """The trials of a judgement that are farthest from the boundary, on either side: whoever looks and understands the question
    has them right. Empty where there are fewer than four margin bins, so that none stands out."""
    bins = sorted({edges for row in rows if (edges := _margin_bin(row)) is not None})
    if len(bins) < 4 or two_options(rows) is None:
        return []
    return [row for row in rows if _margin_bin(row) in (bins[0], bins[-1])]


def by_condition(rows: Sequence[Row], factor: str, signal: str | None = None) -> list[Cell]:
    """Cells of another factor of the condition ("count", "build", "mirrored", ...)."""
    return cells(rows, lambda row: (row.get("condition") or {}).get(factor), None, signal)


def by_answer_size(rows: Sequence[Row]) -> list[Cell]:
    """Cells of |correct answer| (of the first number, if it is a pair)."""

    def size(row: Row) -> int | None:
        truth = row.get("truth")
        first = truth[0] if isinstance(truth, list | tuple) and truth else truth
        return abs(first) if isinstance(first, int) and not isinstance(first, bool) else None

    return cells(rows, size, lambda row: float(size(row) or 0))


def _margin_bin(row: Row) -> tuple[float, float] | None:
    edges = (row.get("condition") or {}).get("margin_bin")
    if not edges or row.get("margin") is None or tuple(edges) == (0.0, 0.0):
        return None
    return float(edges[0]), float(edges[1])


def _natural(level: Any) -> Any:
    """Sort key under which "5to7cm" comes before "11to13cm"."""
    if isinstance(level, str):
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", level) if part]
    return level
