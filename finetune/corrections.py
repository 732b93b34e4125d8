"""Demonstrations for the closed loop: an expert answers after attempts that failed, as if they had been its own.

Every presentation of an item has up to K - 1 attempts before it, in the very conversation that would be asked at probing: the
answers, the images and words of the outcome, as far as the memory goes. The reply that is learned is the expert's.
What of an earlier attempt tells where the answer lies, and that it is not the answer that failed, can be learned from that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_probe.finetune.closed_loop import images
from vlm_probe.finetune.data import Example
from vlm_probe.probes.episodes import Memory, Past
from vlm_probe.probes.models import Trial
from vlm_probe.probes.models.prompting import message
from vlm_probe.stimuli.attempts import carry_out
from vlm_probe.stimuli.outcomes import OutcomeCache
from vlm_probe.stimuli.question import Answer
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import get_task

NEAR = 0.1
"""How far from the expert's answer those are that fail: their mean distance, as a share of the legal range, about."""
CACHE_SIZE = 16_384
"""Scores that are remembered: about 2 kB each."""


class FailedAttemptAugmentation:
    """Puts attempts that failed before a demonstration; a pure function of the training's seed and the place.

    Args:
        examples: The training items, by index.
        memory: Attempts at most, and what is remembered of them.
        seed: Of the training run.
    """

    def __init__(self, examples: Sequence[Example], memory: Memory, seed: int) -> None:
        self._examples, self._memory, self._seed = examples, memory, seed
        self._cache = OutcomeCache(CACHE_SIZE)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the training run with the earlier attempts in its prompt, which are any number from 0 to K - 1."""
        rng = np.random.default_rng([self._seed, int(row["place"])])
        trial = self.trial(int(row["index"]), int(rng.integers(self._memory.attempts)), rng)
        return {**row, "prompt": [message(turn) for turn in trial.turns], "images": images(trial)}

    def trial(self, index: int, earlier: int, rng: np.random.Generator) -> Trial:
        """An item after attempts that have failed.

        Args:
            index: Of the item.
            earlier: Attempts before this one; there are fewer if fewer answers fail.
            rng: Draws the answers that failed.
        """
        example = self._examples[index]
        item, picture = example.item, example.image
        task, simulator, known = get_task(item.task), get_simulator(), {"scene_hash": item.scene_sha256}
        assert item.scene is not None
        past: list[Past] = []
        for answer in _order(item.question.grammar.candidates(), item.answer, rng):
            if len(past) == earlier:
                break
            if self._cache.score(task, item.scene, item.question, answer, simulator, **known).success:
                continue
            reply = item.question.reply(answer)
            parsed = item.question.parse(reply)
            attempt = carry_out(
                task,
                item.scene,
                item.question,
                parsed,
                size=picture.width,
                simulator=simulator,
                cache=self._cache,
                **known,
            )
            past.append(Past.of(reply, attempt))
        return self._memory.trial(Trial(item, picture), past)


def _order(candidates: Sequence[tuple[str, Answer]], right: Answer, rng: np.random.Generator) -> list[Answer]:
    """The legal answers in the order in which they are tried: drawn one after another, those near the right one sooner."""
    answers = [value for _, value in candidates]
    distance = np.array([_distance(value, right) for value in answers], dtype=float)
    scale = NEAR * max(float(distance.max()), 1.0)
    # The largest of independent Gumbel variables: the order of drawing without replacement by these weights (Yellott 1977).
    keys = -distance / scale + rng.gumbel(size=len(answers))
    return [answers[i] for i in np.argsort(-keys)]


def _distance(one: Answer, other: Answer) -> float:
    """Between two answers: of numbers in their unit, summed over pairs; 0 or 1 of words."""
    if isinstance(one, str) or isinstance(other, str):
        return float(one != other)
    pair = (one,) if isinstance(one, int) else one, (other,) if isinstance(other, int) else other
    return float(sum(abs(a - b) for a, b in zip(*pair, strict=True)))
