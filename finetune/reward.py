"""The reward of reinforcement learning: what the task's own scorer says about a reply, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_probe.finetune.config import TrainConfig
from vlm_probe.finetune.monitor import by_task
from vlm_probe.finetune.sampling import Results
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.outcomes import OutcomeCache
from vlm_probe.stimuli.question import Parsed
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import get_task

CACHE_SIZE = 16_384
"""Scores that are remembered: about 2 kB each."""

Rewards = list[float]
RewardFunction = Callable[..., Rewards]


@dataclass(frozen=True)
class ScoredReply:
    """What a reply is worth: how it was read, whether it is right or works, and its reward in [0, 1]."""

    parsed: Parsed
    success: bool
    reward: float


class RewardScorer:
    """Reads replies by their question's parser and scores them by `Task.score`; measures the time that takes.

    Args:
        items: The training items, by index.
        cache: Memory of scores; by default one of `CACHE_SIZE`.
    """

    def __init__(self, items: Sequence[Item], cache: OutcomeCache | None = None) -> None:
        self._items = items
        self.cache = cache if cache is not None else OutcomeCache(CACHE_SIZE)
        self.seconds = 0.0
        """CPU time spent in scoring, seconds: on a busy machine, the clock on the wall would tell of other programs."""

    def task(self, index: int) -> str:
        """The task of an item."""
        return self._items[index].task

    def can_read(self, reply: str, index: int) -> bool:
        """Whether a reply to an item states one legal answer."""
        return self._items[index].question.parse(reply).value is not None

    def judge(self, replies: Sequence[str], indices: Sequence[int]) -> list[ScoredReply]:
        """What each reply to each item is worth. A reply that cannot be read is worth nothing."""
        begun = time.thread_time()
        judged = [self._one(reply, self._items[index]) for reply, index in zip(replies, indices, strict=True)]
        self.seconds += time.thread_time() - begun
        return judged

    def _one(self, reply: str, item: Item) -> ScoredReply:
        parsed = item.question.parse(reply)
        if parsed.value is None or item.scene is None:
            return ScoredReply(parsed, False, 0.0)
        task = get_task(item.task)
        if task.kind != "action":
            # A judgement's score is whether it is the solution, which the item holds.
            right = parsed.value == item.answer
            return ScoredReply(parsed, right, float(right))
        score = self.cache.score(
            task, item.scene, item.question, parsed.value, get_simulator(), scene_hash=item.scene_sha256
        )
        return ScoredReply(parsed, score.success, score.reward)


def reward_functions(
    judge: RewardScorer, config: TrainConfig, results: Results | None = None
) -> tuple[list[RewardFunction], list[float]]:
    """The reward functions for TRL and their weights: the score, and the format term where one is asked for.

    The score lies in [0, 1] and is 1 exactly on success; the format term is 1 for a reply that can be read, else 0.

    Args:
        judge: Reads and scores the replies.
        config: The run's settings.
        results: Where successes are told, for a curriculum that follows them.
    """

    def score(
        completions: Sequence[Sequence[Mapping[str, Any]]],
        index: Sequence[int],
        log_metric: Callable[[str, float], None],
        place: Sequence[int] = (),
        **_: Any,
    ) -> Rewards:
        before = judge.seconds
        judged = judge.judge([str(turns[-1]["content"]) for turns in completions], index)
        successes = [float(j.success) for j in judged]
        log_metric("success", sum(successes) / len(judged))
        for name, value in by_task([judge.task(i) for i in index], successes).items():
            log_metric(name, value)
        if results is not None:
            results.note(place, successes)
        log_metric("parse_rate", sum(j.parsed.value is not None for j in judged) / len(judged))
        log_metric("score", sum(j.reward for j in judged) / len(judged))
        log_metric("simulator_s", judge.seconds - before)
        return [float(j.success) if config.success_reward else j.reward for j in judged]

    def readable(completions: Sequence[Sequence[Mapping[str, Any]]], index: Sequence[int], **_: Any) -> Rewards:
        replies = (str(turns[-1]["content"]) for turns in completions)
        return [float(judge.can_read(reply, i)) for reply, i in zip(replies, index, strict=True)]

    if config.format_reward:
        return [score, readable], [1.0, config.format_reward]
    return [score], [1.0]
