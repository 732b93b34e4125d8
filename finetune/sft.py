"""Supervised fine-tuning on an expert's demonstrations: learning by watching."""

from __future__ import annotations

from typing import Any

from trl import SFTConfig, SFTTrainer

from finetune.config import TrainingError
from finetune.monitor import Counting


class DemonstrationTrainer(Counting, SFTTrainer):
    """TRL's SFT trainer, which counts its tokens."""


def make_sft(model: Any, processor: Any, dataset: Any, settings: dict[str, Any], callbacks: list[Any]) -> SFTTrainer:
    """The trainer of demonstrations in the form of prompt and completion, where the completion alone is learned.

    Args:
        model, processor: As `finetune.policy` gives them.
        dataset: Rows in the order in which they are to be seen.
        settings: Settings that all methods share, by TRL's names.
        callbacks: The monitor, and others.

    Raises:
        TrainingError: If a row has no label to learn.
    """
    # No limit of length: a row that is cut would lose its answer, and be learned from with a loss of exactly 0.
    arguments = SFTConfig(
        **settings, max_length=None, completion_only_loss=True, packing=False, train_sampling_strategy="sequential"
    )
    columns = [name for name in ("prompt", "completion", "images") if name in dataset.column_names]
    trainer = DemonstrationTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset.select_columns(columns),
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.data_collator = _Labelled(trainer.data_collator)
    return trainer


class _Labelled:
    """A collator that makes sure that every row has something to learn.

    Args:
        collate: TRL's collator.
    """

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch. Raises TrainingError if a row has no label."""
        batch: dict[str, Any] = self._collate(rows)
        labelled = (batch["labels"] != -100).any(dim=1)
        if not bool(labelled.all()):
            raise TrainingError(
                f"{int((~labelled).sum())} of {len(rows)} demonstrations have no label: the model's chat template writes"
                " the answer where the prompt ends otherwise; use another model, or mend its template"
            )
        return batch
