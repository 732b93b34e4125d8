"""The course of a training: which item is shown when, and what is learned beside the task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_probe.finetune.auxiliary import AuxiliaryObjective, HeadLearning, make_targets
from vlm_probe.finetune.config import TrainConfig
from vlm_probe.finetune.curriculum import difficulty, parse_curriculum
from vlm_probe.finetune.diversity import describe
from vlm_probe.finetune.mixture import Share
from vlm_probe.finetune.order import Order
from vlm_probe.finetune.presentation import OrderKeeping, Results, present
from vlm_probe.stimuli.dataset import Item


class Course:
    """What a training shows and asks beside the task, put together from its settings.

    Args:
        config: The settings.
        items: The training set, task after task.
        model: The model that is trained.
        places: Presentations in the whole training.

    Raises:
        ValueError: If the auxiliary target is not defined for a task.
        ModelError: If the model has no such layer.
    """

    def __init__(self, config: TrainConfig, items: Sequence[Item], model: Any, places: int) -> None:
        self._items = items
        by_task = {task: [item for item in items if item.task == task] for task in config.tasks}
        self._first = {task: next(i for i, item in enumerate(items) if item.task == task) for task in config.tasks}
        mixture = [Share(task, share) for task, share in zip(config.tasks, config.shares(), strict=True)]
        block = config.rollout // config.group if config.reinforced else config.batch
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
        """The rows of the training set in the order of the training."""
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
