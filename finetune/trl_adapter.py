"""What TRL and transformers have to be told: families of models, replies scored alone, and checkpoints that are read whole."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from transformers import BatchFeature

from vlm_probe.finetune.config import TrainingError
from vlm_probe.finetune.monitor import RESTART
from vlm_probe.probes.models.adapter_folder import WEIGHTS
from vlm_probe.probes.models.dummy_inputs import dummy_inputs
from vlm_probe.stimuli.errors import reading

ROW = "row"
"""Place in the rollout of every reply that is learned from."""
PROMPT = ("input_ids", "attention_mask")


class AnyFamilyMixin:
    """Makes a trainer of TRL score replies to whatever a family's processor gives.

    TRL carries images through a rollout in the forms that it knows. For families with another one, what carries them here is
    the place of each reply in the rollout, and the processor makes the inputs of every micro-batch again.
    """

    _remade: bool | None = None
    """Whether that is done; None until the first rollout."""
    _shown: Sequence[tuple[str, Sequence[Any]]] = ()
    """Prompts and images of the rollout."""
    _rows: Sequence[int] | None = None
    """Places of the replies that are scored now; None for all, in order."""

    def _generate_and_score_completions(self: Any, inputs: Any) -> dict[str, Any]:
        ask = super()._generate_and_score_completions  # type: ignore[misc]
        if self._remade is None:
            self._remade = self._is_unknown()
        if not self._remade:
            found: dict[str, Any] = ask(inputs)
            return found
        processor, self._rows = self.processing_class, None
        self.processing_class = _Remembering(processor, self)
        try:
            rollout: dict[str, Any] = ask(inputs)
        finally:
            self.processing_class = processor
        mask = rollout["completion_mask"]
        return rollout | {ROW: torch.arange(len(mask), device=mask.device)}

    def _generate_single_turn(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._remade:
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]
        # Some networks want more inputs in training than there are for the later tokens of a reply.
        training = self.model.training
        self.model.eval()
        try:
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.model.train(training)

    def _compute_loss(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        self._rows = inputs[ROW].tolist() if self._remade else None
        return super()._compute_loss(model, inputs)  # type: ignore[misc]

    def _get_per_token_logps_and_entropies(
        self: Any,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        ask = super()._get_per_token_logps_and_entropies  # type: ignore[misc]
        if not self._remade:
            return ask(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        known = inspect.signature(ask).parameters
        left = list(range(len(input_ids)) if self._rows is None else self._rows)

        def give(module: Any, positional: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            ids = given["input_ids"]
            rows = [left.pop(0) for _ in range(len(ids))]
            kept = {name: value for name, value in given.items() if name != "pixel_values"}
            return positional, kept | self._inputs_of(rows, ids, logits_to_keep)

        handle = model.register_forward_pre_hook(give, with_kwargs=True)
        try:
            rest = {name: value for name, value in kwargs.items() if name in known}
            return ask(model, input_ids, attention_mask, logits_to_keep, *args, **rest)
        finally:
            handle.remove()

    def _inputs_of(self: Any, rows: Sequence[int], ids: torch.Tensor, reply: int) -> dict[str, Any]:
        """What a family's network gets besides tokens, for some of the rollout: prompts padded on the left, then replies."""
        shown = [self._shown[row] for row in rows]
        given = self.processing_class
        processor = given.whole if isinstance(given, _Remembering) else given
        made = _process(processor, [text for text, _ in shown], [images for _, images in shown])
        made = made.to(ids.device, self.accelerator.unwrap_model(self.model).dtype)
        shape = made["attention_mask"].shape
        before = ids.shape[1] - reply - shape[1]
        found = {}
        for name, value in made.items():
            if isinstance(value, torch.Tensor) and value.shape[:2] == shape and not name.startswith("pixel"):
                first = value.new_zeros(shape[0], before, *value.shape[2:])
                # A token of a reply is text; what it sees of images is what the end of the prompt sees.
                after = value[:, -1:] if value.ndim > 2 else value.new_zeros(shape[0], 1)
                value = torch.cat([first, value, after.expand(-1, reply, *value.shape[2:])], dim=1)
            if name not in PROMPT:
                found[name] = value
        return found

    def _is_unknown(self: Any) -> bool:
        """Whether TRL does not know in what form the processor gives images."""
        turn, processor = dummy_inputs(), self.processing_class
        content = [{"type": "image", "image": turn.images[0]}, {"type": "text", "text": turn.text}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        made = _process(processor, [text], [turn.images])
        known = inspect.signature(super()._get_per_token_logps_and_entropies).parameters  # type: ignore[misc]
        if "pixel_values" not in made or not {*made} - {*PROMPT} <= {*known}:
            return True
        pixels = made["pixel_values"]
        if "spatial_shapes" in made or pixels.ndim != 4 or len(pixels) == 1:
            return False
        try:  # as TRL counts tiles
            tiles = processor.image_processor(images=[[turn.images[0]]], crop_to_patches=True, return_tensors="pt")
            return int(tiles["num_patches"].sum()) != len(pixels)
        except (TypeError, KeyError, ValueError, AttributeError):
            return True


class _Remembering:
    """A processor that keeps what it is given for a trainer, and gives TRL nothing of images but how many there are."""

    def __init__(self, processor: Any, trainer: Any) -> None:
        self.whole, self._trainer = processor, trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def __call__(self, *, text: Sequence[str], images: Sequence[Sequence[Any]], **_: Any) -> Any:
        self._trainer._shown = list(zip(text, images, strict=True))
        made = _process(self.whole, text, images)
        places = torch.zeros(sum(len(some) for some in images), 1)
        return BatchFeature({name: made[name] for name in PROMPT} | {"pixel_values": places})


def _process(processor: Any, text: Sequence[str], images: Sequence[Sequence[Any]]) -> Any:
    return processor(text=list(text), images=[list(some) for some in images], padding=True, return_tensors="pt")


def score_replies_only() -> None:
    """Have TRL score the labelled positions only, as it does on a GPU.

    Elsewhere it scores every position and masks the result, so that shapes stay the same for compilers; here nothing is
    compiled, and with a short reply after a long prompt that would be a fifth of the time of a step.
    """
    trl.trainer.utils._use_triton = _always


def _always(device: object) -> bool:
    return True


class RestoringMixin:
    """Makes a trainer of transformers read the adapter of a checkpoint itself.

    Where TRL keeps the policy's beginnings as a second adapter (for the KL divergence), some versions of transformers (5.17 for
    one) read that one alone, in silence: a training run that is resumed would begin again, with the optimiser of its middle.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights of a checkpoint. Raises TrainingError if they are damaged, or a tensor of its adapter finds no place."""
        with reading(f"{resume_from_checkpoint}: its weights", TrainingError, RESTART):
            self._load_weights(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As transformers does. Raises TrainingError if they are damaged."""
        with reading(f"{checkpoint}: its optimizer.pt or scheduler.pt", TrainingError, RESTART):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As transformers does. Raises TrainingError if it is damaged."""
        with reading(f"{checkpoint}: its random state", TrainingError, RESTART):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _load_weights(self, resume_from_checkpoint: str, model: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        file = Path(resume_from_checkpoint) / WEIGHTS
        if file.is_file():
            from peft import set_peft_model_state_dict
            from safetensors.torch import load_file

            policy = self.accelerator.unwrap_model(self.model if model is None else model)  # type: ignore[attr-defined]
            found = set_peft_model_state_dict(policy, load_file(file), adapter_name=policy.active_adapter)
            if found.unexpected_keys:
                raise TrainingError(
                    f"{file} does not fit this model ({found.unexpected_keys[0]}): delete the checkpoints to begin anew"
                )
