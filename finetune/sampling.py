"""What a training shows, and when: the item of every place, the rows that a trainer reads, and what is learned next to the task.

A place is one presentation. Places come in blocks: the items of one rollout, or of one optimiser step. The task of a place
is decided by the mixture, the item by the curriculum. Within what is open, every item comes once before any comes again.
An adaptive curriculum decides what comes next while the training run is under way, so that the rows cannot be laid out
beforehand: they are looked up one by one, when they are asked for. What a place shows is known from its number, and
successes come back the same way.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from transformers import TrainerCallback

from vlm_probe.finetune.auxiliary import AuxiliaryObjective, HeadLearning, make_targets
from vlm_probe.finetune.config import TrainConfig, TrainingError
from vlm_probe.finetune.curriculum import (
    Competence,
    Floats,
    Kind,
    difficulty,
    frontier,
    open_items,
    paced_share,
    parse_curriculum,
)
from vlm_probe.finetune.diversity import describe
from vlm_probe.finetune.mixture import Share, interleave, realised
from vlm_probe.finetune.monitor import RESTART
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.errors import InvalidInput, reading
from vlm_probe.stimuli.plain_json import dumps, parse_object

LAG = 2
"""Blocks between a success and its effect: data loaders fetch one block while another one is being learned from."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is shown at one place: the task, and the item by its place in the task's training set."""

    task: str
    item: int


class Order:
    """The order of a training run, decided block by block.

    It is a pure function of its arguments and, for an adaptive curriculum, of the successes recorded: an order made again
    and given the same successes goes on exactly as the first one did, which is how a training run is resumed.

    Args:
        mixture: Tasks and their shares.
        difficulty: Task -> how hard each of its items is, (items,); see `vlm_probe.finetune.curriculum.difficulty`.
        kind: The curriculum.
        places: Presentations in the whole training run.
        block: Places per block.
        seed: Of the order within what is open.

    Raises:
        ValueError: If a task has no items, or the training run has no places.
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
        """What a checkpoint must hold so that the order can be resumed: plain JSON-ready data."""
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

        `sha256` is that of all (task, item) in order: equal for two training runs that were shown the same in the same order.
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


FILE = "order.json"
"""Of a checkpoint: the successes that the order of the training depends on."""


def present(table: Any, order: Order, first: Mapping[str, int]) -> Any:
    """The rows of a training set in the order of the training run, as a `datasets.Dataset`.

    Args:
        table: One row per item, task after task.
        order: The order.
        first: Task -> row of its first item.

    Returns:
        As many rows as the training run has places; each is that of the item that its place shows, with the column `place`.
    """
    from datasets import Dataset

    places = Dataset.from_dict({"place": list(range(len(order)))})
    return places.with_transform(_Lookup(table, order, first))


class _Lookup:
    """What `datasets` calls to fill rows in."""

    def __init__(self, table: Any, order: Order, first: Mapping[str, int]) -> None:
        self._table, self._order, self._first = table, order, first
        self._places: list[int] = []
        self._rows: dict[str, list[Any]] = {}

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        # TRL asks for the rows of a rollout before every step that is made from it, and looks at the first time's alone:
        # without a memory, most of the images would be decoded for nothing.
        if batch["place"] != self._places:
            shown = [self._order[place] for place in batch["place"]]
            self._rows = self._table[[self._first[place.task] + place.item for place in shown]]
            self._places = list(batch["place"])
        return self._rows | {"place": batch["place"]}

    def __getstate__(self) -> dict[str, Any]:
        # `datasets` names its tables by a hash of what made them, and would write the whole training set for that.
        return {}


class Results:
    """Brings the successes of all processes together, and tells the order how each block went."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._heard: dict[int, list[float]] = {}

    def note(self, places: Sequence[int], successes: Sequence[float]) -> None:
        """Say how some presentations went. To be called by all processes at once, in the order of the training run.

        Args:
            places: Where each was shown; several answers to one presentation have one place.
            successes: In [0, 1].
        """
        for place, success in gather_object(list(zip(map(int, places), map(float, successes), strict=True))):
            self._heard.setdefault(place, []).append(success)
        block = len(self._order.results)
        size = self._order.block
        own = range(block * size, min((block + 1) * size, len(self._order)))
        while own and all(place in self._heard for place in own):
            self._order.record(block, [_mean(self._heard.pop(place)) for place in own])
            block += 1
            own = range(block * size, min((block + 1) * size, len(self._order)))


class OrderKeeping(TrainerCallback):
    """Puts what the order depends on into checkpoints. Comes before what marks these as whole.

    Args:
        order: The order.
    """

    def __init__(self, order: Order) -> None:
        self._order = order

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write it into the checkpoint."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / FILE).write_text(dumps(self._order.state()), encoding="utf-8")

    def resume(self, checkpoint: Path) -> None:
        """Take over what a checkpoint holds."""
        with reading(checkpoint / FILE, TrainingError, RESTART):
            self._order.restore(parse_object((checkpoint / FILE).read_bytes()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class TrainingSchedule:
    """What a training shows and asks next to the task, put together from its settings.

    Args:
        config: The settings.
        items: The training set, task after task.
        model: The model that is trained.
        places: Presentations in the whole training run.

    Raises:
        ValueError: If the auxiliary target is not defined for a task.
        ModelError: If the model has no such layer.
    """

    def __init__(self, config: TrainConfig, items: Sequence[Item], model: Any, places: int) -> None:
        self._items = items
        by_task = {task: [item for item in items if item.task == task] for task in config.tasks}
        self._first = {task: next(i for i, item in enumerate(items) if item.task == task) for task in config.tasks}
        mixture = [Share(task, share) for task, share in zip(config.tasks, config.shares(), strict=True)]
        block = config.rollout // config.group if config.is_rl else config.batch
        hard = {task: difficulty(those) for task, those in by_task.items()}
        self.order = Order(mixture, hard, parse_curriculum(config.curriculum), places, block, config.seed)
        self.results = Results(self.order) if self.order.kind == "adaptive" else None
        """Where successes are told, for a curriculum that follows them; None for every other."""
        self.objective: AuxiliaryObjective | None = None
        self._keeping = OrderKeeping(self.order)
        self.callbacks: list[Any] = [self._keeping]
        """To be called before what marks checkpoints as whole."""
        if config.auxiliary:
            targets = make_targets(items, config.auxiliary_target)
            self.objective = AuxiliaryObjective(model, targets, config.auxiliary, config.auxiliary_layer)
            self.callbacks.append(HeadLearning(self.objective))

    def rows(self, table: Any) -> Any:
        """The rows of the training set in the order of the training run."""
        return present(table, self.order, self._first)

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint, before anything is shown."""
        self._keeping.resume(checkpoint)
        if self.objective is not None:
            self.objective.resume(checkpoint)

    def summary(self) -> dict[str, Any]:
        """What was shown, and when, for `training.json`."""
        about: dict[str, Any] = {"data": describe(self._items), "presentation": self.order.summary()}
        if self.objective is not None:
            about["auxiliary_objective"] = {
                "target": self.objective.targets.name,
                "layer": self.objective.layer,
                "weight": self.objective.weight,
            }
        return about
