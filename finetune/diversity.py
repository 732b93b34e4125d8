"""How varied a training set is: how many conditions and wordings it has, and which shifts each of its scenes gets."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlm_probe.stimuli import design
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.question import ChoiceFormat
from vlm_probe.stimuli.shifts import Shifts, shifted_condition
from vlm_probe.stimuli.tasks import Task


@dataclass(frozen=True)
class Diversity:
    """Limits on how varied a training set is; 0 stands for all that the task's design has.

    Attributes:
        conditions: Distinct conditions (number of objects, bin of the margin, build).
        wordings: Distinct wordings of the question.
    """

    conditions: int = 0
    wordings: int = 0

    def __str__(self) -> str:
        return ",".join(f"{name}={number}" for name, number in vars(self).items() if number)


def parse_diversity(text: str) -> Diversity:
    """The limits that a text names: `conditions=2`, `wordings=1`, or both, separated by a comma. Empty: none.

    Raises:
        ValueError: If it names something else, or a number that is not positive.
    """
    limits: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(conditions|wordings)\s*=\s*([1-9][0-9]*)", part)
        if found is None or found[1] in limits:
            raise InvalidInput(f"diversity {text!r}: write conditions=2, wordings=1, or both, separated by a comma")
        limits[found[1]] = int(found[2])
    return Diversity(**limits)


def plan(
    task: Task, groups: int, seed: int, style: str = "direct", shifts: Shifts = (), diversity: Diversity = Diversity()
) -> Iterator[design.Group]:
    """The plans of the groups of a training set: those of `vlm_probe.stimuli.design.plan`, limited and shifted at random.

    The conditions and wordings are the first of a random order that the seed decides, so that a set with fewer of them has
    some of those of a set with more. Labels stay balanced, because they are so within every group.

    Domain randomisation (Tobin et al. 2017): every group draws a level for each of the shifts, from 0 (none) to the stated
    one, all alike.

    Args:
        task: The task.
        groups: Number of groups.
        seed: Of the set.
        style: "direct" or "think".
        shifts: Shifts with their highest levels.
        diversity: Limits.

    Raises:
        ValueError: If the task has fewer conditions or wordings than a limit asks for.
        Unsatisfiable: If the task has no scenes with as many objects as the shift `count` asks for.
    """
    rng = np.random.default_rng([seed, zlib.crc32(task.name.encode()), 5])
    distinct, wordings = list(dict.fromkeys(task.conditions())), list(task.variants())
    orders = [rng.permutation(len(distinct)).tolist(), rng.permutation(len(wordings)).tolist()]
    for name, limit, known in (
        ("conditions", diversity.conditions, distinct),
        ("wordings", diversity.wordings, wordings),
    ):
        if limit > len(known):
            raise InvalidInput(f"{task.name} has {len(known)} {name}, not {limit}: ask for fewer")
    kept = {distinct[i] for i in orders[0][: diversity.conditions or None]}
    plans = design.plan(
        task,
        groups,
        seed,
        style,
        conditions=[condition for condition in task.conditions() if condition in kept],
        variants=[wordings[i] for i in sorted(orders[1][: diversity.wordings or None])],
    )
    for group in plans:
        drawn = tuple((name, level) for name, most in shifts if (level := int(rng.integers(most + 1))))
        yield replace(group, condition=shifted_condition(task, group.condition, drawn)) if drawn else group


def describe(items: Iterable[Item]) -> dict[str, Any]:
    """How varied a training set turned out, task by task, for `training.json`.

    Returns:
        Task -> number of items, of distinct scenes, groups, conditions (of base scenes) and wordings, of items with each shift, and
        of each label where answers are options.
    """
    by_task: dict[str, list[Item]] = {}
    for item in items:
        by_task.setdefault(item.task, []).append(item)
    found = {}
    for task, those in by_task.items():
        shifts = Counter(f"{name}:{level}" for item in those for name, level in item.condition.shifts)
        labels = Counter(str(item.answer) for item in those if isinstance(item.question.grammar, ChoiceFormat))
        found[task] = {
            "items": len(those),
            "scenes": len({item.scene_sha256 for item in those}),
            "groups": len({item.group_id for item in those}),
            "conditions": len({replace(i.condition, shifts=(), mirrored=False) for i in those if i.role == "base"}),
            "wordings": len({item.variant for item in those}),
            "shifts": dict(sorted(shifts.items())),
            "labels": dict(sorted(labels.items())),
        }
    return found
