"""The driver: starts whatever cells are missing and can be begun, until nothing is left that can be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlm_probe.probes.study.cells import Cell
from vlm_probe.probes.study.pools import Pool
from vlm_probe.probes.study.store import ENDED, WORK, Ended, Failure, Store, fingerprint
from vlm_probe.probes.study.worker import command_of, work_of
from vlm_probe.stimuli.output import write_json

POLL = 0.2
"""Seconds between two looks at what has ended."""


@dataclass(frozen=True)
class Event:
    """Something that a user wants to hear: "started" or "ended", of which cell."""

    what: str
    cell: Cell


def drive(
    cells: Sequence[Cell], store: Store, pool: Pool, tell: Callable[[Event | None], None] = lambda event: None
) -> None:
    """Do all cells that are not done, each at most once. The store must be held.

    Args:
        cells: Of the design, those that others need first.
        store: Where they are.
        pool: What does them.
        tell: Called with what happens, and with None whenever some time has passed.
    """
    try:
        _Driver(cells, store, pool, tell).run()
    except BaseException:
        rest = pool.stop()
        if rest:
            from vlm_probe.probes.cli.console import tell as say

            say(rest)
        raise


class _Driver:
    def __init__(self, cells: Sequence[Cell], store: Store, pool: Pool, tell: Callable[[Event | None], None]) -> None:
        self.store, self.pool, self.tell = store, pool, tell
        self.left = {cell.id: cell for cell in cells if not all(map(store.done, cell.steps))}
        self.owner = {step.id: cell.id for cell in cells for step in cell.steps}
        self.steps = {step.id: step for cell in cells for step in cell.steps}
        self.active = {id_: self.left[id_] for id_ in pool.adopt(list(self.left))}

    def run(self) -> None:
        """Until there is nothing left that can be done."""
        while self.left:
            for id_, death in self.pool.ended().items():
                self._end(self.active.pop(id_), death)
            # A process of a driver that was killed may still be at a cell: it is waited for.
            elsewhere = {id_ for id_ in self.left if id_ not in self.active and self.store.at_work(id_)}
            room = self.pool.jobs - len(self.active) - len(elsewhere)
            ready = [cell for cell in self.left.values() if cell.id not in elsewhere and self._can_begin(cell)]
            self._start(ready[: max(room, 0)])
            if not self.active and not elsewhere and not ready:
                return
            self.tell(None)
            time.sleep(POLL)

    def _can_begin(self, cell: Cell) -> bool:
        """Whether everything that it needs is settled: done, or failed for this time."""
        return cell.id not in self.active and not any(self.owner[need] in self.left for need in cell.needs)

    def _start(self, cells: Sequence[Cell]) -> None:
        begun = []
        for cell in cells:
            if all(map(self.store.done, cell.steps)):  # by a process that was waited for
                self._settle(cell)
                continue
            blocked = [step.id for step in cell.steps if not all(self.store.done(self.steps[n]) for n in step.needs)]
            if all(step.id in blocked or self.store.done(step) for step in cell.steps):
                self.store.write_ended(cell.id, fingerprint(cell), Ended(blocked=tuple(blocked)))
                self._settle(cell)
                continue
            (self.store.cell_folder(cell.id) / ENDED).unlink(missing_ok=True)
            self.store.cell_folder(cell.id).mkdir(parents=True, exist_ok=True)
            write_json(self.store.cell_folder(cell.id) / WORK, work_of(cell, self.pool.processes, self.pool.launch))
            begun.append(cell)
        if begun:
            self.pool.start([cell.id for cell in begun])
            for cell in begun:
                self.active[cell.id] = cell
                self.tell(Event("started", cell))

    def _end(self, cell: Cell, death: str) -> None:
        """A process has ended; if it could not say how, that is written down for it."""
        if not all(map(self.store.done, cell.steps)) and self.store.ended(cell) is None:
            missing = [step for step in cell.steps if not self.store.done(step)]
            at = next((step for step in missing if self.store.mark(step)), missing[0])
            failure = Failure(at.id, death or "its process ended without a word; see the log", command_of(at))
            self.store.write_ended(cell.id, fingerprint(cell), Ended((failure,)))
        self._settle(cell)

    def _settle(self, cell: Cell) -> None:
        del self.left[cell.id]
        self.tell(Event("ended", cell))
