"""The plan of a study, before it is run: its cells, its trials, and what they take in time and on the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_probe.probes.study.cells import Cell, trials
from vlm_probe.probes.study.design import Design
from vlm_probe.probes.study.overview import Overview, duration, left_text, size_text
from vlm_probe.probes.study.pace import Pace, bytes_of, seconds_of, start_of


@dataclass(frozen=True)
class Plan:
    """What a study comes to.

    Attributes:
        design: The design.
        cells: Its cells.
        paces: What steps cost, as far as it was timed.
        now: What is there already.
        jobs: Cells that will be done at a time.
    """

    design: Design
    cells: Sequence[Cell]
    paces: Mapping[str, Pace]
    now: Overview
    jobs: int

    def rows(self) -> list[dict[str, Any]]:
        """One row per group of cells."""
        rows = []
        for group in dict.fromkeys(cell.group for cell in self.cells):
            own = [cell for cell in self.cells if cell.group == group]
            steps = [step for cell in own for step in cell.steps]
            seconds = [seconds_of(self.paces, step) for step in steps]
            sizes = [bytes_of(self.paces, step) for step in steps]
            rows.append(
                {
                    "cells": group,
                    "all": len(own),
                    "done": sum(self.now.looks[cell.id].state == "done" for cell in own),
                    "steps": len(steps),
                    "trials": trials(own),
                    "seconds": sum(s for s in seconds if s is not None) + sum(start_of(self.paces, c) for c in own),
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
