"""Agreement of engines: every item of a set, simulated again by a second engine, and written into the card.

A judgement agrees if the second engine gives the answer that the set calls correct. An action agrees if, in the second
engine, the correct answer works and a wrong one fails: the first half alone would be passed by an engine in which
everything succeeds. The wrong one is what a rule without physics says (the first of the task's `rules` whose answer is
wrong), or the correct answer with the other sign. It is no neighbour of an answer that works, because those lie within
the ambiguity band by construction. Grounding has no outcome.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_probe.stimuli.dataset import CARD, Item, StimulusError, StimulusSet
from vlm_probe.stimuli.output import write_json
from vlm_probe.stimuli.plain_json import parse_object
from vlm_probe.stimuli.question import Answer
from vlm_probe.stimuli.simulators import Simulator, get_simulator
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND, Task, get_task

BINS = (0.0, AMBIGUITY_BAND, 0.2, 0.4, 0.7, float("inf"))
"""Edges of the bins of |margin|; the first bin is the ambiguity band."""
REQUIRED = {"collision": 0.97}
"""Share of items outside the ambiguity band on which engines must agree, by family: chains of impacts amplify differences."""
REQUIRED_ELSEWHERE = 0.99


@dataclass(frozen=True)
class Disagreement:
    """An item on which two engines differ: what the set says, and what the second engine gives."""

    item_id: str
    margin: float
    expected: str
    found: str


@dataclass(frozen=True)
class Cell:
    """Agreement on the items of one task in one bin of |margin|."""

    task: str
    family: str
    margin: str
    n: int
    agree: int


@dataclass(frozen=True)
class Agreement:
    """How far a second engine agrees with a set.

    Attributes:
        engine: Engine and version.
        first: The engine that made the set.
        cells: Per task and bin of |margin|, bins without items left out.
        disagreements: In the order of the set.
        required: Share asked for outside the ambiguity band, per family.
    """

    engine: str
    first: str
    cells: tuple[Cell, ...]
    disagreements: tuple[Disagreement, ...]
    required: dict[str, float]

    def outside(self, family: str) -> tuple[int, int]:
        """Items of a family outside the ambiguity band: how many agree, of how many."""
        chosen = [c for c in self.cells if c.family == family and c.margin != _bin(0.0)]
        return sum(c.agree for c in chosen), sum(c.n for c in chosen)

    @property
    def passed(self) -> bool:
        """Whether every family reaches what is required of it outside the band."""
        return all(
            agree >= self.required[family] * n for family in self.required for agree, n in [self.outside(family)]
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row per task and bin."""
        return [
            {"task": c.task, "|margin|": c.margin, "n": c.n, "agree": c.agree, "share": round(c.agree / c.n, 4)}
            for c in self.cells
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the card holds it."""
        return {
            "engine": self.engine,
            "set_made_with": self.first,
            "compared": "the correct answer; for actions that it works, and that a wrong answer fails",
            "bins": self.rows(),
            "outside_band": {
                family: {"agree": agree, "n": n, "required": self.required[family]}
                for family in self.required
                for agree, n in [self.outside(family)]
            },
            "disagreements": [
                {"item_id": d.item_id, "margin": d.margin, "expected": d.expected, "found": d.found}
                for d in self.disagreements
            ],
            "passed": self.passed,
        }


def check(stimuli: StimulusSet, engine: str, progress: Callable[[int, int], None] | None = None) -> Agreement:
    """Simulate every item of a set with an engine and write the agreement into the card, under "checks".

    Nothing else in the card changes; it is replaced in one step, so that it is never half written.

    Args:
        stimuli: The set.
        engine: Name of the engine ("mujoco", "pybullet").
        progress: Called with (items done, items in all).

    Raises:
        StimulusError: If an item has no scene, the task is a grounding task, or the card cannot be written.
        ValueError, ModuleNotFoundError: If there is no such engine, or it is not installed.
    """
    simulator = get_simulator(engine)
    items = stimuli.items
    counts: dict[tuple[str, str, str], list[int]] = {}
    found: list[Disagreement] = []
    for number, item in enumerate(items):
        task = get_task(item.task)
        if item.scene is None:
            raise StimulusError(
                f"{item.item_id} has no scene to simulate: sets of other people's pictures cannot be checked"
            )
        if task.kind == "grounding":
            raise StimulusError(f"{item.item_id}: {task.name} asks about no outcome, so there is nothing to simulate")
        expected, got = (_action if task.kind == "action" else _judgement)(task, item, simulator)
        cell = counts.setdefault((task.name, task.family, _bin(item.margin)), [0, 0])
        cell[0] += 1
        cell[1] += expected == got
        if expected != got:
            found.append(Disagreement(item.item_id, item.margin, expected, got))
        if progress is not None:
            progress(number + 1, len(items))
    order = [_bin(edge) for edge in BINS[:-1]]
    cells = tuple(
        Cell(task, family, margin, n, agree)
        for (task, family, margin), (n, agree) in sorted(
            counts.items(), key=lambda entry: (entry[0][0], order.index(entry[0][2]))
        )
    )
    first = str(stimuli.card.get("versions", {}).get("engine", "unknown"))
    required = {family: REQUIRED.get(family, REQUIRED_ELSEWHERE) for family in dict.fromkeys(c.family for c in cells)}
    agreement = Agreement(simulator.version(), first, cells, tuple(found), required)
    _record(stimuli, simulator.name, agreement)
    return agreement


def _judgement(task: Task, item: Item, simulator: Simulator) -> tuple[str, str]:
    assert item.scene is not None
    return str(item.answer), str(task.solve(item.scene, item.question, simulator))


def _action(task: Task, item: Item, simulator: Simulator) -> tuple[str, str]:
    scene, question = item.scene, item.question
    assert scene is not None
    tried = [(item.answer, True)]
    wrong = _wrong(task, item, item.working or [item.answer])
    if wrong is not None:
        tried.append((wrong, False))
    words = {True: "works", False: "fails"}
    expected = ", ".join(f"{answer} {words[works]}" for answer, works in tried)
    outcomes = [(answer, task.score(scene, question, answer, simulator).success) for answer, _ in tried]
    return expected, ", ".join(f"{answer} {words[works]}" for answer, works in outcomes)


def _wrong(task: Task, item: Item, working: list[Answer]) -> Answer | None:
    """A legal answer that is wrong and no neighbour of an answer that works; None if neither a rule nor the mirror gives one."""
    assert item.scene is not None
    legal = {value for _, value in item.question.grammar.candidates()}
    for answer in (*(rule(item.scene) for rule in task.rules().values()), task.mirrored(item.answer)):
        if answer in legal and all(np.abs(np.subtract(answer, w)).max() > 1 for w in working):
            return answer
    return None


def _bin(margin: float) -> str:
    low, high = next((low, high) for low, high in itertools.pairwise(BINS) if low <= abs(margin) < high)
    return f"{low:.1f}-{high:.1f}" if high != float("inf") else f"{low:.1f} and more"


def _record(stimuli: StimulusSet, engine: str, agreement: Agreement) -> None:
    card = parse_object((stimuli.path / CARD).read_bytes())
    card["checks"] = card.get("checks", {}) | {engine: agreement.to_dict()}
    stimuli.card["checks"] = card["checks"]
    try:
        write_json(stimuli.path / CARD, card)
    except OSError as error:
        raise StimulusError(f"cannot write {stimuli.path / CARD}: {error.strerror or error}") from error
