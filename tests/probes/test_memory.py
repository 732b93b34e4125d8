"""What a model is told of its earlier attempts, and what it is not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlm_probe.probes.memory import Memory, Past
from vlm_probe.probes.models import Trial, Turn
from vlm_probe.stimuli.attempts import FAILED, IMPOSSIBLE, UNREAD, remembered
from vlm_probe.stimuli.dataset import StimulusSet


def shade(value: int) -> Image.Image:
    return Image.fromarray(np.full((64, 64, 3), value, dtype=np.uint8))


PAST = [Past("11", FAILED, shade(11)), Past("no idea", UNREAD, None), Past("13", IMPOSSIBLE, shade(13))]


def told(trial: Trial) -> list[tuple[str, list[int]]]:
    """Words of every turn, and the shades of its pictures."""
    return [(turn.text, [np.asarray(image)[0, 0, 0] for image in turn.images]) for turn in trial.turns]


def test_what_is_in_the_context_of_each_attempt(topblock: StimulusSet) -> None:
    item = topblock.items[0]
    question, example = item.question.prompt, (Turn("user", "And here?", (shade(7),)), Turn("assistant", "5"))
    first = Trial(item, shade(1), example)
    start = [("And here?", [7]), ("5", []), (question, [1])]
    assert told(first) == start and first.attempt == 1
    everything = [
        *start,
        ("11", []),
        (f"{FAILED} {question}", [11]),
        ("no idea", []),
        (f"{UNREAD} {question}", []),
        ("13", []),
        (f"{IMPOSSIBLE} {question}", [13]),
    ]
    assert told(Memory(4, "all").trial(first, PAST)) == everything
    assert told(Memory(4, "all").trial(first, PAST[:1])) == everything[:5]
    assert told(Memory(4, "last-1").trial(first, PAST)) == [*start, *everything[7:]]
    assert told(Memory(4, "last-2").trial(first, PAST)) == [*start, *everything[5:]]
    assert told(Memory(4, "none").trial(first, PAST)) == start
    for kept in ("none", "last-1", "all"):
        trials = [Memory(4, kept).trial(first, PAST[:number]) for number in range(4)]
        assert [trial.attempt for trial in trials] == [1, 2, 3, 4]
        assert trials[0] == first
        # The question comes last, and attempts are told apart, whatever is remembered.
        assert all(trial.turns[-1].text.endswith(question) for trial in trials)
        assert len({trial.id for trial in trials}) == 4 and trials[0].id == first.id


@pytest.mark.parametrize(("kept", "turns"), [("none", 1), ("last-1", 3), ("last-2", 5), ("last-9", 7), ("all", 7)])
def test_the_longest_context_is_at_least_as_long_as_any(kept: str, turns: int, topblock: StimulusSet) -> None:
    first, memory = Trial(topblock.items[0], shade(1)), Memory(4, kept)
    longest = memory.longest(first)
    assert len(longest.turns) == turns and longest.attempt == 4
    replies = [Past(reply, words, shade(2)) for reply, words in (("-20", FAILED), ("7", UNREAD), ("0", IMPOSSIBLE))]
    for one in replies:
        other = memory.trial(first, [one] * 3)
        assert sum(len(turn.text) for turn in other.turns) <= sum(len(turn.text) for turn in longest.turns)
        assert sum(len(turn.images) for turn in other.turns) == sum(len(turn.images) for turn in longest.turns)


def test_how_many_are_remembered() -> None:
    assert [remembered(kept, 3) for kept in ("none", "last-1", "last-2", "last-9", "all")] == [0, 1, 2, 3, 3]
    for kept in ("some", "last-0", "last", "last--1", ""):
        with pytest.raises(ValueError, match="memory must be"):
            Memory(3, kept)
    with pytest.raises(ValueError, match="attempts must be a whole number from 1"):
        Memory(0)
