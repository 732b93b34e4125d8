"""From what a model gave to its score: replies and log-probabilities become the scored columns of a trial."""

from __future__ import annotations

import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.conditions import Presenter, PromptCondition
from vlm_probe.probes.models import Ended
from vlm_probe.probes.trials import RunError, read_run, rewrite_trials
from vlm_probe.stimuli import replies
from vlm_probe.stimuli.attempts import Attempt, carry_out
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.outcomes import OutcomeCache
from vlm_probe.stimuli.output import OutputFolder
from vlm_probe.stimuli.picture import painter
from vlm_probe.stimuli.question import Answer, ChoiceFormat, IntegerFormat, Parsed
from vlm_probe.stimuli.tasks import Score, get_task

Columns = dict[str, Any]


class Scorer:
    """Scores answers with the task's own scorer, and remembers what an answer to an item was worth.

    Args:
        renderer: What draws the images of attempts: as the set's own were drawn.
    """

    def __init__(self, renderer: str = "") -> None:
        self._known, self._renderer = OutcomeCache(), renderer

    def score(self, item: Item, answer: Answer) -> Score:
        """What an answer to an item is worth.

        It is `Task.score`, which simulates, except for two cases that cannot come out otherwise: an item without a scene
        (imported) has nothing but the answers that its table calls right; and the stored answer of a judgement item *is* the simulated
        outcome, with which its task would compare the answer, as long as the task's version is the one that made the
        item.

        Args:
            item: What was asked.
            answer: A legal answer.
        """
        task = get_task(item.task) if item.scene is not None else None
        if task is None or (task.kind == "judgement" and task.version == item.task_version):
            right = answer in (item.working or [item.answer])
            return Score(right, float(right), {"truth": item.answer})
        assert item.scene is not None
        return self._known.score(task, item.scene, item.question, answer, scene_hash=item.scene_sha256)

    def row(self, item: Item, raw: str | None, logprobs: list[float] | None, ended: Ended = "") -> Columns:
        """All columns that follow from an item and what was given to it: a reply, else log-probabilities.

        Args:
            item: What was asked.
            raw: The reply; None where log-probabilities were read.
            logprobs: Of every legal answer, nats; None where a reply was read.
            ended: How the reply ended, if not by itself.

        Raises:
            ValueError: If there is not one finite log-probability per legal answer.
        """
        return self.describe(item) | self.scored(item, raw, logprobs, ended)

    def scored(self, item: Item, raw: str | None, logprobs: list[float] | None, ended: Ended = "") -> Columns:
        """The columns that follow from what was given to an item: a reply, else log-probabilities.

        Args:
            item: What was asked.
            raw: The reply; None where log-probabilities were read.
            logprobs: Of every legal answer, nats; None where a reply was read.
            ended: How the reply ended, if not by itself.

        Raises:
            ValueError: If there is not one finite log-probability per legal answer.
        """
        if raw is not None:
            return self.reply(item, raw, ended)
        if logprobs is None and ended:  # a thought that was cut off, so that no answer was scored
            return UNANSWERED | {"status": ended}
        return self.options(item, np.array(logprobs, dtype=float))

    def reply(self, item: Item, raw: str, ended: Ended = "") -> Columns:
        """The columns that follow from a reply.

        Args:
            item: What was asked.
            raw: The reply.
            ended: How it ended, if not by itself: what was withheld is not read, what was cut off may hold the answer.
        """
        parsed = item.question.parse(raw)
        if parsed.value is None or ended == "filtered":
            return UNANSWERED | {"raw": raw, "status": ended or parsed.status}
        return self._answered(item, parsed.value) | {"raw": raw}

    def options(self, item: Item, logprobs: npt.NDArray[np.float64]) -> Columns:
        """The columns that follow from the log-probabilities of all legal answers: the likeliest one is the answer.

        A tie is broken by the item's id, so that a model without a preference is not credited with a constant answer.

        Args:
            item: What was asked.
            logprobs: (candidates,) nats, in the order of the grammar's candidates.

        Raises:
            ValueError: If there is not one finite log-probability per legal answer.
        """
        candidates = item.question.grammar.candidates()
        logprobs = np.round(logprobs, 6)  # as logged, so that scoring the log again gives the same
        if logprobs.shape != (len(candidates),) or not np.isfinite(logprobs).all():
            raise ValueError(f"expected {len(candidates)} finite log-probabilities, got {logprobs.tolist()[:8]}")
        relative = np.exp(logprobs - logprobs.max())
        right = self.right_answers(item)
        p_correct = None
        if right is not None:
            is_right = np.array([value in right for _, value in candidates])
            p_correct = float(relative[is_right].sum() / relative.sum())
        likeliest = np.flatnonzero(logprobs == logprobs.max())
        chosen = likeliest[zlib.crc32(item.item_id.encode()) % len(likeliest)]
        answered = self._answered(item, candidates[chosen][1])
        return answered | {"logprobs": logprobs.tolist(), "p_correct": p_correct}

    def attempt(self, item: Item, row: Columns, size: int) -> Attempt:
        """What became of the answer in a scored row, with an image.

        Args:
            item: Of an action task, with a scene.
            row: Its row in the log.
            size: Edge of the image, pixels.
        """
        assert item.scene is not None  # actions without a scene are refused before the run
        reply = reply_of(item, row)
        # What was withheld may hold a number all the same, which nobody has answered.
        unread = Parsed(reply, None, row["status"]) if row["answer"] is None else None
        parsed = unread or item.question.parse(reply)
        return carry_out(
            get_task(item.task),
            item.scene,
            item.question,
            parsed,
            size=size,
            simulator=painter(self._renderer),
            cache=self._known,
            scene_hash=item.scene_sha256,
        )

    def right_answers(self, item: Item) -> set[Answer] | None:
        """All answers that succeed, where they are known without trying: certified, stored, or read from the scene."""
        if item.scene is None:
            return set(item.working) or {item.answer}
        kind = get_task(item.task).kind
        if kind == "action":
            return set(item.working) or None
        if kind == "grounding" and isinstance(item.question.grammar, IntegerFormat):
            return {value for _, value in item.question.grammar.candidates() if self.score(item, value).success}
        return {item.answer}

    def describe(self, item: Item) -> Columns:
        """The columns that follow from the item alone."""
        grammar = item.question.grammar
        candidates = grammar.candidates()
        right = self.right_answers(item)
        return {
            "item_id": item.item_id,
            "task": item.task,
            "task_version": item.task_version,
            "prompt": item.question.prompt,
            "options": [value for _, value in candidates] if isinstance(grammar, ChoiceFormat) else None,
            "truth": _plain(item.answer),
            "n_candidates": len(candidates),
            "chance": None if right is None else len(right) / len(candidates),
            "margin": item.margin,
            "condition": item.condition.to_dict(),
            "variant": asdict(item.variant),
            "pair_id": item.pair_id,
            "group_id": item.group_id,
            "role": item.role,
            "image_sha256": item.image_sha256,
            "scene_sha256": item.scene_sha256,
        }

    def _answered(self, item: Item, answer: Answer) -> Columns:
        score = self.score(item, answer)
        return UNANSWERED | {
            "answer": _plain(answer),
            "answer_text": item.question.grammar.text(answer),
            "status": "ok",
            "correct": score.success,
            "success": score.success,
            "reward": score.reward,
            "detail": {name: _plain(value) for name, value in score.detail.items()},
        }


def reply_of(item: Item, row: Columns) -> str:
    """What the model said in a scored row; where log-probabilities were read, the likeliest reply.

    Args:
        item: What was asked.
        row: Its row in the log.
    """
    if row["raw"] is not None:
        return str(row["raw"])
    answer = row["answer"]
    return item.question.reply(tuple(answer) if isinstance(answer, list) else answer)


UNANSWERED: Columns = {
    "raw": None,
    "answer": None,
    "answer_text": None,
    "status": "error",
    "logprobs": None,
    "p_correct": None,
    "correct": False,
    "success": False,
    "reward": 0.0,
    "detail": {},
}
"""The scored columns of a trial without an answer."""


class Rescored(NamedTuple):
    """Number of rows of a run; of those that came out differently; and of those whose reply was read differently."""

    n: int
    changed: int
    readings: int


def rescore(run: Path | OutputFolder, stimuli: StimulusSet) -> Rescored:
    """Read and score the replies of a run again, with the current parser and without a model, in place of the old rows.

    Args:
        run: Its folder, or that which is claimed already.
        stimuli: The set that it was made with.

    Raises:
        OutputError: If another process is writing to the run, or the rows cannot be written.
        RunError: If the run is not of this set, or is damaged.
    """
    folder = run.path if isinstance(run, OutputFolder) else run
    if read_run(folder).get("stimuli", {}).get("content_sha256") != stimuli.content_sha256:
        raise RunError(f"{folder} was made with another stimulus set than {stimuli.path}; give that one with --stimuli")
    scorer, items, presenter = Scorer(), {item.item_id: item for item in stimuli.items}, Presenter(stimuli)
    readings = 0

    def again(row: Columns) -> Columns:
        nonlocal readings
        if row["error"]:
            return row
        if row["item_id"] not in items:
            raise RunError(f"{folder} has a trial of {row['item_id']!r}, which its set does not have: restore its log")
        try:
            item = presenter.asked(items[row["item_id"]], PromptCondition.from_dict(row.get("manner")))
            # How a reply ended is known from its server alone, and stays.
            ended: Ended = next((name for name in get_args(Ended) if name == row["status"]), "")
            new = row | scorer.row(item, row["raw"], row["logprobs"], ended)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RunError(
                f"{folder}: the trial of {row['item_id']} is none that can be scored ({type(error).__name__}: {error});"
                " restore its log"
            ) from error
        readings += (row["answer"], row["status"]) != (new["answer"], new["status"])
        return new

    n, changed = rewrite_trials(run, again, str(replies.VERSION))
    return Rescored(n, changed, readings)


def _plain(value: Any) -> Any:
    """A value as JSON would give it back."""
    return list(value) if isinstance(value, tuple) else value
