"""Proximal policy optimisation for vision-language models with a reward that is any Python function.

`PPOTrainer` is TRL's GRPO trainer with a critic in the place of the group: images, prompts, generation, reward functions
and the reference come from TRL; from here come the value head, the reward of every token (KL penalty, and the score on the
last one), generalised advantages, the clipped value loss, and what of it is saved. (Schulman et al. 2017; Ziegler et al.
2019 for the penalty per token and its adaptation.)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from trl import GRPOConfig, GRPOTrainer

from vlm_probe.finetune.auxiliary import AuxiliaryMixin
from vlm_probe.finetune.config import TrainingError
from vlm_probe.finetune.monitor import RESTART, CountingMixin
from vlm_probe.finetune.trl_adapter import AnyFamilyMixin, RestoringMixin
from vlm_probe.stimuli.errors import InvalidInput, reading
from vlm_probe.stimuli.plain_json import dumps, parse_object


def token_rewards(score: torch.Tensor, kl: torch.Tensor | None, mask: torch.Tensor, beta: float) -> torch.Tensor:
    """The reward of every token: minus beta times its KL penalty, and the score on the last token that was chosen.

    Args:
        score: (batch,) reward of the whole reply.
        kl: (batch, tokens) log-ratio of policy to reference, nats; None without a reference.
        mask: (batch, tokens), 1 where the policy chose the token.
        beta: Weight of the penalty.

    Returns:
        (batch, tokens), 0 where the mask is 0.
    """
    rewards = torch.zeros_like(mask, dtype=score.dtype)
    if kl is not None:
        rewards = rewards - beta * kl * mask
    rows = torch.arange(len(score), device=score.device)
    last = (torch.arange(mask.size(1), device=mask.device) * mask.long()).amax(dim=1)
    rewards[rows, last] += score * mask.any(dim=1)
    return rewards


def generalised_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns (Schulman et al., 2016, equation 16), for an episode that ends with its last chosen token.

    Tokens where the mask is 0 (padding, and what an environment said) are passed over: the token before them is followed
    by the next one that was chosen.

    Args:
        rewards, values, mask: (batch, tokens).
        gamma: Discount per token.
        gae_lambda: Mixes one-step and Monte-Carlo estimates (0 and 1).

    Returns:
        Advantages and returns, (batch, tokens), both 0 where the mask is 0.
    """
    chosen = mask.to(values.dtype)
    advantages = torch.zeros_like(values)
    following = values.new_zeros(values.size(0))
    advantage = values.new_zeros(values.size(0))
    for t in range(values.size(1) - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        here = delta + gamma * gae_lambda * advantage
        advantages[:, t] = here * chosen[:, t]
        advantage = torch.where(mask[:, t] > 0, here, advantage)
        following = torch.where(mask[:, t] > 0, values[:, t], following)
    return advantages, (advantages + values) * chosen


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float
) -> torch.Tensor:
    """Per-token value loss: half the larger squared error of the value and of the value kept near the old one.

    Args:
        values, old_values, returns: (batch, tokens).
        clip: How far from the old value; 0: no limit.
    """
    error = (values - returns) ** 2
    if clip > 0:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns) ** 2)
    return 0.5 * error


VALUE_HEAD = "value_head.safetensors"


class ValueHead(nn.Module):
    """Layer norm and a linear read-out in single precision.

    The read-out starts at zero: the first values are 0, and the first advantages are the rewards themselves.

    Args:
        hidden_size: Width of the hidden states.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, dtype=torch.float32)
        self.out = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) values of (batch, tokens, width) hidden states."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: torch.Tensor = self.out(self.norm(hidden.float())).squeeze(-1)
        return values


def save_value_head(head: ValueHead, folder: Path) -> None:
    """Write the head into a folder."""
    save_file({name: t.detach().cpu().contiguous() for name, t in head.state_dict().items()}, folder / VALUE_HEAD)


def load_value_head(head: ValueHead, folder: Path) -> None:
    """Read the head from a folder, in place."""
    head.load_state_dict(load_file(folder / VALUE_HEAD))


CRITIC, STATE = "critic", "ppo.json"
"""Folder of the critic in that of an adapter or a model, and its file with the present weight of the KL penalty."""
MULTIMODAL = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
"""Entries of a rollout that TRL hands on to the model."""
PRIVATE = (
    "_get_per_token_logps_and_entropies",
    "_calculate_rewards",
    "_generate_and_score_completions",
    "_compute_loss",
    "_load_from_checkpoint",
    "_step",
    "_metrics",
)
"""Names of TRL's trainer that are used here although they are private; tests/finetune/test_contract.py holds TRL to them."""
ADAPTATION, LARGEST_ERROR = 0.1, 0.2
"""Gain of the controller of beta, and where its relative error is clipped (Ziegler et al. 2019): at most 2 % per rollout."""


@dataclass
class PPOConfig(GRPOConfig):
    """TRL's settings of GRPO, and those of PPO.

    `num_iterations` is the number of epochs per rollout, `steps_per_generation` the number of micro-batches in it, `beta`
    the weight of the KL penalty per token, `epsilon` the clip range of the policy.

    Attributes:
        gamma, gae_lambda: Of the advantages, per token.
        value_coefficient: Weight of the value loss.
        value_clip: Clip range of the values; 0: none.
        value_learning_rate: Of the value head; 0: as the policy's.
        target_kl: The rest of a rollout's steps is left out once the policy is so far (nats per token) from the one that
            generated it; 0: never.
        adaptive_kl: KL divergence from the reference, nats per reply, that beta is steered towards; 0: fixed beta.
    """

    num_generations: int | None = field(default=1)
    num_iterations: int = field(default=4)
    beta: float = field(default=0.01)
    loss_type: str = field(default="bnpo")  # a mean over tokens, as the value loss is
    disable_dropout: bool = field(default=True)  # or the first ratio would not be 1
    gamma: float = field(default=1.0)
    gae_lambda: float = field(default=0.95)
    value_coefficient: float = field(default=0.5)
    value_clip: float = field(default=0.2)
    value_learning_rate: float = field(default=0.0)
    target_kl: float = field(default=0.0)
    adaptive_kl: float = field(default=0.0)

    def __post_init__(self) -> None:
        # GRPO refuses groups of one, which it could learn nothing from; with a critic, they are the usual case.
        wanted = self.num_generations or 1
        self.num_generations = max(2, wanted)
        super().__post_init__()
        self.num_generations = wanted
        if self.loss_type not in ("bnpo", "grpo", "dr_grpo", "dapo"):
            raise ValueError(f"loss_type is {self.loss_type!r}: PPO clips ratios, so use bnpo, grpo, dr_grpo or dapo")
        if self.adaptive_kl and not self.beta:
            raise InvalidInput("adaptive_kl steers beta, which must not be 0: start with beta 0.01")


class PPOTrainer(AuxiliaryMixin, CountingMixin, RestoringMixin, AnyFamilyMixin, GRPOTrainer):
    """GRPO's rollouts with PPO's critic. Takes what `trl.GRPOTrainer` takes, and a `PPOConfig`."""

    _tag_names = ("trl", "ppo")
    _name = "PPO"
    beta: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, PPOConfig):
            raise TypeError(f"PPOTrainer needs a PPOConfig, got {type(self.args).__name__}")
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        head = ValueHead(base.config.get_text_config().hidden_size)
        # A part of the outermost model, so that data parallelism and the optimiser know it; PEFT saves adapters only, and
        # generation does not call it.
        self.model.value_head = head.to(base.get_output_embeddings().weight.device)
        if base is self.model:
            ignored = set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
            self.model._keys_to_ignore_on_save = ignored | {f"value_head.{name}" for name in head.state_dict()}
        self._takes_token_types = "token_type_ids" in inspect.signature(type(base).forward).parameters
        self._recorded: list[torch.Tensor] | None = None
        self._hidden: torch.Tensor | None = None
        self._passes: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._latest: tuple[torch.Tensor, torch.Tensor] | None = None
        self._far = False
        self._steps_kl: list[float] = []
        base.base_model.register_forward_hook(self._keep_hidden)
        self.model.register_forward_hook(self._add_values)

    @property
    def value_head(self) -> ValueHead:
        """The critic."""
        head: ValueHead = self.accelerator.unwrap_model(self.model).value_head
        return head

    # Values: the backbone's last hidden state is kept on the way, and read by the head while the outermost model runs.

    def _keep_hidden(self, module: Any, args: Any, output: Any) -> None:
        if self._recorded is not None:
            self._hidden = output.last_hidden_state

    def _add_values(self, module: Any, args: Any, output: Any) -> Any:
        if self._recorded is None or self._hidden is None:
            return None
        values = module.value_head(self._hidden)
        self._hidden = None
        self._recorded.append(values)
        # Data parallelism looks for parameters that did not contribute to the output, so the values must be part of it.
        # It makes the output again from its class, so the field must be declared; and outputs have a method `values`.
        return _with_values(output.__class__)(**output, value_estimates=values)

    @contextmanager
    def _recording(self) -> Iterator[list[torch.Tensor]]:
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = self._hidden = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not self._takes_token_types:
            kwargs.pop("token_type_ids", None)
        ask = super()._get_per_token_logps_and_entropies
        if model is self.ref_model and model is not None:
            return ask(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        with self._recording() as parts:
            found = ask(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        # The value of a state stands at the token before the one that is chosen in it.
        values = torch.cat(parts)[:, :-1][:, -logits_to_keep:]
        self._latest = (found[0], values)
        if self._passes is not None:
            self._passes.append(self._latest)
        return found

    # Rollouts

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        found: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards = found  # of all processes
        return found

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._passes = []
        try:
            rollout: dict[str, Any] = super()._generate_and_score_completions(inputs)
            passes = self._passes
        finally:
            self._passes = None
        mask = rollout["completion_mask"] * rollout.get("tool_mask", 1)
        old_logps = rollout.get("old_per_token_logps")
        values = next((v for logps, v in passes if logps is old_logps), None) if old_logps is not None else None
        if values is None:
            old_logps, values = self._pass(rollout)
        score, scored = self._scores(len(mask))
        ref_logps = rollout.get("ref_per_token_logps")
        ratio = old_logps - ref_logps if ref_logps is not None else None
        rewards = token_rewards(score.to(values.dtype), ratio, mask, self.beta)
        advantages, returns = generalised_advantages(rewards, values, mask, self.args.gamma, self.args.gae_lambda)
        learned = mask * scored.unsqueeze(1)
        advantages = self._whitened(advantages, learned)
        self._log_rollout(values, returns, ratio, mask, learned)
        if ratio is not None and self.args.adaptive_kl and self.model.training:
            self._adapt(self._mean((ratio * mask).sum(1), torch.ones_like(score)))
        # Replies that no reward function could score teach nothing: no advantage, and a value that is right already.
        rollout["returns"] = torch.where(learned > 0, returns, values)
        return rollout | {"advantages": advantages, "old_values": values, "old_per_token_logps": old_logps}

    def _pass(self, rollout: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and values of the policy that generated, where TRL has no need of them."""
        ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        size = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        pictures = {name: rollout[name] for name in MULTIMODAL if name in rollout}
        with torch.no_grad():
            self._get_per_token_logps_and_entropies(
                self.model, ids, attention, rollout["completion_ids"].size(1), batch_size=size, **pictures
            )
        assert self._latest is not None
        return self._latest

    def _scores(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted reward of each reply of this process, (n,), and whether there is one."""
        own = self._rewards[self.accelerator.process_index * n :][:n]
        score = (own * self.reward_weights.to(own.device)).nansum(dim=1)
        return score, ~torch.isnan(own).all(dim=1)

    def _adapt(self, kl: torch.Tensor) -> None:
        error = kl.item() / self.args.adaptive_kl - 1.0
        self.beta *= 1.0 + ADAPTATION * min(LARGEST_ERROR, max(-LARGEST_ERROR, error))

    def _log_rollout(
        self,
        values: torch.Tensor,
        returns: torch.Tensor,
        ratio: torch.Tensor | None,
        mask: torch.Tensor,
        learned: torch.Tensor,
    ) -> None:
        log = self._metrics["train" if self.model.training else "eval"]
        mean = self._mean(returns, learned)
        unexplained = self._mean((returns - values) ** 2, learned)
        spread = self._mean((returns - mean) ** 2, learned)
        log["explained_variance"].append((1 - unexplained / spread.clamp(min=1e-8)).item())
        log["value"].append(self._mean(values, learned).item())
        log["beta"].append(float(self.beta))
        if ratio is not None:
            log["kl"].append(self._mean(torch.exp(-ratio) + ratio - 1, mask).item())
            log["kl_reply"].append(self._mean((ratio * mask).sum(1), torch.ones_like(ratio[:, 0])).item())

    # The loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        # The KL divergence is in the rewards already, so TRL must not add it to the loss.
        beta, self.beta = self.beta, 0.0
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        assert self._latest is not None
        logps, values = self._latest
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        errors = clipped_value_loss(values, inputs["old_values"], inputs["returns"], self.args.value_clip)
        value_loss = (errors * mask).sum() / mask.sum().clamp(min=1)
        training = self.model.training
        log = self._metrics["train" if training else "eval"]
        with torch.no_grad():
            change = logps - inputs["old_per_token_logps"]
            moved = self._mean(torch.exp(change) - 1 - change, mask).item()
            log["policy_kl"].append(moved)
            log["value_loss"].append(self._mean(errors, mask).item())
        if training:
            self._watch(moved)
        return loss + self.args.value_coefficient * value_loss / (
            self.current_gradient_accumulation_steps if training else 1
        )

    def _watch(self, moved: float) -> None:
        """Note how far the policy is from the one that generated; whole steps of the optimiser count."""
        self._steps_kl.append(moved)
        if self.accelerator.sync_gradients:
            mean = sum(self._steps_kl) / len(self._steps_kl)
            self._far = bool(self.args.target_kl) and mean > self.args.target_kl
            self._steps_kl.clear()

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass, or none where the policy has moved far enough in this rollout."""
        per_rollout = self.args.steps_per_generation * self.num_iterations
        if self._step % per_rollout == 0:
            self._far = False
        if self._far:
            # Without a gradient (rather than with one of zero), Adam leaves the weights as they are.
            self._step += 1
            self._metrics["train"]["skipped"].append(1.0)
            return torch.zeros((), device=self.accelerator.device)
        if self.args.target_kl:
            self._metrics["train"]["skipped"].append(0.0)
        found: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        return found

    def _mean(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean over the unmasked entries of all processes."""
        sums = torch.stack([(x * mask).sum().float(), mask.sum().float()]).detach()
        total: torch.Tensor = self.accelerator.reduce(sums, reduction="sum")
        return total[0] / total[1].clamp(min=1)

    def _whitened(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """With mean 0 and variance 1 over the unmasked entries of all processes; 0 elsewhere."""
        mean = self._mean(x, mask)
        variance = self._mean((x - mean) ** 2, mask)
        return (x - mean) * torch.rsqrt(variance + 1e-8) * mask

    # Optimiser and files

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimiser, with a learning rate of its own for the value head where one is asked for."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and self.args.value_learning_rate:
            own = {id(p) for p in self.value_head.parameters()}
            moved = [p for group in optimizer.param_groups for p in group["params"] if id(p) in own]
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in own]
            optimizer.add_param_group({"params": moved, "lr": self.args.value_learning_rate, "weight_decay": 0.0})
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter (or the model) as TRL does, and the value head next to it."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir) / CRITIC
            folder.mkdir(exist_ok=True)
            save_value_head(self.value_head, folder)
            (folder / STATE).write_text(dumps({"beta": self.beta}) + "\n", encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint) / CRITIC
        with reading(folder, TrainingError, RESTART):
            load_value_head(self.value_head, folder)
            self.beta = float(parse_object((folder / STATE).read_bytes())["beta"])


@lru_cache(maxsize=32)
def _with_values(cls: Any) -> Any:
    """The class of an output with one more field, for the values."""
    return make_dataclass(f"{cls.__name__}WithValues", [("value_estimates", "Any", None)], bases=(cls,))
