"""JSON of unknown origin: whatever is wrong with it is one kind of error, and nothing in it is taken that is no JSON."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes, *, finite: bool = True) -> Any:
    """The value that a text in JSON holds.

    Args:
        text: UTF-8 where it is bytes.
        finite: Refuse NaN and infinities, which are no JSON although Python writes and reads them.

    Raises:
        ValueError: If it is no JSON: cut off, not UTF-8, nested beyond all use, or not finite.
    """
    try:
        return (_STRICT if finite else _LAX).decode(text if isinstance(text, str) else text.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_object(text: str | bytes, *, finite: bool = True) -> dict[str, Any]:
    """The object that a text in JSON holds.

    Args:
        text: UTF-8 where it is bytes.
        finite: Refuse NaN and infinities.

    Raises:
        ValueError: As for `parse`, and if it is no object.
    """
    value = parse(text, finite=finite)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


_STRICT = json.JSONDecoder(parse_constant=_refuse)
_LAX = json.JSONDecoder()
