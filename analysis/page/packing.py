"""Data inside a page: columns with each value once, and JSON that no text in it can break out of."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from vlm_probe.stimuli.plain_json import dumps

ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def script_json(data: Any) -> str:
    """JSON for a `<script>` block: ASCII, and without the characters that could end the block or open a tag.

    Raises:
        ValueError: If the data holds a number that JSON does not have.
    """
    text = dumps(data, compact=True, ascii_only=True)
    # None of them is part of JSON's own syntax, so they occur within strings only, where the escape means the same.
    for character, escape in ESCAPED.items():
        text = text.replace(character, escape)
    return text


def packed(values: Iterable[Hashable]) -> dict[str, Any]:
    """A column as its different values (`levels`, by first occurrence) and which of them each row has (`codes`)."""
    levels: dict[Hashable, int] = {}
    codes = [levels.setdefault(value, len(levels)) for value in values]
    return {"levels": list(levels), "codes": codes}


def packed_columns(rows: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Attributes of objects as packed columns by name."""
    return {name: packed(getattr(row, name) for row in rows) for name in names}
