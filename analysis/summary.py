"""The summary of one run: what was right, how it was biased, and what could be scored without any physics."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlm_probe.analysis.logs import GROUNDING
from vlm_probe.analysis.proportions import (
    Cell,
    MannerCell,
    Proportion,
    Within,
    by_condition,
    by_level,
    by_manner,
    by_margin,
    wilson,
    within,
)
from vlm_probe.analysis.rows import Row, catch_items, failed, manner_of, plain_rows, succeeded, two_options
from vlm_probe.analysis.signal_detection import SignalDetection, signal_detection
from vlm_probe.probes.trials import RunError, read_run, read_trials


@dataclass(frozen=True)
class Summary:
    """One run in numbers. Of a run in several manners all but `manners` is about the first, the intact one; of a run with
    several attempts all but `attempts` is about first attempts.

    Attributes:
        run: Folder of the run.
        model: Model, as the user named it.
        adapter: What the folder of its adapter is called; empty if it has none.
        stimuli: Stimulus set, as the run records it.
        task: Task name.
        headline: What the proportion of successes is called: answers are right ("accuracy"), actions work.
        readout: "generate" or "options".
        n: Trials in the log.
        errors: Trials that never took place (a broken image, a model error); in no proportion below.
        accuracy: Proportion right (judgements) or working (actions); replies that cannot be read count as wrong.
        parse_rate: Proportion of replies that state one legal answer.
        statuses: How many replies had each parse status.
        reward: Mean reward, 0 to 1.
        signal: The answer that d' and criterion call the signal; None unless the task is a two-option judgement.
        detection: d' and criterion over the replies that could be read.
        yes_bias: Proportion of "yes" among yes/no replies minus the proportion for which "yes" was right; nan if none.
        pairs: Proportion of minimal pairs with every member right.
        set_size: Items in the whole set, of which a run may have asked fewer.
        baselines: What chance, the best constant answer and the shortcut rules score on the whole set.
        margins: Accuracy per designed margin bin.
        counts: Accuracy per number of objects.
        builds: Accuracy per kind of build.
        catch: Proportion right of the items farthest from the boundary, which nobody should miss; of runs in several manners.
        manners: Accuracy per manner of presentation, next to the first; empty if there is only one.
        grounding: Proportion right of each kind of grounding question that a battery of controls began with; else empty.
        attempts: Success within 1, 2, ... attempts; empty if there was one only.
        memory: What of earlier attempts the model was told.
        guesses: What as many attempts score without looking (see `vlm_probe.stimuli.baselines.guesses`).
        thinking: Whether the model thought before it answered, and who decided that; empty where there is nothing to say.
        thoughts: Replies with a thought.
        thoughts_cut: Those whose thought was cut before its end.
        problem: Why the run says nothing about the model: all trials failed, or no reply could be read; else empty.
    """

    run: str
    model: str
    adapter: str
    stimuli: str
    task: str
    headline: str
    readout: str
    n: int
    errors: int
    accuracy: Proportion
    parse_rate: float
    statuses: dict[str, int]
    reward: float
    signal: str | None
    detection: SignalDetection | None
    yes_bias: float
    pairs: Proportion
    set_size: int
    baselines: dict[str, Any]
    margins: list[Cell] = field(default_factory=list)
    counts: list[Cell] = field(default_factory=list)
    builds: list[Cell] = field(default_factory=list)
    catch: Proportion | None = None
    manners: list[MannerCell] = field(default_factory=list)
    grounding: list[Cell] = field(default_factory=list)
    attempts: list[Within] = field(default_factory=list)
    memory: str = "none"
    guesses: list[dict[str, Any]] = field(default_factory=list)
    thinking: str = ""
    thoughts: int = 0
    thoughts_cut: int = 0
    problem: str = ""

    @property
    def name(self) -> str:
        """Who was asked: the model, and the adapter that it wore."""
        return f"{self.model} with {self.adapter}" if self.adapter else self.model

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data; what is not defined is null, never NaN."""
        detection = self.detection
        return {
            "run": self.run,
            "model": self.model,
            "adapter": self.adapter,
            "stimuli": self.stimuli,
            "task": self.task,
            "readout": self.readout,
            "problem": self.problem or None,
            "n": self.n,
            "errors": self.errors,
            "accuracy": _number(self.accuracy.value),
            "accuracy_ci": [_number(self.accuracy.low), _number(self.accuracy.high)],
            "d_prime": _number(detection.d_prime) if detection else None,
            "criterion": _number(detection.criterion) if detection else None,
            "signal": self.signal,
            "yes_bias": _number(self.yes_bias),
            "parse_rate": _number(self.parse_rate),
            "statuses": self.statuses,
            "thinking": self.thinking or None,
            "thoughts": self.thoughts,
            "thoughts_cut": self.thoughts_cut,
            "reward": _number(self.reward),
            "pair_accuracy": _number(self.pairs.value),
            "n_pairs": self.pairs.n,
            "baselines": self.baselines,
            "by_margin": [_cell(c, "margin_bin") for c in self.margins],
            "by_count": [_cell(c, "count") for c in self.counts],
            "by_build": [_cell(c, "build") for c in self.builds],
            "catch_accuracy": _number(self.catch.value) if self.catch else None,
            "n_catch": self.catch.n if self.catch else 0,
            "by_manner": [_manner(c) for c in self.manners],
            "grounding": [_cell(c, "kind") for c in self.grounding],
            "memory": self.memory,
            "by_attempts": [
                _within(c) | {"independent": _number(self.independent(c.k)), "guesses": guess}
                for c, guess in self.beside_guesses
            ],
        }

    def __rich__(self) -> RenderableType:
        """The tables that `probe run` prints."""

        return tables_of(self)

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=80, no_color=True).print(self)
        return buffer.getvalue().rstrip()

    def independent(self, k: int) -> float:
        """Success within k attempts, if each were as good as the first and owed nothing to the others."""
        return 1 - (1 - self.attempts[0].success.value) ** k

    @property
    def beside_guesses(self) -> list[tuple[Within, dict[str, Any]]]:
        """Success within 1, 2, ... attempts, and what as many guesses score."""
        return list(zip(self.attempts, self.guesses or [{}] * len(self.attempts), strict=True))


def summarise(run_dir: str | Path) -> Summary:
    """Read a run folder and summarise it.

    Raises:
        OSError: If the folder or its files cannot be read.
        RunError: If it holds no run (from `vlm_probe.probes.trials`).
    """
    folder = Path(run_dir)
    summary = summarise_rows(read_trials(folder), read_run(folder), run=str(run_dir))
    return replace(summary, grounding=seen(folder / GROUNDING))


def seen(folder: Path) -> list[Cell]:
    """How many grounding questions of each kind were answered right; nothing, if the folder holds no run."""
    try:
        rows = read_trials(folder)
    except RunError:
        return []
    return by_level(rows, lambda row: str((row.get("condition") or {}).get("build", "")).partition(":")[0])


def summarise_rows(rows: Sequence[Row], record: dict[str, Any], run: str = "") -> Summary:
    """Summarise trial rows.

    Args:
        rows: Trial rows as `vlm_probe.probes.trials.read_trials` gives them.
        record: The contents of run.json.
        run: Name of the run, for the heading.
    """
    every, rows = rows, plain_rows(rows)
    held = [row for row in rows if not failed(row)]
    n = len(held)
    answered = [row for row in held if row.get("answer") is not None]
    stimuli = record.get("stimuli") or {}
    first: Row = rows[0] if rows else {}
    adapter = (record.get("config") or {}).get("adapter")
    options = two_options(rows) if rows else None
    signal = options[0] if options else None
    return Summary(
        run=run,
        model=str(first.get("model") or record.get("model") or ""),
        adapter=Path(str(adapter)).name if adapter else "",
        stimuli=str(stimuli.get("path", "")),
        task=str(first.get("task") or stimuli.get("task", "")),
        headline=_headline(rows, stimuli),
        readout=str(first.get("readout", "")),
        n=len(rows),
        errors=len(rows) - n,
        accuracy=wilson(sum(map(succeeded, held)), n),
        parse_rate=len(answered) / n if n else math.nan,
        statuses=dict(Counter(str(row.get("status")) for row in held).most_common()),
        reward=sum(float(row.get("reward") or 0.0) for row in held) / n if n else math.nan,
        signal=signal,
        detection=_detection(answered, signal) if signal is not None else None,
        yes_bias=_yes_bias(answered),
        pairs=_pairs(held),
        set_size=int(stimuli.get("n") or 0),
        baselines=dict(stimuli.get("baselines") or {}),
        margins=by_margin(rows, signal),
        counts=by_condition(rows, "count", signal),
        builds=by_condition(rows, "build", signal),
        catch=_catch(held) if len({manner_of(row) for row in every}) > 1 else None,
        manners=by_manner(every),
        attempts=within([row for row in every if manner_of(row) == manner_of(first)]),
        memory=str(first.get("memory") or "none"),
        guesses=list(stimuli.get("guesses") or []),
        thinking=str(((record.get("model") or {}).get("details") or {}).get("thinking") or ""),
        thoughts=sum(row.get("thought") is not None for row in every),
        thoughts_cut=sum(map(_is_cut, every)),
        problem=_problem(every),
    )


UNREAD = {
    "empty": "empty",
    "no_answer": "without a legal answer",
    "ambiguous": "with more than one answer",
    "out_of_range": "out of range",
    "not_whole": "not a whole number",
    "unfinished": "cut at the token limit or without a final answer",
    "filtered": "withheld by a content filter or refused",
}
"""Statuses of replies that could not be read, in words."""


def _is_cut(row: Row) -> bool:
    """Whether a trial ended within the model's thought."""
    return row.get("thought") is not None and row.get("status") == "unfinished" and not row.get("raw")


def _problem(rows: Sequence[Row]) -> str:
    """Why there is nothing to be learned from these trials, with the reasons and the fix; empty if there is something."""
    held = [row for row in rows if not failed(row)]
    if not rows or any(row.get("answer") is not None for row in held):
        return ""
    if not held:
        reasons = list(dict.fromkeys(str(row["error"]) for row in rows))
        others = f" (and {len(reasons) - 1} other reasons, in its trials.jsonl)" if len(reasons) > 1 else ""
        return f"all {len(rows)} trials failed: {' '.join(reasons[0].split())}{others}"
    counts = Counter(str(row.get("status")) for row in held).most_common()
    why = ", ".join(f"{n} {UNREAD.get(status, status.replace('_', ' '))}" for status, n in counts)
    option = "--max-thinking-tokens" if any(map(_is_cut, held)) else "--max-new-tokens"
    fix = f"; give a larger {option}" if "unfinished" in dict(counts) else ""
    lost = f"; {len(rows) - len(held)} more trials failed" if len(held) < len(rows) else ""
    return f"none of the {len(held)} replies could be read: {why}{lost}{fix}"


def _headline(rows: Sequence[Row], stimuli: dict[str, Any]) -> str:
    judged = any(isinstance(row.get("truth"), str) for row in rows)
    return "accuracy" if stimuli.get("kind", "judgement" if judged else "action") != "action" else "success rate"


def _detection(answered: Sequence[Row], signal: str) -> SignalDetection:
    table = Counter((row["truth"] == signal, row["answer"] == signal) for row in answered)
    return signal_detection(table[True, True], table[True, False], table[False, True], table[False, False])


def _yes_bias(answered: Sequence[Row]) -> float:
    said = right = n = 0
    for row in answered:
        word = str(row.get("answer_text", "")).strip().lower()
        if word not in ("yes", "no"):
            continue
        n += 1
        said += word == "yes"
        right += (word == "yes") == (row["answer"] == row["truth"])
    return (said - right) / n if n else math.nan


def _catch(held: Sequence[Row]) -> Proportion | None:
    rows = catch_items(held)
    return wilson(sum(map(succeeded, rows)), len(rows)) if rows else None


def _pairs(held: Sequence[Row]) -> Proportion:
    pairs: dict[str, list[bool]] = {}
    for row in held:
        if row.get("pair_id"):
            pairs.setdefault(str(row["pair_id"]), []).append(succeeded(row))
    whole = [members for members in pairs.values() if len(members) > 1]
    return wilson(sum(map(all, whole)), len(whole))


def _cell(cell: Cell, name: str) -> dict[str, Any]:
    data: dict[str, Any] = {
        name: list(cell.level) if isinstance(cell.level, tuple) else cell.level,
        "n": cell.accuracy.n,
        "accuracy": _number(cell.accuracy.value),
        "accuracy_ci": [_number(cell.accuracy.low), _number(cell.accuracy.high)],
    }
    if cell.signal.n:
        data["p_signal"] = _number(cell.signal.value)
    if name == "margin_bin":
        data["mean_margin"] = _number(cell.x)
    return data


def _manner(cell: MannerCell) -> dict[str, Any]:
    return {
        "manner": cell.code,
        "n": cell.accuracy.n,
        "accuracy": _number(cell.accuracy.value),
        "accuracy_ci": [_number(cell.accuracy.low), _number(cell.accuracy.high)],
        "difference": _number(cell.difference),
        "same_answer": _number(cell.same.value),
        "parse_rate": _number(cell.parse_rate),
    }


def _within(cell: Within) -> dict[str, Any]:
    return {
        "attempts": cell.k,
        "n": cell.success.n,
        "success": _number(cell.success.value),
        "success_ci": [_number(cell.success.low), _number(cell.success.high)],
        "parse_rate": _number(cell.parse_rate),
        "same_answer": _number(cell.same),
    }


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 6)


def tables_of(summary: Summary) -> RenderableType:
    """Everything that there is to say of a run, one table below the other."""
    parts: list[RenderableType] = [Text(summary.problem, "bold")] if summary.problem else []
    parts.append(_head(summary))
    if summary.n and summary.errors == summary.n:
        return Group(*parts)  # nothing took place that could be counted
    if summary.grounding:
        parts.append(_grounding(summary))
    parts.append(_measures(summary))
    if summary.attempts:
        parts += [_attempts(summary), _guesses(summary)]
    if summary.manners:
        parts.append(_manners(summary))
    if summary.baselines:
        parts.append(_baselines(summary))
    if summary.margins:
        parts.append(_cells(summary, "margin", summary.margins))
    for name, found in (("objects", summary.counts), ("build", summary.builds)):
        if len(found) > 1:
            parts.append(_cells(summary, name, found))
    return Group(*[x for part in parts for x in (part, "")][:-1])


def _head(summary: Summary) -> Text:
    n = f"{summary.n} trials" + (f", {summary.errors} of them failed" if summary.errors else "")
    return Text.assemble(
        (f"{summary.name} on {summary.task}", "bold"), f"  {n}, readout: {summary.readout}\n{summary.run}"
    )


def _grounding(summary: Summary) -> Table:
    table = _table("seen in the images", "n", "right")
    for cell in summary.grounding:
        table.add_row(cell.label, str(cell.accuracy.n), str(cell.accuracy))
    return table


def _measures(summary: Summary) -> Table:
    table = _table("measure", "value")
    if summary.catch is not None:
        table.add_row("catch items right", f"{summary.catch}  ({summary.catch.n} farthest from the boundary)")
    table.add_row(summary.headline, f"{summary.accuracy}  (95 % Wilson)")
    if summary.detection is not None:
        table.add_row("d'", _text(summary.detection.d_prime))
        table.add_row("criterion c", f"{_text(summary.detection.criterion)}  (signal: {summary.signal})")
    if not math.isnan(summary.yes_bias):
        table.add_row("bias towards yes", f"{summary.yes_bias:+.3f}")
    if summary.pairs.n:
        table.add_row("pair accuracy", f"{summary.pairs}  ({summary.pairs.n} pairs)")
    table.add_row("mean reward", _text(summary.reward))
    unread = {k: v for k, v in summary.statuses.items() if k != "ok"}
    if summary.thinking or summary.thoughts:
        table.add_row("thinking", summary.thinking or "by the model itself")
        table.add_row("thoughts cut", f"{summary.thoughts_cut} of {summary.thoughts}")
    note = "  (" + ", ".join(f"{k} {v}" for k, v in unread.items()) + ")" if unread else ""
    table.add_row("parse rate", _text(summary.parse_rate) + note)
    return table


def _baselines(summary: Summary) -> Table:
    # Baselines belong to the set; a run of its first items may be easier or harder.
    part = f" (all {summary.set_size})" if summary.set_size not in (0, summary.n) else ""
    table = _table(f"non-physical baselines{part}", summary.headline)
    if "chance" in summary.baselines:
        table.add_row("chance", _text(summary.baselines["chance"]))
    constant = summary.baselines.get("constant") or {}
    if constant:
        table.add_row(f"always “{constant.get('answer')}”", _text(constant.get("score")))
    for name, score in (summary.baselines.get("shortcuts") or {}).items():
        table.add_row(str(name), _text(score))
    return table


def _attempts(summary: Summary) -> Table:
    table = _table(f"attempts, memory {summary.memory}", summary.headline, "same answer", "parse rate")
    for cell in summary.attempts:
        same = "" if cell.k == 1 else _text(cell.same)
        table.add_row(f"within {cell.k}", str(cell.success), same, _text(cell.parse_rate))
    return table


def _guesses(summary: Summary) -> Table:
    table = _table("without learning", "new first attempts", "chance", "best constants")
    for cell, guess in summary.beside_guesses:
        constants = guess.get("constants") or {}
        scores = (summary.independent(cell.k), guess.get("chance"), constants.get("score"))
        table.add_row(f"within {cell.k}", *map(_text, scores))
    return table


def _manners(summary: Summary) -> Table:
    against = "vs intact" if summary.manners[0].code == "intact" else "vs the first"
    table = _table("manner", "n", summary.headline, against, "same answer", "parse rate")
    # In a narrow terminal, long names are broken, and numbers never.
    table.columns[0].min_width, table.columns[0].no_wrap, table.columns[0].overflow = None, False, "fold"
    for cell in summary.manners:
        difference = "" if math.isnan(cell.difference) else f"{cell.difference:+.3f}"
        same = _text(cell.same.value) if cell.same.n else ""
        table.add_row(cell.code, str(cell.accuracy.n), str(cell.accuracy), difference, same, _text(cell.parse_rate))
    return table


def _cells(summary: Summary, name: str, found: Sequence[Cell]) -> Table:
    table = _table(name, "n", summary.headline, *([f'P("{summary.signal}")'] if summary.signal is not None else []))
    for cell in found:
        row = [cell.label, str(cell.accuracy.n), str(cell.accuracy)]
        table.add_row(*row, *([_text(cell.signal.value)] if summary.signal is not None else []))
    return table


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for index, header in enumerate(headers):
        table.add_column(header, min_width=22 if index == 0 else None, no_wrap=True)
    return table


def _text(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
