"""An auxiliary objective: next to its main loss, a model learns to state a physical quantity from one of its hidden layers.

A linear head reads the quantity (the margin, say) from the hidden state of the last token of the prompt, and its squared
error is added to the main loss (Jaderberg et al. 2017). The head is no part of the model: it has an optimiser of its own, is
kept in checkpoints alone, and is gone when the training run is over. What stays is what it did to the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from torch import nn
from transformers import TrainerCallback

from vlm_probe.finetune.config import TrainingError
from vlm_probe.finetune.monitor import RESTART
from vlm_probe.probes.decoding.targets import TARGETS, find_target
from vlm_probe.probes.models import ModelError
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.errors import InvalidInput, reading

HEAD_LEARNING_RATE = 1e-3
FILE = "auxiliary.pt"
"""Of a checkpoint: the head and its optimiser."""


@dataclass(frozen=True)
class Targets:
    """What is to be predicted.

    Attributes:
        name: Of the quantity, as in `probe decode`.
        values: (items,) standardised within each task; NaN where an item has no value.
        tasks: (items,) number of each item's task: every task has an output of its own.
    """

    name: str
    values: torch.Tensor
    tasks: torch.Tensor


def make_targets(items: Sequence[Item], name: str) -> Targets:
    """The values of a quantity for the items of a training set.

    Standardised within each task, so that an error of 1 is what the task's mean gives, and 1 - error the explained variance.

    Args:
        items: Of the training set.
        name: A number that `probe decode` knows: margin, com-offset, height, answer, ..., or a cue of the task.

    Raises:
        ValueError: If it is no number, or not defined for a task, or the same for all of its items.
    """
    names = list(dict.fromkeys(item.task for item in items))
    values = torch.full((len(items),), math.nan)
    tasks = torch.tensor([names.index(item.task) for item in items])
    for task in names:
        rows = [i for i, item in enumerate(items) if item.task == task]
        those = [items[i] for i in rows]
        # A quantity of all families may be unknown for some items; a cue of the task, or a slip, is looked for by name.
        target = TARGETS[name] if name in TARGETS else find_target(name, those)
        if target.kind != "number":
            raise InvalidInput(f"the auxiliary target {name} is a label: use a number, such as margin")
        found = [target.of(item) for item in those]
        numbers = torch.tensor([math.nan if value is None else float(value) for value in found], dtype=torch.float64)
        known = numbers[~numbers.isnan()]
        if len(known) < 2 or float(known.std()) == 0.0:
            raise InvalidInput(
                f"the auxiliary target {name} is not defined, or always the same, for {task}: use margin"
            )
        values[rows] = ((numbers - known.mean()) / known.std(correction=0)).float()
    return Targets(name, values, tasks)


class AuxiliaryObjective:
    """The head, what it is to say, and how it learns.

    Args:
        model: The model that is trained, with or without an adapter. It is given a hook, and nothing else.
        targets: What is to be predicted.
        weight: Of the head's mean squared error, next to the main loss.
        layer: Language layer whose output is read, from 1; 0: the middle one.

    Raises:
        ModelError: If the model has no such layer.
    """

    def __init__(self, model: Any, targets: Targets, weight: float, layer: int = 0) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        decoder = base.get_decoder()
        blocks = getattr(decoder, "layers", None)
        if blocks is None:
            raise ModelError(f"the layers of a {type(base).__name__} are not known here: leave out --auxiliary")
        if not 0 <= layer <= len(blocks):
            raise ModelError(
                f"the language model has layers 1 to {len(blocks)}, not {layer}: choose --auxiliary-layer among them"
            )
        self.layer = layer or (len(blocks) + 1) // 2
        self.weight, self.targets = weight, targets
        width = base.config.get_text_config().hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, int(targets.tasks.max()) + 1))
        with torch.no_grad():
            # From zero: it says the mean at first, and no random numbers are taken from the training run.
            for parameter in self.head[1].parameters():
                parameter.zero_()
        self.head.to(base.get_input_embeddings().weight.device, torch.float32)
        self._optimiser = torch.optim.Adam(self.head.parameters(), HEAD_LEARNING_RATE)
        self._heard: list[torch.Tensor] | None = None
        blocks[self.layer - 1].register_forward_hook(self._keep)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the hidden states of the forward passes that are made meanwhile, for one call of `loss`."""
        self._heard = []
        try:
            yield
        finally:
            self._heard = None

    def loss(self, items: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """The head's mean squared error, while listening; 0 if none of the items has a value.

        Args:
            items: (rows,) which item each row of the forward pass shows.
            last: (rows,) place of the last token of each prompt.

        Raises:
            RuntimeError: If the layer was not run while listening.
        """
        if not self._heard:
            raise RuntimeError("no hidden states were kept: the forward pass did not go through the layer")
        hidden = torch.cat(self._heard)
        items = items.cpu()
        wanted = self.targets.values[items].to(hidden.device)
        tasks = self.targets.tasks[items].to(hidden.device)
        rows = torch.arange(len(items), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            said = self.head(hidden[rows, last.to(hidden.device)].float())[rows, tasks]
        known = ~wanted.isnan()
        error = torch.where(known, said - wanted.nan_to_num(), torch.zeros_like(said)) ** 2
        return error.sum() / known.sum().clamp(min=1)

    def step(self) -> None:
        """Let the head learn from the gradients that have come together, in all processes."""
        for parameter in self.head.parameters():
            own = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = reduce(own, reduction="mean")
        if any(bool(p.grad.abs().sum() > 0) for p in self.head.parameters() if p.grad is not None):
            self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def save(self, checkpoint: Path) -> None:
        """Write the head and its optimiser into a checkpoint."""
        torch.save({"head": self.head.state_dict(), "optimiser": self._optimiser.state_dict()}, checkpoint / FILE)

    def resume(self, checkpoint: Path) -> None:
        """Go on with the head of a checkpoint."""
        with reading(checkpoint / FILE, TrainingError, RESTART):
            stored = torch.load(checkpoint / FILE, weights_only=True)
            self.head.load_state_dict(stored["head"])
            self._optimiser.load_state_dict(stored["optimiser"])

    def _keep(self, module: Any, given: Any, output: Any) -> None:
        if self._heard is not None:
            self._heard.append(output[0] if isinstance(output, tuple) else output)


class HeadLearning(TrainerCallback):
    """Lets the head learn when the model does, and puts it into checkpoints. Comes before what marks these as whole.

    Args:
        objective: The auxiliary objective.
    """

    def __init__(self, objective: AuxiliaryObjective) -> None:
        self._objective = objective

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step of the head's own optimiser."""
        self._objective.step()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the head into the checkpoint."""
        if state.is_world_process_zero:
            self._objective.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class AuxiliaryMixin:
    """Adds an auxiliary objective to a trainer of TRL. Rows say which item they show in the column `index`.

    It goes with every method: the prompt is the same in all of them, and the gradient is simply added.
    """

    auxiliary: AuxiliaryObjective | None = None

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        rollout: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if self.auxiliary is not None:
            rollout["index"] = torch.tensor([int(row["index"]) for row in inputs])
        return rollout

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss as TRL computes it, and the auxiliary one."""
        # A copy: a rollout is learned from several times.
        rest = {name: value for name, value in inputs.items() if name != "index"}
        objective = self.auxiliary if getattr(model, "training", False) else None
        if objective is None:
            return super().compute_loss(model, rest, return_outputs, num_items_in_batch)  # type: ignore[misc]
        with objective.listening():
            found = super().compute_loss(model, rest, return_outputs, num_items_in_batch)  # type: ignore[misc]
            added = objective.loss(inputs["index"], _last_of_prompt(inputs))
        me: Any = self
        me._metrics["train"]["auxiliary_loss"].append(me.accelerator.reduce(added.detach(), reduction="mean").item())
        share = objective.weight * added / _parts(me, num_items_in_batch)
        return (found[0] + share, *found[1:]) if isinstance(found, tuple) else found + share


def _last_of_prompt(inputs: dict[str, Any]) -> torch.Tensor:
    """(rows,) where each prompt ends: before the first label, or before the reply that was generated."""
    if "labels" in inputs:
        return (inputs["labels"] != -100).int().argmax(dim=1) - 1
    prompts: torch.Tensor = inputs["prompt_ids"]
    return torch.full((len(prompts),), prompts.shape[1] - 1)


def _parts(trainer: Any, num_items: Any) -> int:
    """By what a mean over a micro-batch must be divided: by 1 if the trainer will divide it itself, for accumulation."""
    scaled = trainer.loss_is_scaled_for_ga
    if scaled is None:
        scaled = (trainer.model_accepts_loss_kwargs and num_items is not None) or trainer.compute_loss_func is not None
    return int(trainer.current_gradient_accumulation_steps) if scaled else 1
