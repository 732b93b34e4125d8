"""Group-relative methods: GRPO and RLOO, in which the replies to one prompt are each other's baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from vlm_probe.finetune.auxiliary import AuxiliaryMixin
from vlm_probe.finetune.config import TrainConfig, on_one_gpu
from vlm_probe.finetune.monitor import CountingMixin
from vlm_probe.finetune.ppo import PPOConfig, PPOTrainer
from vlm_probe.finetune.reward import RewardFunction
from vlm_probe.finetune.trl_adapter import AnyFamilyMixin, RestoringMixin
from vlm_probe.probes.models.prompting import Prompter, turns_of


class GroupTrainer(AuxiliaryMixin, CountingMixin, RestoringMixin, AnyFamilyMixin, GRPOTrainer):
    """TRL's GRPO trainer, which counts its tokens, and takes an auxiliary objective."""


PRIVATE = ("_compute_loss", "_get_per_token_logps_and_entropies")
"""Names of TRL's RLOO trainer that are used here although they are private; tests/finetune/test_contract.py holds TRL to them."""


ENOUGH = 1.0
"""Nats from which on a token of RLOO is unsure enough: the bonus pushes it no farther.

Its advantages are not divided by their spread, and vanish where all replies of a group are worth the same. A bonus without a bound then
has nothing against it, and has driven a policy from .5 to 5 nats within a thousand samples.
"""


class LeaveOneOutTrainer(AuxiliaryMixin, CountingMixin, RestoringMixin, AnyFamilyMixin, RLOOTrainer):
    """TRL's RLOO trainer, which counts its tokens, takes an auxiliary objective, and an entropy bonus as TRL's GRPO has, but bounded."""

    entropy_bonus: float = 0.0
    _entropies: torch.Tensor | None = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._entropies = found[1]
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        if self.entropy_bonus:
            assert self._entropies is not None
            mask = inputs["completion_mask"]
            loss = loss - self.entropy_bonus * (self._entropies.clamp(max=ENOUGH) * mask).sum() / mask.sum().clamp(
                min=1
            )
        self._entropies = None
        return loss


def _silenced(tokens: Sequence[int], *, in_vllm: bool) -> dict[str, Any] | None:
    """Settings of generation by which some tokens are never sampled: transformers' own, or vLLM's."""
    if not tokens:
        return None
    return {"logit_bias": dict.fromkeys(tokens, -100.0)} if in_vllm else {"suppress_tokens": list(tokens)}


class AskedAlike:
    """A processor by which TRL asks a model as `probe run` does: its prompts are the prompter's, and so is what a reply says.

    Args:
        processor: The model's; what is not about prompts and replies is left to it.
        prompter: Makes the prompts.
        reply_tokens: Tokens of an answer, beyond which nothing of it is read.
        asked_to_think: Whether the questions ask for reasoning in the reply.
    """

    def __init__(self, processor: Any, prompter: Prompter, reply_tokens: int, *, asked_to_think: bool = False) -> None:
        self._processor, self._prompter = processor, prompter
        self._limit, self._asked_to_think = reply_tokens, asked_to_think

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *, text: Sequence[str], images: Sequence[Sequence[Any]], **_: Any) -> Any:
        """The model's inputs for prompts that are written out."""
        return self._prompter.process(text, [some or () for some in images])

    def apply_chat_template(self, conversation: Sequence[Any], *, tokenize: bool = True, **_: Any) -> Any:
        """The prompt of a conversation as text, or the inputs for several, their tokens as lists."""
        if not tokenize:
            return self._prompter.text(turns_of(conversation))
        inputs = self._prompter.inputs([turns_of(turns) for turns in conversation])
        seen = inputs.pop("attention_mask").bool()
        return {**inputs, "input_ids": [ids[row].tolist() for ids, row in zip(inputs["input_ids"], seen, strict=True)]}

    def batch_decode(self, replies: Sequence[Sequence[int]], **_: Any) -> list[str]:
        """What replies say after their thoughts; an open tag, which no parser reads, if a thought is not closed."""
        found = []
        for reply in replies:
            thinks = self._prompter.thinks and not (self._asked_to_think and self._prompter.tags is None)
            end = (self._prompter.thought_end(reply) if thinks else 0) or 0
            text, closed = self._prompter.said(
                reply[: end + self._limit] if end else reply, asked_to_think=self._asked_to_think
            )[1:]
            found.append(text if closed else UNFINISHED)
        return found


UNFINISHED = "<think>"
"""What stands for a reply that never left its thought."""
TRAINERS: Mapping[str, Any] = {"ppo": PPOTrainer, "grpo": GroupTrainer, "rloo": LeaveOneOutTrainer}
"""The trainer of each method that learns from rewards, with one answer per scene."""


def make_rl_trainer(
    config: TrainConfig,
    model: Any,
    processor: Any,
    dataset: Any,
    rewards: tuple[Sequence[RewardFunction], Sequence[float]],
    settings: dict[str, Any],
    callbacks: list[Any],
    *,
    prompter: Prompter,
    reply_tokens: int,
    silent: Sequence[int],
    trainers: Mapping[str, Any] = TRAINERS,
    **further: Any,
) -> Any:
    """The trainer of a method that learns from rewards.

    Args:
        config: The run's settings, with the micro-batch that a process takes.
        model, processor: As `vlm_probe.finetune.policy` gives them.
        dataset: Rows in the order in which they are to be seen.
        rewards: Reward functions and their weights.
        settings: Settings that all methods share, by TRL's names.
        callbacks: The monitor, and others.
        prompter: Makes the prompts.
        reply_tokens: Longest reply, without a thought before it.
        silent: Tokens that are never sampled.
        trainers: The trainer of each method.
        further: Handed on to the trainer (an environment, say).
    """
    functions, weights = rewards
    shared = (
        settings
        | {
            "generation_batch_size": config.rollout,
            "num_generations": config.generations,
            "num_iterations": config.epochs,
            "max_completion_length": reply_tokens + prompter.thought_tokens,
            "temperature": config.temperature,
            "beta": config.beta,
            "epsilon": config.clip,
            "reward_weights": list(weights),
            "shuffle_dataset": False,  # the rows are in their order already
            "disable_dropout": True,  # or the first ratio would not be 1
            "generation_kwargs": _silenced(silent, in_vllm=bool(config.vllm)),
        }
        | config.vllm_settings
    )
    arguments: Any
    if config.method == "ppo":
        arguments = PPOConfig(
            **shared,
            entropy_coef=config.entropy_bonus,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            value_coefficient=config.value_coefficient,
            value_clip=config.value_clip,
            value_learning_rate=config.value_learning_rate,
            target_kl=config.target_kl,
            adaptive_kl=config.adaptive_kl,
        )
    elif config.method == "grpo":
        arguments = GRPOConfig(**shared, entropy_coef=config.entropy_bonus, loss_type="bnpo", scale_rewards="group")
    else:
        arguments = RLOOConfig(**shared)
    for field in ("response_template", "response_schema"):  # by which TRL would take replies apart itself
        if getattr(processor.tokenizer, field, None) is not None:
            setattr(processor.tokenizer, field, None)
    trainer = trainers[config.method](
        model=model,
        reward_funcs=list(functions),
        args=on_one_gpu(arguments),
        train_dataset=dataset,
        processing_class=processor,
        callbacks=callbacks,
        **further,
    )
    trainer.processing_class = AskedAlike(processor, prompter, reply_tokens, asked_to_think=config.style == "think")
    if config.method == "rloo":
        trainer.entropy_bonus = config.entropy_bonus
    return trainer
