"""The entropy bonus of RLOO, which TRL has for GRPO alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl import RLOOTrainer

from vlm_probe.finetune.grpo import LeaveOneOutTrainer


@pytest.mark.parametrize("bonus", [0.0, 0.1])
def test_the_bonus_is_the_mean_entropy_of_the_tokens_that_were_chosen_as_far_as_it_is_not_enough(
    bonus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    entropies = torch.tensor([[0.1, 0.6], [5.0, 100.0]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0]])

    def ask(self: Any, *_: Any, **__: Any) -> Any:
        return torch.zeros(2, 2), entropies, None

    def loss(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        logps, kept, _ = self._get_per_token_logps_and_entropies(model, mask, mask, 2, compute_entropy=True)
        return 2.0 + 0 * (logps + kept).sum()

    monkeypatch.setattr(RLOOTrainer, "_get_per_token_logps_and_entropies", ask)
    monkeypatch.setattr(RLOOTrainer, "_compute_loss", loss)
    trainer: Any = LeaveOneOutTrainer.__new__(LeaveOneOutTrainer)
    trainer.entropy_bonus = bonus
    found = trainer._compute_loss(None, {"completion_mask": mask})
    assert float(found.detach()) == pytest.approx(2 - bonus * (0.1 + 0.6 + 1.0) / 3)
    found.backward()
    assert entropies.grad is not None
    torch.testing.assert_close(entropies.grad, -bonus * torch.tensor([[1.0, 1.0], [0.0, 0.0]]) / 3)
