"""Supervised fine-tuning on an expert's demonstrations: learning by watching."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import SFTConfig, SFTTrainer

from vlm_probe.finetune.auxiliary import WithAuxiliary
from vlm_probe.finetune.config import TrainingError, on_one_gpu
from vlm_probe.finetune.monitor import Counting, by_task
from vlm_probe.finetune.sampling import Results
from vlm_probe.finetune.trl_adapter import Restoring


class DemonstrationTrainer(WithAuxiliary, Counting, Restoring, SFTTrainer):
    """TRL's SFT trainer, which counts its tokens, takes an auxiliary objective, and knows which demonstrations it would have given.

    That is its success: every token of the reply and its end is the likeliest one, so that it is what greedy decoding says.
    Where several answers work, one that works and was not demonstrated does not count.
    """

    results: Results | None = None
    tasks: Sequence[str] = ()
    """The task of each item, where there are several."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The loss is the mean over the tokens of a batch. Models of Qwen, Gemma and others are said not to take their number, and
        # would get the mean of the means of micro-batches; but it is TRL that divides by it, and not the model.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss as TRL computes it."""
        rest = {name: value for name, value in inputs.items() if name != "place"}
        # Seen in passing: TRL would compute outputs that are asked for a second time.
        kept: list[Any] = []
        handle = model.register_forward_hook(lambda module, given, output: kept.append(output))
        try:
            found = super().compute_loss(model, rest, return_outputs, num_items_in_batch)
        finally:
            handle.remove()
        if self.model.training:
            self._note(inputs, (kept[0].is_top1.bool() | ~kept[0].label_mask.bool()).all(dim=1).tolist())
        return found

    def _note(self, inputs: dict[str, Any], right: Sequence[bool]) -> None:
        log = self._metrics["train"]
        tasks = [self.tasks[item] if self.tasks else "" for item in inputs["index"].tolist()]
        pairs = gather_object(list(zip(tasks, map(float, right), strict=True)))  # of all processes
        everywhere, successes = zip(*pairs, strict=True)
        log["success"].append(sum(successes) / len(successes))
        for name, value in by_task(everywhere, successes).items():
            log[name].append(value)
        if self.results is not None:
            self.results.note(inputs["place"].tolist(), right)


def make_sft(
    model: Any,
    processor: Any,
    dataset: Any,
    settings: dict[str, Any],
    callbacks: list[Any],
    shown: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> SFTTrainer:
    """The trainer of demonstrations in the form of prompt and completion, where the completion alone is learned.

    Args:
        model, processor: As `vlm_probe.finetune.policy` gives them.
        dataset: Rows in the order in which they are to be seen.
        settings: Settings that all methods share, by TRL's names.
        callbacks: The monitor, and others.
        shown: What becomes of a row when it is shown; with several attempts, earlier ones come into its prompt.

    Raises:
        TrainingError: If a row has no label to learn.
    """
    # No limit of length: a row that is cut would lose its answer, and be learned from with a loss of exactly 0.
    arguments = SFTConfig(
        **settings, max_length=None, completion_only_loss=True, packing=False, train_sampling_strategy="sequential"
    )
    trainer = DemonstrationTrainer(
        model=model,
        args=on_one_gpu(arguments),
        train_dataset=dataset,
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.data_collator = _Labelled(trainer.data_collator, shown)
    return trainer


class _Labelled:
    """A collator that makes sure that every row has something to learn, and says which item each shows, and at which place.

    Args:
        collate: TRL's collator.
        shown: What becomes of a row beforehand.
    """

    def __init__(self, collate: Any, shown: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self._collate, self._shown = collate, shown

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch. Raises TrainingError if a row has no label."""
        batch: dict[str, Any] = self._collate([self._shown(row) for row in rows])
        labelled = (batch["labels"] != -100).any(dim=1)
        if not bool(labelled.all()):
            raise TrainingError(
                f"{int((~labelled).sum())} of {len(rows)} demonstrations have no label: the model's chat template writes"
                " the answer where the prompt ends otherwise; use another model, or mend its template"
            )
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in ("index", "place")}
