"""What of a model is trained: the place and the size of a LoRA adapter, or all weights of a small model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from vlm_probe.finetune.config import ALPHA, DROPOUT, RANK
from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.adapters import attach_adapter
from vlm_probe.probes.models.device import parameter_count, parameter_size, quantisation
from vlm_probe.probes.models.parts import Part, part_of
from vlm_probe.stimuli.ranges import check_ranges, ranged

Where = Literal["language", "vision", "projector", "all", "full"]

FULL_LIMIT = 600_000_000
"""Parameters up to which all weights may be trained: of more, weights, gradients and Adam's two moments fill a GPU."""


@dataclass(frozen=True)
class Capacity:
    """How much of a model is trained, and where.

    Attributes:
        where: An adapter in the "language" model, the "vision" tower, the "projector" (what carries pictures into the
            language model), or "all" three; or "full": every weight of a small model itself, without an adapter.
        rank: Of the adapter's matrices.
        alpha: The adapter's output is scaled by alpha / rank.
        dropout: On the adapter's input; in reinforcement learning it must be off, or the policy that is updated is not the
            one that acted.

    Raises:
        OutOfRange: If a number is outside its range.
        ModelError: If there is no such place.
    """

    where: str = "language"
    rank: int = ranged(16, RANK)
    alpha: float = ranged(16.0, ALPHA)
    dropout: float = ranged(0.0, DROPOUT)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.where not in get_args(Where):
            close = difflib.get_close_matches(self.where, get_args(Where), n=1)
            hint = f"did you mean {close[0]}?" if close else f"use {', '.join(get_args(Where))}"
            if "head" in self.where or "embed" in self.where:
                hint = "output layer and embeddings carry no adapter; use language, or full for a small model"
            raise ModelError(f"there is no place {self.where!r} for an adapter: {hint}")


@dataclass(frozen=True)
class ParameterCount:
    """What of a model is trained, in numbers.

    Attributes:
        trainable: Parameters that are trained.
        total: Parameters of the model, adapter included; those of 4-bit weights are counted one by one.
        layers: Part of the model -> number of its layers that are trained.
    """

    trainable: int
    total: int
    layers: dict[str, int]

    def __str__(self) -> str:
        places = ", ".join(f"{number} layers of {part}" for part, number in self.layers.items())
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({places})"


def lora_config(model: Any, capacity: Capacity) -> Any:
    """PEFT's configuration of an adapter of that capacity: its pattern matches every linear layer of the place, and no other.

    Args:
        model: A vision-language model, without an adapter.
        capacity: Place and size.

    Returns:
        A `peft.LoraConfig`.

    Raises:
        ModelError: If the model has no linear layers there.
    """
    from peft import LoraConfig

    linear = {name: part_of(name) for name in _linear_layers(model)}
    parts = get_args(Part) if capacity.where == "all" else (capacity.where,)
    chosen = {name for name, part in linear.items() if part in parts}
    if not chosen:
        has, kind = [part for part in get_args(Part) if part in linear.values()], model.config.model_type
        if not has:
            raise ModelError(
                f"the parts of a {kind} model are not known here: use another architecture, or --where full"
            )
        raise ModelError(
            f"the {capacity.where} of a {kind} model has no linear layer that could carry an adapter: use"
            f" {' or '.join(has)}"
        )
    pattern = "|".join(dict.fromkeys(_pattern(name) for name in sorted(chosen)))
    matched = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    assert matched == chosen, f"the pattern of the adapter is wrong about {sorted(matched ^ chosen)[:3]}"
    return LoraConfig(
        r=capacity.rank,
        lora_alpha=capacity.alpha,
        lora_dropout=capacity.dropout,
        target_modules=pattern,
    )


def make_trainable(model: Any, capacity: Capacity, *, init: Path | None = None) -> Any:
    """Prepare a model for training: with a new adapter, with one to go on from, or with its own weights.

    Args:
        model: A vision-language model, in 4 bits or not.
        capacity: Place and size.
        init: Folder of an adapter to go on from, whose own place and size count.

    Returns:
        A PEFT model whose base is frozen; for "full", the model itself.

    Raises:
        ModelError: If the model has no such part, cannot be trained in full, or the adapter is not one of this model.
    """
    quantised = quantisation(model) != "none"
    if capacity.where == "full":
        if init is not None:
            raise ModelError(f"--where full trains no adapter, and {init} is one: leave one of them out")
        return _train_fully(model, quantised)
    if quantised:
        from peft import prepare_model_for_kbit_training

        # Norms and embeddings in single precision (Dettmers et al. 2023). Whether activations are kept or computed anew is
        # the trainer's business.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if init is not None:
        return attach_adapter(model, init, trainable=True)
    from peft import get_peft_model

    return get_peft_model(model, lora_config(model, capacity))


def trained(model: Any) -> ParameterCount:
    """Count what is trained of a model that `make_trainable` has prepared."""
    counts = {True: 0, False: 0}
    layers: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        counts[parameter.requires_grad] += parameter_size(parameter)
        if parameter.requires_grad:
            layer = name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]
            layers.setdefault(part_of(name) or "other", set()).add(layer)
    return ParameterCount(
        counts[True], sum(counts.values()), {part: len(names) for part, names in sorted(layers.items())}
    )


def _linear_layers(model: Any) -> Iterator[str]:
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not output:
            yield name


def _pattern(name: str) -> str:
    """A pattern for the layers of that name: any number in the place of a block's, dots as they are."""
    *path, leaf = name.split(".")
    return r"\.".join([r"[0-9]+" if part.isdecimal() else re.escape(part) for part in path] + [re.escape(leaf)])


def _train_fully(model: Any, quantised: bool) -> Any:
    number = parameter_count(model)
    if quantised:
        kind = "4-bit" if getattr(model, "is_loaded_in_4bit", False) else "quantised"
        raise ModelError(f"{kind} weights cannot be trained themselves: leave out --load-in-4bit, or train an adapter")
    if number > FULL_LIMIT:
        raise ModelError(
            f"--where full is for models up to {FULL_LIMIT / 1e9:g} B parameters, and this one has {number / 1e9:.1f} B"
            f" (about {16 * number / 1e9:.0f} GB in training): train an adapter"
        )
    if model.dtype != torch.float32:
        raise ModelError(
            f"--where full with {str(model.dtype).removeprefix('torch.')} weights would train nothing: steps of a usual learning"
            " rate are smaller than the weights' rounding; load them with --dtype float32"
        )
    return model.requires_grad_(True)
