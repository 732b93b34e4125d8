"""Questions, their answer grammars, and the one parser that reads replies.

A grammar says which answers exist and how each is written. It is part of the question, travels with the item, and is the
only thing that turns a reply into a value. Parsing never guesses: a reply that does not plainly state one legal answer
gets a status other than `ok` and no value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from vlm_probe.stimuli import replies
from vlm_probe.stimuli.replies.cleaning import normalised
from vlm_probe.stimuli.replies.numbers import NumberReader
from vlm_probe.stimuli.replies.options import OptionReader
from vlm_probe.stimuli.replies.words import Answer as Answer
from vlm_probe.stimuli.replies.words import Status as Status
from vlm_probe.stimuli.replies.words import wording_of

MOST_ANSWERS = 1_000_000
"""Of whole numbers. All of them are listed, for their log-probabilities and for what a random one is worth."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the parser made of a reply: the raw text, the value (None unless `status` is "ok") and the status."""

    raw: str
    value: Answer | None
    status: Status


@dataclass(frozen=True, slots=True)
class Option:
    """One legal answer: the word a reply gives (`text`) and what it means (`value`)."""

    text: str
    value: str


@dataclass(frozen=True, slots=True)
class ChoiceFormat:
    """A closed list of answers, in the order in which the prompt names them.

    Raises:
        ValueError: If there are none, or two of the same word.
    """

    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))  # what reads replies is remembered by grammar
        words = [option.text.lower() for option in self.options]
        if not words or not all(words) or len(set(words)) < len(words):
            raise ValueError(f"Options takes words that differ and are not empty, got {words}")

    def candidates(self) -> list[tuple[str, Answer]]:
        """Every legal answer as (text, value)."""
        return [(option.text, option.value) for option in self.options]

    def text(self, answer: Answer) -> str:
        """How that answer is written.

        Raises:
            ValueError: If it is none of the options.
        """
        for option in self.options:
            if option.value == answer:
                return option.text
        raise ValueError(f"{answer!r} is not an answer here; the options are {[o.value for o in self.options]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {"kind": "options", "options": [[o.text, o.value] for o in self.options]}

    def read(self, text: str) -> tuple[Answer | None, Status]:
        """Value and status of a text that is an answer and nothing else."""
        return replies.read_bare(text, _reader(self, ""))


@dataclass(frozen=True, slots=True)
class IntegerFormat:
    """One or two whole numbers, each with an inclusive range.

    Attributes:
        ranges: One (low, high) or two of them.
        unit: The unit in which the prompt asks, which a reply may repeat ("12 cm").

    Raises:
        ValueError: If there are neither one range nor two, one is empty, or they have more than `MOST_ANSWERS` answers.
    """

    ranges: tuple[tuple[int, int], ...]
    unit: str = "cm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranges", tuple(map(tuple, self.ranges)))
        if len(self.ranges) not in (1, 2) or any(low > high for low, high in self.ranges):
            raise ValueError(f"Integers takes one or two (low, high) ranges, got {self.ranges}")
        if math.prod(high - low + 1 for low, high in self.ranges) > MOST_ANSWERS:
            raise ValueError(f"the ranges {self.ranges} have more than {MOST_ANSWERS:,} answers: narrow them")

    def candidates(self) -> list[tuple[str, Answer]]:
        """Every legal answer as (text, value), ascending; pairs in row-major order."""
        spans = [range(low, high + 1) for low, high in self.ranges]
        if len(spans) == 1:
            return [(str(v), v) for v in spans[0]]
        return [(f"{x}, {y}", (x, y)) for x, y in itertools.product(*spans)]

    def text(self, answer: Answer) -> str:
        """How that answer is written.

        Raises:
            ValueError: If it is out of range or of the wrong form.
        """
        numbers = (answer,) if isinstance(answer, int) else answer
        if isinstance(numbers, str) or len(numbers) != len(self.ranges):
            raise ValueError(f"{answer!r} is not {len(self.ranges)} whole number(s)")
        for value, (low, high) in zip(numbers, self.ranges, strict=True):
            if not low <= value <= high:
                raise ValueError(f"{value} is outside {low} to {high}")
        return ", ".join(str(v) for v in numbers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {"kind": "integers", "ranges": [list(r) for r in self.ranges], "unit": self.unit}

    def read(self, text: str) -> tuple[Answer | None, Status]:
        """Value and status of a text that is an answer and nothing else."""
        return replies.read_bare(text, _reader(self, ""))


Grammar = ChoiceFormat | IntegerFormat


def grammar_from_dict(data: dict[str, Any]) -> Grammar:
    """Inverse of the grammars' `to_dict`.

    Raises:
        ValueError: On malformed data.
    """
    try:
        if data["kind"] == "options":
            return ChoiceFormat(tuple(Option(str(text), str(value)) for text, value in data["options"]))
        if data["kind"] == "integers":
            return IntegerFormat(
                tuple((int(low), int(high)) for low, high in data["ranges"]), str(data.get("unit", "cm"))
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an answer grammar: {data!r} ({error})") from error
    raise ValueError(f"not an answer grammar: unknown kind {data['kind']!r}")


@dataclass(frozen=True, slots=True)
class Variant:
    """How a question is worded.

    Attributes:
        paraphrase: Index of the wording; every task has at least `PARAPHRASES`.
        polarity: Which way a yes/no question is asked: 0 or 1 ("stay up?" or "fall?").
        order: 0 or 1: the order in which the options are named.
        style: "direct", or "think" for reasoning in <think></think> before <answer></answer>.
        ask: For grounding tasks, the kind of question; empty elsewhere.
        detail: For grounding tasks, a whole number that picks what is asked about; 0 elsewhere.
    """

    paraphrase: int = 0
    polarity: int = 0
    order: int = 0
    style: Literal["direct", "think"] = "direct"
    ask: str = ""
    detail: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {name: getattr(self, name) for name in self.__slots__}


PARAPHRASES = 4


def wordings(polarities: int = 2, orders: int = 2) -> tuple[Variant, ...]:
    """Every paraphrase in every polarity and order, as designed sets use them.

    Args:
        polarities: 2, or 1 for questions that can be asked one way only.
        orders: 2, or 1 for questions that name no options.
    """
    asked = itertools.product(range(PARAPHRASES), range(polarities), range(orders))
    return tuple(Variant(paraphrase, polarity, order) for paraphrase, polarity, order in asked)


THINK = " First reason between <think> and </think>, then give only the answer between <answer> and </answer>."


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the grammar of its answers, its style, and plain data on what exactly is asked (`about`)."""

    prompt: str
    grammar: Grammar
    style: Literal["direct", "think"] = "direct"
    about: dict[str, Any] = field(default_factory=dict)

    def parse(self, reply: str) -> Parsed:
        """Read a reply by this question's grammar and style."""
        return parse(reply, self.grammar, self.style, self.prompt)

    def reply(self, answer: Answer) -> str:
        """The shortest correct form of an answer: what a demonstration says.

        Raises:
            ValueError: If it is no legal answer.
        """
        text = self.grammar.text(answer)
        return text if self.style == "direct" else f"<answer>{text}</answer>"


def parse(reply: str, grammar: Grammar, style: str = "direct", prompt: str = "") -> Parsed:
    """Read one reply: raw text in, (raw, value, status) out; never raises, never guesses.

    The rules are those of `vlm_probe.stimuli.replies`, the same for every style.

    Args:
        reply: Any text.
        grammar: The legal answers.
        style: "direct" or "think".
        prompt: What was asked, where it is known.
    """
    bare = reply.strip()
    if not bare:
        return Parsed(reply, None, "empty")
    plain = _reader(grammar, "")  # the same for every prompt, and most replies need no more
    exact = plain.exact(bare.lower())
    if exact is not None:
        return Parsed(reply, *plain.legal(exact))
    return Parsed(reply, *replies.read(reply, _reader(grammar, prompt)))


@lru_cache(maxsize=1024)
def _reader(grammar: Grammar, prompt: str) -> replies.Reader:
    """What reads the replies to a question."""
    wording = wording_of(normalised(prompt))
    if isinstance(grammar, ChoiceFormat):
        return OptionReader([(option.text, option.value) for option in grammar.options], wording)
    return NumberReader(grammar.ranges, grammar.unit, wording)


def named_options(options: Sequence[Option], order: int) -> tuple[tuple[Option, ...], str]:
    """Options in the requested order, and the clause that names them in a prompt ("yes or no").

    Args:
        options: All of them.
        order: 0, or 1 for the reverse.
    """
    ordered = tuple(options) if order == 0 else tuple(reversed(options))
    words = [option.text for option in ordered]
    clause = " or ".join(words) if len(words) == 2 else ", ".join(words[:-1]) + " or " + words[-1]
    return ordered, clause
