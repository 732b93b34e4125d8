"""Questions, their answer grammars, and the one parser that reads replies.

A grammar says which answers exist and how each is written. It is part of the question, travels with the item, and is the
only thing that turns a reply into a value. Parsing never guesses: a reply that does not plainly state one legal answer
gets a status other than `ok` and no value.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Answer = str | int | tuple[int, int]
"""A semantic answer: the value of an option, one whole number, or a pair of whole numbers."""

MOST_ANSWERS = 1_000_000
"""Of whole numbers. All of them are listed, for their log-probabilities and for what a random one is worth."""

Status = Literal["ok", "empty", "no_answer", "ambiguous", "out_of_range", "not_whole", "unfinished", "filtered"]
"""How reading a reply went. Only "ok" is an answer; all others count as no answer.

ok: one legal answer. empty: no text. no_answer: text without a legal answer. ambiguous: several answers. out_of_range, not_whole:
a number that the question does not allow. unfinished: cut off before an answer, or in the middle of a thought. filtered: withheld by
a content filter, or refused; only a server tells that.
"""
STATUSES: tuple[Status, ...] = get_args(Status)


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
class Options:
    """A closed list of answers, in the order in which the prompt names them.

    Raises:
        ValueError: If there are none, or two of the same word.
    """

    options: tuple[Option, ...]

    def __post_init__(self) -> None:
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
        """Value and status of one bare answer text."""
        by_text = {option.text.lower(): option.value for option in self.options}
        # Longest first, so that "dark red" is not read as "red".
        words = "|".join(re.escape(t) for t in sorted(by_text, key=len, reverse=True))
        plain = _bare(text).lower()
        if plain in by_text:
            return by_text[plain], "ok"
        # A leading option followed by punctuation ("Yes, because ...") is an answer as long as no other option
        # is named later; "no idea" or "it will not fall" are not.
        opening = re.match(rf"({words})(?=[,.;:!\n])", plain)
        stated = _STATED.findall(plain)
        found: set[str] = set()
        for phrase in stated:
            match = re.match(rf"({words})\b", phrase)
            if match:
                found.add(match.group(1))
        if opening:
            found.add(opening.group(1))
            found.update(re.findall(rf"\b({words})\b", plain[opening.end() :]))
        if len(found) == 1:
            return by_text[found.pop()], "ok"
        return None, "ambiguous" if found else "no_answer"


@dataclass(frozen=True, slots=True)
class Integers:
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
        """Value and status of one bare answer text."""
        unit = rf"\s*(?:{re.escape(self.unit)}|cent(?:i)?met(?:re|er)s?|degrees?|°)?"
        number = rf"([+-]?\d+(?:\.\d+)?){unit}"
        plain = _bare(text.replace("\u2212", "-")).lower()
        plain = re.sub(r"[()\[\]]", "", plain)
        tail = (
            number if len(self.ranges) == 1 else rf"(?:x\s*=\s*)?{number}(?:\s*,\s*|\s+and\s+|\s+)(?:y\s*=\s*)?{number}"
        )
        # Without runs of white space, in which a search could go astray for minutes.
        match = re.fullmatch(tail, " ".join(plain.split()))
        if not match:
            found = {m.groups() for m in (re.match(rf"{tail}(?![\d.]*\d)", p) for p in _STATED.findall(plain)) if m}
            if len(found) != 1:
                return None, "ambiguous" if found else "no_answer"
            groups = found.pop()
        else:
            groups = match.groups()
        # Bounded length first: int() of a million digits is slow, and nothing that long is in range.
        if any(len(g) > 12 for g in groups):
            return None, "out_of_range"
        values = [float(g) for g in groups]
        if any(v != int(v) for v in values):
            return None, "not_whole"
        whole = tuple(int(v) for v in values)
        if any(not low <= v <= high for v, (low, high) in zip(whole, self.ranges, strict=True)):
            return None, "out_of_range"
        return (whole[0], "ok") if len(whole) == 1 else ((whole[0], whole[1]), "ok")


Grammar = Options | Integers


def grammar_from_dict(data: dict[str, Any]) -> Grammar:
    """Inverse of the grammars' `to_dict`.

    Raises:
        ValueError: On malformed data.
    """
    try:
        if data["kind"] == "options":
            return Options(tuple(Option(str(text), str(value)) for text, value in data["options"]))
        if data["kind"] == "integers":
            return Integers(tuple((int(low), int(high)) for low, high in data["ranges"]), str(data.get("unit", "cm")))
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
        return parse(reply, self.grammar, self.style)

    def reply(self, answer: Answer) -> str:
        """The shortest correct form of an answer: what a demonstration says.

        Raises:
            ValueError: If it is no legal answer.
        """
        text = self.grammar.text(answer)
        return text if self.style == "direct" else f"<answer>{text}</answer>"


_OPEN, _CLOSE = re.compile("<answer>", re.IGNORECASE), re.compile("</answer>", re.IGNORECASE)
_WHITE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
_STATED = re.compile(r"(?:\banswer\s*(?:is|:|=)|\\boxed\{)[\s:*\"'`]*(?=([^\n<}]{1,80}))")


def parse(reply: str, grammar: Grammar, style: str = "direct") -> Parsed:
    """Read one reply: raw text in, (raw, value, status) out; never raises, never guesses.

    An <answer></answer> block, where there is one, is the answer. With style "think" it is required. Otherwise the whole
    reply must be the answer, begin with it ("Yes, ..."), or state it ("the answer is ...").

    Args:
        reply: Any text.
        grammar: The legal answers.
        style: "direct" or "think".
    """
    if not reply.strip():
        return Parsed(reply, None, "empty")
    folded = reply.lower()
    if folded.rfind("<think>") > folded.rfind("</think>"):
        return Parsed(reply, None, "unfinished")  # nothing in a thought is an answer
    blocks = _blocks(reply)
    if blocks:
        results = {grammar.read(block) for block in blocks}
        if len(results) > 1:
            return Parsed(reply, None, "ambiguous")
        return Parsed(reply, *results.pop())
    if style == "think" or "<answer>" in folded:
        return Parsed(reply, None, "unfinished")
    return Parsed(reply, *grammar.read(reply))


def _bare(text: str) -> str:
    """The text without surrounding white space, quotes, markdown emphasis and closing punctuation."""
    return text.lstrip(_WHITE + "\"'`*_").rstrip(_WHITE + "\"'`*_.!")


def _blocks(reply: str) -> list[str]:
    """What stands between <answer> and the next </answer>, in time that grows with the reply's length and no faster."""
    found, place = [], 0
    while (begin := _OPEN.search(reply, place)) and (end := _CLOSE.search(reply, begin.end())):
        found.append(reply[begin.end() : end.start()])
        place = end.end()
    return found


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
