"""Formulas in the notation of lme4: `correct ~ method*shift + (1 | run) + (1 + margin | item)`, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlm_probe.analysis.mixed_effects.errors import FitError

EXAMPLE = "correct ~ method + (1 | run) + (1 | item)"


@dataclass(frozen=True)
class RandomPart:
    """One `(effects | group)` of a formula.

    Attributes:
        effects: What varies between the levels of the group, as the right-hand side of a formula: `1 + margin`.
        group: Columns whose combinations are the levels: `("run", "family")` for `run:family`.
        correlated: False for `||`.
    """

    effects: str
    group: tuple[str, ...]
    correlated: bool

    def __str__(self) -> str:
        return f"({self.effects} {'|' if self.correlated else '||'} {':'.join(self.group)})"


@dataclass(frozen=True)
class MixedFormula:
    """A formula in its parts.

    Attributes:
        text: As it was given, with single spaces.
        response: Left-hand side: an expression, or two of them (successes and failures).
        fixed: The fixed part of the right-hand side.
        random: The random parts, in their order.
        offsets: Expressions in `offset(...)`, whose sum is a known part of the linear predictor.
    """

    text: str
    response: tuple[str, ...]
    fixed: str
    random: tuple[RandomPart, ...]
    offsets: tuple[str, ...] = ()


def parse(text: str) -> MixedFormula:
    """Take a formula apart.

    The left-hand side is a column or an expression of columns; `cbind(k, n - k)` is counts of successes and failures.
    `(x || g)` leaves out the correlations, and `(1 | a/b)` is `(1 | a) + (1 | a:b)`. What R writes as `factor(x)`, `as.factor(x)` and
    `I(x^2)` is `C(x)` and `I(x**2)` here, and understood.

    Raises:
        FitError: If it is not such a formula.
    """
    text = re.sub(r"\s+", " ", text.strip())
    if text.count("~") != 1:
        raise FitError(f"{text!r} is not a formula: write it like {EXAMPLE!r}")
    left, right = (part.strip() for part in text.split("~"))
    if not left or not right:
        raise FitError(f"{text!r} has an empty side: write it like {EXAMPLE!r}")
    fixed, random, offsets = _split_random(_as_python(right))
    return MixedFormula(text, _response(_as_python(left)), fixed, random, offsets)


def _as_python(side: str) -> str:
    """With factors and powers as formulaic and Python write them."""
    side = re.sub(r"(?<![\w.])(?:as\.)?factor\(", "C(", side)
    start = 0
    while (found := re.search(r"(?<![\w.])I\(", side[start:])) is not None:
        first = start + found.end() - 1
        last = first + _closing(side[first:]) + 1
        inner = side[first:last].replace("^", "**")
        side, start = side[:first] + inner + side[last:], first + 1
    return side


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


def _split_random(right: str) -> tuple[str, tuple[RandomPart, ...], tuple[str, ...]]:
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
            random += _random_parts(inner)
    text = " ".join(fixed).removeprefix("+ ")
    return text or "1", tuple(random), tuple(offsets)


def _random_parts(inner: str) -> list[RandomPart]:
    match = re.fullmatch(r"([^|]+?)\s*(\|\|?)\s*([^|]+)", inner)
    if not match:
        raise FitError(f"({inner}) is not a random effect: write (1 + x | group), or (1 + x || group)")
    effects, bars, group = match.group(1).strip(), match.group(2), match.group(3).strip()
    parts = []
    for names in _nested(group):
        if not names or not all(names):
            raise FitError(f"({inner}) has no grouping factor: write (1 | item), or (1 | run:item)")
        parts.append(RandomPart(effects, names, correlated=bars == "|"))
    return parts


def _nested(group: str) -> list[tuple[str, ...]]:
    """The groupings that `a/b/c`, `a:b` or `a` stand for."""
    # Grouping factors are factors anyway.
    group = re.sub(r"\bC\(([^()]*)\)", r"\1", group)
    levels = [tuple(name.strip().strip("`") for name in part.split(":")) for part in group.split("/")]
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
