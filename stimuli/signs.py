"""Whether the sign of a margin goes with an answer, as it does on a task's own scenes: for margins that others state."""

from __future__ import annotations

import numpy as np

from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.question import Answer
from vlm_probe.stimuli.tasks import Task, Unsatisfiable

PROBED = 12
"""Conditions of a task from which a group of scenes is drawn to see what its margin means."""


def signs(task: Task) -> dict[Answer, int]:
    """The sign of the margin (1 or -1) that goes with each answer of a judgement; empty where signs do not tell answers apart.

    Found on scenes of the task, whose answers are those of the closed form, or of the simulator where there is none.
    """
    if task.kind != "judgement":
        return {}
    rng, conditions = np.random.default_rng(0), task.conditions()
    found: dict[Answer, set[int]] = {}
    for condition in conditions[:: max(1, len(conditions) // PROBED)]:
        try:
            scenes = task.sample_matched(rng, condition)
            for scene in scenes:
                answer = task.statics_answer(scene)
                if answer is None:
                    answer = task.solve(scene, task.question(scene, task.variants()[0]))
                found.setdefault(answer, set()).add(int(np.sign(task.margin(scene))))
        except (Unsatisfiable, ValueError):
            continue
    meant = {answer: only for answer, each in found.items() if len(each) == 1 and (only := next(iter(each)))}
    return meant if len(set(meant.values())) == 2 else {}


def contradictions(items: list[Item], expected: dict[Answer, int]) -> list[Item]:
    """The items whose margin has the sign of another answer than theirs. A margin of 0 has none (it is often just not known).

    Args:
        items: Of one task.
        expected: The sign that goes with each answer, from `signs`.
    """
    return [item for item in items if np.sign(item.margin) == -expected.get(item.answer, 0) != 0]
