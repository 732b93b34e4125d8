"""How long steps take and how much they leave on the disk, from a timed pilot and from the steps that are done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_probe.probes.study.cells import Cell, Step
from vlm_probe.probes.study.fields import StudyError
from vlm_probe.probes.study.store import Store, read_json
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


def paces(cells: Iterable[Cell], store: Store) -> dict[str, Pace]:
    """Pace of every kind of step: of steps that are done, else of the pilot.

    Args:
        cells: Of the study.
        store: Where they are.
    """
    points: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        for step in cell.steps:
            mark = store.mark(step)
            if mark.get("done"):
                points[step.pace].append(mark)
    found = read_pilot(store.folder)
    return found | {pace: fit(own, whole=True) for pace, own in points.items()}


def read_pilot(folder: Path) -> dict[str, Pace]:
    """The paces of a pilot; empty if there was none."""
    with reading(folder / PILOT, StudyError, "delete it, and give `probe study plan --pilot` again"):
        return {name: Pace(**values) for name, values in read_json(folder / PILOT).get("paces", {}).items()}


def seconds_of(found: Mapping[str, Pace], step: Step) -> float | None:
    """Seconds that a step will take, the start of its process apart; None if nothing like it was timed.

    Args:
        found: The paces.
        step: What is to be done.
    """
    pace = found.get(step.pace)
    if pace is None:
        return None
    items = [] if pace.whole else [found[name].seconds(n) for name, n in step.items if name in found]
    return pace.seconds(step.amount) + sum(items)


def bytes_of(found: Mapping[str, Pace], step: Step) -> float | None:
    """Bytes that a step will leave; None if nothing like it was timed.

    Args:
        found: The paces.
        step: What is to be done.
    """
    pace = found.get(step.pace)
    return None if pace is None else pace.size(step.amount)


def start_of(found: Mapping[str, Pace], cell: Cell) -> float:
    """Seconds that a cell's process waits for imports, unless they are in the paces of its steps.

    Args:
        found: The paces.
        cell: What is to be done.
    """
    known = [found[step.pace].whole for step in cell.steps if step.pace in found]
    return 0.0 if cell.kind == "adapters" or any(known) or START not in found else found[START].seconds_fixed
