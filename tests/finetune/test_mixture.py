"""Several tasks in one training: shares are right at every place, and whatever is not a mixture is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_probe.finetune.mixture import Share, apportion, interleave, parse_mixture, realised, spell

weights = st.lists(st.floats(0.05, 20), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(weights, st.integers(1, 150))
def test_shares_are_right_at_every_place(weights: list[float], n: int) -> None:
    mixture = parse_mixture(",".join(f"t{i}:{weight!r}" for i, weight in enumerate(weights)))
    counts: Counter[str] = Counter()
    for place, task in enumerate(interleave(mixture, n), 1):
        counts[task] += 1
        assert all(abs(counts[share.task] - place * share.share) < 1 for share in mixture)


def test_a_longer_order_begins_with_the_shorter_one() -> None:
    mixture = parse_mixture("a:3,b,c:1.5")
    assert interleave(mixture, 300)[:77] == interleave(mixture, 77)
    assert interleave(parse_mixture("a:2,b:1"), 6) == ["a", "b", "a", "a", "b", "a"]


def test_a_mixture_is_read_and_written() -> None:
    assert parse_mixture(" a:2, b ") == (Share("a", 2 / 3), Share("b", 1 / 3))
    for text in ("a:2,b:1", "a,b,c", "a", "a:1.5,b:1,c:4"):
        assert spell(parse_mixture(text)) == text
        assert parse_mixture(spell(parse_mixture(text))) == parse_mixture(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no task is named"),
        (",", "no task is named"),
        ("a,b,a", "named twice"),
        ("a:two", "write a:2"),
        ("a:0", "write a:2"),
        ("a:-1,b", "write a:2"),
        ("a:nan", "write a:2"),
        ("a:inf", "write a:2"),
        (":2", "without a task"),
    ],
)
def test_what_is_no_mixture_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mixture(text)


def test_items_are_divided_by_the_shares() -> None:
    assert apportion(parse_mixture("a:2,b:1"), 3000) == {"a": 2000, "b": 1000}
    assert sum(apportion(parse_mixture("a,b,c"), 100).values()) == 100
    with pytest.raises(ValueError, match="10 items are too few for a share of b"):
        apportion(parse_mixture("a:100,b:1"), 10)
    assert realised(interleave(parse_mixture("a:2,b:1"), 9)) == {"a": 6 / 9, "b": 3 / 9}
