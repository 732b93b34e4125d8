"""The trials that a page shows: every row of the logs that the tidy table holds, with what was asked, said and worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vlm_probe.analysis.frame import Trials
from vlm_probe.analysis.levels import shift_name
from vlm_probe.analysis.rows import Row, attempt_of, failed, manner_of, succeeded
from vlm_probe.probes.trials import is_run, read_trials
from vlm_probe.stimuli.plain_json import dumps
from vlm_probe.stimuli.question import Grammar

OUTCOMES = ("right", "wrong", "unread", "failed")
MOST_OPTIONS = 8
"""Options whose probabilities are kept, the likeliest first; a grid of thousands would be most of the file."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One trial as the page shows it.

    Attributes:
        source: Index of its log or table among `Trials.sources`.
        task, shift: What was tested; the shift as "none" or "camera:2".
        margin: Signed, dimensionless; None if there is none.
        item, pair, group, role: Identify the item, its minimal pair and its mirror images.
        manner: Code of the manner; empty for the plain one.
        attempt, attempts: Number of the attempt, and of how many at most.
        readout: "generate" or "options".
        prompt, raw: What was asked, and the reply as it came (None with the readout "options").
        answer, truth: As text; the answer is None if it could not be read.
        status: How reading went.
        outcome: One of `OUTCOMES`.
        reward, p_correct, chance: In [0, 1].
        options: (answer, probability) of the likeliest legal answers; empty if they were not scored.
        others: Probability of the options that are not listed.
        detail: What the scorer says, as text.
        image, stimuli: Hash of the image, and of the set (first digits).
        error: Why the trial failed.
    """

    source: int
    task: str
    shift: str
    margin: float | None
    item: str
    pair: str | None
    group: str | None
    role: str | None
    manner: str
    attempt: int
    attempts: int
    readout: str
    prompt: str | None
    raw: str | None
    answer: str | None
    truth: str | None
    status: str
    outcome: str
    reward: float | None
    p_correct: float | None
    chance: float | None
    options: tuple[tuple[str, float], ...]
    others: float | None
    detail: str
    image: str | None
    stimuli: str
    error: str | None


def shown_trials(trials: Trials, grammars: Mapping[tuple[str, str], Grammar]) -> Iterator[Shown]:
    """The trials of all logs and tables, failed ones included; what the table left out as a repetition is left out here too.

    Args:
        trials: As `vlm_probe.analysis.frame.load` gives them.
        grammars: (hash of the set, item) -> answer grammar, where the set is there: it names the numbers of an action.

    Raises:
        RunError: If a log was damaged since the table was made.
    """
    held = trials.table.groupby("folder", observed=True, sort=False)
    tables = {str(folder): rows for folder, rows in held}
    for index, source in enumerate(trials.sources):
        rows = tables.get(source.path, trials.table.iloc[:0])
        stimuli = source.stimuli[:12]
        if not is_run(source.path):
            yield from _of_table(rows, index)
            continue
        # A run that goes on has more rows by now than the table: one state of the log for all parts of the page.
        names = ["test_task", "item_id", "readout", "manner", "attempt"]
        kept = set(rows[names].astype(str).itertuples(index=False, name=None))
        for row in read_trials(source.path):
            found = _of_row(row, index, stimuli, grammars.get((stimuli, str(row["item_id"]))))
            identity = (found.task, found.item, found.readout, found.manner, str(found.attempt))
            if identity in kept or failed(row):
                yield found


def shift_text(shifts: Sequence[Any]) -> str:
    """Shifts as the command line writes them, such as "camera:2"; "none" if there are none."""
    name, level = shift_name(tuple((str(n), int(grade)) for n, grade in shifts or ()))
    return name if name == "none" else f"{name}:{level}"


def is_mirrored(trial: Shown) -> bool:
    """Whether the mirror image was asked about, so that what is known of the item's own scene does not hold."""
    return trial.manner.startswith("mirrored")


def outcome_of(row: Row) -> str:
    """One of `OUTCOMES`."""
    if failed(row):
        return "failed"
    if succeeded(row):
        return "right"
    return "wrong" if row.get("answer") is not None else "unread"


def probabilities(row: Row, grammar: Grammar | None) -> tuple[tuple[tuple[str, float], ...], float | None]:
    """(answer, probability) of the likeliest legal answers out of all of them, and what the rest comes to.

    Logs name the options of judgements; numbers are named by the grammar, and without it there is nothing to show.

    Args:
        row: Of a log.
        grammar: Of the item's answers, where the set is there.

    Returns:
        (answer, probability) of at most `MOST_OPTIONS`; and the rest, None if there is none.
    """
    logprobs = row.get("logprobs")
    names = row.get("options") or ([text for text, _ in grammar.candidates()] if grammar is not None else None)
    if not logprobs or not names or len(names) != len(logprobs):
        return (), None
    highest = max(logprobs)
    weights = [math.exp(value - highest) for value in logprobs]
    total = math.fsum(weights)
    ranked = sorted(zip(map(str, names), weights, strict=True), key=lambda pair: -pair[1])
    listed = tuple((name, _rounded(weight / total)) for name, weight in ranked[:MOST_OPTIONS])
    rest = math.fsum(weight for _, weight in ranked[MOST_OPTIONS:]) / total
    return listed, _rounded(rest) if len(ranked) > MOST_OPTIONS else None


def _of_row(row: Row, source: int, stimuli: str, grammar: Grammar | None) -> Shown:
    options, others = probabilities(row, grammar)
    return Shown(
        source=source,
        task=str(row["task"]),
        shift=shift_text((row.get("condition") or {}).get("shifts") or ()),
        margin=row.get("margin"),
        item=str(row["item_id"]),
        pair=row.get("pair_id"),
        group=row.get("group_id"),
        role=row.get("role"),
        manner=manner_of(row),
        attempt=attempt_of(row),
        attempts=int(row.get("attempts") or 1),
        readout=str(row["readout"]),
        prompt=row.get("prompt"),
        raw=row.get("raw"),
        answer=_text(row.get("answer")),
        truth=_text(row.get("truth")),
        status=str(row.get("status")),
        outcome=outcome_of(row),
        reward=_number(row.get("reward")),
        p_correct=_number(row.get("p_correct")),
        chance=_number(row.get("chance")),
        options=options,
        others=others,
        detail=_detail(row.get("detail")),
        image=row.get("image_sha256"),
        stimuli=stimuli,
        error=row.get("error"),
    )


def _of_table(rows: pd.DataFrame, source: int) -> Iterator[Shown]:
    """Trials of external tables, which have neither replies nor images."""
    for row in rows.astype(object).where(rows.notna(), None).to_dict("records"):
        shift = str(row["shift"])
        outcome = "right" if row["success"] else "unread" if row["status"] != "ok" else "wrong"
        yield Shown(
            source=source,
            task=str(row["test_task"]),
            shift=shift if shift == "none" else f"{shift}:{row['shift_level']}",
            margin=row["margin"],
            item=str(row["item_id"]),
            pair=row["pair_id"],
            group=row["group_id"],
            role=row["role"],
            manner=str(row["manner"]),
            attempt=int(row["attempt"]),
            attempts=int(row["attempts"]),
            readout=str(row["readout"]),
            prompt=None,
            raw=None,
            answer=row["answer"],
            truth=row["truth"],
            status=str(row["status"]),
            outcome=outcome,
            reward=_number(row["reward"]),
            p_correct=_number(row["p_correct"]),
            chance=_number(row["chance"]),
            options=(),
            others=None,
            detail="",
            image=None,
            stimuli=str(row["stimuli"]),
            error=None,
        )


def _detail(detail: Any) -> str:
    """What the scorer says in one line, without the truth, which has a place of its own."""
    if not isinstance(detail, Mapping):
        return ""
    return ", ".join(
        f"{name.replace('_', ' ')}: {value if isinstance(value, str) else dumps(value)}"
        for name, value in detail.items()
        if name != "truth"
    )


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _number(value: Any) -> float | None:
    return None if value is None else _rounded(value)


def _rounded(value: float) -> float:
    """A number as the page writes it: four decimals."""
    return round(float(value), 4)
