"""What the steps of a study take in time and on the disk: from the steps that are done, and from a timed pilot.

The pilot does a small part of every kind of step at two sizes, through the same command lines. Two sizes tell what a step costs in any
case from what every further item, sample or trial adds. A process that does many steps begins with one that is not counted, since it
waits for imports; what that takes is noted as well, because every cell waits so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm_probe.paper.study.cells import Cell, Step
from vlm_probe.paper.study.drive import drive
from vlm_probe.paper.study.fields import StudyError
from vlm_probe.paper.study.pools import LocalPool
from vlm_probe.paper.study.store import Store, read_json
from vlm_probe.stimuli.errors import reading

PILOT = "pilot.json"
START = "start"
"""What a process waits for imports, as a pace."""


@dataclass(frozen=True)
class Pace:
    """What a kind of step costs: `fixed` for every step, and `each` for every item, sample or trial.

    Attributes:
        seconds_fixed, seconds_each: By the clock.
        bytes_fixed, bytes_each: On the disk.
        whole: Whether everything is in it: the start of the process, and a training's own items.
    """

    seconds_fixed: float
    seconds_each: float
    bytes_fixed: float
    bytes_each: float
    whole: bool = False

    def seconds(self, amount: int) -> float:
        """Seconds for so much work."""
        return self.seconds_fixed + self.seconds_each * amount

    def size(self, amount: int) -> float:
        """Bytes for so much work."""
        return self.bytes_fixed + self.bytes_each * amount


def fixed(seconds: float) -> Pace:
    """A pace of something that always takes as long."""
    return Pace(seconds, 0.0, 0.0, 0.0)


def fit(points: Sequence[Mapping[str, Any]], whole: bool = False) -> Pace:
    """The pace that steps of one kind were done at.

    A straight line where amounts differ, with neither part below 0; else everything counts as proportional to the amount.

    Args:
        points: Steps that are done, each with `amount`, `seconds` and `bytes`.
        whole: Whether everything is in these seconds.
    """
    amounts = [float(point["amount"]) for point in points]
    mean = sum(amounts) / len(amounts)
    spread = sum((amount - mean) ** 2 for amount in amounts)
    lines = []
    for name in ("seconds", "bytes"):
        values = [float(point[name]) for point in points]
        average = sum(values) / len(values)
        if spread > 0:
            slope = sum((a - mean) * (v - average) for a, v in zip(amounts, values, strict=True)) / spread
            slope = min(max(slope, 0.0), average / mean)  # nothing costs less than nothing to begin
        else:
            slope = average / mean
        lines += [average - slope * mean, slope]
    seconds_fixed, seconds_each, bytes_fixed, bytes_each = lines
    return Pace(seconds_fixed, seconds_each, bytes_fixed, bytes_each, whole)


@dataclass(frozen=True)
class CostModel:
    """What the steps of a study take in time and on the disk.

    Attributes:
        paces: Pace of every kind of step that was timed.
    """

    paces: Mapping[str, Pace] = field(default_factory=dict)

    @classmethod
    def of(cls, cells: Iterable[Cell], store: Store) -> CostModel:
        """As far as it is known: from the steps that are done, else from the pilot.

        Args:
            cells: Of the study.
            store: Where they are.
        """
        timed = {pace: fit(own, whole=True) for pace, own in _timed(cells, store).items()}
        return cls(read_pilot(store.folder) | timed)

    def seconds(self, step: Step) -> float | None:
        """Seconds that a step will take, the start of its process apart; None if nothing like it was timed."""
        pace = self.paces.get(step.pace)
        if pace is None:
            return None
        items = [] if pace.whole else [self.paces[name].seconds(n) for name, n in step.items if name in self.paces]
        return pace.seconds(step.amount) + sum(items)

    def size(self, step: Step) -> float | None:
        """Bytes that a step will leave; None if nothing like it was timed."""
        pace = self.paces.get(step.pace)
        return None if pace is None else pace.size(step.amount)

    def start(self, cell: Cell) -> float:
        """Seconds that a cell's process waits for imports, unless they are in the paces of its steps."""
        known = [self.paces[step.pace].whole for step in cell.steps if step.pace in self.paces]
        is_counted = cell.kind == "adapters" or any(known) or START not in self.paces
        return 0.0 if is_counted else self.paces[START].seconds_fixed


def _timed(cells: Iterable[Cell], store: Store) -> dict[str, list[Mapping[str, Any]]]:
    """The steps that are done, by pace."""
    points: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        for step in cell.steps:
            mark = store.mark(step)
            if mark.get("done"):
                points[step.pace].append(mark)
    return points


def read_pilot(folder: Path) -> dict[str, Pace]:
    """The paces of a pilot; empty if there was none."""
    with reading(folder / PILOT, StudyError, "delete it, and give `probe study plan --pilot` again"):
        return {name: Pace(**values) for name, values in read_json(folder / PILOT).get("paces", {}).items()}


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
        size: Edge of the images.
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
    points = _timed(made, trial)
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
    """The cells of a pilot: sets, then training runs, then everything that is asked."""
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
