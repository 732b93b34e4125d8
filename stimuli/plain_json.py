"""JSON of unknown origin: whatever is wrong with it is one kind of error, and nothing in it is taken that is no JSON."""

from __future__ import annotations

import json
from typing import Any

from vlm_probe.stimuli.errors import is_text


def parse(text: str | bytes, *, finite: bool = True) -> Any:
    """The value that a text in JSON holds.

    Args:
        text: UTF-8 where it is bytes.
        finite: Refuse NaN and infinities, which are no JSON although Python writes and reads them.

    Raises:
        ValueError: If it is no JSON: cut off, not UTF-8, nested beyond all use, not finite, or with half a surrogate pair in it,
            which no file and no terminal takes.
    """
    written = text if isinstance(text, str) else text.decode()
    try:
        value = (_STRICT if finite else _LAX).decode(written)
        if "\\ud" in written or "\\uD" in written:
            _refuse_half_pairs(value)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


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


def _refuse_half_pairs(value: Any, key: str = "") -> None:
    """Raise ValueError if a text holds half of a surrogate pair, which JSON can spell although it is no character."""
    if isinstance(value, str):
        if not is_text(value):
            raise ValueError(f"{key!r} holds half of a surrogate pair" if key else "half of a surrogate pair")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _refuse_half_pairs(name)
            _refuse_half_pairs(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _refuse_half_pairs(inner, key)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


_STRICT = json.JSONDecoder(parse_constant=_refuse)
_LAX = json.JSONDecoder()
