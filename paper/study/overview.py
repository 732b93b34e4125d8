"""A study at a glance: what it comes to before it is run, how far it is, what failed, why, and how to repeat it by hand."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_probe.paper.study.cells import Cell, Step, trials
from vlm_probe.paper.study.cost import CostModel
from vlm_probe.paper.study.design import Design
from vlm_probe.paper.study.store import CELLS, LOG, Failure, Look, Store

COUNTS = ("done", "running", "failed", "blocked", "missing")


@dataclass(frozen=True)
class Overview:
    """A study as it is now.

    Attributes:
        folder: Where it is.
        cells: Its cells.
        looks: Cell -> what it looks like.
        cost: What steps cost, as far as it was timed.
        done: Whether a step is done.
        jobs: Cells that are done at a time, for the time that is left.
    """

    folder: str
    cells: Sequence[Cell]
    looks: Mapping[str, Look]
    cost: CostModel
    done: Callable[[Step], bool]
    jobs: int = 1

    def count(self, state: str) -> int:
        """Number of cells in a state."""
        return sum(look.state == state for look in self.looks.values())

    @property
    def failures(self) -> list[Failure]:
        """Steps that failed when they were tried last."""
        return [f for look in self.looks.values() if look.ended is not None for f in look.ended.failures]

    def seconds_left(self, cells: Sequence[Cell]) -> tuple[float, bool]:
        """Seconds that are left for some cells, one after the other, and whether all of them could be estimated."""
        left = [self.cost.seconds(step) for cell in cells for step in cell.steps if not self.done(step)]
        return sum(seconds for seconds in left if seconds is not None), None not in left

    def rows(self) -> list[dict[str, Any]]:
        """One row per group of cells."""
        rows = []
        for group in dict.fromkeys(cell.group for cell in self.cells):
            own = [cell for cell in self.cells if cell.group == group]
            counts: Counter[str] = Counter(self.looks[cell.id].state for cell in own)
            seconds, known = self.seconds_left(own)
            rows.append(
                {"cells": group, "all": len(own)}
                | {state: counts[state] for state in COUNTS}
                | {"steps": sum(len(cell.steps) for cell in own), "steps_done": sum(self.looks[c.id].done for c in own)}
                | {"took_s": sum(self.looks[c.id].seconds for c in own), "left_s": seconds, "left_is_known": known}
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {
            "folder": self.folder,
            "groups": self.rows(),
            "running": [id_ for id_, look in self.looks.items() if look.state == "running"],
            "failures": [f.__dict__ for f in self.failures],
        }

    def __rich__(self) -> Any:
        """As a table, with what is at work and what failed below it."""
        from rich.console import Group
        from rich.text import Text

        return Group(self.table(), *(Text(line, overflow="fold") for line in self.failed()))

    def failed(self) -> list[str]:
        """What failed, in lines that are not to be broken, since they hold commands."""
        return failure_lines(self.failures, self.folder)

    def table(self) -> Any:
        """All but what failed."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        states = [state for state in COUNTS if state in ("done", "missing") or self.count(state)]
        for header in ("cells", "all", *states, "steps", "took", "left"):
            table.add_column(header, justify="left" if header == "cells" else "right")
        for row in self.rows():
            numbers = [str(row[state] or "") for state in states]
            steps = f"{row['steps_done']}/{row['steps']}"
            times = duration(row["took_s"]), left_text(row["left_s"], row["left_is_known"])
            table.add_row(row["cells"], str(row["all"]), *numbers, steps, *times)
        seconds, known = self.seconds_left(self.cells)
        done, total = self.count("done"), len(self.cells)
        tail = f"{done} of {total} cells are done"
        if done < total:
            together = left_text(seconds / self.jobs, known)
            tail += f"; left, {self.jobs} at a time: {together}" if together else ""
        lines = [Text(tail)]
        for cell in self.cells:
            look = self.looks[cell.id]
            if look.state == "running":
                lines.append(Text(f"at work: {cell.id} ({look.done} of {len(cell.steps)} steps done)"))
        return Group(table, *lines)


def look_at(
    cells: Sequence[Cell],
    store: Store,
    cost: CostModel | None = None,
    jobs: int = 1,
) -> Overview:
    """Look at a study.

    Args:
        cells: All of its design.
        store: Where they are.
        cost: What steps cost, for the time that is left.
        jobs: Cells that are done at a time.
    """
    looks = {cell.id: store.look(cell) for cell in cells}
    return Overview(str(store.folder), cells, looks, cost or CostModel(), store.done, jobs)


def failure_lines(failures: Sequence[Failure], folder: str) -> list[str]:
    """What failed, why, and how to repeat it by hand.

    Args:
        failures: Steps that failed.
        folder: Of the study.
    """
    lines = []
    for failure in failures:
        lines += [
            f"failed: {failure.step}: {failure.reason}",
            f"  by hand:  (cd {shlex.quote(folder)} && {failure.command})",
        ]
    if failures:
        lines.append(
            f"The log of a cell is {folder}/{CELLS}/CELL/{LOG}; `probe study run` tries failed cells once more."
        )
    return lines


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 12 min, 3.4 h; empty for none."""
    if seconds <= 0:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def left_text(seconds: float, known: bool) -> str:
    """A time that is left, marked where not everything in it is known.

    Args:
        seconds: That are known to be left.
        known: Whether that is all of it.
    """
    text = duration(seconds)
    return text if known else (f"> {text}" if text else "?")


def size_text(size: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@dataclass(frozen=True)
class Plan:
    """What a study comes to.

    Attributes:
        design: The design.
        cells: Its cells.
        cost: What steps cost, as far as it was timed.
        now: What is there already.
        jobs: Cells that will be done at a time.
    """

    design: Design
    cells: Sequence[Cell]
    cost: CostModel
    now: Overview
    jobs: int

    def rows(self) -> list[dict[str, Any]]:
        """One row per group of cells."""
        rows = []
        for group in dict.fromkeys(cell.group for cell in self.cells):
            own = [cell for cell in self.cells if cell.group == group]
            steps = [step for cell in own for step in cell.steps]
            seconds = [self.cost.seconds(step) for step in steps]
            sizes = [self.cost.size(step) for step in steps]
            rows.append(
                {
                    "cells": group,
                    "all": len(own),
                    "done": sum(self.now.looks[cell.id].state == "done" for cell in own),
                    "steps": len(steps),
                    "trials": trials(own),
                    "seconds": sum(s for s in seconds if s is not None) + sum(self.cost.start(c) for c in own),
                    "bytes": sum(s for s in sizes if s is not None),
                    "is_known": None not in seconds,
                    "timed": any(s is not None for s in seconds),
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        rows = self.rows()
        return {
            "study": self.design.name,
            "folder": self.now.folder,
            "groups": rows,
            "cells": [{"id": cell.id, "steps": [step.id for step in cell.steps]} for cell in self.cells],
            "trials": trials(self.cells),
            "seconds": sum(row["seconds"] for row in rows),
            "bytes": sum(row["bytes"] for row in rows),
            "is_known": all(row["is_known"] for row in rows),
            "contrasts": [str(contrast) for contrast in self.design.contrasts],
        }

    def __rich__(self) -> Any:
        """As a table, with the sums below it."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in ("cells", "all", "done", "steps", "trials", "time", "disk"):
            table.add_column(header, justify="left" if header == "cells" else "right")
        rows = self.rows()
        for row in rows:
            known, trials_text = row["is_known"], f"{row['trials']:,}" if row["trials"] else ""
            disk = size_text(row["bytes"]) if row["bytes"] else ""
            numbers = (str(row["all"]), str(row["done"] or ""), str(row["steps"]), trials_text)
            table.add_row(
                row["cells"], *numbers, left_text(row["seconds"], known), disk if known else f"> {disk}" * bool(disk)
            )
        return Group(Text(f"{self.design.name}, in {self.now.folder}"), table, *map(Text, self._sentences(rows)))

    def _sentences(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        seconds, size = sum(row["seconds"] for row in rows), sum(row["bytes"] for row in rows)
        known = all(row["is_known"] for row in rows)
        lines = [
            f"{len(self.cells)} cells, {trials(self.cells):,} trials, {len(self.design.contrasts)} planned contrasts"
        ]
        if seconds:
            at_least = "" if known else "at least "
            each = f", {duration(seconds / self.jobs)} with {self.jobs} cells at a time" if self.jobs > 1 else ""
            lines.append(
                f"about {at_least}{duration(seconds)} on a machine like this{each}, and {size_text(size)} on the disk"
            )
        if not known:
            lines.append(
                "Not everything has been timed on this machine: `--pilot` times a small part of every kind of cell."
            )
        return lines
