"""One batch is learned from before anything is made for a training run: a model that cannot be trained says so at once."""

from __future__ import annotations

import copy
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from vlm_probe.finetune.config import TrainConfig, TrainingError
from vlm_probe.finetune.data import TrainingSet, few_items
from vlm_probe.finetune.policy import Policy
from vlm_probe.probes.models.model_folder import reason_of
from vlm_probe.probes.models.network import out_of_memory
from vlm_probe.stimuli.errors import ProbeError

SHORT = 4
"""Tokens of a reply, and of a thought, in that batch."""


def try_batch(
    config: TrainConfig, policy: Policy, make_trainer: Callable[[TrainConfig, Policy, TrainingSet, Path], Any]
) -> None:
    """Take one batch through a trainer's own path to the gradients, which are then dropped. The model is left as it was.

    Args:
        config: The run's settings, with the micro-batch that a process takes.
        policy: The model.
        make_trainer: Makes the trainer of a small run, in a folder.

    Raises:
        TrainingError: If that fails; one line that names the model and the method.
    """
    unit = math.lcm(config.micro_batch, config.group)
    few = replace(
        config,
        tasks=config.tasks[:1],
        weights=(),
        items=max(2, unit // config.group),
        batch=unit,
        rollout=unit,
        epochs=1,
        max_new_tokens=SHORT if config.is_rl else 0,
        curriculum="none",
        auxiliary=0.0,
        report_to="none",
    )
    prompter = copy.copy(policy.prompter)
    prompter.thinking = replace(prompter.thinking, max_tokens=SHORT)
    with _untouched(policy.model), tempfile.TemporaryDirectory() as nowhere:
        try:
            trainer = make_trainer(few, replace(policy, prompter=prompter), few_items(few), Path(nowhere))
            # Set by the loop of a training run, which is not run.
            trainer.current_gradient_accumulation_steps = 1
            rows = next(iter(trainer.get_train_dataloader()))
            trainer.compute_loss(trainer.model, trainer._prepare_inputs(rows)).backward()
        except ProbeError:
            raise
        except Exception as error:  # of any architecture
            fix = "use another model"
            if out_of_memory(error):
                fix = "give a smaller --micro-batch, --gradient-checkpointing or --load-in-4bit"
            raise TrainingError(
                f"{policy.name} cannot be trained by {config.method} ({reason_of(error)}): {fix}"
            ) from error


@contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Leave a model, and what random numbers come next, as they were: a trainer adds adapters, heads and hooks to it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapters = set(getattr(model, "peft_config", {}))
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    forward, training = base.__dict__.get("forward"), model.training
    cards = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    chance, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(cards):
            yield
    finally:
        random.setstate(chance)
        np.random.set_state(numbers)  # noqa: NPY002
        if hasattr(model, "value_head"):
            del model.value_head
        # Those of the trainer alone: transformers puts hooks of its own on a network once, and counts on them.
        for hooks in (getattr(module, kind) for module in model.modules() for kind in kinds):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Trainer)]:
                del hooks[key]
        for name in set(getattr(model, "peft_config", {})) - adapters:
            model.delete_adapter(name)
        base.__dict__.pop("forward", None)
        if forward is not None:
            base.forward = forward
        for parameter in model.parameters():
            parameter.grad = None
        model.train(training)
