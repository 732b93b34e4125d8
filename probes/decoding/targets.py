"""What can be decoded: numbers and labels of an item, by name. Lengths are metres, forces newtons; right is positive."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.decoding import DecodingError
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.question import ChoiceFormat, IntegerFormat
from vlm_probe.stimuli.scene import Body, Scene
from vlm_probe.stimuli.shapes import bottom
from vlm_probe.stimuli.tasks import UnknownTask, get_task

Value = float | str | None
"""The value of a target for one item; None where the item has none."""


@dataclass(frozen=True)
class Target:
    """A quantity.

    Attributes:
        name: As on the command line.
        about: What it is, with its unit.
        kind: "number" (ridge regression) or "label" (logistic regression).
        of: The value for an item.
    """

    name: str
    about: str
    kind: Literal["number", "label"]
    of: Callable[[Item], Value]


def _margin(item: Item) -> Value:
    return None if math.isnan(item.margin) else item.margin


def _label(item: Item) -> Value:
    return str(item.answer) if isinstance(item.question.grammar, ChoiceFormat) else None


def _reply(item: Item) -> Value:
    return item.question.grammar.text(item.answer) if isinstance(item.question.grammar, ChoiceFormat) else None


def _answer(item: Item, place: int) -> Value:
    if not isinstance(item.question.grammar, IntegerFormat):
        return None
    numbers = (item.answer,) if isinstance(item.answer, int) else item.answer
    return float(numbers[place]) if place < len(numbers) else None


def _count(item: Item) -> Value:
    return float(item.condition.count)


def _of_scene(measure: Callable[[Scene], float | None]) -> Callable[[Item], Value]:
    return lambda item: None if item.scene is None else measure(item.scene)


def _com_offset(scene: Scene) -> float | None:
    parts = _structure(scene)
    if not parts:
        return None
    free = [body for body in parts if not body.fixed] or parts
    mass = sum(body.mass for body in free)
    return sum(body.mass * body.position[0] for body in free) / mass - _base(parts)


def _top_offset(scene: Scene) -> float | None:
    parts = _structure(scene)
    return max(parts, key=lambda body: body.position[2]).position[0] - _base(parts) if parts else None


def _height(scene: Scene) -> float | None:
    parts = _structure(scene)
    return max(body.position[2] - bottom(body.shape, body.size) + body.size[2] for body in parts) if parts else None


def _force(scene: Scene) -> float | None:
    return math.hypot(*scene.pushes[0].force) if scene.pushes else None


def _speed(scene: Scene) -> float | None:
    speed = max((math.hypot(*body.velocity) for body in scene.bodies), default=0.0)
    return speed or None


def _structure(scene: Scene) -> list[Body]:
    """The bodies of what stands there, without a loose block next to a tower; empty if nothing stands on anything."""
    blocks = [body for body in scene.bodies if body.name.startswith("block")]
    parts = blocks or list(scene.bodies)
    return parts if any(not _on_floor(body) for body in parts) else []


def _base(parts: Sequence[Body]) -> float:
    """Middle of what touches the floor, metres along x."""
    feet = [body for body in parts if _on_floor(body)] or [min(parts, key=lambda body: body.position[2])]
    left = min(body.position[0] - body.size[0] / 2 for body in feet)
    return (left + max(body.position[0] + body.size[0] / 2 for body in feet)) / 2


def _on_floor(body: Body) -> bool:
    return body.position[2] - bottom(body.shape, body.size) < 0.002


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("margin", "signed physical margin, dimensionless", "number", _margin),
        Target("label", "the right answer", "label", _label),
        Target("reply", "the word that is the right answer to this wording", "label", _reply),
        Target("answer", "the right answer, a whole number (of two, the first)", "number", lambda i: _answer(i, 0)),
        Target("answer-2", "the second number of the right answer", "number", lambda i: _answer(i, 1)),
        Target("count", "number of objects that the physics is about", "number", _count),
        Target("com-offset", "centre of mass beside the middle of the base, metres", "number", _of_scene(_com_offset)),
        Target("top-offset", "highest body beside the middle of the base, metres", "number", _of_scene(_top_offset)),
        Target("height", "height of the structure, metres", "number", _of_scene(_height)),
        Target("force", "size of the push, newtons", "number", _of_scene(_force)),
        Target("speed", "speed of the fastest body at the start, metres per second", "number", _of_scene(_speed)),
    )
}
"""The targets of every family; those of a task's own cues come on top (`available`)."""


def available(items: Sequence[Item]) -> dict[str, Target]:
    """The targets that can be decoded from these items: defined for all of them, and not the same for all."""
    found = {}
    for target in [*TARGETS.values(), *_cue_targets(items)]:
        values = [target.of(item) for item in items]
        if target.name not in found and None not in values and len(set(values)) > 1:
            found[target.name] = target
    return found


def find_target(name: str, items: Sequence[Item]) -> Target:
    """The target of that name, for these items.

    Args:
        name: As on the command line.
        items: From which it is to be decoded.

    Raises:
        DecodingError: If they have none, with the names of those that they have.
    """
    known = available(items)
    if name in known:
        return known[name]
    import difflib

    reason = f"there is no target {name!r}"
    if name in TARGETS or name in {target.name for target in _cue_targets(items)}:
        values = {TARGETS[name].of(item) for item in items} if name in TARGETS else set()
        reason = f"{name!r} is " + ("not defined for" if None in values else "the same for") + " all of these items"
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise DecodingError(f"{reason}{hint}; these items have {', '.join(known)}")


def target_values(target: Target, items: Sequence[Item]) -> npt.NDArray[Any]:
    """The values of all items: float64, or for labels their text.

    Args:
        target: What is decoded.
        items: For all of which it is defined.

    Returns:
        (n,).
    """
    values = [target.of(item) for item in items]
    return np.array(values, dtype=np.float64) if target.kind == "number" else np.array(values, dtype=str)


def cue_values(items: Sequence[Item]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The task's own cues as features: names, and (items, cues); no columns where a scene or a task is missing."""
    cues = _cue_targets(items)
    if not cues:
        return [], np.empty((len(items), 0))
    return [cue.name for cue in cues], np.array([[cue.of(item) for cue in cues] for item in items], dtype=np.float64)


def _cue_targets(items: Sequence[Item]) -> list[Target]:
    """The cues of the task, if all items are of one task and have scenes."""
    names = {item.task for item in items}
    if len(names) != 1 or any(item.scene is None for item in items):
        return []
    try:
        task = get_task(names.pop())
    except UnknownTask:
        return []
    return [
        Target(name.replace(" ", "-"), f"cue of {task.name}: {name}", "number", _of_scene(_as_float(cue)))
        for name, cue in task.cues().items()
    ]


def _as_float(cue: Callable[[Scene], float]) -> Callable[[Scene], float]:
    return lambda scene: float(cue(scene))


def scene_types(items: Sequence[Item]) -> npt.NDArray[np.str_]:
    """The type of every item's scene: what is plainly to be seen and has nothing to do with the physics.

    That is the number of objects and the colour of the first body whose colour has a name that questions use (of a
    tower, its lowest block). The same type comes in many groups, so that a probe can learn an arbitrary value per type
    and be tested on other scenes of the same type (Hewitt & Liang 2019).
    """
    from vlm_probe.stimuli.scene import COLOURS

    types = []
    for item in items:
        bodies = item.scene.bodies if item.scene is not None else ()
        colour = next((body.colour for body in bodies if body.colour in COLOURS), "")
        types.append(f"{item.condition.count} {colour}".strip())
    return np.array(types, dtype=str)
