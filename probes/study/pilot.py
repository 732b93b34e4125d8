"""The timed pilot: a small part of every kind of step, done at two sizes through the same command lines, to learn what they cost.

Two sizes tell what a step costs in any case from what every further item, sample or trial adds. A process that does many steps
begins with one that is not counted, since it waits for imports; what that takes is noted as well, because every cell waits so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vlm_probe.probes.study.cells import Cell, Step
from vlm_probe.probes.study.drive import drive
from vlm_probe.probes.study.pace import PILOT, START, fit, fixed, read_pilot
from vlm_probe.probes.study.pools import LocalPool
from vlm_probe.probes.study.store import Store

FOLDER = "pilot"
WARM_UP = "warm-up"
SIZES = {"stimuli": (16, 32), "run": (8, 24), "decode": (96, 160)}
"""Items of the two sizes, by command. Decoding needs enough groups of scenes for its folds."""
SEED = "20077"
"""Of the pilot's items, which are no items of a study."""


def pilot(cells: Sequence[Cell], store: Store, size: int, processes: int) -> list[str]:
    """Time what has not been timed yet, and write what it costs into the study's folder.

    Args:
        cells: Of the study.
        store: The study.
        size: Edge of the pictures.
        processes: That steps may start for stimuli.

    Returns:
        Steps that could not be timed, each with the reason.
    """
    known = read_pilot(store.folder)
    steps = {step.pace: step for cell in reversed(cells) for step in reversed(cell.steps)}
    wanted = [step for pace, step in steps.items() if pace not in known and step.least]
    if not wanted:
        return []
    trial = Store(store.folder / FOLDER)
    made = list(_cells(wanted, size))
    with store.held(), trial.held() as output:
        trial.tidy(made, output)
        drive(made, trial, LocalPool(trial, 1, processes=processes, threads=processes))
    points: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for cell in made:
        for step in cell.steps:
            mark = trial.mark(step)
            if mark.get("done"):
                points[step.pace].append(mark)
    found = known | {pace: fit(own) for pace, own in points.items() if not pace.startswith(WARM_UP)}
    waits = [
        mark["seconds"] - found[pace.removeprefix(WARM_UP)].seconds(mark["amount"])
        for pace, own in points.items()
        for mark in own
        if pace.startswith(WARM_UP) and pace.removeprefix(WARM_UP) in found
    ]
    if waits:
        found[START] = fixed(max(0.0, *waits))
    with store.held() as output:
        output.write_json(PILOT, {"paces": {name: asdict(pace) for name, pace in found.items()}})
    return [f"{f.step}: {f.reason}" for cell in made if (ended := trial.ended(cell)) for f in ended.failures]


def _cells(wanted: Iterable[Step], size: int) -> Iterator[Cell]:
    """The cells of a pilot: sets, then trainings, then everything that is asked."""
    by_command: dict[str, list[Step]] = defaultdict(list)
    for step in wanted:
        by_command[step.arguments[0]].append(step)
    asking = by_command["run"] + by_command["decode"]
    largest = {step.arguments[2]: SIZES["stimuli"][1] for step in by_command["stimuli"]}
    for step in asking:
        largest[_task_of(step)] = max(largest.get(_task_of(step), 0), SIZES[step.arguments[0]][1])
    sets = [part for task, n in sorted(largest.items()) for part in _sets(task, n, size)]
    if sets:
        yield Cell("sets/pilot", "sets", "pilot", tuple(_warm(sets)))
    for step in by_command["train"]:
        for part in _parts(step, (step.least, 2 * step.least)):
            yield Cell(part.id, "adapters", "pilot", (part,))
    processes: dict[str, list[Step]] = defaultdict(list)
    for step in asking:
        processes[f"{step.arguments[0]}-{Path(_value(step, '--model')).name}"] += _parts(step, SIZES[step.arguments[0]])
    for name, parts in processes.items():
        yield Cell(f"runs/{name}", "runs", "pilot", tuple(_warm(parts)))


def _sets(task: str, n: int, size: int) -> Iterator[Step]:
    """Two sets of a task; the larger one is what models are asked."""
    for number, out in ((SIZES["stimuli"][0], f"sets/{task}.small"), (n, f"sets/{task}")):
        options = ("--n", str(number), "--seed", SEED, "--size", str(size), "--out", out)
        yield Step(out, ("stimuli", "make", task, *options), (), f"{task} {n} {size}", f"set {task}", number, "items")


def _parts(step: Step, sizes: Sequence[int]) -> Iterator[Step]:
    """A step at the two sizes, with the pilot's sets, and without adapters, which only the study has."""
    training = step.arguments[0] == "train"
    whole = int(_value(step, "--limit") or 0)
    arguments: Sequence[str] = step.arguments
    for option in ("--avoid", "--adapter", "--compare"):
        arguments = _without(arguments, option)
    for size in sizes:
        out = f"{step.id}.{size}" if training else f"runs/{step.arguments[0]}-{step.id.replace('/', '-')}/{size}"
        if training:
            given = {"--budget": f"{step.unit}={size}", "--items": str(2 * step.least)}
        else:
            given = {"--stimuli": f"sets/{_task_of(step)}", "--limit": str(size)}
        changed = arguments
        for option, value in (given | {"--out": out}).items():
            changed = [*_without(changed, option), option, value]
        # Where every item is several trials (controls), amounts go with items.
        amount = round(step.amount * size / whole) if whole else size
        needs = () if training else (given["--stimuli"],)
        yield replace(step, id=out, arguments=tuple(changed), amount=amount, needs=needs)


def _warm(parts: Sequence[Step]) -> list[Step]:
    """With a first step that is not counted, like the first one that is."""
    first = parts[0]
    out = f"{first.id}.first"
    arguments = (*_without(first.arguments, "--out"), "--out", out)
    return [replace(first, id=out, arguments=arguments, pace=WARM_UP + first.pace), *parts]


def _task_of(step: Step) -> str:
    """The task that is asked; shifted sets are named after it."""
    return Path(_value(step, "--stimuli")).name.partition("_")[0]


def _value(step: Step, option: str) -> str:
    return step.arguments[step.arguments.index(option) + 1] if option in step.arguments else ""


def _without(arguments: Sequence[str], option: str) -> list[str]:
    if option not in arguments:
        return list(arguments)
    at = list(arguments).index(option)
    return [*arguments[:at], *arguments[at + 2 :]]
