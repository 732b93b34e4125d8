"""The order of a training: which item of which task is shown at which place.

A place is one presentation. Places come in blocks: the items of one rollout, or of one optimiser step. The task of a place
is decided by the mixture, the item by the curriculum. Within what is open, every item comes once before any comes again.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_probe.finetune.curriculum import Competence, Floats, Kind, frontier, open_items, paced_share
from vlm_probe.finetune.mixture import Share, interleave, realised
from vlm_probe.stimuli.errors import InvalidInput

LAG = 2
"""Blocks between a success and its effect: data loaders fetch one block while another one is being learned from."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is shown at one place: the task, and the item by its place in the task's training set."""

    task: str
    item: int


class Order:
    """The order of a training, decided block by block.

    It is a pure function of its arguments and, for an adaptive curriculum, of the successes recorded: an order made anew
    and given the same successes goes on exactly as the first one did, which is how a training is resumed.

    Args:
        mixture: Tasks and their shares.
        difficulty: Task -> how hard each of its items is, (items,); see `vlm_probe.finetune.curriculum.difficulty`.
        kind: The curriculum.
        places: Presentations in the whole training.
        block: Places per block.
        seed: Of the order within what is open.

    Raises:
        ValueError: If a task has no items, or the training has no places.
    """

    def __init__(
        self, mixture: Sequence[Share], difficulty: Mapping[str, Floats], kind: Kind, places: int, block: int, seed: int
    ) -> None:
        if places < 1 or block < 1:
            raise ValueError(f"a training needs places, and blocks of at least one, got {places} and {block}")
        empty = [share.task for share in mixture if len(difficulty.get(share.task, ())) == 0]
        if empty:
            raise InvalidInput(f"there are no items of {empty[0]}: give it more --items, or leave it out of --tasks")
        self.kind, self.places, self.block = kind, places, block
        self._tasks = interleave(mixture, places)
        self._difficulty = {share.task: np.asarray(difficulty[share.task], dtype=np.float64) for share in mixture}
        self._decks = {task: _Deck(values, seed, task) for task, values in self._difficulty.items()}
        self._shown: list[Place] = []
        self._shares: list[dict[str, float]] = []
        self._competence = {task: Competence() for task in self._decks}
        self._results: list[dict[str, list[float]]] = []

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, place: int) -> Place:
        """What is shown at a place, from 0.

        Raises:
            IndexError: If there is no such place.
            RuntimeError: If an adaptive curriculum has not been told yet how the blocks before went.
        """
        if not 0 <= place < self.places:
            raise IndexError(f"place {place} of a training with {self.places}")
        while len(self._shown) <= place:
            self._decide(len(self._shares))
        return self._shown[place]

    def record(self, block: int, successes: Sequence[float]) -> None:
        """Say how a block went. Every block is recorded once, in order; only an adaptive curriculum makes use of it.

        Args:
            block: Number of the block, from 0.
            successes: One per place of the block, in [0, 1]: the mean, where an item was answered several times.

        Raises:
            ValueError: If it is not this block's turn, or the number of successes is not that of its places.
        """
        first = block * self.block
        size = min(self.block, self.places - first)
        if block != len(self._results) or len(successes) != size:
            raise ValueError(
                f"block {block} with {len(successes)} successes was recorded where block {len(self._results)} was due;"
                f" block {block} has {size} places"
            )
        result = {task: [0.0, 0] for task in self._decks}
        for place, success in enumerate(successes, first):
            shown = self[place]
            if shown.item in frontier(self._decks[shown.task].order, self._shares[block][shown.task]):
                result[shown.task][0] += float(success)
                result[shown.task][1] += 1
        self._results.append(result)

    @property
    def results(self) -> Sequence[Mapping[str, Sequence[float]]]:
        """What was recorded: per block, task -> successes on its frontier and items there."""
        return self._results

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold so that the order can be gone on with: plain JSON-ready data."""
        return {"results": self._results}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint, before anything is shown but the first blocks, which no success decides.

        Raises:
            ValueError: If successes have been recorded, or would have been needed, already.
        """
        if self._results or len(self._shares) > LAG:
            raise ValueError("an order can be restored only before it is used: make it anew")
        self._results = [dict(result) for result in state["results"]]

    def summary(self) -> dict[str, Any]:
        """What was shown when, for `training.json`: shares of the tasks, and block by block what was open and how hard it was.

        `sha256` is that of all (task, item) in order: equal for two trainings that were shown the same in the same order.
        """
        digest = hashlib.sha256("".join(f"{p.task} {p.item}\n" for p in self._shown).encode())
        blocks = []
        for number, shares in enumerate(self._shares):
            shown = self._shown[number * self.block : (number + 1) * self.block]
            tasks = Counter(place.task for place in shown)
            hard = {t: float(np.mean([self._difficulty[t][p.item] for p in shown if p.task == t])) for t in tasks}
            blocks.append(
                {
                    "shown": dict(tasks),
                    "open": {task: round(share, 4) for task, share in shares.items()},
                    "difficulty": {task: round(mean, 4) for task, mean in hard.items()},
                }
            )
        return {
            "curriculum": self.kind,
            "places": len(self._shown),
            "block": self.block,
            "realised": realised(place.task for place in self._shown),
            "distinct": {t: len({p.item for p in self._shown if p.task == t}) for t in self._decks},
            "sha256": digest.hexdigest(),
            "blocks": blocks,
        }

    def _decide(self, block: int) -> None:
        """Decide the places of the next block."""
        if self.kind == "adaptive" and block >= LAG:
            known = block - LAG
            if known >= len(self._results):
                raise RuntimeError(
                    f"block {block} was asked for before block {known} was recorded: the training must record every block,"
                    " and its data loader must not fetch more than one block ahead"
                )
            for task, (right, n) in self._results[known].items():
                self._competence[task] = self._competence[task].after(right, int(n))
        shares = {task: self._share(task, block) for task in self._decks}
        for task, share in shares.items():
            self._decks[task].open(open_items(self._decks[task].order, share, self.kind))
        first = block * self.block
        self._shown += [Place(task, self._decks[task].draw()) for task in self._tasks[first : first + self.block]]
        self._shares.append(shares)

    def _share(self, task: str, block: int) -> float:
        if self.kind == "none":
            return 1.0
        if self.kind == "adaptive":
            return self._competence[task].share
        return paced_share(block * self.block / self.places)


class _Deck:
    """The items of a task, drawn in passes: all that are open once, in random order, before any comes again."""

    def __init__(self, difficulty: Floats, seed: int, task: str) -> None:
        self._rng = np.random.default_rng([seed, zlib.crc32(task.encode())])
        # Items that are equally hard are in an order of chance, so that the order of the set decides nothing.
        self.order: list[int] = np.lexsort((self._rng.random(len(difficulty)), difficulty)).tolist()
        self._open: list[int] = []
        self._left: list[int] = []

    def open(self, items: list[int]) -> None:
        """Have these items open from now on. What is new comes anywhere in the pass that is under way."""
        if items == self._open:
            return
        now, before = set(items), set(self._open)
        self._left = [item for item in self._left if item in now]
        for item in items:
            if before and item not in before:
                self._left.insert(int(self._rng.integers(len(self._left) + 1)), item)
        self._open = items

    def draw(self) -> int:
        """The next item."""
        if not self._left:
            self._left = [self._open[i] for i in self._rng.permutation(len(self._open)).tolist()]
        return self._left.pop()
