"""The model that is trained: loaded, prepared, and kept from saying what cannot be scored."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_probe.finetune.config import TrainConfig, TrainingError
from vlm_probe.finetune.lineage import lineage
from vlm_probe.finetune.lora import Capacity, make_trainable, trained
from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.adapter_folder import check_base
from vlm_probe.probes.models.catalog import lookup
from vlm_probe.probes.models.huggingface import end_tokens
from vlm_probe.probes.models.loading import find_weights
from vlm_probe.probes.models.made_up import made_up
from vlm_probe.probes.models.model_folder import file_hashes, weights_hash
from vlm_probe.probes.models.network import load_network
from vlm_probe.probes.models.prompting import Prompter
from vlm_probe.probes.models.reply_limits import THINKING_TOKENS
from vlm_probe.stimuli.question import Question

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
        lineage: The trainings that this one goes on from, the earliest first.
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
    inputs = prompter.inputs([[made_up()]]).to(network.device, network.dtype)
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
    """Tokens that must never be sampled: place-holders of pictures and the like, which a model cannot read back as text."""
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    marks = ("image", "video", "vision", "boi", "eoi", "audio")
    named = {
        value
        for name, value in settings.items()
        if isinstance(value, int) and name.endswith(("token_id", "token_index")) and name.startswith(marks)
    }
    special = zip(processor.tokenizer.all_special_tokens, processor.tokenizer.all_special_ids, strict=True)
    named |= {index for text, index in special if any(mark in text.lower() for mark in marks)}
    return sorted(named)
