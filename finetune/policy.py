"""The model that is trained: loaded, prepared, and kept from saying what cannot be scored."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from vlm_probe.finetune.config import ALPHA, DROPOUT, RANK, TrainConfig, TrainingError
from vlm_probe.probes.models import THINKING_TOKENS, ModelError
from vlm_probe.probes.models.adapter_folder import TRAINING, Part, check_base, part_of, read_trained
from vlm_probe.probes.models.adapters import attach_adapter
from vlm_probe.probes.models.catalog import lookup
from vlm_probe.probes.models.device import parameter_count, parameter_size, quantisation
from vlm_probe.probes.models.dummy_inputs import dummy_inputs
from vlm_probe.probes.models.huggingface import end_tokens
from vlm_probe.probes.models.loading import find_weights
from vlm_probe.probes.models.model_folder import file_hashes, weights_hash
from vlm_probe.probes.models.network import load_network
from vlm_probe.probes.models.prompting import Prompter
from vlm_probe.probes.models.support import check_support
from vlm_probe.stimuli.errors import did_you_mean
from vlm_probe.stimuli.question import Question
from vlm_probe.stimuli.ranges import check_ranges, ranged

Where = Literal["language", "vision", "projector", "all", "full"]

FULL_LIMIT = 600_000_000
"""Parameters up to which all weights may be trained: of more, weights, gradients and Adam's two moments fill a GPU."""


@dataclass(frozen=True)
class Capacity:
    """How much of a model is trained, and where.

    Attributes:
        where: An adapter in the "language" model, the "vision" tower, the "projector" (what carries images into the
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
            hint = did_you_mean(self.where, get_args(Where), f"use {', '.join(get_args(Where))}", n=1, cutoff=0.6)
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
    """Prepare a model for training: with a new adapter, with one to start from, or with its own weights.

    Args:
        model: A vision-language model, in 4 bits or not.
        capacity: Place and size.
        init: Folder of an adapter to start from, whose own place and size count.

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

        # Norms and embeddings in single precision (Dettmers et al. 2023). Whether activations are kept or computed again is
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
        # Routers of experts are linear layers in some architectures, and return more than their product.
        plain = isinstance(module, torch.nn.Linear) and not type(module).__module__.startswith("transformers.models")
        if plain and module is not output:
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


UNKNOWN = "unknown"


def lineage(folder: Path) -> list[dict[str, Any]]:
    """The training runs that led to what lies in a folder, the earliest first; empty for a base model.

    Args:
        folder: Of an adapter that is gone on from, or of a model that was trained in full or merged.

    Returns:
        One entry per training: method, tasks, seed, samples, and the hash of the outcome. What nobody wrote down is
        `UNKNOWN`.

    Raises:
        ModelError: If the folder's files are damaged.
    """
    try:
        trained = read_trained(folder)
    except ModelError:
        if (folder / TRAINING).is_file():
            raise
        return []
    made = trained.training
    if trained.kind == "full" and "method" not in made:
        return []  # a base model, whatever else it says about itself
    own = {
        "method": made.get("method", UNKNOWN),
        "tasks": made.get("tasks", []),
        "seed": made.get("seed"),
        "samples": (made.get("budget") or {}).get("samples"),
        "sha256": trained.sha256 or weights_hash(folder),
    }
    return [*made.get("lineage", []), own]


log = logging.getLogger(__name__)

SPARE_TOKENS = 3
"""Tokens beyond the longest legal answer and its end: a reply that runs on is cut off, and cannot be read."""


@dataclass(frozen=True)
class Policy:
    """A model that is ready to be trained.

    Attributes:
        model: The network; a PEFT model unless all its weights are trained.
        processor: Its processor, padding on the left.
        name, revision, weights_sha256, files: Of the base model (`vlm_probe.probes.models.Identity`).
        prompter: Makes its prompts.
        generation: The generation settings that the checkpoint came with. Nothing is sampled with them.
        lineage: The training runs that this one goes on from, the earliest first.
        capacity: Where the adapter is and how large, as it really is.
    """

    model: Any
    processor: Any
    name: str
    revision: str
    weights_sha256: str
    files: dict[str, str]
    prompter: Prompter
    generation: Any
    lineage: list[dict[str, Any]]
    capacity: dict[str, Any]


def load_policy(config: TrainConfig, device: str, moment: str = "") -> Policy:
    """Load the base model of a run, and prepare what is trained of it.

    Args:
        config: The run's settings.
        device: Where it is trained.
        moment: Date and time that prompts state, of a run that is resumed; empty for those of now.

    Raises:
        ModelError: If it cannot be loaded, or has no part that could be trained so.
        TrainingError: If it has no chat template.
    """
    entry = lookup(config.model)
    if entry.kind not in ("embedded", "local", "hub"):
        raise ModelError(f"{config.model} has no weights here that could be trained: use a local folder or a hub id")
    folder, init = find_weights(config.model), Path(config.init).expanduser() if config.init else None
    if check_support(folder, config.model) == "text":
        raise TrainingError(f"{config.model} is a language model, which takes no images: train a vision-language model")
    files = file_hashes(folder)
    weights = weights_hash(folder, files)
    if init is not None:
        check_base(init, weights, config.model)
    ancestors = lineage(folder) + (lineage(init) if init is not None else [])
    # Weights that are trained themselves are kept in single precision; what is computed with them may have half.
    dtype = "float32" if config.where == "full" and config.dtype != "float16" else config.dtype
    network, processor, _ = load_network(
        folder, config.model, dtype=dtype, device=device, load_in_4bit=config.load_in_4bit
    )
    ends = end_tokens(network, processor.tokenizer, config.model)
    prompter = Prompter(processor, ends, config.model, config.thoughts)
    if prompter.template is None:
        raise TrainingError(
            f"{config.model} has no chat template, which training needs: use an instruction-tuned variant"
        )
    prompter.check_images(config.images)
    prompter.set_moment(moment)
    # What a checkpoint's own settings do to sampling (penalties, beams, ...) is in the replies, but not in their likelihood.
    generation, network.generation_config = network.generation_config, prompter.sampling()
    inputs = prompter.inputs([[dummy_inputs()]]).to(network.device, network.dtype)
    with torch.no_grad():
        if not torch.isfinite(network(**inputs).logits[:, -1]).any():
            raise ModelError(
                f"{config.model} gives no logits that are finite: use --dtype float32, or weights that are sound"
            )
    capacity = Capacity(config.where, config.rank, config.alpha, config.dropout)
    model = make_trainable(network, capacity, init=init)
    counted = trained(model)
    log.info("%s", counted)
    adapter = getattr(model, "peft_config", {}).get("default")
    size = (
        {"rank": adapter.r, "alpha": adapter.lora_alpha, "dropout": adapter.lora_dropout} if adapter is not None else {}
    )
    revision = folder.name if entry.kind == "hub" else ""
    return Policy(
        model,
        processor,
        config.model,
        revision,
        weights,
        files,
        prompter,
        generation,
        ancestors,
        size | asdict(counted),
    )


def reply_tokens(processor: Any, questions: Iterable[Question], config: TrainConfig) -> int:
    """Tokens that a reply may have: the longest legal answer, its end, and a few more; much more for reasoning.

    Args:
        processor: The model's, whose tokens are counted.
        questions: Those that are trained on.
        config: The run's settings; its own limit, if it has one, counts.
    """
    if config.max_new_tokens:
        return config.max_new_tokens
    if config.style == "think":
        return THINKING_TOKENS
    grammars = {question.grammar: question for question in questions}
    replies = [q.reply(value) for q in grammars.values() for _, value in q.grammar.candidates()]
    tokens = processor.tokenizer(replies, add_special_tokens=False)["input_ids"]
    return max(len(ids) for ids in tokens) + 1 + SPARE_TOKENS


def silent_tokens(model: Any, processor: Any) -> list[int]:
    """Tokens that must never be sampled: place-holders of images and the like, which a model cannot read back as text."""
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    marks = ("image", "video", "vision", "boi", "eoi", "audio")
    named = {
        value
        for name, value in settings.items()
        if isinstance(value, int) and name.endswith(("token_id", "token_index", "patch_id")) and name.startswith(marks)
    }
    special = zip(processor.tokenizer.all_special_tokens, processor.tokenizer.all_special_ids, strict=True)
    named |= {token for token in getattr(processor, "image_token_ids", None) or () if isinstance(token, int)}
    named |= {index for text, index in special if any(mark in text.lower() for mark in marks)}
    return sorted(named)
