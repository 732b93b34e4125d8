"""The row of a trial: its columns, what each of them holds, and the line of a log that it is written as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_probe.stimuli.plain_json import dumps, parse_object

COLUMNS = (
    "key",
    "item_id",
    "task",
    "task_version",
    "model",
    "readout",
    "prompt",
    "raw",
    "answer",
    "answer_text",
    "status",
    "logprobs",
    "options",
    "p_correct",
    "truth",
    "correct",
    "success",
    "reward",
    "detail",
    "n_candidates",
    "chance",
    "margin",
    "condition",
    "variant",
    "manner",
    "examples",
    "attempt",
    "attempts",
    "memory",
    "pair_id",
    "group_id",
    "role",
    "image_sha256",
    "scene_sha256",
    "latency_s",
    "error",
    "time",
)
"""The columns of a row, all always present.

key: identifies the trial (see `vlm_probe.probes.trials.trial_key`). raw: the reply, null with the options readout. answer: its
meaning, null if it could not be read; status: how reading went, "error" if the trial failed. logprobs: of every legal
answer in the order of the grammar's candidates, which `options` names where they are not numbers. p_correct: probability
of the answers that are right, out of all legal ones. truth: the right answer. reward: in [0, 1], 0 if unread. chance: what
a random legal answer is expected to score. manner: how the item was presented (see `vlm_probe.probes.presentation.Manner`), with its
code, which is empty for the plain one. examples: ids of the worked examples that came first. attempt: number of the
attempt, from 1, of at most `attempts`; memory: what of the earlier ones the model was told. latency_s: seconds, the batch's
time shared evenly. error: null or "Type: message". time: UTC, when it was written.
"""

TEXTS = (
    *("key", "item_id", "task", "model", "readout", "prompt", "raw", "answer_text", "status", "memory"),
    *("pair_id", "group_id", "role", "image_sha256", "scene_sha256", "error", "time"),
)
NUMBERS = ("p_correct", "reward", "chance", "margin", "latency_s")
WHOLES = ("task_version", "n_candidates", "attempt", "attempts")
TRUTHS = ("correct", "success")
"""Columns that hold plain values of one type; all others hold lists, objects, or answers of any type."""

Kinds = Mapping[str, tuple[type, ...]]
"""The types that may stand in the entries of an object."""

_NONE = type(None)
KINDS: Kinds = {
    **dict.fromkeys(TEXTS, (str, _NONE)),
    **dict.fromkeys(("key", "item_id", "task", "model", "readout", "prompt", "status"), (str,)),
    **dict.fromkeys(NUMBERS, (int, float, _NONE)),
    **dict.fromkeys(WHOLES, (int, _NONE)),
    **dict.fromkeys(TRUTHS, (bool, _NONE)),
    **dict.fromkeys(("answer", "truth"), (str, int, list, _NONE)),
    **dict.fromkeys(("logprobs", "options", "examples"), (list, _NONE)),
    **dict.fromkeys(("detail", "condition", "variant", "manner"), (dict, _NONE)),
}
"""What the columns hold; a row with something else in one of them was not written here."""

LATER: dict[str, Any] = {"manner": None, "examples": None, "attempt": 1, "attempts": 1, "memory": "none"}
"""Columns that logs of earlier versions do not have, and what goes for a row without them: plain manner, one attempt."""


def whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all columns, in their order, and nothing else.

    Args:
        row: With all of `COLUMNS` but those of `LATER`.

    Raises:
        KeyError: If a column is missing.
    """
    given = {**LATER, **row}
    return {name: given[name] for name in COLUMNS}


def line_of(row: Mapping[str, Any]) -> str:
    """A row, as it stands, as a line of a log, its end included.

    Raises:
        ValueError: If a number is not finite.
    """
    return dumps(dict(row), ascii_only=True) + "\n"


def row_of(line: bytes) -> dict[str, Any]:
    """The row that a line of a log holds, in this or an earlier version.

    Raises:
        ValueError: If it is none; the message says why.
    """
    row = parse_object(line)
    for name in ("key", "error", "item_id", "task"):
        if name not in row:
            raise ValueError(f"it has no {name}")
    check_kinds(row, KINDS)
    return row | {name: value for name, value in LATER.items() if name not in row}


def check_kinds(data: Mapping[str, Any], kinds: Kinds) -> None:
    """Refuse an object with something of another type in it than is written there.

    Args:
        data: The object; entries that `kinds` does not name may hold anything, and none has to be there.
        kinds: The types by entry.

    Raises:
        ValueError: If an entry holds something else; the message names it.
    """
    for name, value in data.items():
        if name in kinds and not isinstance(value, kinds[name]):
            raise ValueError(f"{name} is {brief(value)!r}")


def brief(value: Any) -> str:
    """The beginning of a value, as a message has room for it."""
    text = str(value)
    return text[:12] + "..." if len(text) > 40 else text
