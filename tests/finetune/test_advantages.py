"""The arithmetic of PPO against values worked out by hand."""

import torch

from vlm_probe.finetune.ppo import clipped_value_loss, generalised_advantages, token_rewards


def test_advantages_of_three_tokens_by_hand():
    # gamma .9, lambda .8: d2 = 1 - .3 = .7; d1 = .9 * .3 - .4 = -.13; d0 = .9 * .4 - .5 = -.14
    # A2 = .7; A1 = -.13 + .72 * .7 = .374; A0 = -.14 + .72 * .374 = .12928
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
    advantages, returns = generalised_advantages(rewards, values, torch.ones(1, 3), 0.9, 0.8)
    torch.testing.assert_close(advantages, torch.tensor([[0.12928, 0.374, 0.7]]))
    torch.testing.assert_close(returns, torch.tensor([[0.62928, 0.774, 1.0]]))


def test_padding_and_what_the_environment_said_are_passed_over():
    dense, _ = generalised_advantages(
        torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]]), torch.ones(1, 3), 0.9, 0.8
    )
    mask = torch.tensor([[1, 0, 0, 1, 1, 0]])
    values = torch.tensor([[0.5, 9.0, -7.0, 0.4, 0.3, 5.0]])
    rewards = torch.tensor([[0.0, 3.0, 3.0, 0.0, 1.0, 8.0]])
    advantages, returns = generalised_advantages(rewards, values, mask, 0.9, 0.8)
    torch.testing.assert_close(advantages[mask.bool()], dense[0])
    assert not advantages[mask == 0].any()
    assert not returns[mask == 0].any()


def test_without_discount_the_advantage_is_the_score_minus_the_value():
    rewards = torch.zeros(2, 5)
    rewards[:, 4] = 1
    values = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    advantages, returns = generalised_advantages(rewards, values, torch.ones(2, 5), 1.0, 1.0)
    torch.testing.assert_close(advantages, 1 - values)
    torch.testing.assert_close(returns, torch.ones(2, 5))


def test_the_score_stands_on_the_last_chosen_token_and_the_penalty_on_each():
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]])
    kl = torch.full((3, 3), 2.0)
    rewards = token_rewards(torch.tensor([1.0, 0.5, 1.0]), kl, mask, 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.2, 0.8, 0.0], [-0.2, 0.0, 0.3], [0.0, 0.0, 0.0]]))


def test_the_larger_of_the_two_value_errors_counts():
    value, old, target = torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([0.9])
    # The value that stays within 0.2 of the old one misses by 0.7, the value itself by 0.1.
    torch.testing.assert_close(clipped_value_loss(value, old, target, 0.2), torch.tensor([0.5 * 0.49]))
    torch.testing.assert_close(clipped_value_loss(value, old, target, 0.0), torch.tensor([0.5 * 0.01]))
