"""Standard sets: what a family or task name stands for on the command line, made once and kept in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from stimuli.dataset import StimulusError, StimulusSet
from stimuli.generate import Progress, make_set
from stimuli.simulators import get_simulator
from stimuli.tasks import FAMILIES, get_task

STANDARD_N, STANDARD_SEED, STANDARD_SIZE = 500, 0, 224


def cache_folder() -> Path:
    """Where standard sets and reference runs are kept: `PROBE_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("PROBE_CACHE")
    return Path(chosen) if chosen else user_cache_path("probe")


def resolve(name: str, *, jobs: int = 1, progress: Progress | None = None) -> StimulusSet:
    """The set that a folder, a task or a family names; a standard set is made first if it is not in the cache.

    Args:
        name: A folder with a stimulus set, a task ("towers-topblock"), or a family ("towers": its headline judgement).
        jobs: Worker processes, if the set has to be made.
        progress: Called with (items done, items in all), if the set has to be made.

    Raises:
        StimulusError: If it is a folder but not a stimulus set, or the cache cannot be written.
        UnknownTask: If it is none of the three; the message lists the closest task names.
    """
    if os.sep in name or Path(name).is_dir():
        if not Path(name).is_dir():
            raise StimulusError(f"{name} does not exist: make a set with `probe stimuli make TASK --out {name}`")
        return StimulusSet.load(name)
    task = get_task(FAMILIES.get(name, name))
    engine = get_simulator().version().replace(" ", "-")
    folder = (
        cache_folder()
        / "sets"
        / f"{task.name}_v{task.version}_n{STANDARD_N}_s{STANDARD_SEED}_{STANDARD_SIZE}px_{engine}"
    )
    if not folder.exists():
        try:
            return make_set(
                task.name, STANDARD_N, STANDARD_SEED, folder, size=STANDARD_SIZE, jobs=jobs, progress=progress
            )
        except StimulusError:
            # Another process may have finished the same set in the meantime.
            if not folder.exists():
                raise
    return StimulusSet.load(folder)
