"""`probe stimuli`: make, list, show, check and audit stimulus sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from vlm_probe.probes.cli.settings import Config, ImageSize, Jobs, Json, Overwrite, RendererName
from vlm_probe.stimuli.ranges import AMOUNT, SEED, SHOWN

app = App(name="stimuli", help="Make, list, show, check, audit, import and export stimulus sets.")

Count = Annotated[int, Parameter(name=("--n", "-n"), validator=AMOUNT)]
Shift = Annotated[
    str,
    Parameter(help="Shifts with levels 1 to 3: `camera:2`, `visual:2` (all visual ones), `visual:2,size:1`."),
]
SetName = Annotated[str, Parameter(name="SET", help="Folder of a set, task name or family.")]


@app.command
def make(
    task: Annotated[str, Parameter(name="TASK", help="Task name or family, see `probe stimuli list`.")],
    /,
    *,
    out: Path,
    n: Count = 500,
    seed: Annotated[int, Parameter(validator=SEED)] = 0,
    size: ImageSize = 0,
    style: Literal["direct", "think"] = "direct",
    shift: Shift = "",
    renderer: RendererName = "",
    segmentation: Annotated[bool, Parameter(negative=())] = False,
    depth: Annotated[bool, Parameter(negative=())] = False,
    state: Annotated[bool, Parameter(negative=())] = False,
    jobs: Jobs = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Make a stimulus set. The same arguments give the same bytes; the folder appears when it is whole.

    Args:
        out: Folder to make.
        n: Number of items.
        seed: Seed of the whole set.
        style: Whether prompts ask for the bare answer or for reasoning first.
        segmentation: Also write which body each pixel shows, segmentation/IMAGE.npy.
        depth: Also write how far away each pixel is, depth/IMAGE.npy, metres.
        state: Also write places, sizes and materials of all bodies, state/SCENE.npy.
    """
    from vlm_probe.probes.cli.console import progress, show, show_json
    from vlm_probe.probes.cli.resources import check_shifts, cores, task_name
    from vlm_probe.stimuli.generate import make_set

    name = task_name(task)
    shifts = check_shifts(name, shift)
    with progress("making stimuli") as step:
        made = make_set(
            name,
            n,
            seed,
            out,
            size=size,
            jobs=jobs or cores(),
            style=style,
            shifts=shifts,
            renderer=renderer,
            segmentation=segmentation,
            depth=depth,
            state=state,
            progress=step,
        )
    if json:
        show_json({"path": str(made.path), **made.card})
    else:
        labels = ", ".join(f"{count} {label}" for label, count in made.card["labels"].items())
        show(f"{made.path}: {len(made)} items of {made.card['task']} ({labels}), content {made.content_sha256[:12]}")
    return 0


@app.command(name="list")
def list_(*, json: Json = False, config: Config = None) -> int:
    """List the tasks for which stimuli can be made."""
    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.stimuli.tasks import FAMILIES, get_task, task_names

    tasks = [get_task(name) for name in task_names()]
    rows = [
        {
            "task": task.name,
            "family": task.family,
            "kind": task.kind,
            "held_out": task.held_out,
            "version": task.version,
            "conditions": len(task.conditions()),
            "about": (type(task).__doc__ or "").strip().split("\n")[0],
        }
        for task in tasks
    ]
    if json:
        show_json(rows)
        return 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("task", "kind", "conditions", "trained on", "about"):
        table.add_column(header)
    for row in rows:
        trained = "never" if row["held_out"] else "yes"
        table.add_row(str(row["task"]), str(row["kind"]), str(row["conditions"]), trained, str(row["about"]))
    show(table)
    show("A family stands for its headline task: " + ", ".join(f"{f} = {t}" for f, t in FAMILIES.items()) + ".")
    return 0


@app.command
def matched(stimuli: SetName, /, *, out: Path, jobs: Jobs = None, json: Json = False, config: Config = None) -> int:
    """Make the matched grounding set: the same images, each with a question about the quantity that decides in it.

    Items keep their ids, so that a model's answers to the two questions about an image can be compared.

    Args:
        out: Folder to make.
    """
    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.cli.resources import find_stimuli
    from vlm_probe.stimuli.generate import make_matched

    found = find_stimuli(stimuli, jobs)
    made = make_matched(found, out)
    if json:
        show_json({"path": str(made.path), **made.card})
    else:
        show(
            f"{made.path}: {len(made)} of the {len(found)} images of {found.path}, with questions of {made.card['task']}"
        )
    return 0


@app.command(name="show")
def show_(
    stimuli: SetName,
    /,
    *,
    out: Path = Path("contact-sheet.png"),
    overwrite: Overwrite = False,
    n: Annotated[int, Parameter(name=("--n", "-n"), validator=SHOWN)] = 24,
    shift: Shift = "",
    renderer: RendererName = "",
    jobs: Jobs = None,
    config: Config = None,
) -> int:
    """Draw a contact sheet: the images of a set with their labels and margins.

    Args:
        out: PNG to write.
        n: Number of items to show.
        shift: Of a task's or family's standard set, such as `camera:2`; `all`: every shift at every level on one of its
            scenes.
    """
    from vlm_probe.probes.cli.console import show
    from vlm_probe.probes.cli.resources import check_drawing, find_stimuli, shifted_name, task_name
    from vlm_probe.stimuli.output import claim_file
    from vlm_probe.stimuli.sheet import contact_sheet, shift_sheet

    check_drawing(stimuli, 0, renderer)
    claim_file(out, overwrite=overwrite)
    if shift == "all":
        shift_sheet(task_name(stimuli), out, renderer=renderer)
    else:
        contact_sheet(find_stimuli(shifted_name(stimuli, shift), jobs, renderer=renderer), out, n)
    show(str(out))
    return 0


@app.command
def check(
    stimuli: SetName,
    /,
    *,
    engine: Literal["mujoco", "pybullet"] = "mujoco",
    jobs: Jobs = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Simulate every item again with another engine, and write the agreement into the set's card.

    Exits with 1 if the engines agree on less than 99 % of a family's items outside the ambiguity band (97 % for collision).

    Args:
        engine: The engine to check with.
    """
    from vlm_probe.probes.cli.console import progress, show, show_json, tell
    from vlm_probe.probes.cli.errors import FAILURE, SUCCESS
    from vlm_probe.probes.cli.resources import find_stimuli
    from vlm_probe.stimuli.agreement import check as check_set
    from vlm_probe.stimuli.simulators import get_simulator

    get_simulator(engine)  # whether it is installed, before a set is made
    found = find_stimuli(stimuli, jobs)
    with progress(f"checking with {engine}") as step:
        agreement = check_set(found, engine, step)
    if json:
        show_json(agreement.to_dict())
    else:
        _show_table(agreement.rows())
        for item in agreement.disagreements:
            show(f"{item.item_id}: margin {item.margin:+.3f}, the set says {item.expected}, {engine} says {item.found}")
        for family in agreement.required:
            agree, n = agreement.outside(family)
            if not n:
                show(f"{family}: no items outside the ambiguity band")
                continue
            needed = agreement.required[family]
            verdict = "as required" if agree >= needed * n else "too few"
            show(
                f"{family}: {agree} of {n} agree outside the ambiguity band, {agree / n:.1%} ({needed:.0%}: {verdict})"
            )
    tell(f"written into {found.path / 'card.json'}")
    return SUCCESS if agreement.passed else FAILURE


@app.command
def audit(
    stimuli: SetName,
    /,
    *,
    out: Path | None = None,
    overwrite: Overwrite = False,
    jobs: Jobs = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Score what needs no physics: the task's own rules and cues, pixels, the prompt alone, constant answers.

    Args:
        out: Figure to write (.png or .pdf).
    """
    from vlm_probe.probes.cli.console import show, show_json, tell
    from vlm_probe.probes.cli.errors import UsageError
    from vlm_probe.probes.cli.resources import find_stimuli
    from vlm_probe.stimuli.audit import audit as audit_set
    from vlm_probe.stimuli.output import claim_file

    if out is not None:
        if out.suffix not in (".png", ".pdf"):
            raise UsageError(f"--out {out} is no name of a figure: write one that ends in .png or .pdf")
        claim_file(out, overwrite=overwrite)
    audited = audit_set(find_stimuli(stimuli, jobs))
    rows = audited.rows()
    if out is not None:
        audited.plot(out)
        tell(f"figure: {out}")
    if json:
        show_json({"shortcuts": rows, "visibility": [seen.row() for seen in audited.visibility]})
        return 0
    _show_table([{key: value for key, value in row.items() if key != "above limit"} for row in rows])
    if audited.visibility:
        show("\nHow large the margin is in the image (median): pixels, and visual tokens of common processors")
        _show_table([seen.row() for seen in audited.visibility])
        show("")
    if audited.limit is not None:
        for shortcut in audited.above:
            show(f"above {audited.limit:.0%}: {shortcut.name} ({shortcut.score:.3f}): {shortcut.reason}")
        if not audited.above:
            show(f"no shortcut scores above {audited.limit:.0%}")
    return 0


def _show_table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from vlm_probe.probes.cli.console import show

    table = Table(box=None, pad_edge=False, header_style="bold")
    headers = list(dict.fromkeys(key for row in rows for key in row))
    for header in headers:
        table.add_column(header, no_wrap=header == headers[0], overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(header)) for header in headers))
    show(table)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


for _name, _purpose in (
    ("import", "Make a stimulus set of your own images, a table of trials, and human responses."),
    ("export", "Write a set as one flat table, one row per item."),
):
    _function = "import_" if _name == "import" else _name
    app.command(f"vlm_probe.probes.cli.importing:{_function}", name=_name, help=_purpose)
