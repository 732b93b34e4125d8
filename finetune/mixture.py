"""Several tasks in one training run: their weights, and which task comes at which place of the training run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlm_probe.stimuli.errors import InvalidInput

LARGEST_WEIGHT = 1000.0
"""Its inverse is the smallest."""


@dataclass(frozen=True)
class Share:
    """A task, and the share of the training run that it gets, in (0, 1]."""

    task: str
    share: float


def parse_mixture(text: str) -> tuple[Share, ...]:
    """The tasks that a text names, with their shares.

    Args:
        text: Task names separated by commas, each perhaps with a weight (1 by default): `towers-stability:2,balance-tilt`.

    Returns:
        The tasks in the order in which they are named; their shares add up to 1.

    Raises:
        ValueError: If no task is named, one is named twice, or a weight is out of range. Whether the tasks exist is
            not looked at.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        task, colon, number = (piece.strip() for piece in part.partition(":"))
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            weight = math.nan
        if not 1 / LARGEST_WEIGHT <= weight <= LARGEST_WEIGHT:
            raise InvalidInput(
                f"the weight {number!r} of {task} is not a number from {1 / LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}: write {task}:2"
            )
        if not task:
            raise InvalidInput(f"there is a weight without a task in {text!r}: write the task before the colon")
        if task in weights:
            raise InvalidInput(f"the task {task} is named twice in {text!r}: give it one weight, as in {task}:2")
        weights[task] = weight
    if not weights:
        raise InvalidInput(
            "no task is named: give at least one, as in towers-stability or towers-stability:2,balance-tilt"
        )
    total = sum(weights.values())
    return tuple(Share(task, weight / total) for task, weight in weights.items())


def spell(mixture: Sequence[Share]) -> str:
    """The mixture as `parse_mixture` reads it; weights are left out where they are equal."""
    least = min(share.share for share in mixture)
    if all(math.isclose(share.share, least) for share in mixture):
        return ",".join(share.task for share in mixture)
    return ",".join(f"{share.task}:{share.share / least:.6g}" for share in mixture)


def interleave(mixture: Sequence[Share], n: int) -> list[str]:
    """The task at each of n places, so that the shares are right from the beginning and not only in the end.

    Up to every place, no task has been shown one time more or less than its share of the places says (Tijdeman 1980,
    "The chairman assignment problem"). Of the tasks that may come next, the one comes that must come soonest.

    Args:
        mixture: Tasks and shares.
        n: Number of places.

    Returns:
        n task names. A pure function of the arguments; a longer one begins with a shorter one.
    """
    slack = 1 / max(1, 2 * len(mixture) - 2)
    shown = [0] * len(mixture)
    order = []
    for place in range(1, n + 1):
        # Rounding must not keep out a task whose time has come exactly.
        ripe = [i for i, s in enumerate(mixture) if place * s.share - shown[i] >= slack - 1e-9]
        chosen = min(ripe, key=lambda i: ((shown[i] + 1 - slack) / mixture[i].share, i))
        shown[chosen] += 1
        order.append(mixture[chosen].task)
    return order


def apportion(mixture: Sequence[Share], n: int) -> dict[str, int]:
    """How many of n places each task gets; at least one each.

    Raises:
        ValueError: If n is too small for that.
    """
    counts = Counter(interleave(mixture, n))
    absent = [share.task for share in mixture if not counts[share.task]]
    if absent:
        raise InvalidInput(f"{n} items are too few for a share of {absent[0]}: give more, or a larger weight")
    return {share.task: counts[share.task] for share in mixture}


def realised(tasks: Iterable[str]) -> dict[str, float]:
    """The share that each task really had among those that were shown, in the order of their first appearance."""
    counts = Counter(tasks)
    return {task: count / counts.total() for task, count in counts.items()}
