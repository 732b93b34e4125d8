"""Gymnasium spaces of questions: the answers that a grammar allows as actions, and prompts and replies as texts."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils.shared_memory import read_from_shared_memory

from vlm_probe.stimuli.question import PARAPHRASES, Answer, IntegerFormat, Variant
from vlm_probe.stimuli.tasks import SamplingFailed, get_task

PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " \n"
MAX_REPLY = 4096
"""Characters of a reply that the space of replies holds; `PhysicsEnv.step` takes longer ones as well."""
PROBED_CONDITIONS = 32
"""Conditions whose prompts are looked at to find how long prompts get."""


def answer_space(grammar: IntegerFormat) -> spaces.Discrete[Any] | spaces.MultiDiscrete:
    """The legal answers as actions from 0: Discrete for one whole number, MultiDiscrete for two."""
    sizes = [high - low + 1 for low, high in grammar.ranges]
    return spaces.Discrete(sizes[0]) if len(sizes) == 1 else spaces.MultiDiscrete(sizes)


def to_answer(grammar: IntegerFormat, action: Any) -> Answer:
    """The answer that an action of `answer_space` stands for.

    Args:
        grammar: The legal answers.
        action: A whole number, or an array of two.

    Raises:
        ValueError: If it is not in that space.
    """
    numbers = np.atleast_1d(np.asarray(action))
    sizes = [high - low + 1 for low, high in grammar.ranges]
    whole = np.issubdtype(numbers.dtype, np.integer)
    if numbers.shape != (len(sizes),) or not whole or (numbers < 0).any() or (numbers >= sizes).any():
        raise ValueError(f"{action!r} is not an action here: whole numbers from 0 to below {sizes}")
    values = tuple(int(n) + low for n, (low, _) in zip(numbers, grammar.ranges, strict=True))
    return values[0] if len(values) == 1 else (values[0], values[1])


def to_action(grammar: IntegerFormat, answer: Answer) -> Any:
    """The action that stands for an answer.

    Args:
        grammar: The legal answers.
        answer: One of them.

    Raises:
        ValueError: If it is none of them.
    """
    grammar.text(answer)
    numbers = (answer,) if isinstance(answer, int) else answer
    assert not isinstance(numbers, str)
    shifted = [value - low for value, (low, _) in zip(numbers, grammar.ranges, strict=True)]
    return np.int64(shifted[0]) if len(shifted) == 1 else np.array(shifted, dtype=np.int64)


@lru_cache(maxsize=64)
def prompt_limits(task: str) -> tuple[str, int]:
    """The characters of a task's prompts, and twice their greatest length, found by asking in every condition and wording."""
    the_task, rng = get_task(task), np.random.default_rng(0)
    conditions = the_task.conditions()
    found, longest = set(PRINTABLE), 0
    for condition in conditions[:: -(-len(conditions) // PROBED_CONDITIONS)]:
        try:
            scene = the_task.sample(rng, condition)
        except SamplingFailed:
            continue
        for paraphrase in range(PARAPHRASES):
            prompt = the_task.question(scene, Variant(paraphrase, style="think")).prompt
            found |= set(prompt)
            longest = max(longest, len(prompt))
    return "".join(sorted(found)), 2 * longest


class PromptSpace(spaces.Text):
    """Texts that `AsyncVectorEnv` shows as they are now.

    Gymnasium reads texts from the memory that its processes share once only, when it starts and nothing is written
    there yet. Arrays do not suffer, because they are views of that memory; `_Prompts` is one, too.
    """


class _Prompts(Sequence[str]):
    """The prompts of all environments, read when they are asked for or copied."""

    def __init__(self, space: PromptSpace, memory: Any, n: int) -> None:
        self._space, self._memory, self._n = space, memory, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        return _READ_TEXTS(self._space, self._memory, self._n)[index]

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)


_READ_TEXTS = read_from_shared_memory.dispatch(spaces.Text)


@read_from_shared_memory.register(PromptSpace)
def _read_prompts(space: PromptSpace, shared_memory: Any, n: int = 1) -> Any:
    return _Prompts(space, shared_memory, n)


def prompt_space(task: str) -> PromptSpace:
    """Texts that hold every prompt of the task.

    Raises:
        UnknownTask: If there is no such task.
    """
    characters, length = prompt_limits(task)
    return PromptSpace(length, charset=characters)


def reply_space(task: str) -> spaces.Text:
    """Texts as replies; `PhysicsEnv.step` takes any other text, too.

    Raises:
        UnknownTask: If there is no such task.
    """
    return spaces.Text(MAX_REPLY, min_length=0, charset=prompt_limits(task)[0])
