"""The numbers and verdicts of a manuscript, by name, as LaTeX reads them.

A text says `\\val{name}` for a number, and `\\case{name}{{higher}{...}{lower}{...}}` where the sentence depends on what came
out. Neither is typed by hand, so that a text cannot say other than the results.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vlm_probe.analysis import tables
from vlm_probe.analysis.result import plain
from vlm_probe.paper.latex import in_math
from vlm_probe.stimuli.errors import ProbeError
from vlm_probe.stimuli.plain_json import dumps

NAME = re.compile(r"[a-z0-9][A-Za-z0-9.@+-]*")
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

MACROS = r"""
% \val{name}: a number or a phrase.  \case{name}{{one}{text}{another}{text}}: the text for what came out.
\ExplSyntaxOn
\prop_new:N \g_probe_values_prop
\msg_new:nnn { probe } { missing } { There~is~no~value~`#1'~in~the~results~of~this~study. }
\msg_new:nnn { probe } { unforeseen } { `#1'~came~out~as~`#2',~for~which~the~text~says~nothing. }
\NewDocumentCommand \setval { m +m } { \prop_gput:Nnn \g_probe_values_prop {#1} {#2} }
\NewDocumentCommand \val { m }
  {
    \prop_get:NnNTF \g_probe_values_prop {#1} \l_tmpa_tl
      { \tl_use:N \l_tmpa_tl } { \msg_error:nnn { probe } { missing } {#1} }
  }
\cs_generate_variant:Nn \str_case:nnF { VnF }
\NewDocumentCommand \case { m +m }
  {
    \prop_get:NnNTF \g_probe_values_prop {#1} \l_tmpa_tl
      {
        \str_case:VnF \l_tmpa_tl {#2}
          { \msg_error:nnnV { probe } { unforeseen } {#1} \l_tmpa_tl }
      }
      { \msg_error:nnn { probe } { missing } {#1} }
  }
\ExplSyntaxOff
""".strip()
"""What numbers.tex begins with; it needs no package."""


class NumberError(ProbeError, ValueError):
    """A name or a number that a manuscript cannot have; the message says which and why."""


@dataclass(frozen=True)
class Value:
    """A number, phrase or verdict.

    Attributes:
        text: As LaTeX.
        value: With all its digits; None for phrases.
        among: For a verdict, the words that it could have been.
    """

    text: str
    value: Any = None
    among: tuple[str, ...] = ()


@dataclass
class Numbers:
    """Values by name, each given once."""

    values: dict[str, Value] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def phrase(self, name: str, text: str) -> None:
        """Plain text, such as a hash."""
        self._put(name, Value(tables.escape(text), text))

    def latex(self, name: str, text: str) -> None:
        """Text that is LaTeX already."""
        self._put(name, Value(text))

    def count(self, name: str, value: int) -> None:
        """A whole number; NAME.word writes small ones in letters.

        Args:
            name: Name of the number.
            value: The number.

        Raises:
            NumberError: If it is no whole number, or the name is taken or no name.
        """
        if value != int(value):
            raise NumberError(f"{name} is no whole number: {value}")
        value = int(value)
        self._put(name, Value(in_math(f"{value:,}".replace(",", "{,}")), value))
        self._put(f"{name}.word", Value(word(value), value))

    def number(self, name: str, value: float, digits: int = 2) -> None:
        """A number with its sign, if it can be larger than 1. One that is not defined is left out, so that no text can use it."""
        if math.isfinite(value):
            self._put(name, Value(in_math(tables.number(value, digits)), value))

    def rate(self, name: str, value: float, low: float = math.nan, high: float = math.nan, digits: int = 2) -> None:
        """A proportion, or a difference of two, without a leading zero; with an interval, NAME.ci as well.

        Args:
            name: Name of the number.
            value: The proportion; one that is not defined is left out.
            low, high: Its interval, if it has one.
            digits: Decimals.
        """
        if math.isfinite(value):
            self._put(name, Value(in_math(tables.proportion(value, digits)), value))
        if math.isfinite(low) and math.isfinite(high):
            self._put(f"{name}.ci", Value(interval(low, high, digits), [low, high]))

    def p(self, name: str, value: float) -> None:
        """A p-value with its sign of equality or inequality, such as "= .012"."""
        if math.isfinite(value):
            self._put(name, Value(p_text(value), value))

    def verdict(self, name: str, came_out: str, among: Sequence[str]) -> None:
        """A word that `\\case` decides by.

        Args:
            name: Name of the verdict.
            came_out: The word.
            among: The words that it could have been, for each of which a manuscript has to say something.

        Raises:
            NumberError: If it is not among them.
        """
        if came_out not in among:
            raise NumberError(f"{name} came out as {came_out!r}, which is not among {', '.join(among)}")
        self._put(name, Value(came_out, came_out, tuple(among)))

    def join(self, others: Numbers) -> None:
        """Take over all values of others. Raises NumberError if a name is taken."""
        for name, value in others.values.items():
            self._put(name, value)

    def to_latex(self) -> str:
        """The file that a manuscript inputs."""
        lines = [rf"\setval{{{name}}}{{{value.text}}}" for name, value in sorted(self.values.items())]
        return "\n".join(["% Made by `probe paper`: do not edit.", MACROS, *lines]) + "\n"

    def to_json(self) -> str:
        """All values with all their digits, for participants and programs."""
        found = {
            name: {"text": v.text, "value": plain(v.value)} | ({"among": list(v.among)} if v.among else {})
            for name, v in sorted(self.values.items())
        }
        return dumps(found, indent=1) + "\n"

    def _put(self, name: str, value: Value) -> None:
        if not NAME.fullmatch(name):
            raise NumberError(f"{name!r} is no name of a number: use letters, digits, and . @ + -")
        if name in self.values:
            raise NumberError(f"the number {name} is given twice")
        self.values[name] = value


def word(value: int) -> str:
    """A small whole number in letters, a large one in digits."""
    return WORDS[value] if 0 <= value < len(WORDS) else f"{value:,}".replace(",", "{,}")


def interval(low: float, high: float, digits: int = 2) -> str:
    """An interval of proportions in square brackets."""
    return in_math(f"[{tables.proportion(low, digits)}, {tables.proportion(high, digits)}]")


def p_text(p: float) -> str:
    """A p-value as it stands after the letter p."""
    text = tables.p_value(p)
    return f"${text}$" if text.startswith("<") else f"$= {text}$"


def listed(parts: Sequence[str], conjunction: str = "and") -> str:
    """A list in words: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {conjunction} {parts[-1]}" if parts else ""


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by the names of its columns."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
