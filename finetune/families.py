"""What differs between families of models where TRL scores their replies."""

from __future__ import annotations

from typing import Any

from vlm_probe.finetune.config import TrainingError

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
