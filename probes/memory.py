"""Memory: what of earlier attempts stays in the context of the next one, at probing as at training.

A model that may try K times on the same scene is asked, for each attempt, in a conversation of its own:

    user       the scene, the question
    assistant  an earlier reply                                    | once for every attempt
    user       the picture of what happened, what happened in      | that is remembered
               words, the question once more                       |

With the memory "none" every attempt is asked like the first. What is forgotten is not in the context in any form, neither as words
nor as pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from vlm_probe.probes.models import Trial, Turn
from vlm_probe.stimuli.attempts import FAILED, IMPOSSIBLE, UNREAD, Attempt, remembered
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.ranges import ATTEMPTS, check_ranges, ranged

WORDS = (UNREAD, FAILED, IMPOSSIBLE)
"""All that may be said of an attempt after which there is another one."""


@dataclass(frozen=True)
class Past:
    """An earlier attempt.

    Attributes:
        reply: What the model said.
        words: What came of it, in words.
        picture: What came of it, as a picture; None if nothing was carried out.
    """

    reply: str
    words: str
    picture: Image.Image | None

    @classmethod
    def of(cls, reply: str, attempt: Attempt) -> Past:
        """The attempt that a reply made.

        Args:
            reply: What the model said.
            attempt: What came of it.
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
        """The trial with the longest context that an episode can have, but for the lengths of the model's replies."""
        question = first.item.question
        reply = max((question.reply(value) for _, value in question.grammar.candidates()), key=len)
        # A trial without a picture has none of what happens either; an unread reply has none, and is no longer.
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
    """What a model is told after an attempt: what happened, and the question once more.

    Args:
        item: That was tried.
        past: The attempt.
    """
    return _before(past) + item.question.prompt


def _before(past: Past) -> str:
    return past.words + " "
