"""Configurations as options of commands: the groups of help pages, and lists separated by commas.

A configuration is a dataclass whose fields are options of the command line, keys of TOML files and entries of what is recorded:
each stands once, with its type, default, range, group and, in the docstring of its class, its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import Group, Parameter, Token

from vlm_probe.stimuli.ranges import whole

ESSENTIALS = Group("Essentials", sort_key=1)
QUESTION = Group("Questions", sort_key=2)
REPLIES = Group("Replies", sort_key=3)
DATA = Group("Training items", sort_key=2)
OPTIMISATION = Group("Optimisation", sort_key=3)
RL = Group("Reinforcement learning", sort_key=4)
PPO = Group("PPO", sort_key=5)
LORA = Group("LoRA", sort_key=6)
PROBING = Group("Probes", sort_key=2)
LOADING = Group("Loading and devices", sort_key=8)
OUTPUT = Group("Output", sort_key=9)


def names(*spellings: str) -> Parameter:
    """An option with the spellings of other tools accepted as well, its own name first."""
    return Parameter(name=[f"--{spelling}" for spelling in spellings])


def commas(kind: Callable[[str], Any] = str) -> Parameter:
    """An option that takes several values, separated by commas.

    Args:
        kind: Makes a value from its text; raises ValueError if that cannot be.
    """

    def convert(_: Any, tokens: Sequence[Token]) -> tuple[Any, ...]:
        texts = [part.strip() for token in tokens for part in token.value.split(",") if part.strip()]
        try:
            return tuple(kind(text) for text in texts)
        except ValueError:
            raise ValueError("write numbers separated by commas, such as 0,1,3") from None

    return Parameter(n_tokens=1, converter=convert, negative=(), show_default=_with_commas)


def _with_commas(values: tuple[Any, ...]) -> str:
    return ",".join(map(str, values))


THOUGHT_TOKENS, THOUGHT_LENGTH = 4096, whole(1, 1_000_000)
"""Longest thought of a model before it answers, tokens, and what that may be set to."""
FLAG = Parameter(negative=())
"""An option that can only be switched on."""
