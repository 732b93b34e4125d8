"""Standard sets: what a family or task name stands for on the command line, made once and kept in the user's cache."""

from __future__ import annotations

import os
import time
from pathlib import Path

from platformdirs import user_cache_path

from vlm_probe.stimuli.dataset import StimulusError, StimulusSet
from vlm_probe.stimuli.errors import is_text, reading
from vlm_probe.stimuli.generate import Progress, make_set
from vlm_probe.stimuli.output import Busy, OutputError
from vlm_probe.stimuli.picture import DEFAULT_RENDERER, find_renderer, painter
from vlm_probe.stimuli.shifts import Shifts, parse_shifts
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import FAMILIES, get_task

STANDARD_N, STANDARD_SEED = 500, 0
STANDARD_SIZE = 0
"""Edge of the images, pixels; 0 for that of the renderer."""


def cache_folder() -> Path:
    """Where standard sets and reference runs are kept: `PROBE_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("PROBE_CACHE")
    return Path(chosen) if chosen else user_cache_path("probe")


def resolve(
    name: str, *, size: int = 0, renderer: str = "", jobs: int = 1, progress: Progress | None = None
) -> StimulusSet:
    """The set that a folder, a task or a family names; a standard set is made first if it is not in the cache.

    Args:
        name: A folder with a stimulus set, a task ("towers-topblock"), or a family ("towers": its headline judgement). A
            task or family may be followed by shifts, as in "towers@camera:2" (see `vlm_probe.stimuli.shifts.parse_shifts`).
        size: Edge of the images of a task or family, pixels; 0 for that of the renderer.
        renderer: That draws a task or family, see `make_set`; empty for the default.
        jobs: Worker processes, if the set has to be made.
        progress: Called with (items done, items in all), if the set has to be made.

    Raises:
        OutputError: If the cache cannot be written.
        StimulusError: If it is a folder but not a stimulus set.
        UnknownTask: If it is none of the three; the message lists the closest task names.
        ValueError: If there are no such shifts, or the task has no such scenes (`SamplingFailed`).
    """
    name, shifts = split_name(name)
    if os.sep in name or Path(name).is_dir():
        if not Path(name).is_dir():
            raise StimulusError(f"{name} does not exist: make a set with `probe stimuli make TASK --out {name}`")
        return StimulusSet.load(name)
    return further_set(
        FAMILIES.get(name, name),
        STANDARD_N,
        STANDARD_SEED,
        size=size,
        renderer=renderer,
        shifts=shifts,
        jobs=jobs,
        progress=progress,
    )


def check_available(name: str, size: int = 0, renderer: str = "") -> None:
    """Refuse a task or family whose standard set would have to be made, where the cache cannot hold it.

    Args:
        name, size, renderer: As for `resolve`.

    Raises:
        StimulusError: If the cache cannot be written, or a folder is no stimulus set.
        UnknownTask, InvalidInput: As for `resolve`.
    """
    name, shifts = split_name(name)
    if os.sep in name or Path(name).is_dir():
        resolve(name)
        return
    size = size or STANDARD_SIZE or find_renderer(renderer).size
    if not _place(FAMILIES.get(name, name), STANDARD_N, STANDARD_SEED, size, renderer, shifts).exists():
        check_cache()


def check_cache() -> None:
    """Refuse a cache folder that cannot be written.

    Raises:
        StimulusError: With what to do.
    """
    folder = cache_folder()
    with reading(folder, StimulusError, "set PROBE_CACHE to a folder that can be written"):
        if not is_text(str(folder)):
            raise ValueError("its name is not UTF-8")
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            why = "it is no folder" if not nearest.is_dir() else "no permission"
            raise StimulusError(
                f"cannot write to the cache {folder} ({nearest}: {why}): set PROBE_CACHE to a folder that can be written"
            )


def split_name(name: str) -> tuple[str, Shifts]:
    """The name of a set and the shifts that follow it after an `@`.

    Raises:
        StimulusError: If a folder is to be shifted: its images are drawn already.
        ValueError: If there are no such shifts.
    """
    bare, sign, text = name.rpartition("@")
    if not sign or Path(name).is_dir():
        return name, ()
    if os.sep in bare or Path(bare).is_dir():
        raise StimulusError(
            f"{bare} is a folder, whose pictures are drawn already: shifts go with a task or family (towers@{text}), or"
            f" with `probe stimuli make TASK --shift {text} --out DIR`"
        )
    return bare, parse_shifts(text)


def further_set(
    task: str,
    n: int,
    seed: int,
    *,
    size: int = 0,
    renderer: str = "",
    shifts: Shifts = (),
    jobs: int = 1,
    progress: Progress | None = None,
) -> StimulusSet:
    """A set of the task next to the standard one, from the cache or made now: worked examples, grounding checks.

    Args:
        task: Registered task name.
        n: Number of items.
        seed: Of the set; another than that of the standard sets.
        size: Edge of the images, pixels; 0 for that of the renderer.
        renderer: That draws them, see `make_set`; empty for the default.
        shifts: Visual and physical shifts.
        jobs: Processes that make it.
        progress: Called with (items done, n).

    Raises:
        OutputError: If the cache cannot be written.
        ValueError: If there is no such renderer.
    """
    size = size or STANDARD_SIZE or find_renderer(renderer).size
    folder = _place(task, n, seed, size, renderer, shifts)
    while not folder.exists():
        check_cache()
        try:
            return make_set(
                task,
                n,
                seed,
                folder,
                size=size,
                renderer=renderer,
                shifts=shifts,
                jobs=jobs,
                progress=progress,
            )
        except Busy:
            time.sleep(0.2)  # until another process has finished the same set, or has ended
        except OutputError:
            if not folder.exists():
                raise
    return StimulusSet.load(folder)


DESIGN = 2
"""Raised when the same task and seed give other items: since 2, items are in random order and their ids are opaque."""


def _place(task: str, n: int, seed: int, size: int, renderer: str, shifts: Shifts) -> Path:
    """Where such a set is kept."""
    the_task = get_task(task)
    engine = get_simulator().version().replace(" ", "-")
    if (renderer or DEFAULT_RENDERER) != "engine":
        engine += "_" + painter(renderer).renderer.replace(" ", "-")
    # Every shift by name and level, so that `visual:2` and its parts are one set.
    code = "".join(f"_{name}{level}" for name, level in shifts)
    return (
        cache_folder() / "sets" / f"{the_task.name}_v{the_task.version}-{DESIGN}_n{n}_s{seed}_{size}px_{engine}{code}"
    )
