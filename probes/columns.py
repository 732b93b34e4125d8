"""The columns of trials, each declared once: what it holds in a row of a log and in the tidy table, its range and its meaning.

Logs, archives, tables that are imported and data frames are checked by these declarations, and the documentation lists them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Literal, get_args

from vlm_probe.stimuli.errors import is_text
from vlm_probe.stimuli.question import Status
from vlm_probe.stimuli.ranges import Range, shown, whole

STATUSES = (*get_args(Status), "error")
"""How reading a reply went; "error" if there is none."""
TRANSFER = ("within", "shifted", "cross-task", "cross-family", "zero-shot")
"""Levels of transfer, from near to far."""

Kind = Literal["text", "number", "whole", "truth", "answer", "texts", "numbers", "object"]
"""Of a value: "truth" is true or false, in tables 1 or 0; an "answer" is a text, a whole number or two of them."""

NATURAL, COUNTING = whole(0, 10**18), whole(1, 10**18)
SHARE = Range(0, 1)


@dataclass(frozen=True)
class Column:
    """A column of trials.

    Attributes:
        name: The same in logs and tables.
        meaning: For users.
        log: What it holds in a row of a log, or null; None if it is not there.
        table: What it holds in the tidy table; None if it is not there.
        range: Of its numbers.
        choices: All its values, where they are texts of which there are only so many.
        default: In the tidy table, of a row that has no value.
        needed: No row may lack a value, and no text may be empty.
        required: A table that is imported must have the column; all others are filled.
        later: Logs of earlier versions lack it.
    """

    name: str
    meaning: str
    log: Kind | None = None
    table: Kind | None = None
    range: Range | None = None
    choices: tuple[str, ...] = ()
    default: str | int | None = None
    needed: bool = False
    required: bool = False
    later: bool = False

    @property
    def allowed(self) -> str:
        """What its values may be, in words."""
        kind = self.table or self.log or "text"
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if kind in ("number", "whole"):
            return str(self.range or Range())
        return _WORDS[kind] + (" that is not empty" if self.needed else "")

    def read(self, value: Any) -> Any:
        """A cell of a table as what the column holds.

        Args:
            value: Of any type; None if it is missing.

        Returns:
            A text, a float or an int, as the column holds; the default, or None, for a missing value.

        Raises:
            ValueError: If it is nothing like that, or outside the range; the message says what is allowed.
        """
        if value is None or (isinstance(value, str) and not value.strip()):
            if self.needed and self.default is None:
                raise ValueError("is empty, and every row needs it")
            return self.default
        if self.table == "text":
            text = _as_text(value)
            if text is not None and (not self.choices or text in self.choices):
                return text
        else:
            number = _as_number(value, truth=self.table == "truth")
            allowed = _TRUTH if self.table == "truth" else self.range or Range()
            if number is not None and allowed.holds(number):
                return float(number) if self.table == "number" else number
        raise ValueError(f"must be {self.allowed}, got {shown(value)}")


COLUMNS = (
    Column(
        "run",
        "who answered: one adapter, or one untrained model (one seed of it, where replies are sampled), whatever number of folders it"
        " has",
        table="text",
        needed=True,
        required=True,
    ),
    Column("model", "the model, without its training", log="text", table="text", default="", needed=True),
    Column("method", "how it was trained: `sft`, `ppo`, ...; `none` if untrained", table="text", default="none"),
    Column("train_tasks", "tasks that it was trained on, joined by `+`", table="text", default="none"),
    Column("train_family", "families of these tasks, joined by `+`", table="text"),
    Column("regime", "what else was special about the training (shifts, curriculum, ...)", table="text", default=""),
    Column("seed", "seed of the training, or of sampling", table="whole", range=NATURAL, default=0),
    Column("samples", "samples that the training has seen", table="number", range=NATURAL),
    Column("test_task", "the task that is asked", table="text", needed=True, required=True),
    Column("test_family", "its family of tasks", table="text"),
    Column("shift", "names of the shifts of the item, joined by `+`", table="text", default="none"),
    Column("shift_level", "the highest level of the shifts", table="whole", range=NATURAL, default=0),
    Column("transfer", "how far the test is from the training; empty if untrained", table="text", choices=TRANSFER),
    Column("key", "identifies the trial: who was asked what, and how", log="text", needed=True),
    Column("item_id", "the item", log="text", table="text", needed=True, required=True),
    Column("task", "its task", log="text", needed=True),
    Column("task_version", "the version of the task that made it", log="whole", range=NATURAL),
    Column("pair_id", "what the members of a minimal pair share", log="text", table="text"),
    Column("group_id", "what else belongs together, such as mirror images", log="text", table="text"),
    Column("role", "the item in its pair: `base`, `foil1`, ...", log="text", table="text"),
    Column("margin", "signed physical margin, dimensionless", log="number", table="number"),
    Column("margin_bin", "the designed interval of margins that it is from", table="text"),
    Column("mirrored", "whether the item is a mirror image", table="truth", default=0),
    Column("count", "objects that the physics is about", table="whole", range=NATURAL),
    Column("build", "how the outcome relates to the obvious cue: `plain`, `tricky`, ...", table="text"),
    Column("polarity", "which way a yes/no question is asked", table="whole", range=whole(0, 1)),
    Column("order", "the order in which the options are named", table="whole", range=whole(0, 1)),
    Column("condition", "all factors of the item", log="object"),
    Column("variant", "how the question is worded", log="object"),
    Column(
        "manner",
        "how the item was presented; empty for the plain way",
        log="object",
        table="text",
        default="",
        later=True,
    ),
    Column(
        "examples",
        "worked examples before the question: their number (in logs, their ids)",
        log="texts",
        table="whole",
        range=NATURAL,
        default=0,
        later=True,
    ),
    Column(
        "readout",
        "`generate`: a reply was read; `options`: log-probabilities of all legal answers",
        log="text",
        table="text",
        default="generate",
        needed=True,
    ),
    Column("prompt", "the words of the question", log="text", needed=True),
    Column("image_sha256", "hash of the image", log="text"),
    Column("scene_sha256", "hash of the scene", log="text"),
    Column(
        "attempt",
        "number of the attempt",
        log="whole",
        table="whole",
        range=COUNTING,
        default=1,
        later=True,
    ),
    Column(
        "attempts",
        "the most attempts that there can be",
        log="whole",
        table="whole",
        range=COUNTING,
        default=1,
        later=True,
    ),
    Column(
        "memory", "what of earlier attempts the model is told", log="text", table="text", default="none", later=True
    ),
    Column("sample", "seed of a sampled reply; 0 for greedy ones", table="whole", range=NATURAL, default=0),
    Column("raw", "the reply as it came, without the thought before it", log="text"),
    Column("thought", "what the model thought before it answered; empty if it did not", log="text", later=True),
    Column("answer", "what the reply means; empty if it could not be read", log="answer", table="text"),
    Column("answer_text", "the answer in the words of the question", log="text"),
    Column("logprobs", "log-probabilities of the legal answers, in their order", log="numbers"),
    Column("options", "the legal answers, where they are not numbers", log="texts"),
    Column("truth", "the right answer", log="answer", table="text"),
    Column(
        "signal",
        "the answer of a two-option judgement that signal detection and psychometric functions count",
        table="text",
    ),
    Column("correct", "whether the answer is the right one", log="truth", table="truth", required=True),
    Column(
        "success", "whether it works: the same for judgements; for actions, by simulation", log="truth", table="truth"
    ),
    Column("reward", "graded score of the answer; 0 if none was read", log="number", table="number", range=SHARE),
    Column("detail", "details from the scorer", log="object"),
    Column("p_correct", "probability of the right answers among the legal ones", "number", "number", SHARE),
    Column("confidence", "probability of the given answer among the legal ones", table="number", range=SHARE),
    Column("chance", "what a random legal answer scores", log="number", table="number", range=SHARE),
    Column(
        "status",
        "how reading the reply went; `ok` if an answer was read",
        log="text",
        table="text",
        choices=STATUSES,
        default="ok",
        needed=True,
    ),
    Column("n_candidates", "number of legal answers", log="whole", range=COUNTING),
    Column("observer", "whether the model is one without weights", table="truth", default=0),
    Column("stimuli", "hash of the stimulus set", table="text", default=""),
    Column("folder", "where the trial is logged", table="text"),
    Column("latency_s", "seconds that it took, a batch's time shared evenly", log="number", range=Range(0)),
    Column("error", "why there is no reply; empty if there is one", log="text"),
    Column("time", "when it was written, UTC", log="text"),
)
"""All columns, in the order of the tidy table."""

_NAMED = {column.name: column for column in COLUMNS}
TABLE = tuple(column for column in COLUMNS if column.table is not None)
"""Those of the tidy table."""
LOG = tuple(
    _NAMED[name]
    for name in (
        *(
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
        ),
        *(
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
        ),
        *(
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
        ),
        *("role", "image_sha256", "scene_sha256", "thought", "latency_s", "error", "time"),
    )
)
"""Those of a row of a log, in the order of a line, which is part of the format: archives give logs back byte for byte."""

_WORDS: Mapping[Kind, str] = {
    "text": "a text",
    "truth": "0 or 1",
    "answer": "a text or whole numbers",
    "texts": "a list of texts",
    "numbers": "a list of numbers",
    "object": "an object",
}
_TYPES: Mapping[Kind, tuple[type, ...]] = {
    "text": (str,),
    "number": (int, float),
    "whole": (int,),
    "truth": (bool,),
    "answer": (str, int, list),
    "object": (dict,),
}
_INSIDE: Mapping[Kind, set[type]] = {"texts": {str}, "numbers": {int, float}}
_TRUTH = whole(0, 1)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def check_row(row: Mapping[str, Any]) -> None:
    """Refuse a row of a log if a column holds what is not allowed there; columns that are not declared may hold anything.

    Raises:
        ValueError: The message names the column, its range and the value.
    """
    for name, value in row.items():
        fits = _FITS.get(name)
        if fits is not None and not fits(value) and not fits(_plain(value)):
            column = _NAMED[name]
            what = "true or false" if column.log == "truth" else column.allowed
            what = _WORDS[column.log] if column.log in (*_INSIDE, "answer", "object") else what
            raise ValueError(f"{name} must be {what}, got {shown(value)}")


def _fits(column: Column) -> Callable[[Any], bool]:
    """Whether a value of a row of a log is allowed in a column. Logs are long: every test is as short as it can be."""
    kind = column.log or "text"
    if column.choices:
        return lambda value: type(value) is str and value in column.choices
    if column.needed:
        return lambda value: type(value) is str and value != ""
    if kind in _INSIDE:
        inside = _INSIDE[kind]
        return lambda value: value is None or (type(value) is list and inside.issuperset(map(type, value)))
    types = (*_TYPES[kind], type(None))
    if kind not in ("number", "whole"):
        return lambda value: type(value) in types
    allowed = column.range or Range()
    least, most = max(allowed.least, -sys.float_info.max), min(allowed.most, sys.float_info.max)
    return lambda value: value is None or (type(value) in types and least <= value <= most)


_FITS = {column.name: _fits(column) for column in LOG}


def _plain(value: Any) -> Any:
    """A value as JSON would give it back: numbers of numpy are floats, tuples are lists."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    kinds: tuple[type, ...] = (bool, int, float, str, dict)
    return next((kind(value) for kind in kinds if isinstance(value, kind)), value)


def _as_text(value: Any) -> str | None:
    """A cell as a text; None if it is none, such as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping | Sequence | Set | bytes) and not isinstance(value, str):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a whole number is a float where others in its column are missing
    text = str(value)
    return text if is_text(text) else None


def _as_number(value: Any, *, truth: bool) -> int | float | None:
    """A cell as a number, whole where it is whole; None if it is none."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str):
        text = value.strip()
        if truth and text.lower() in ("true", "false"):
            return int(text.lower() == "true")
        if not _NUMBER.fullmatch(text) or len(text) > 400:
            return None
        value = int(text) if text.lstrip("+-").isdigit() else float(text)
    if isinstance(value, bool):
        return int(value) if truth else None
    if isinstance(value, Integral):
        return int(value)
    if not isinstance(value, Real | Decimal):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
