"""What TRL and transformers have to be told: families of models, replies scored alone, and checkpoints that are read whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trl.trainer.utils

from vlm_probe.finetune.config import TrainingError
from vlm_probe.finetune.monitor import RESTART
from vlm_probe.probes.models.adapter_folder import WEIGHTS
from vlm_probe.stimuli.errors import reading

COUNTS = "batch_num_images"
"""Pictures of every prompt, as LLaVA-OneVision's processor gives them beside the pixels; TRL does not know of it."""


class AnyFamily:
    """Makes a trainer of TRL score replies to whatever a family's processor gives."""

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        # Without it the model takes every picture for one that stands alone in its prompt, and so it is: see below.
        kwargs.pop(COUNTS, None)
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]


def check_several_pictures(processor: Any, name: str) -> None:
    """Refuse a model whose replies cannot be scored after more than one picture: LLaVA-OneVision cuts only single ones into tiles.

    Args:
        processor: Of the model.
        name: Of the model, for the message.

    Raises:
        TrainingError: If it is one.
    """
    if COUNTS in getattr(processor.image_processor, "model_input_names", ()):
        raise TrainingError(
            f"{name} cannot learn from rewards with earlier attempts in its prompts, because TRL does not tell it how many"
            " pictures they have: use --memory none, or another model"
        )


def score_replies_only() -> None:
    """Have TRL score the labelled positions only, as it does on a GPU.

    Elsewhere it scores every position and masks the result, so that shapes stay the same for compilers; here nothing is
    compiled, and with a short reply after a long prompt that would be a fifth of the time of a step.
    """
    trl.trainer.utils._use_triton = _always


def _always(device: object) -> bool:
    return True


class Restoring:
    """Makes a trainer of transformers read the adapter of a checkpoint itself.

    Where TRL keeps the policy's beginnings as a second adapter (for the KL divergence), some versions of transformers (5.17 for
    one) read that one alone, in silence: a training that is gone on with would begin anew, with the optimiser of its middle.
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
