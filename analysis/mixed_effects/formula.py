"""Formulas in the notation of lme4, taken apart: `correct ~ method*shift + (1 + margin | run) + (1 | item)`.

Columns may have any name. So that no parser takes a name for anything else (`from`, `1`, `load*2`), symbols replace the names of columns
before a formula is read, and the names stand again in everything that is printed. What R writes as `x^2`, `factor(x)` or `TRUE` is
written as in Python; what is not known is refused by its name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.expressions import CONSTANTS, SPELLINGS, Symbols, Variable, is_function

EXAMPLE = "correct ~ method + (1 | run) + (1 | item)"
TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<text>"(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*')
      | (?P<quoted>`(?:[^`\\]|\\.)+`)
      | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?L?(?![\w.]))
      | (?P<name>(?:[^\W\d]|\.(?!\d))[\w.]*)
      | (?P<mark>%[^%]*%|\*\*|\|\||&&|//|<=|>=|==|!=|.)""",
    re.VERBOSE | re.DOTALL,
)
OUTSIDE = frozenset(["~", "+", "-", "*", "**", "^", "/", ":", "|", "||", "(", ")"])
"""Operators and brackets of a formula outside calls."""
INSIDE = frozenset(
    ["+", "-", "*", "**", "^", "/", "//", "%%", "%/%", "(", ")", "[", "]", ",", "<", ">", "<=", ">=", "==", "!=", "="]
)
"""Those in the arguments of a call."""
IN_PYTHON = {"^": "**", "%%": "%", "%/%": "//"}
KEYWORDS = {"intercept": "include_intercept"}
"""Names of arguments in R, and here."""
INSTEAD = {
    "relevel": 'give another reference level as contrasts={factor: ("treatment", level)}',
    "interaction": "write a:b",
    "ordered": 'make the column an ordered pandas Categorical, and give contrasts={factor: "poly"}',
    "as.integer": "write as.numeric() or floor()",
    "mean": "write center() or scale(), which code other rows as those of the fit",
    "s": "write ns() or bs()",
}
"""What to write for some functions of R that are not supported."""


@dataclass(frozen=True)
class RandomPart:
    """One `(effects | group)` of a formula.

    Attributes:
        effects: What varies between the levels of the group, as the right-hand side of a formula, in symbols: `1 + margin`.
        group: Columns whose combinations are the levels: `("run", "family")` for `run:family`.
        correlated: False for `||`.
        text: The part with the names of columns.
    """

    effects: str
    group: tuple[str, ...]
    correlated: bool
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class MixedFormula:
    """A formula in its parts, in which symbols stand for columns.

    Attributes:
        text: As it was given, with single spaces.
        response: Left-hand side: an expression, or two of them (successes and failures).
        fixed: The fixed part of the right-hand side.
        random: The random parts, in their order.
        offsets: Expressions in `offset(...)`, whose sum is a known part of the linear predictor.
        symbols: What the symbols stand for.
    """

    text: str
    response: tuple[str, ...]
    fixed: str
    random: tuple[RandomPart, ...]
    offsets: tuple[str, ...]
    symbols: Symbols

    @property
    def response_name(self) -> str:
        """The response, or the successes, with the names of columns."""
        return self.symbols.plain(self.response[0])


def parse(text: object, columns: Collection[str]) -> MixedFormula:
    """Take a formula apart.

    The left-hand side is a column or an expression of columns; `cbind(k, n - k)` is counts of successes and failures.
    `(x || g)` leaves out the correlations, and `(1 | a/b)` is `(1 | a) + (1 | a:b)`. Names with spaces or operators in them, and
    numbers as names, stand between backquotes. `I(x^2)`, `factor(x)` and `TRUE` are understood as in R.

    Args:
        text: The formula.
        columns: Names of the columns of the table.

    Raises:
        FitError: If it is not such a formula, takes a column that there is not, or calls what is not known.
    """
    if not isinstance(text, str):
        raise FitError(f"the formula is a {type(text).__name__}: write it as text, like {EXAMPLE!r}")
    found = [(str(match.lastgroup), match.group()) for match in TOKEN.finditer(text)]
    text = "".join(" " if kind == "space" else token for kind, token in found).strip()
    if sum(token == "~" for _, token in found) != 1:
        raise FitError(f"{text!r} is not a formula: write it like {EXAMPLE!r}")
    written, symbols = _Reader(text, found, columns).read()
    left, right = (part.strip() for part in written.split("~"))
    if not left or not right:
        raise FitError(f"{text!r} has an empty side: write it like {EXAMPLE!r}")
    try:
        fixed, random, offsets = _split_random(right, symbols)
        return MixedFormula(text, _response(left), fixed, random, offsets, symbols)
    except FitError as error:
        raise FitError(symbols.plain(str(error))) from None


class _Token(NamedTuple):
    kind: str
    text: str
    spaced: bool  # whether a space comes before it


class _Reader:
    """Writes a formula in symbols.

    Args:
        text: The formula, for errors.
        tokens: Kind and text of all its tokens.
        columns: Names of the columns of the table.
    """

    def __init__(self, text: str, tokens: Sequence[tuple[str, str]], columns: Collection[str]) -> None:
        self._text, self._columns, self._symbols = text, columns, Symbols()
        kinds = ["", *(kind for kind, _ in tokens)]
        self._tokens = [
            _Token(kind, token, before == "space")
            for (kind, token), before in zip(tokens, kinds, strict=False)
            if kind != "space"
        ]
        self._open: list[bool] = []  # of every open bracket, whether it is in a call

    def read(self) -> tuple[str, Symbols]:
        """The formula in symbols, and what they stand for."""
        pieces: list[str] = []
        place = 0
        while place < len(self._tokens):
            token = self._tokens[place]
            if token.kind != "mark" and place and self._tokens[place - 1].kind != "mark":
                self._refuse(
                    f"no operator stands before {token.text!r}; names with spaces or operators in them stand between backquotes,"
                    " `reaction time`"
                )
            written, taken = self._one(place)
            pieces.append(" " * token.spaced + written)
            place += taken
        return "".join(pieces), self._symbols

    def _refuse(self, what: str) -> None:
        raise FitError(f"{self._text!r}: {what}")

    @property
    def _in_call(self) -> bool:
        return bool(self._open) and self._open[-1]

    def _at(self, place: int) -> str:
        return self._tokens[place].text if place < len(self._tokens) else ""

    def _one(self, place: int) -> tuple[str, int]:
        """What the token at a place becomes, with those that belong to it, and how many they are."""
        kind, token, _ = self._tokens[place]
        if kind == "text":
            return self._symbols.of_text(token[1:-1]), 1
        if kind == "number":
            return token.removesuffix("L"), 1
        if kind == "quoted":
            return self._symbols.of(Variable(self._column(place))), 1
        if kind == "name":
            return self._call(place) if self._at(place + 1) == "(" else (self._name(place), 1)
        return self._mark(place), 1

    def _name(self, place: int) -> str:
        """A column, the name of an argument, or a constant."""
        token = self._at(place)
        if self._in_call and self._at(place + 1) == "=":
            if "." in token:
                self._refuse(
                    f"the argument {token} is not supported; see the documentation of formulaic for those of its functions"
                )
            return KEYWORDS.get(token, token)
        if self._in_call and token in CONSTANTS and (self._at(place - 1) == "=" or token not in self._columns):
            return CONSTANTS[token]
        if self._at(place + 1) in ("$", "@"):
            self._refuse(f"{token}{self._at(place + 1)}: columns of the data are named alone")
        return self._symbols.of(Variable(self._column(place)))

    def _column(self, place: int) -> str:
        """The column that a name stands for, with or without backquotes."""
        token = self._tokens[place]
        name = token.text[1:-1] if token.kind == "quoted" else token.text
        unescaped = re.sub(r"\\(.)", r"\1", name)
        for known in (name, unescaped) if token.kind == "quoted" else (name,):
            if known in self._columns:
                return known
        if name == ".":
            self._refuse("'.' for all other columns is not supported; name the predictors")
        near = difflib.get_close_matches(name, self._columns, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f": it has {', '.join(self._columns)}"
        raise FitError(f"{self._text!r} needs the column {name!r}, which the data do not have{hint}")

    def _call(self, place: int) -> tuple[str, int]:
        """`factor(x)` of a column, which is a variable of its own; or the name of a function that is called."""
        token = self._at(place)
        name = SPELLINGS.get(token, token)
        if not is_function(name):
            advice = INSTEAD.get(token, "compute it as a column of the data beforehand")
            self._refuse(f"{token}() is not supported in formulas; {advice}")
        if name == "C" and place + 2 < len(self._tokens) and self._tokens[place + 2].kind in ("name", "quoted"):
            if self._at(place + 3) == ")":
                return self._symbols.of(Variable(self._column(place + 2), is_factor=True)), 4
            if self._at(place + 3) == ",":
                self._refuse(
                    f"{token}() takes a column alone; its coding is given as contrasts=, and the order of its levels by a pandas"
                    " Categorical"
                )
        return name, 1

    def _mark(self, place: int) -> str:
        """An operator or a bracket, as Python writes it."""
        token = self._at(place)
        if token not in (INSIDE if self._in_call else OUTSIDE):
            advice = "compute it as a column of the data beforehand"
            if not self._in_call:
                advice = (
                    "write a:b" if token == "%in%" else "write the expression inside I()" if token in INSIDE else advice
                )
            self._refuse(f"{token!r} is not supported {'in calls' if self._in_call else 'outside calls'}; {advice}")
        if token in ("(", "["):
            self._open.append(self._in_call or (place > 0 and self._tokens[place - 1].kind == "name"))
        elif token in (")", "]") and self._open:
            self._open.pop()
        return IN_PYTHON.get(token, token)


def _response(left: str) -> tuple[str, ...]:
    if left.startswith("I(") and _closing(left) == len(left) - 1:
        left = left[2:-1].strip()
    counts = re.fullmatch(r"cbind\((.*)\)", left)
    if not counts:
        return (left,)
    parts = _split_outside_brackets(counts.group(1), ",")
    if len(parts) != 2:
        raise FitError(f"{left}: cbind takes two columns, the successes and the failures: cbind(correct, wrong)")
    return tuple(parts)


def _split_random(right: str, symbols: Symbols) -> tuple[str, tuple[RandomPart, ...], tuple[str, ...]]:
    fixed, random, offsets = [], [], []
    for sign, part in _summands(right):
        inner = part[1:-1] if part.startswith("(") and _closing(part) == len(part) - 1 else ""
        if part.startswith("offset(") and _closing(part) == len(part) - 1 and sign == "+":
            offsets.append(part[len("offset(") : -1].strip())
        elif "|" not in part:
            fixed.append(f"{sign} {part}")
        elif not inner or "|" not in inner:
            raise FitError(f"{part}: a random effect stands in brackets of its own, like (1 | item)")
        elif sign == "-":
            raise FitError(f"- {part}: a random effect cannot be subtracted; leave it out of the formula")
        else:
            random += _random_parts(inner, symbols)
    text = " ".join(fixed).removeprefix("+ ")
    return text or "1", tuple(random), tuple(offsets)


def _random_parts(inner: str, symbols: Symbols) -> list[RandomPart]:
    match = re.fullmatch(r"([^|]+?)\s*(\|\|?)\s*([^|]+)", inner)
    if not match:
        raise FitError(f"({inner}) is not a random effect: write (1 + x | group), or (1 + x || group)")
    effects, bars, group = match.group(1).strip(), match.group(2), match.group(3).strip()
    parts = []
    for names in _nested(group, inner, symbols):
        text = f"({symbols.plain(effects)} {bars} {':'.join(names)})"
        parts.append(RandomPart(effects, names, bars == "|", text))
    return parts


def _nested(group: str, inner: str, symbols: Symbols) -> list[tuple[str, ...]]:
    """The groupings that `a/b/c`, `a:b` or `a` stand for."""
    levels: list[tuple[str, ...]] = []
    for part in group.split("/"):
        names = [name.strip() for name in part.split(":")]
        if not all(names):
            raise FitError(f"({inner}) has no grouping factor: write (1 | item), or (1 | run:item)")
        for name in names:
            if list(symbols.variables(name)) != [name]:
                raise FitError(
                    f"({inner}): {name} is no column to group by: write (1 | item), (1 | run:item) or (1 | run/item)"
                )
        levels.append(tuple(symbols.variables(name)[name].column for name in names))
    return [sum(levels[: depth + 1], ()) for depth in range(len(levels))]


def _summands(text: str) -> list[tuple[str, str]]:
    """The signed summands of a right-hand side, not looking into brackets."""
    found, sign, start, depth = [], "+", 0, 0
    for place, letter in enumerate(text + "+"):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and letter in "+-" and not (letter == "-" and text[:place].rstrip().endswith(("*", "/", ":"))):
            if part := text[start:place].strip():
                found.append((sign, part))
            sign, start = letter, place + 1
    if depth:
        raise FitError(f"{text!r} has a bracket too {'few' if depth > 0 else 'many'}")
    return found


def _split_outside_brackets(text: str, separator: str) -> list[str]:
    parts, start, depth = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == separator and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()]


def _closing(text: str) -> int:
    """Where the first bracket of `text` is closed."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and letter == ")":
            return place
    return -1
