"""The design of a stimulus set: which condition and wording every group of matched items gets.

A group is one base scene, its foils, and the mirror images of all of them. Conditions and wordings are laid over the
groups in shuffled blocks, so that each is used equally often (as far as n allows) and neither predicts the other. All
members of a group share one wording, so that foils differ in the image alone.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.picture import staged
from vlm_probe.stimuli.question import Variant
from vlm_probe.stimuli.scene import Scene, mirror
from vlm_probe.stimuli.shifts import Shifts, apply_alike, shifted_condition
from vlm_probe.stimuli.tasks import Task

ID_DIGITS = 12
"""Hexadecimal digits that tell the items of a set apart: with 100,000 items, two are alike once in 50,000 sets."""


@dataclass(frozen=True, slots=True)
class Group:
    """The plan of one group: its index in the set, the condition of its base scene, and the wording."""

    index: int
    condition: Condition
    variant: Variant


@dataclass(frozen=True, slots=True)
class Member:
    """One scene of a group: its condition, and whether it is the base scene or a foil of it."""

    scene: Scene
    condition: Condition
    role: str


@dataclass(frozen=True, slots=True)
class Ids:
    """The identifiers of one item: its own, that of its minimal pair, and that of its group."""

    item: str
    pair: str
    group: str


def ids(task: Task, seed: int, group: Group, member: Member) -> Ids:
    """The identifiers of an item. Its own is opaque: neither factors nor the place in the group can be read from it.

    Args:
        task: That asks.
        seed: Of the set.
        group: The plan of the group.
        member: Of the group.
    """
    stem = f"{task.name}_v{task.version}_s{seed}"
    group_id = f"{stem}_g{group.index:05d}"
    factors = f"{group_id} {member.condition.code} {member.role}"
    own = hashlib.sha256(factors.encode()).hexdigest()[:ID_DIGITS]
    return Ids(f"{stem}_{own}", group_id + ("_mir" if member.condition.mirrored else ""), group_id)


def order(task: Task, seed: int, n: int) -> list[int]:
    """In which order the items of a set are written: a permutation of n, the same for every shift of the set.

    Args:
        task: The task, by its name and version.
        seed: Of the set.
        n: Number of items.
    """
    return [int(i) for i in np.random.default_rng([seed, _code(task), 4]).permutation(n)]


def group_size(task: Task) -> int:
    """Items per group: base and foils, each with its mirror image."""
    return 2 * len(task.sample_matched(group_rng(task, 0, 0), task.conditions()[0]))


def plan(
    task: Task,
    groups: int,
    seed: int,
    style: str = "direct",
    shifts: Shifts = (),
    *,
    conditions: Sequence[Condition] = (),
    variants: Sequence[Variant] = (),
) -> Iterator[Group]:
    """The plans of that many groups. A pure function of the task's version, the other arguments and the index.

    Shifts change the conditions and nothing else, so that shifted sets have the same plan.

    Args:
        task: The task.
        groups: How many.
        seed: Of the set.
        style: "direct" or "think" (the wording of the answer format).
        shifts: Of all groups.
        conditions: Those over which the groups are laid; by default all of the task.
        variants: The wordings, likewise.
    """
    conditions, variants = conditions or task.conditions(), variants or task.variants()
    rng = np.random.default_rng([seed, _code(task), 1])
    rows: list[int] = []
    wordings: list[int] = []
    for index in range(groups):
        if not rows:
            rows = rng.permutation(len(conditions)).tolist()
        if not wordings:
            wordings = rng.permutation(len(variants)).tolist()
        condition, variant = conditions[rows.pop()], variants[wordings.pop()]
        ask, _, _ = condition.build.partition(":")
        if task.kind == "grounding":
            variant = replace(variant, ask=ask, detail=int(rng.integers(2**16)))
        if shifts:
            condition = shifted_condition(task, condition, shifts)
        yield Group(index, condition, replace(variant, style=style))  # type: ignore[arg-type]


def members(
    task: Task,
    group: Group,
    rng: np.random.Generator,
    shifting: np.random.Generator | None = None,
    renderer: str = "",
) -> list[Member]:
    """The scenes of a group: base, foils, then the mirror image of each in the same order.

    Shifts, where the condition has any, come before the mirror and are alike for all.

    Args:
        task: The task.
        group: The plan of the group.
        rng: Draws the scenes (`group_rng`).
        shifting: Decides what the shifts are within their levels (`shift_rng`); by default, `rng`.
        renderer: What will draw them, which decides from where they are seen; empty for the default.

    Raises:
        Unsatisfiable: If this draw has no such scenes; the next attempt may.
    """
    scenes = staged(task.sample_matched(rng, group.condition), renderer)
    if group.condition.shifts:
        scenes = apply_alike(scenes, group.condition.shifts, shifting if shifting is not None else rng)
    foil = task.foil_condition(group.condition)
    plain = [
        Member(scene, group.condition if i == 0 else foil, "base" if i == 0 else f"foil{i}")
        for i, scene in enumerate(scenes)
    ]
    mirrored = [replace(m, scene=mirror(m.scene), condition=replace(m.condition, mirrored=True)) for m in plain]
    return plain + mirrored


def group_rng(task: Task, seed: int, index: int, attempt: int = 0) -> np.random.Generator:
    """The generator from which the scenes of one group are drawn.

    Args:
        task: The task, by its name and version.
        seed: Of the set.
        index: Of the group in the set.
        attempt: Number of the draw, from 0: a draw may have no scenes.
    """
    return np.random.default_rng([seed, _code(task), 2, index, attempt])


def shift_rng(task: Task, seed: int, index: int, attempt: int = 0) -> np.random.Generator:
    """The generator that decides about the shifts of one group: apart from `group_rng`, so that the scenes stay the same.

    Args:
        task: The task, by its name and version.
        seed: Of the set.
        index: Of the group in the set.
        attempt: Number of the draw, from 0.
    """
    return np.random.default_rng([seed, _code(task), 3, index, attempt])


def describe(task: Task, shifts: Shifts = ()) -> dict[str, Any]:
    """The design as plain data, for the card of a set.

    Args:
        task: The task.
        shifts: Of all groups.
    """
    return {
        "conditions": [shifted_condition(task, c, shifts).code for c in task.conditions()],
        "variants": len(task.variants()),
        "group": "base scene, its foils, and their mirror images; one wording per group",
        "order": "shuffled over the whole set",
    }


def _code(task: Task) -> int:
    return zlib.crc32(f"{task.name} {task.version}".encode())
