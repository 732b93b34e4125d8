"""What a test is to a training run: the level of transfer, from the tasks and shifts of both."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from vlm_probe.probes.trials import TRANSFER as TRANSFER
from vlm_probe.stimuli.shifts import Shifts, spell
from vlm_probe.stimuli.tasks import UnknownTask, get_task


@lru_cache(maxsize=512)
def transfer_level(test_task: str, shifts: Shifts, train_tasks: tuple[str, ...], train_shifts: Shifts) -> str:
    """The level of transfer of a test, by the first rule that applies.

    zero-shot       the test's question is held out: no model is ever trained on it
    cross-family    no training task is of the test's family
    cross-task      a training task is of the family, but none is the test's own
    shifted         the test's own task was trained, but under fewer or weaker shifts than it is tested under
    within          the test's own task was trained, under such shifts; the items are new

    So a shift of an untrained question is no level of its own: the shift is a factor next to the level.

    Args:
        test_task: Task that is tested.
        shifts: Shifts of the item as (name, level).
        train_tasks: Tasks that were trained on, at least one.
        train_shifts: Shifts that were trained under.
    """
    if held_out(test_task):
        return "zero-shot"
    if test_task not in train_tasks:
        known = {family_of(task) for task in train_tasks}
        return "cross-task" if family_of(test_task) in known else "cross-family"
    trained = dict(train_shifts)
    return "shifted" if any(level > trained.get(name, 0) for name, level in shifts) else "within"


@lru_cache(maxsize=512)
def family_of(task: str) -> str:
    """The family of a task; of one that is not registered (imported sets), what comes before the first hyphen."""
    try:
        return get_task(task).family
    except UnknownTask:
        return task.partition("-")[0]


@lru_cache(maxsize=512)
def held_out(task: str) -> bool:
    """Whether a task is never trained on. One that is not registered is not known to be held out."""
    try:
        return get_task(task).held_out
    except UnknownTask:
        return False


def families(tasks: Iterable[str]) -> str:
    """The families of several tasks as one level, such as "balance+towers"."""
    return "+".join(sorted({family_of(task) for task in tasks}))


@lru_cache(maxsize=512)
def shift_name(shifts: Shifts) -> tuple[str, int]:
    """Shifts as one level and one grade: names joined by "+" ("visual" stands for all visual ones), and the highest grade."""
    if not shifts:
        return "none", 0
    parts = spell(shifts).split(",")
    return "+".join(part.partition(":")[0] for part in parts), max(level for _, level in shifts)
