"""`probe stimuli import` and `export`: external stimulus sets in, tables for other programs out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Json, Overwrite, listed
from vlm_probe.stimuli.ranges import IMAGE_SIZE


def import_(
    *,
    images: Path,
    table: Path,
    out: Path,
    task: str | None = None,
    columns: str = "",
    conditions: str = "",
    options: str = "",
    responses: Path | None = None,
    response_columns: str = "",
    wordings: Literal["first", "all"] = "first",
    style: Literal["direct", "think"] = "direct",
    size: Annotated[int | None, Parameter(validator=IMAGE_SIZE)] = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Make a stimulus set from a folder of images and a table of trials, with human responses if there are any.

    The table has one row per item. Its columns may be called file, answer, id, prompt, options, working, tolerance,
    margin, pair, group, count and mirrored; only file and answer are needed with a task. Columns such as n_yes and n_no
    count what participants answered. Everything is checked before anything is written.

    Args:
        images: Folder of the images.
        table: CSV, TSV or JSONL.
        out: Folder to make.
        task: Task whose question is asked; left out where the table has columns prompt and options.
        columns: Other names of columns, such as file=stimulus,answer=truth.
        conditions: Columns that are factors, separated by commas.
        options: Legal answers of all rows: yes|no, yes=stands|no=falls, -20..20.
        responses: Table with one row per response: item, participant, response and perhaps rt (seconds).
        response_columns: Other names of its columns, such as participant=subject,item=stimulus.
        wordings: `first`: the task's first wording for all items; `all`: all of them in turn.
        style: Whether prompts ask for the bare answer or for reasoning first.
        size: Edge to scale images to, pixels; by default they keep theirs.
    """
    from vlm_probe.probes.cli.console import progress, show, show_json, tell
    from vlm_probe.probes.cli.errors import FAILURE
    from vlm_probe.probes.cli.resources import task_name
    from vlm_probe.stimuli.importing import SHOWN_PROBLEMS, ImportProblems, import_set

    try:
        with progress("reading pictures") as step:
            made = import_set(
                images,
                table,
                out,
                task=None if task is None else task_name(task),
                columns=_mapping("--columns", columns),
                conditions=listed(conditions),
                options=options,
                responses=responses,
                response_columns=_mapping("--response-columns", response_columns),
                wordings=wordings,
                style=style,
                size=size,
                progress=step,
            )
    except ImportProblems as error:
        for line in error.problems[:SHOWN_PROBLEMS]:
            tell(line)
        more = len(error.problems) - SHOWN_PROBLEMS
        tell(f"{len(error.problems)} problem(s){f', {more} more than shown' if more > 0 else ''}; nothing was written")
        return FAILURE
    for note, count in made.card["imported"]["notes"].items():
        tell(f"note: {note}" + (f" ({count})" if count > 1 else ""))
    if json:
        show_json({"path": str(made.path), **made.card})
        return 0
    labels = ", ".join(f"{count} {label}" for label, count in made.card["labels"].items())
    people = made.card.get("responses")
    told = f"; {people['n']} responses of {people['participants'] or 'an unknown number of'} people" if people else ""
    show(f"{made.path}: {len(made)} items of {made.card['task']} ({labels}){told}, content {made.content_sha256[:12]}")
    return 0


def export(
    stimuli: Annotated[str, Parameter(name="SET", help="Folder of a set, task name or family.")],
    /,
    *,
    csv: Path,
    overwrite: Overwrite = False,
    config: Config = None,
) -> int:
    """Write a set as one flat table, one row per item, for spreadsheets and statistics programs.

    The set itself opens with datasets.load_dataset("imagefolder", data_dir=SET) as it is.

    Args:
        csv: File to write.
    """
    from vlm_probe.probes.cli.console import show
    from vlm_probe.probes.cli.resources import find_stimuli
    from vlm_probe.stimuli.output import claim_file, write_whole
    from vlm_probe.stimuli.plain_csv import write_csv

    claim_file(csv, overwrite=overwrite)
    found = find_stimuli(stimuli, None)
    rows = list(found.flat_rows())
    header = list(rows[0]) if rows else []
    write_whole(csv, write_csv(header, ([row[name] for name in header] for row in rows)))
    show(f"{csv}: {len(rows)} items; pictures are relative to {found.path}")
    return 0


def _mapping(option: str, text: str) -> dict[str, str]:
    """role=column,... as a dictionary. Raises CommandError if it is not of that form."""
    from vlm_probe.probes.cli.errors import CommandError

    found = {}
    for part in listed(text):
        role, equals, column = (piece.strip() for piece in part.partition("="))
        if not (role and equals and column):
            raise CommandError(f"{option} takes pairs such as file=stimulus,answer=truth, got {part!r}")
        found[role] = column
    return found
