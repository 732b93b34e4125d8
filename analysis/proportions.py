"""Trial rows reduced to the counts and proportions that the summary of a run and its figure show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_probe.analysis.labels import natural_key
from vlm_probe.analysis.rows import (
    Row,
    attempt_of,
    failed,
    first_attempts,
    manner_of,
    margin_bin,
    signal_probability,
    succeeded,
)


@dataclass(frozen=True)
class Proportion:
    """A proportion with its 95 % Wilson interval.

    Attributes:
        value, low, high: The proportion and its interval; nan where nothing was counted.
        n: Of how many.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]" if self.n else "-"


def wilson(successes: float, n: int) -> Proportion:
    """`successes` of `n` with the Wilson score interval, which stays inside [0, 1] and holds near its ends.

    Trials are taken as independent. Foils and mirror images of one scene are not quite, which the mixed-effects models
    account for and this interval does not.

    Args:
        successes: How many; may be fractional.
        n: Of how many; 0 gives nan.
    """
    if n == 0:
        return Proportion(math.nan, math.nan, math.nan, 0)
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=0.05, method="wilson")
    return Proportion(successes / n, float(low), float(high), n)


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
                wilson(sum(decided), len(decided)),
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
    """Trials of one manner of presentation, next to the same items in the manner of reference.

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
                accuracy=wilson(sum(map(succeeded, members)), len(members)),
                difference=gained / len(both) if number and both else math.nan,
                same=wilson(sum(a["answer"] == b["answer"] for a, b in answered if number), len(answered))
                if number
                else wilson(0, 0),
                parse_rate=sum(row.get("answer") is not None for row in members) / len(members),
            )
        )
    return found


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


def by_level(
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
    for number, key in enumerate(sorted(groups, key=_order)):
        members = groups[key]
        read = [r for r in members if r.get("answer") is not None] if signal is not None else []
        graded = [p for p in (signal_probability(r, signal) for r in members) if not math.isnan(p)] if signal else []
        result.append(
            Cell(
                level=key,
                x=sum(map(x, members)) / len(members) if x else float(number),
                accuracy=wilson(sum(map(succeeded, members)), len(members)),
                signal=wilson(sum(r["answer"] == signal for r in read), len(read)),
                p_signal=sum(graded) / len(graded) if graded else math.nan,
            )
        )
    return result


def by_margin(rows: Sequence[Row], signal: str | None = None) -> list[Cell]:
    """Cells of the designed margin bins; empty if there are fewer than two of them.

    Args:
        rows: Of a log.
        signal: The answer that is counted as such.
    """
    found = by_level(rows, margin_bin, lambda row: float(row["margin"]), signal)
    return found if len(found) > 1 else []


def by_condition(rows: Sequence[Row], factor: str, signal: str | None = None) -> list[Cell]:
    """Cells of another factor of the condition ("count", "build", "mirrored", ...).

    Args:
        rows: Of a log.
        factor: Name of the factor.
        signal: The answer that is counted as such.
    """
    return by_level(rows, lambda row: (row.get("condition") or {}).get(factor), None, signal)


def by_answer_size(rows: Sequence[Row]) -> list[Cell]:
    """Cells of |correct answer| (of the first number, if it is a pair)."""

    def size(row: Row) -> int | None:
        truth = row.get("truth")
        first = truth[0] if isinstance(truth, list | tuple) and truth else truth
        return abs(first) if isinstance(first, int) and not isinstance(first, bool) else None

    return by_level(rows, size, lambda row: float(size(row) or 0))


def _order(level: Any) -> Any:
    """Sort key of levels: names as `natural_key` has them, numbers and pairs of numbers as they are."""
    return natural_key(level) if isinstance(level, str) else level
