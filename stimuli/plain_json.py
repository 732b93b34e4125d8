"""JSON as the standard has it, read and written: whatever is wrong with a text or a value is one kind of error.

Python's own module takes more: NaN and infinities, of a name that is given twice the last, halves of characters, and nesting that no
other program reads. All JSON of this program passes here, so that what one part writes every other part, and every other program, reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from vlm_probe.stimuli.errors import is_text

DEEPEST = 100
"""Lists and objects within each other."""

_CONTAINERS = (dict, list, tuple)
_NAMES = {str}


def parse(text: str | bytes, *, finite: bool = True, whole: bool = True) -> Any:
    """The value that a text in JSON holds.

    Args:
        text: UTF-8 where it is bytes.
        finite: Refuse NaN and infinities. Other programs write them into files of models, although they are not JSON.
        whole: Refuse texts with half a character (a lone surrogate).

    Raises:
        ValueError: If it is not JSON: cut off, not UTF-8, nested deeper than `DEEPEST`, a name given twice in an object, half a
            character, or a number that is not finite.
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        value = (_STRICT if finite else _LAX).decode(text)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from error
    # Most texts need no second look: few have so many brackets, or characters written as two halves.
    if text.count("[") + text.count("{") > DEEPEST:
        _check_shape(value)
    if whole and ("\\ud" in text or "\\uD" in text or not is_text(text)):
        _check_texts(value)
    return value


def parse_object(text: str | bytes, *, finite: bool = True, whole: bool = True) -> dict[str, Any]:
    """The object that a text in JSON holds.

    Args:
        text: UTF-8 where it is bytes.
        finite: Refuse NaN and infinities.
        whole: Refuse texts with half a character.

    Raises:
        ValueError: As for `parse`, and if it is not an object.
    """
    value = parse(text, finite=finite, whole=whole)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def dumps(
    value: Any,
    *,
    indent: int | None = None,
    sort_keys: bool = False,
    ascii_only: bool = False,
    compact: bool = False,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """A value as a text in JSON, which `parse` reads.

    Args:
        value: Of dictionaries, lists, texts, numbers, truth values and None.
        indent: Spaces per level; None for one line.
        sort_keys: Names of objects in alphabetical order, for hashes.
        ascii_only: Write other characters as escapes.
        compact: No spaces after commas and colons.
        default: Makes such a value of one that is none.

    Raises:
        ValueError: If a number is not finite, a name of an object is not a text, a text holds half a character, or the value
            is nested deeper than `DEEPEST`.
        TypeError: If there is something else in it.
    """
    _check_shape(value)
    text = json.dumps(
        value,
        indent=indent,
        sort_keys=sort_keys,
        ensure_ascii=ascii_only,
        separators=(",", ":") if compact else None,
        default=default,
        allow_nan=False,
    )
    if "\\ud" in text or not is_text(text):
        _check_texts(value)
    return text


def _check_shape(value: Any, depth: int = 1) -> None:
    """Raise ValueError if a value is nested too deeply, or a name in it is not a text."""
    if not isinstance(value, _CONTAINERS):
        return
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    if isinstance(value, dict):
        # Python would write the number 1 and the text "1" as the same name.
        if not {*map(type, value)} <= _NAMES and any(not isinstance(name, str) for name in value):
            raise ValueError("a name of an entry is not a text")
        value = value.values()
    for inner in value:
        if isinstance(inner, _CONTAINERS):
            _check_shape(inner, depth + 1)


def _check_texts(value: Any) -> None:
    """Raise ValueError if a text in a value holds half a character."""
    if isinstance(value, str) and not is_text(value):
        raise ValueError(f"{value[:40]!r} holds half a character")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_texts(name)
            _check_texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_texts(inner)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{double[:40]!r} is given twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_object)
_LAX = json.JSONDecoder(object_pairs_hook=_object)
