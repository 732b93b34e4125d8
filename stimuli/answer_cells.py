"""Cells of imported tables that hold answers: the legal ones, the right one, all right ones, and what somebody said."""

from __future__ import annotations

import re

import numpy as np

from vlm_probe.stimuli.question import Answer, ChoiceFormat, Grammar, IntegerFormat, Option


class Unreadable(ValueError):
    """A cell that is no answer; `role` is the column's.

    Args:
        role: The column's.
        text: What is wrong with the cell.
    """

    def __init__(self, role: str, text: str) -> None:
        super().__init__(text)
        self.role = role


def read_grammar(text: str) -> Grammar:
    """A grammar from text: `yes|no`, `yes=stands|no=falls`, `-20..20`, or `-30..30, 0..50`.

    Raises:
        ValueError: If it is none of these.
    """
    if re.fullmatch(r"\s*-?\d+\s*\.\.\s*-?\d+\s*(,\s*-?\d+\s*\.\.\s*-?\d+\s*)?", text):
        bounds = [int(bound) for bound in re.findall(r"-?\d+", text)]
        return IntegerFormat(tuple(zip(bounds[::2], bounds[1::2], strict=True)))
    options = []
    for part in text.split("|"):
        word, equals, value = (piece.strip() for piece in part.partition("="))
        options.append(Option(word, value if equals else word))
    words, values = [o.text.lower() for o in options], [o.value.lower() for o in options]
    if len(options) < 2 or not all(words + values) or len(set(words)) < len(words) or len(set(values)) < len(values):
        raise ValueError(
            f"the options {text!r} are not at least two different words separated by | (yes|no), nor a range (-20..20)"
        )
    return ChoiceFormat(tuple(options))


def read_answer(grammar: Grammar, text: str, role: str = "answer", strict: bool = False) -> Answer:
    """An answer as a table has it: the meaning of an option, or its word; or whole numbers.

    Args:
        grammar: The legal answers.
        text: The cell.
        role: What the column is for, for messages.
        strict: Whether an option must be given by its meaning.

    Raises:
        Unreadable: If it is not a legal answer.
    """
    if not text:
        raise Unreadable(role, "is empty")
    if isinstance(grammar, IntegerFormat):
        value, status = grammar.read(text)
        if value is None:
            ranges = " and ".join(f"{low} to {high}" for low, high in grammar.ranges)
            what = f"{len(grammar.ranges)} whole number(s) from {ranges}"
            raise Unreadable(role, f"{text!r} is not {what} ({status.replace('_', ' ')})")
        return value
    by_value = {option.value.lower(): option.value for option in grammar.options}
    by_text = {option.text.lower(): option.value for option in grammar.options}
    plain = text.lower()
    if plain in by_value:
        return by_value[plain]
    if plain in by_text and not strict:
        return by_text[plain]
    legal = ", ".join(o.value if strict or o.text == o.value else f"{o.value} ({o.text})" for o in grammar.options)
    why = ": a word means different things in different wordings" if plain in by_text else ""
    raise Unreadable(role, f"{text!r} is not one of {legal}{why}")


def read_working(grammar: Grammar, answer: Answer, listed: str, tolerance: str) -> list[Answer]:
    """All right answers: the listed ones, those within the tolerance, or the one.

    Args:
        grammar: The legal answers.
        answer: The right one that the row names.
        listed: The cell with all of them, such as 3;4;5; empty if there is none.
        tolerance: The cell with how far off a number may be; empty likewise.

    Raises:
        Unreadable: If a cell does not say that.
    """
    if listed:
        found = [read_answer(grammar, part.strip(), "working") for part in listed.split(";") if part.strip()]
        if answer not in found:
            raise Unreadable("working", f"{listed!r} does not contain the answer {grammar.text(answer)}")
        return found
    if not tolerance:
        return [answer]
    if not isinstance(grammar, IntegerFormat) or not re.fullmatch(r"\d{1,9}", tolerance):
        raise Unreadable("tolerance", f"{tolerance[:20]!r} is not a whole number, or the answers are words")
    centre = np.atleast_1d(np.array(answer))
    near = [v for _, v in grammar.candidates() if (np.abs(np.atleast_1d(np.array(v)) - centre) <= int(tolerance)).all()]
    return near


def meaning(grammar: Grammar, answer: Answer) -> str:
    """An answer as responses store it: the value of an option, or the numbers as written.

    Args:
        grammar: The legal answers.
        answer: One of them.
    """
    return str(answer) if isinstance(grammar, ChoiceFormat) else grammar.text(answer)
