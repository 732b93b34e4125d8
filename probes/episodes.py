"""What one trial asks, and what follows it: an item in one manner, tried until it succeeds or no attempt is left.

A run without further attempts has episodes of one trial. Earlier attempts are turns of the same conversation: what was answered,
and the outcome, as an image and in words. A model that may try K times on the same scene is asked, for each attempt, in a conversation of its own:

    user       the scene, the question
    assistant  an earlier reply                                    | once for every attempt
    user       the image of what happened, what happened in      | that is remembered
               words, the question again                       |

With the memory "none" every attempt is asked like the first. What is forgotten is not in the context in any form, neither as words
nor as images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_probe.probes.conditions import PresentationError, Presenter, PromptCondition
from vlm_probe.probes.models import Generation, Identity, Model, Trial, Turn, trial_id
from vlm_probe.probes.readout import Columns, Scorer, reply_of
from vlm_probe.probes.trials import read_trials
from vlm_probe.stimuli.attempts import FAILED, IMPOSSIBLE, UNREAD, Attempt, remembered
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.picture import painter, renderer_of
from vlm_probe.stimuli.plain_json import dumps
from vlm_probe.stimuli.ranges import ATTEMPTS, check_ranges, ranged
from vlm_probe.stimuli.tasks import get_task

WORDS = (UNREAD, FAILED, IMPOSSIBLE)
"""All that may be said of an attempt after which there is another one."""


@dataclass(frozen=True)
class Past:
    """An earlier attempt.

    Attributes:
        reply: What the model said.
        words: The outcome, in words.
        picture: The outcome, as an image; None if nothing was carried out.
    """

    reply: str
    words: str
    picture: Image.Image | None

    @classmethod
    def of(cls, reply: str, attempt: Attempt) -> Past:
        """The attempt that a reply made.

        Args:
            reply: What the model said.
            attempt: The outcome.
        """
        picture = None if attempt.picture is None else Image.fromarray(attempt.picture)
        return cls(reply, attempt.words, picture)


@dataclass(frozen=True)
class Memory:
    """How often a scene may be tried, and what of that is remembered.

    Attributes:
        attempts: Attempts at most.
        kept: "none", "last-1", "last-2", ..., or "all".

    Raises:
        OutOfRange: If there cannot be so many attempts.
        ValueError: If there is no such memory.
    """

    attempts: int = ranged(1, ATTEMPTS)
    kept: str = "all"

    def __post_init__(self) -> None:
        check_ranges(self)
        remembered(self.kept, self.attempts)

    def of(self, past: Sequence[Past]) -> tuple[Past, ...]:
        """Those of the earlier attempts that stay in the context, the earliest first."""
        k = remembered(self.kept, self.attempts)
        return tuple(past[-k:]) if k else ()

    def trial(self, first: Trial, past: Sequence[Past]) -> Trial:
        """The trial of the next attempt.

        Args:
            first: The trial of the first attempt; its context, such as worked examples, stays.
            past: All earlier attempts on this scene, the earliest first.
        """
        return recall(replace(first, attempt=len(past) + 1), self.of(past))

    def longest(self, first: Trial) -> Trial:
        """The trial with the longest context that an episode can have, except for the lengths of the model's replies."""
        question = first.item.question
        reply = max((question.reply(value) for _, value in question.grammar.candidates()), key=len)
        # A trial without an image has none of what happens either; an unread reply has none, and is no longer.
        past = Past(reply, max(WORDS, key=len), first.image)
        return self.trial(first, [past] * (self.attempts - 1))


ONCE = Memory()
"""One attempt."""


def recall(first: Trial, past: Sequence[Past]) -> Trial:
    """A trial that begins with earlier attempts; with none of them, the trial itself.

    Args:
        first: The trial of the first attempt.
        past: The attempts that are remembered, the earliest first.
    """
    turns = list(first.context)
    asked = Turn("user", first.prompt, () if first.image is None else (first.image,))
    for one in past:
        turns += [asked, Turn("assistant", one.reply)]
        asked = Turn("user", told(first.item, one), () if one.picture is None else (one.picture,))
    if not past:
        return first
    last = past[-1]
    return replace(first, image=last.picture, context=tuple(turns), preamble=_before(last))


def told(item: Item, past: Past) -> str:
    """What a model is told after an attempt: what happened, and the question again.

    Args:
        item: That was tried.
        past: The attempt.
    """
    return _before(past) + item.question.prompt


def _before(past: Past) -> str:
    return past.words + " "


def trial_key(identity: Identity, item: Item, readout: str, settings: Generation, manner: Sequence[Any] = ()) -> str:
    """The hash that identifies a trial: who answered, what was shown and asked, and how the answer was read.

    Args:
        identity: Of the model that answered, down to every file that was loaded.
        item: What was shown and asked.
        readout: "generate" or "options".
        settings: Of generation; they do not matter to options.
        manner: Everything about the presentation that is not in the item; empty for the plain one.

    Returns:
        SHA-256, in hexadecimal.
    """
    question = item.question
    asked = [question.prompt, question.grammar.to_dict(), question.style]
    parts = [
        [identity.name, identity.revision, identity.weights_sha256, identity.adapter_sha256, *identity.files.items()],
        # The item's id keeps two items with the same image and prompt apart; observers look at the scene.
        [item.item_id, item.image_sha256, item.scene_sha256, _sha256(asked)],
        [readout, asdict(settings) if readout == "generate" else {}],
        *([list(manner)] if manner else []),
        *([identity.details["thinking"]] if identity.details.get("thinking") else []),
    ]
    return _sha256(parts)


def _sha256(data: list[Any]) -> str:
    return hashlib.sha256(dumps(data, ascii_only=True).encode()).hexdigest()


AT_ONCE = 256
"""Episodes that are under way at a time: their images are kept in memory, 150 kB each with 224 pixels."""


@dataclass(frozen=True)
class TrialSpec:
    """An item in one manner, after earlier attempts if there were any: what one trial asks.

    Attributes:
        presenter: Makes the trial.
        item: Of the set, as it is there.
        manner: In which it is asked.
        memory: How often the item may be tried, and what is remembered.
        past: Earlier attempts at it, the earliest first.
    """

    presenter: Presenter
    item: Item
    manner: PromptCondition
    memory: Memory = ONCE
    past: tuple[Past, ...] = ()

    @property
    def attempt(self) -> int:
        """Number of the attempt, from 1."""
        return len(self.past) + 1

    @property
    def id(self) -> tuple[str, str]:
        """What tells the trials of a run apart."""
        return trial_id(self.item.item_id, self.manner.code, self.attempt)

    @property
    def asked(self) -> Item:
        """The item as it is asked in this manner."""
        return self.presenter.asked(self.item, self.manner)

    @property
    def example_ids(self) -> list[str]:
        """Worked examples that come first."""
        return self.presenter.example_ids(self.item, self.manner)

    def trial(self, with_picture: bool) -> Trial:
        """What the model is shown.

        Raises:
            StimulusError: If an image cannot be read.
        """
        return self.memory.trial(self.presenter.trial(self.item, self.manner, with_picture), self.past)

    def key(self, model: Model, readout: str, settings: Generation) -> str:
        """The key of the trial in the log.

        Args:
            model: That is asked.
            readout: "generate" or "options".
            settings: Of generation.
        """
        manner: list[Any] = [self.manner.code, self.example_ids] if self.manner.code else []
        if self.memory.attempts > 1:
            manner += ["attempt", self.attempt, self.memory.attempts, self.memory.kept]
        return trial_key(model.identity, self.asked, readout, settings, manner)

    def columns(self) -> Columns:
        """The columns of the log that say how the item was asked."""
        kept = self.memory.kept if self.memory.attempts > 1 else "none"
        attempts = {"attempt": self.attempt, "attempts": self.memory.attempts, "memory": kept}
        return {"manner": self.manner.to_dict(), "examples": self.example_ids} | attempts


class Episodes:
    """What follows an answer, from the first attempt to the last.

    Args:
        scorer: Of the run; what it has simulated is not simulated again for the images.
        key: The key in the log of what is asked.
        done: Keys of the trials that the log had at the start.
        log: Folder of the run, whose rows say how the episodes went on that were begun earlier.
        pictures: Whether the model looks at images.
        size: Of the images of what happened, pixels.
    """

    def __init__(
        self, scorer: Scorer, key: Callable[[TrialSpec], str], done: Iterable[str], log: Path, pictures: bool, size: int
    ) -> None:
        self.scorer, self.key = scorer, key
        self._done, self._log, self._pictures, self._size = frozenset(done), log, pictures, size

    def following(self, ask: TrialSpec, row: Mapping[str, Any], drawn: bool = True) -> TrialSpec | None:
        """The next attempt after a row of the log; None if that one succeeded, failed to take place, or was the last.

        Args:
            ask: What was asked.
            row: Of the log.
            drawn: Whether the next attempt is to be asked, so that the images of what happened are needed.
        """
        if ask.attempt == ask.memory.attempts or row.get("success") or row["error"] is not None:
            return None
        item, columns = ask.asked, dict(row)
        past = Past(reply_of(item, columns), "", None)
        # Observers do not look, and what will not be told need not be drawn.
        if drawn and self._pictures and ask.memory.kept != "none":
            past = Past.of(past.reply, self.scorer.attempt(item, columns, self._size))
        return replace(ask, past=(*ask.past, past))

    def resumed(self, first: TrialSpec, drawn: bool = True) -> TrialSpec | None:
        """Where an episode goes on after the rows of the log; None if it is over.

        Args:
            first: The first attempt.
            drawn: Whether the next attempt is to be asked, so that the images of what happened are needed.
        """
        ask: TrialSpec | None = first
        while ask is not None and (row := self._known.get(self.key(ask))) is not None:
            ask = self.following(ask, row, drawn)
        return ask

    def left(self, first: TrialSpec) -> int:
        """How many attempts an episode may still take."""
        ask = self.resumed(first, drawn=False)
        return 0 if ask is None else ask.memory.attempts - ask.attempt + 1

    @cached_property
    def _known(self) -> dict[str, dict[str, Any]]:
        """The rows of the trials that were done at the start, by their keys."""
        rows = read_trials(self._log) if self._done else []
        return {row["key"]: row for row in rows if row["key"] in self._done and row["error"] is None}


def check(memory: Memory, stimuli: StimulusSet, items: Sequence[Item], manners: Sequence[PromptCondition]) -> None:
    """Refuse what cannot be tried several times.

    Args:
        memory: How often items may be tried.
        stimuli: The set.
        items: Of it, those that are asked.
        manners: In which they are asked.

    Raises:
        PresentationError: If an item is no action with a scene, its images are drawn by another renderer than what happens
            would be, or the manner is a control.
    """
    if memory.attempts == 1:
        return
    for item in {item.task: item for item in items}.values():
        if item.scene is None or get_task(item.task).kind != "action":
            raise PresentationError(
                f"several attempts need an action to carry out, and {item.item_id} is none: leave --attempts out, or ask a"
                " task such as towers-topblock"
            )
    controls = [manner.control for manner in manners if manner.control != "intact"]
    if controls:
        raise PresentationError(
            f"several attempts go with the intact picture, not with {controls[0]}: leave --attempts or --design out"
        )
    renderer = stimuli.card.get("versions", {}).get("renderer", "")
    try:
        ours = painter(renderer_of(stimuli.card)).renderer
    except (ValueError, ModuleNotFoundError) as error:
        raise PresentationError(f"the images of {stimuli.path}: {error}") from error
    if renderer and renderer != ours:
        raise PresentationError(
            f"the images of {stimuli.path} are by {renderer}, and those of what happens would be by {ours}: make the set again for"
            " several attempts"
        )


def groups(asks: Sequence[TrialSpec]) -> Iterator[list[TrialSpec]]:
    """Episodes that are under way together: all, if they have one attempt only."""
    size = AT_ONCE if asks and asks[0].memory.attempts > 1 else max(len(asks), 1)
    for start in range(0, len(asks), size):
        yield list(asks[start : start + size])
