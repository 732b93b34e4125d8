"""Going on from a checkpoint: the adapter that is trained is the one that was saved, whatever version of transformers reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_probe.finetune.config import TrainingError
from vlm_probe.finetune.monitor import RESTART
from vlm_probe.probes.models.adapter_folder import WEIGHTS
from vlm_probe.stimuli.errors import reading


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
