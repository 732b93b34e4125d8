"""Advantages and returns of PPO: generalised advantage estimation over the tokens that the policy chose."""

from __future__ import annotations

import torch


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
