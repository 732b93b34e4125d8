"""Supervised fine-tuning on an expert's demonstrations: learning by watching."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import SFTConfig, SFTTrainer

from vlm_probe.finetune.auxiliary import AuxiliaryMixin
from vlm_probe.finetune.config import on_one_gpu
from vlm_probe.finetune.monitor import CountingMixin, by_task
from vlm_probe.finetune.sampling import Results
from vlm_probe.finetune.trl_adapter import RestoringMixin
from vlm_probe.probes.models.prompting import Prompter, turns_of, with_tokens


class DemonstrationTrainer(AuxiliaryMixin, CountingMixin, RestoringMixin, SFTTrainer):
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
    prompter: Prompter,
    shown: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> SFTTrainer:
    """The trainer of demonstrations in the form of prompt and completion, where the completion alone is learned.

    Args:
        model, processor: As `vlm_probe.finetune.policy` gives them.
        dataset: Rows in the order in which they are to be seen.
        settings: Settings that all methods share, by TRL's names.
        callbacks: The monitor, and others.
        prompter: Makes the prompts.
        shown: What becomes of a row when it is shown; with several attempts, earlier ones come into its prompt.
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
    trainer.data_collator = Labelled(prompter, shown)
    return trainer


class Labelled:
    """Makes batches of demonstrations: the prompts are those of `probe run`, the labels the answer and the token that ends it.

    Args:
        prompter: Makes the prompts.
        shown: What becomes of a row beforehand.
    """

    def __init__(self, prompter: Prompter, shown: Callable[[Mapping[str, Any]], dict[str, Any]] = dict) -> None:
        self._prompter, self._shown = prompter, shown

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch, which also says which item each row shows, and at which place."""
        told = [self._shown(row) for row in rows]
        conversations = [turns_of(row["prompt"], row["images"]) for row in told]
        replies = [
            self._prompter.reply_tokens(turns, (str(row["completion"][-1]["content"]),))[0]
            for turns, row in zip(conversations, told, strict=True)
        ]
        batch = with_tokens(self._prompter.inputs(conversations), replies, self._prompter.pad_token, side="right")
        labels = torch.full_like(batch["input_ids"], -100)
        for row, reply in enumerate(replies):
            end = int(batch["attention_mask"][row].sum())
            labels[row, end - len(reply) : end] = torch.tensor(reply)
        numbers = {name: torch.tensor([row[name] for row in rows]) for name in ("index", "place")}
        return {**batch, "labels": labels, **numbers}
