"""external stimulus sets: a folder of images and a table of trials become a stimulus set, with human responses if there are any."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlm_probe.stimuli.answer_cells import Unreadable, read_answer, read_grammar, read_working
from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.conversion import Picture, contradictions, convert, signs, with_bins
from vlm_probe.stimuli.dataset import CARD, KIND, METADATA, Item, StimulusError, StimulusSet, package_version
from vlm_probe.stimuli.imported_responses import COUNT_PREFIXES, counted_responses, listed_responses
from vlm_probe.stimuli.output import check_absent, whole_folder, write_json
from vlm_probe.stimuli.plain_json import dumps
from vlm_probe.stimuli.question import THINK, Answer, ChoiceFormat, Grammar, IntegerFormat, Question, Variant
from vlm_probe.stimuli.ranges import AMOUNT, IMAGE_SIZE
from vlm_probe.stimuli.responses import RESPONSES, Response, to_csv
from vlm_probe.stimuli.tables import Report, Row, find_columns, number, read_table
from vlm_probe.stimuli.tasks import SamplingFailed, Task, get_task

ROLES = {
    "file": "picture, relative to the folder of pictures",
    "answer": "the right answer",
    "id": "name of the item; by default the picture's and the line's",
    "prompt": "the question",
    "options": "legal answers, such as yes|no, yes=stands|no=falls, or -20..20 for whole numbers",
    "working": "all answers that are right, such as 3;4;5",
    "tolerance": "whole number by which a numeric answer may be off",
    "margin": "signed physical margin",
    "pair": "what the members of a minimal pair share",
    "group": "what further belongs together, mirror images say; by default the pair",
    "count": "number of objects",
    "mirrored": "whether it is a mirror image (yes or no)",
}
SHOWN_PROBLEMS = 20
YES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False, "": False}
PROBED = 4
"""Scenes of a task whose questions are compared, to see whether its question depends on the scene."""

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


class ImportProblems(StimulusError):
    """A table cannot be imported. `problems` has one line for each thing that is wrong, with row and column.

    Args:
        table: Where they are.
        problems: One line for each.
    """

    def __init__(self, table: Path, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        shown = " ".join(f"({i}) {line}" for i, line in enumerate(self.problems[:SHOWN_PROBLEMS], 1))
        more = f" ... and {len(self.problems) - SHOWN_PROBLEMS} more" if len(self.problems) > SHOWN_PROBLEMS else ""
        super().__init__(f"{table}: {len(self.problems)} problem(s), nothing was written: {shown}{more}")


def import_set(
    images: str | Path,
    table: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    conditions: Sequence[str] = (),
    options: str = "",
    responses: str | Path | None = None,
    response_columns: Mapping[str, str] | None = None,
    wordings: Literal["first", "all"] = "first",
    style: Literal["direct", "think"] = "direct",
    size: int | None = None,
    progress: Progress | None = None,
) -> StimulusSet:
    """Make a stimulus set from images and a table. Everything is checked before anything is written.

    Args:
        images: Folder of the images.
        table: CSV, TSV or JSONL with one row per item; its columns are named as in `ROLES`, or mapped by `columns`.
            Columns like n_yes and n_no (or response_stands ...) count what participants answered.
        out: Folder to make; it appears when it is whole.
        task: Task whose question is asked, in whose words the answers are; None if the table has prompts and options.
        columns: Role -> the column's name in this table.
        conditions: Columns that are factors of the design; they go into `Condition.build`.
        options: The legal answers of all rows, where the table has no column for them and the task does not say.
        responses: CSV, TSV or JSONL with one row per human response; see `RESPONSE_ROLES` in `vlm_probe.stimuli.imported_responses`.
        response_columns: Role -> the column's name in that table.
        wordings: "first": the task's first wording for all; "all": its wordings in turn, one per group.
        style: "think" adds the request to reason first.
        size: Edge to which images are scaled; None keeps them. Images that are not square are padded in any case.
        progress: Called with (images done, images in all).

    Returns:
        The set. Its card lists what had to be converted under imported.notes.

    Raises:
        ImportProblems: If anything is wrong with the tables or the images; every problem names its row and column.
        OutputError: If `out` exists or cannot be written.
        StimulusError: If a table or folder cannot be read.
        UnknownTask: If there is no such task.
        OutOfRange: If the size is.
    """
    source, folder, pictures = Path(table), Path(out), Path(images)
    if size is not None:
        IMAGE_SIZE.check("size", size)
    check_absent(folder)
    if not pictures.is_dir():
        raise StimulusError(f"there is no folder of pictures {pictures}")
    report = Report()
    the_task = get_task(task) if task is not None else None
    name = task or f"own-{re.sub(r'[^a-z0-9]+', '-', folder.name.lower()).strip('-')}"
    rows, header = read_table(source)
    places = find_columns(source, header, columns or {}, ROLES, ("file", "answer"))
    for column in conditions:
        if column not in header:
            raise StimulusError(f"{source} has no column {column!r} for --conditions; it has {', '.join(header)}")
    asker = _Asker(the_task, options, wordings, style, places)
    used = {*places.values(), *conditions, *(c for c in header if c.startswith(COUNT_PREFIXES))}
    unused = [column for column in header if column not in used]
    if unused:
        report.notes[f"columns not used: {', '.join(unused)} (--conditions keeps them as factors)"] += 1
    reader = _Reader(source, pictures, name, the_task, places, tuple(conditions), asker, size, report)
    items: list[Item] = []
    counted: list[Response] = []
    for done, row in enumerate(rows, 1):
        item = reader.item(row)
        if item is not None:
            items.append(item)
            counted += counted_responses(source, row, header, item, report)
        if progress is not None:
            progress(done, len(rows))
    given = listed_responses(Path(responses), response_columns or {}, items, report) if responses is not None else []
    if given and counted:
        report.problems.append(
            f"{source.name}: responses are given twice, as counts here and one by one in {responses}"
        )
    if not rows:
        report.problems.append(f"{source.name} has no rows")
    if report.problems:
        raise ImportProblems(source, report.problems)
    _compare_signs(the_task, items, reader.lines, report)
    items = with_bins(items)
    card = _card(name, the_task, items, asker, source, reader.loaded, report, [*counted, *given])
    _write(folder, items, reader.loaded, card, [*counted, *given])
    return StimulusSet.load(folder)


def _compare_signs(task: Task | None, items: list[Item], lines: Mapping[str, int], report: Report) -> None:
    """Note margins that contradict their answers: a slip in a row, or the other convention in the whole column."""
    if task is None or not any(item.margin for item in items):
        return
    expected = signs(task)
    wrong = contradictions(items, expected)
    if wrong:
        meaning = ", ".join(f"{answer} {'+' if sign > 0 else '-'}" for answer, sign in expected.items())
        most = len(wrong) > sum(item.margin != 0 for item in items) / 2
        advice = (
            "turn the sign of the column, or see whether its answers are to the question asked"
            if most
            else "look at the rows"
        )
        report.notes[
            f"margins whose sign contradicts the answer, first in line {lines[wrong[0].item_id]} (margins of {task.name}:"
            f" {meaning}); {advice}"
        ] += len(wrong)


class _Asker:
    """What is asked about a row, in which words, and with which legal answers."""

    def __init__(
        self,
        task: Task | None,
        options: str,
        wordings: str,
        style: Literal["direct", "think"],
        places: Mapping[str, str],
    ) -> None:
        self.task, self.options, self.style, self.places = task, options, style, places
        self.usual: dict[Variant, Question] = {}
        self.variants: tuple[Variant, ...] = (Variant(style=style),)
        own_prompt, own_options = "prompt" in places, bool(options) or "options" in places
        if task is None and not (own_prompt and own_options):
            what = "prompts" if not own_prompt else "options"
            raise StimulusError(
                f"without a task the table has to say what is asked: it has no column of {what};"
                " add it, map one with --columns, or name a --task"
            )
        if task is not None and not (own_prompt and own_options):
            if wordings == "all" and not own_prompt:
                self.variants = tuple(Variant(v.paraphrase, v.polarity, v.order, style) for v in task.variants())
            self.usual = {v: _usual_question(task, v) for v in self.variants}

    def ask(self, row: Row, group: int) -> tuple[Question, Variant]:
        """The question about a row. Raises Unreadable if its prompt or options cannot be read."""
        variant = self.variants[group % len(self.variants)]
        grammar = self._grammar(row) or (self.usual[variant].grammar if self.usual else None)
        if grammar is None:
            raise Unreadable("options", "is empty")
        if "prompt" in self.places:
            prompt = row.cells.get(self.places["prompt"], "")
            if not prompt:
                raise Unreadable("prompt", "is empty")
            return Question(prompt + (THINK if self.style == "think" else ""), grammar, self.style), variant
        return Question(self.usual[variant].prompt, grammar, self.style), variant

    def _grammar(self, row: Row) -> Grammar | None:
        text = row.cells.get(self.places["options"], "") if "options" in self.places else self.options
        try:
            return read_grammar(text) if text else None
        except ValueError as error:
            raise Unreadable("options", str(error)) from error


def _usual_question(task: Task, variant: Variant) -> Question:
    """The task's question, if it is the same about every scene. Raises StimulusError if it is not."""
    rng, conditions = np.random.default_rng(0), task.conditions()
    asked: list[Question] = []
    for condition in conditions[:: max(1, len(conditions) // PROBED)]:
        try:
            asked.append(task.question(task.sample(rng, condition), variant))
        except (SamplingFailed, ValueError):
            continue
    # Grounding asks about something in the image, even where one of its questions happens to be the same for all.
    if task.kind == "grounding" or not asked or any(question != asked[0] for question in asked):
        raise StimulusError(
            f"what {task.name} asks depends on the scene, which imported pictures do not have:"
            " add a column of prompts and one of options, or map them with --columns"
        )
    return asked[0]


@dataclass
class _Reader:
    """Turns rows into items, and reports what is wrong with them."""

    table: Path
    folder: Path
    name: str
    task: Task | None
    places: Mapping[str, str]
    conditions: tuple[str, ...]
    asker: _Asker
    size: int | None
    report: Report
    loaded: dict[str, Picture] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    pairs: Counter[str] = field(default_factory=Counter)

    def item(self, row: Row) -> Item | None:
        """The item of a row; None, with the problems reported, if there are any."""
        before = len(self.report.problems)

        def cell(role: str) -> str:
            return row.cells.get(self.places[role], "") if role in self.places else ""

        def wrong(role: str, text: str) -> None:
            self.report.problem(self.table, row, self.places.get(role, role), text)

        file = cell("file")
        item_id = cell("id") or f"{self.name}_l{row.line:05d}_{Path(file).stem}"
        if item_id in self.lines:
            wrong("id", f"{item_id!r} is the id of line {self.lines[item_id]} already")
        self.lines.setdefault(item_id, row.line)
        pair = cell("pair") or item_id
        group = cell("group") or pair
        picture = convert(self.folder, file, self.size, self.loaded, self.report, wrong)
        margin = number(cell("margin"), 0.0, lambda text: wrong("margin", text))
        count = number(cell("count"), 1.0, lambda text: wrong("count", text))
        if not (count.is_integer() and AMOUNT.holds(int(count))):
            wrong("count", f"{cell('count')!r} is not {AMOUNT}")
        if cell("mirrored").lower() not in YES:
            wrong("mirrored", f"{cell('mirrored')!r} is neither yes nor no")
        try:
            question, variant = self.asker.ask(row, self.groups.setdefault(group, len(self.groups)))
            answer = read_answer(question.grammar, cell("answer"), strict=len(self.asker.variants) > 1)
            working = read_working(question.grammar, answer, cell("working"), cell("tolerance"))
        except Unreadable as error:
            wrong(error.role, str(error))
            return None
        grammar = question.grammar
        named = isinstance(grammar, IntegerFormat) or all(
            re.search(rf"\b{re.escape(option.text)}\b", question.prompt, re.IGNORECASE) for option in grammar.options
        )
        if not named:
            self.report.notes["prompts that do not name every option: models may answer in other words"] += 1
        if len(self.report.problems) > before or picture is None:
            return None
        role = "base" if self.pairs[pair] == 0 else f"foil{self.pairs[pair]}"
        self.pairs[pair] += 1
        levels = [row.cells.get(column, "") for column in self.conditions]
        named_levels = "+".join(f"{c}={v}" for c, v in zip(self.conditions, levels, strict=True))
        return Item(
            item_id=item_id,
            task=self.name,
            task_version=self.task.version if self.task is not None else 1,
            file_name=f"images/{picture.sha256}.png",
            image_sha256=picture.sha256,
            question=replace(question, about={"source": file}),
            answer=answer,
            margin=margin,
            condition=Condition(
                int(count),
                build=(levels[0] if len(levels) == 1 else named_levels) or "imported",
                mirrored=YES[cell("mirrored").lower()],
            ),
            variant=variant,
            pair_id=pair,
            group_id=group,
            role=role,
            scene=None,
            scene_sha256="",
            certificate={"working": [list(w) if isinstance(w, tuple) else w for w in working]},
        )


def _card(
    name: str,
    task: Task | None,
    items: Sequence[Item],
    asker: _Asker,
    table: Path,
    loaded: Mapping[str, Picture],
    report: Report,
    responses: Sequence[Response],
) -> dict[str, Any]:
    """The card of an imported set."""
    edges = Counter(picture.edge for picture in loaded.values())
    if len(edges) > 1:
        report.notes[f"pictures of different sizes, {min(edges)} to {max(edges)} pixels: kept"] += 1
    rights = [item.working for item in items]
    counts: Counter[Answer] = Counter(answer for right in rights for answer in right)
    best = min(counts, key=lambda a: (-counts[a], str(a)))
    words = all(isinstance(item.question.grammar, ChoiceFormat) for item in items)
    chance = [len(right) / len(i.question.grammar.candidates()) for right, i in zip(rights, items, strict=True)]
    described: dict[str, Any] = {
        "task": name,
        "task_version": task.version if task is not None else 1,
        "family": task.family if task is not None else name,
        "kind": task.kind if task is not None else "judgement" if words else "action",
        "held_out": task.held_out if task is not None else False,
        "n": len(items),
        "seed": None,
        "image_size": edges.most_common(1)[0][0],
        "style": asker.style,
        "paraphrases": len(asker.variants),
        "labels": dict(sorted(Counter(str(item.answer) for item in items).items())),
        "baselines": {
            "chance": round(float(np.mean(chance)), 4),
            "constant": {"answer": str(best), "score": round(counts[best] / len(items), 4)},
            "shortcuts": {},
        },
        "imported": {
            "table": table.name,
            "table_sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
            "has_margins": any(item.margin for item in items),
            "notes": dict(sorted(report.notes.items())),
        },
        "versions": {"vlm-probe": package_version(), "numpy": np.__version__, "pillow": version("pillow")},
    }
    if responses:
        described["responses"] = {
            "file": RESPONSES,
            "sha256": hashlib.sha256(to_csv(responses).encode()).hexdigest(),
            "n": sum(response.count for response in responses),
            "participants": len({response.participant for response in responses} - {""}),
        }
    return described


def _write(
    folder: Path,
    items: Sequence[Item],
    loaded: Mapping[str, Picture],
    card: dict[str, Any],
    responses: Sequence[Response],
) -> None:
    """Write the set. Raises OutputError if it cannot be written."""
    with whole_folder(folder, KIND) as partial:
        (partial / "images").mkdir()
        wanted = {item.image_sha256 for item in items}
        for picture in loaded.values():
            if picture.sha256 in wanted:
                (partial / "images" / f"{picture.sha256}.png").write_bytes(picture.data)
        text = "".join(dumps(item.to_row()) + "\n" for item in items)
        (partial / METADATA).write_text(text, encoding="utf-8")
        if responses:
            (partial / RESPONSES).write_text(to_csv(responses), encoding="utf-8", newline="")
        whole = card | {"content_sha256": hashlib.sha256(text.encode()).hexdigest()}
        write_json(partial / CARD, whole)
