"""The critic: one number per token from the policy's last hidden state, kept beside the adapter and never in it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

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
