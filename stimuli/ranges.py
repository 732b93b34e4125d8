"""Ranges of numbers, each stated once, where the setting or column is declared, and checked wherever a value comes from."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from vlm_probe.stimuli.errors import InvalidInput

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class OutOfRange(InvalidInput):
    """A setting is outside its range.

    Args:
        name: Of the setting.
        reason: Its range, and what was given, as in "must be ..., got ...".
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


@dataclass(frozen=True)
class Range:
    """Finite numbers between two bounds. As a validator of the command line, it is called with a type and a value.

    Attributes:
        least, most: Bounds that are themselves in the range.
        above, below: Bounds that are not.
        whole: Whole numbers only.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Whether something is a number in the range; a truth value is not."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value
        finite = isinstance(number, Integral) or math.isfinite(number)
        return finite and self.least <= number <= self.most and self.above < number < self.below

    def check(self, name: str, value: Any) -> None:
        """Refuse a value.

        Args:
            name: Of the setting.
            value: Given for it.

        Raises:
            OutOfRange: If it is not in the range.
        """
        if not self.holds(value):
            raise OutOfRange(name, f"must be {self}, got {shown(value)}")

    def __call__(self, kind: Any, value: Any) -> None:
        """Validate an option of the command line. Raises ValueError if its value is not in the range."""
        if value is not None and not self.holds(value):
            raise ValueError(f"It must be {self}")

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.whole and self.most - self.least == 1:
            return f"{self.least:g} or {self.most:g}"
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"{kind} from {_spelled(self.least)} to {_spelled(self.most)}"
        words = {"of at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        bounds = [f"{word} {_spelled(bound)}" for word, bound in words.items() if math.isfinite(bound)]
        return f"{kind} {' and '.join(bounds)}" if bounds else kind if self.whole else "a finite number"


def whole(least: float = -math.inf, most: float = math.inf) -> Range:
    """Whole numbers between two bounds."""
    return Range(least, most, whole=True)


SEED = whole(0, 2**32 - 1)
"""What the generators of numpy, torch and Python all take."""
IMAGE_SIZE = whole(16, 4096)
"""Edge of the square images that are made, pixels."""
PERMUTATIONS = whole(0, 100_000)
SHOWN = whole(1, 1000)
"""Images on a contact sheet."""
PAGE_SIZE, MOTIONS = whole(0, 4096), whole(0, 1_000_000)
"""Of a page: longest edge of its images, pixels, and simulations; 0 for none."""
PROCESSES = whole(1, 1024)
AMOUNT = whole(1, 10_000_000)
"""Items, images, trials."""
BATCH = whole(0, 65_536)
"""Items at a time; 0 leaves it to the program."""
ATTEMPTS = whole(1, 1000)
TEMPERATURE = Range(0, 100)
REPLY_LENGTH = whole(0, 1_000_000)
"""Tokens; 0 is as many as the longest answer needs."""


REQUIRED = dataclasses.MISSING
"""The default of a field that has none."""


def ranged(default: Any, allowed: Range) -> Any:
    """A field of a dataclass whose value, or values where it is a tuple, must lie in a range.

    Args:
        default: Of the field. Where it is None, None may be given.
        allowed: The range, which `check_ranges` reads.
    """
    return dataclasses.field(default=default, metadata={"range": allowed})


def check_ranges(settings: DataclassInstance) -> None:
    """Check every field of a dataclass that was made by `ranged`.

    Raises:
        OutOfRange: If a value is not in its range.
    """
    for entry in dataclasses.fields(settings):
        allowed = entry.metadata.get("range")
        value = getattr(settings, entry.name)
        if allowed is None or (value is None and entry.default is None):
            continue
        for one in value if isinstance(value, tuple) else (value,):
            allowed.check(entry.name, one)


_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a finite number"),
    str: (str, "a text"),
}
"""Types of settings as they are annotated: what is taken for one, and its name in messages."""


def check_settings(settings: DataclassInstance) -> None:
    """Check every field of a configuration against its annotation and its range, since files may hold anything.

    Args:
        settings: A dataclass whose fields are texts, numbers, truth values, choices (`Literal`) or tuples of them.

    Raises:
        OutOfRange: If a value is of another type, no choice that there is, or outside its range.
    """
    hints = get_type_hints(type(settings))
    for entry in dataclasses.fields(settings):
        value, hint = getattr(settings, entry.name), hints[entry.name]
        if get_origin(hint) is UnionType:
            if value is None:
                continue
            hint = get_args(hint)[0]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise OutOfRange(entry.name, f"is {shown(value)}: use {', '.join(filter(None, get_args(hint)))}")
        elif get_origin(hint) is tuple:
            if not isinstance(value, tuple):
                raise OutOfRange(entry.name, f"must be a list, got {shown(value)}")
        elif "range" not in entry.metadata:
            kind, name = _KINDS[hint]
            if not isinstance(value, kind) or (isinstance(value, bool) and hint is not bool):
                raise OutOfRange(entry.name, f"must be {name}, got {shown(value)}")
    check_ranges(settings)


def _spelled(bound: float) -> str:
    if isinstance(bound, int) and bound >= 10**9 and str(bound).strip("0") == "1":
        return f"10^{len(str(bound)) - 1}"
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:,.15g}"


def shown(value: Any) -> str:
    """A value that was refused, as a message has room for it."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # of a number of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:30]}..."
