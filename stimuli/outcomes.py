"""What answers to scenes were worth: a bounded memory for whoever asks the same thing often, as reinforcement learning does."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.plain_json import dumps
from vlm_probe.stimuli.question import Answer, Question
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import Outcome, Simulator, get_simulator
from vlm_probe.stimuli.tasks import Score, Task

DEFAULT_SIZE = 4096
"""Scores kept by default: about 2 kB each."""


@dataclass(frozen=True)
class CacheStatistics:
    """How often a score was known already (`hits`), had to be found (`misses`), and how many are kept of how many."""

    hits: int
    misses: int
    kept: int
    size: int


class OutcomeCache:
    """Scores by task, engine, scene, question and answer; the one that was asked for longest ago is forgotten first.

    May be used from several threads, as far as the engine may.

    Args:
        size: Scores kept at most; 0 keeps none.

    Raises:
        ValueError: If the size is negative.
    """

    def __init__(self, size: int = DEFAULT_SIZE) -> None:
        if size < 0:
            raise InvalidInput(f"the size of an outcome cache cannot be negative, got {size}")
        self.size = size
        self._scores: OrderedDict[tuple[object, ...], Score] = OrderedDict()
        self._hits = self._misses = 0
        self._lock = threading.Lock()

    def score(
        self,
        task: Task,
        scene: Scene,
        question: Question,
        answer: Answer,
        simulator: Simulator | None = None,
        *,
        scene_hash: str | None = None,
    ) -> Score:
        """What `Task.score` gives, simulated only if it is not known yet.

        Args:
            task, scene, question, answer, simulator: As for `Task.score`.
            scene_hash: The scene's content hash, where the caller knows it: forming it takes a quarter of a millisecond.

        Returns:
            The score; its outcome, where there is one, has the first and the last frame only.
        """
        engine = simulator if simulator is not None else get_simulator()
        key = (
            task.name,
            task.version,
            engine.version(),
            scene_hash or scene.content_hash,
            question.prompt,
            dumps(question.about, sort_keys=True, ascii_only=True),
            answer,
        )
        with self._lock:
            known = self._scores.get(key)
            if known is not None:
                self._hits += 1
                self._scores.move_to_end(key)
                return known
            self._misses += 1
        score = task.score(scene, question, answer, engine)
        if score.outcome is not None:
            score = replace(score, outcome=_ends(score.outcome))
        if self.size:
            with self._lock:
                self._scores[key] = score
                while len(self._scores) > self.size:
                    self._scores.popitem(last=False)
        return score

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        # A copy, or what another process gets, is as large and empty: scores can be found again, and a lock cannot be copied.
        return (shared_cache if shared_cache(self.size) is self else type(self)), (self.size,)

    @property
    def statistics(self) -> CacheStatistics:
        """Hits, misses and fill so far."""
        with self._lock:
            return CacheStatistics(self._hits, self._misses, len(self._scores), self.size)

    def clear(self) -> None:
        """Forget everything, statistics included."""
        with self._lock:
            self._scores.clear()
            self._hits = self._misses = 0


@lru_cache(maxsize=8)
def shared_cache(size: int = DEFAULT_SIZE) -> OutcomeCache:
    """The cache of that size which everything in this process shares."""
    return OutcomeCache(size)


def _ends(outcome: Outcome) -> Outcome:
    """An outcome without the path between its first and last frame, which would be most of its memory."""
    ends = [0, -1]
    return replace(
        outcome,
        times=outcome.times[ends],
        positions=outcome.positions[ends],
        orientations=outcome.orientations[ends],
    )
