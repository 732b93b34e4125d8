"""From the order of a training to the rows that a trainer reads: looked up one by one, when they are asked for.

An adaptive curriculum decides what comes next while the training is under way, so that the rows cannot be laid out
beforehand. What a place shows is known from its number, and successes come back the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from vlm_probe.finetune.config import TrainingError
from vlm_probe.finetune.monitor import RESTART
from vlm_probe.finetune.order import Order
from vlm_probe.stimuli.errors import reading
from vlm_probe.stimuli.plain_json import dumps, parse_object

FILE = "order.json"
"""Of a checkpoint: the successes that the order of the training depends on."""


def present(table: Any, order: Order, first: Mapping[str, int]) -> Any:
    """The rows of a training set in the order of the training, as a `datasets.Dataset`.

    Args:
        table: One row per item, task after task.
        order: The order.
        first: Task -> row of its first item.

    Returns:
        As many rows as the training has places; each is that of the item that its place shows, with the column `place`.
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
        # without a memory, most of the pictures would be decoded for nothing.
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
        """Say how some presentations went. To be called by all processes at once, in the order of the training.

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
