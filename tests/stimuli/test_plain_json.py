"""JSON: what is written is read back as it was, and nothing that is not JSON is written or read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_probe.stimuli.errors import whole_text
from vlm_probe.stimuli.plain_json import DEEPEST, dumps, parse, parse_object

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values, st.booleans(), st.booleans(), st.sampled_from([None, 1]))
def test_what_is_written_is_read_back(value: Any, ascii_only: bool, compact: bool, indent: int | None) -> None:
    text = dumps(value, ascii_only=ascii_only, compact=compact, indent=indent)
    assert parse(text) == value == json.loads(text) and parse(text.encode()) == value
    assert not ascii_only or text.isascii()


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e400]", "1e400 is too large"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
        ('{"a": 1, "\\u0061": 1}', "'a' is given twice"),
        ('["\\ud83d"]', "half a character"),
        ('{"\\uDC00": 1}', "half a character"),
        ('["\ud83d"]', "half a character"),
        (b'["\xed\xa0\xbd"]', "can't decode"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested deeper than 100"),
        ("[" * 100_000, "nested deeper than 100"),
        ('{"a":' * 100_000, "nested deeper than 100"),
        ("1" * 5000, "digits"),
        ('{"a": 1', "Expecting"),
        ("", "Expecting"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "replace").decode(),
)
def test_what_is_not_json_is_not_read(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": [math.nan]}, "not JSON compliant"),
        ([math.inf], "not JSON compliant"),
        ({1: "a", "1": "b"}, "name of an entry"),
        ([{None: 1}], "name of an entry"),
        (["\ud83d"], "half a character"),
        ({"a": {"\udc00": 1}}, "half a character"),
        (nested(DEEPEST + 1), "nested deeper than 100"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_is_not_json_is_not_written(value: Any, reason: str, ascii_only: bool) -> None:
    with pytest.raises(ValueError, match=reason):
        dumps(value, ascii_only=ascii_only)


def test_what_just_fits() -> None:
    assert parse(dumps(nested(DEEPEST))) == nested(DEEPEST)
    for text in ("\U0001f642", "\\ud83d", "a\u2028b\x00"):  # a whole character, a backslash before letters, odd ones
        assert parse(dumps([text], ascii_only=True)) == parse(dumps([text])) == [text]
    assert math.isnan(parse("NaN", finite=False)) and parse('"\\ud83d"', whole=False) == "\ud83d"
    with pytest.raises(ValueError, match="given twice"):
        parse('{"a": 1, "a": 1}', finite=False, whole=False)
    with pytest.raises(ValueError, match="not an object"):
        parse_object("[1]")


def test_halves_of_characters_are_replaced() -> None:
    assert whole_text("a\ud83db") == "a�b" and whole_text("\ud83d\ude42") == "\U0001f642"
    assert whole_text("ü\U0001f642") == "ü\U0001f642"
