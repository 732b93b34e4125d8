"""Curricula: how hard an item is, and how much of the items a training run has opened at any time.

Difficulty comes from what the stimuli state, the margin and the number of objects, and never from the model. A curriculum
changes the order in which the items of a training set are shown and nothing else, so that training runs with different
curricula see the same items. Sources: Bengio et al. 2009 (easy to hard), Hacohen & Weinshall 2019 (pacing, and hard to
easy as the control), Platanios et al. 2019 (following the learner).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.errors import InvalidInput, did_you_mean

Floats = npt.NDArray[np.float64]
Kind = Literal["none", "easy-to-hard", "hard-to-easy", "adaptive"]

OPEN_AT_FIRST = 0.25
"""Share of the items that is open when a training run starts."""
ALL_OPEN = 0.5
"""Share of the training after which a pace that is set beforehand has opened everything."""
STEP = 0.125
"""Share of the items that an adaptive curriculum opens or closes at a time."""
FRONTIER = 0.25
"""Share of the items, the hardest of the open ones, whose success decides."""
EVIDENCE = 32
"""Items of the frontier that must have been answered since the last decision."""
MASTERED, LOST = 0.75, 0.25
"""Success on the frontier from which more is opened, and up to which something is closed."""


def parse_curriculum(text: str) -> Kind:
    """The curriculum of that name.

    Raises:
        ValueError: If there is none; with the closest name.
    """
    for kind in get_args(Kind):
        if text == kind:
            return kind
    raise InvalidInput(f"unknown curriculum {text!r}: {did_you_mean(text, get_args(Kind), n=1, cutoff=0.6)}")


def difficulty(items: Sequence[Item]) -> Floats:
    """How hard the items of one task are compared with each other.

    Every item is ranked by how close its margin is to the boundary, and by its number of objects; its difficulty is the
    mean of the two ranks, scaled to [0, 1]. What is the same for all items, or unknown, does not count.

    Args:
        items: Of one task.

    Returns:
        (items,) in [0, 1]; 0 for all of them if neither margin nor number tells them apart.
    """
    cues = [
        -np.abs(np.array([item.margin for item in items], dtype=np.float64)),
        np.array([item.condition.count for item in items], dtype=np.float64),
    ]
    ranks = [(rankdata(cue) - 1) / (len(cue) - 1) for cue in cues if np.isfinite(cue).all() and np.ptp(cue) > 0]
    return np.mean(ranks, axis=0) if ranks else np.zeros(len(items))


def paced_share(progress: float) -> float:
    """The share of the items that is open at that point of a training run, where the pace is set beforehand.

    It grows in a straight line from `OPEN_AT_FIRST` to 1 at `ALL_OPEN`.

    Args:
        progress: Share of the training run that is over, in [0, 1].
    """
    return min(1.0, OPEN_AT_FIRST + (1 - OPEN_AT_FIRST) * progress / ALL_OPEN)


def open_items(order: Sequence[int], share: float, kind: Kind) -> list[int]:
    """The open items: that share of them from the easy end, or from the hard end.

    Args:
        order: The items from the easiest to the hardest.
        share: Open share, in (0, 1].
        kind: "hard-to-easy" opens from the hard end, "none" opens everything.
    """
    if kind == "none":
        return list(order)
    number = math.ceil(share * len(order) - 1e-9)
    return list(order[-number:] if kind == "hard-to-easy" else order[:number])


@dataclass(frozen=True)
class Competence:
    """What an adaptive curriculum knows about the learner in one task.

    Attributes:
        share: Open share of the items.
        right: Successes on the frontier since the last decision; a part of one where an item was answered several times.
        n: Items answered there since.
    """

    share: float = OPEN_AT_FIRST
    right: float = 0.0
    n: int = 0

    def after(self, right: float, n: int) -> Competence:
        """The competence after so many more successes on so many more items of the frontier."""
        right, n = self.right + right, self.n + n
        if n < EVIDENCE:
            return Competence(self.share, right, n)
        rate = right / n
        move = STEP if rate >= MASTERED else -STEP if rate <= LOST else 0.0
        return Competence(min(1.0, max(OPEN_AT_FIRST, self.share + move)))


def frontier(order: Sequence[int], share: float) -> frozenset[int]:
    """The hardest of the open items, on which an adaptive curriculum judges the learner.

    Args:
        order: The items from the easiest to the hardest.
        share: Open share.
    """
    opened = open_items(order, share, "adaptive")
    return frozenset(opened[-max(1, math.ceil(FRONTIER * len(order))) :])
