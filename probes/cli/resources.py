"""What several commands need: the stimulus set of a name, a usable output folder, and how many processes and threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_probe.probes.cli.errors import CommandError, UnknownName

if TYPE_CHECKING:
    from vlm_probe.stimuli.dataset import StimulusSet
    from vlm_probe.stimuli.shifts import Shifts


def find_stimuli(name: str, jobs: int | None, size: int = 0, renderer: str = "") -> StimulusSet:
    """The set of that name: a folder, a task or a family, whose standard set is made and cached when it is not there.

    Args:
        name: As on the command line.
        jobs: Processes that make a set that is not there; None takes all cores.
        size, renderer: Of the images of a task or family, see `vlm_probe.stimuli.standard.resolve`.

    Raises:
        StimulusError, UnknownName, CommandError: If there is no such set.
    """
    from vlm_probe.probes.cli.console import progress
    from vlm_probe.stimuli.standard import resolve

    check_stimuli_name(name)
    with progress("making stimuli") as step:
        return resolve(name, size=size, renderer=renderer, jobs=jobs or cores(), progress=step)


EXAMPLES_N, EXAMPLES_SEED = 96, 10_007
"""Size and seed of the set that worked examples come from, where none is named."""


def find_examples(stimuli: StimulusSet, name: str | None, jobs: int | None) -> StimulusSet:
    """The set that worked examples come from: the named one, or a further set of the same task, made and cached.

    Args:
        stimuli: The set that is asked.
        name: Of the set of examples, as on the command line; None makes a further set of the same task.
        jobs: Processes that make a set that is not there; None takes all cores.

    Raises:
        StimulusError, UnknownName, CommandError: If there is no such set, or none can be made for an imported one.
    """
    from vlm_probe.probes.cli.console import progress
    from vlm_probe.stimuli.standard import further_set
    from vlm_probe.stimuli.tasks import task_names

    if name is not None:
        return find_stimuli(name, jobs)
    task = str(stimuli.card.get("task"))
    if task not in task_names():
        raise CommandError(f"{stimuli.path} is of no task that examples can be made for: give --examples-from SET")
    with progress("making worked examples") as step:
        return further_set(task, EXAMPLES_N, EXAMPLES_SEED, **drawn_alike(stimuli), jobs=jobs or cores(), progress=step)


def drawn_alike(stimuli: StimulusSet) -> dict[str, Any]:
    """Size and renderer of a set's images, for a further set that is to look like it.

    Args:
        stimuli: The set.
    """
    from vlm_probe.stimuli.picture import renderer_of
    from vlm_probe.stimuli.ranges import IMAGE_SIZE

    size = min(int(stimuli.card.get("image_size", 0)), int(IMAGE_SIZE.most))
    return {"size": size, "renderer": renderer_of(stimuli.card)}


def check_drawing(name: str, size: int, renderer: str) -> None:
    """Refuse `--size` and `--renderer` for a folder, whose images are there already.

    Args:
        name: Of the set.
        size, renderer: As on the command line.

    Raises:
        CommandError: The message says what to do instead.
    """
    if (size or renderer) and (Path(name).is_dir() or os.sep in name):
        options = (f" --size {size}" if size else "") + (f" --renderer {renderer}" if renderer else "")
        raise CommandError(
            f"--size and --renderer go with a task or family: the images in {name} are drawn already; make another set with"
            f" `probe stimuli make TASK{options} --out DIR`"
        )


def check_examples(task: str, name: str | None) -> None:
    """Refuse worked examples that cannot be found or made, before anything slow happens.

    Args:
        task: Of the items that are asked.
        name: As for `find_examples`.

    Raises:
        StimulusError, UnknownName, CommandError: As for `find_examples`.
    """
    from vlm_probe.stimuli.standard import check_available
    from vlm_probe.stimuli.tasks import task_names

    if name is not None:
        check_stimuli_name(name)
        check_available(name)
    elif task not in task_names():
        raise CommandError(f"there is no task {task} that examples can be made for: give --examples-from SET")


def check_stimuli_name(name: str) -> str:
    """The task that a set's name stands for, found without making anything, so that a slip costs no time.

    Raises:
        StimulusError: If it is a folder that is not a set.
        UnknownName: If it is neither a folder nor a task or family.
        CommandError: If it can only be a path, and there is nothing; or the task cannot be shifted like that.
    """
    from vlm_probe.stimuli.dataset import StimulusSet

    if Path(name).is_dir():
        return str(StimulusSet.load(name).card["task"])
    if os.sep in name or name.startswith((".", "~")):
        raise CommandError(f"there is no stimulus set {name}: make one with `probe stimuli make TASK --out {name}`")
    bare, sign, text = name.rpartition("@")
    if not sign:
        return task_name(name)
    task = task_name(bare)
    check_shifts(task, text)
    return task


def shifted_name(name: str, shift: str | None) -> str:
    """A set's name with `--shift` written behind it, as in `towers@camera:2`.

    Args:
        name: Of the set.
        shift: What `--shift` says; empty or None for nothing.

    Raises:
        CommandError: If it is a folder, whose images are drawn already.
    """
    if not shift:
        return name
    if Path(name).is_dir() or os.sep in name:
        raise CommandError(
            f"--shift goes with a task or family: the pictures in {name} are drawn already; make a shifted set with"
            f" `probe stimuli make TASK --shift {shift} --out DIR`"
        )
    return f"{name}@{shift}"


def check_shifts(task: str, text: str) -> Shifts:
    """The shifts of a text, which the task can do.

    Args:
        task: Name of the task.
        text: Shifts as on the command line.

    Raises:
        CommandError: If there are no such shifts, or the task cannot do them.
    """
    from vlm_probe.stimuli.shifts import check, parse_shifts
    from vlm_probe.stimuli.tasks import get_task

    try:
        shifts = parse_shifts(text)
        check(get_task(task), shifts)
    except ValueError as error:
        raise CommandError(str(error)) from error
    return shifts


def task_name(name: str) -> str:
    """The task that a task or family name stands for.

    Raises:
        UnknownName: If there is none, with the closest names.
    """
    from vlm_probe.stimuli.errors import did_you_mean
    from vlm_probe.stimuli.tasks import FAMILIES, task_names

    known = [*FAMILIES, *task_names()]
    if name in known:
        return FAMILIES.get(name, name)
    hint = did_you_mean(name, known, cutoff=0.3)
    raise UnknownName(f"unknown task or family {name!r}: {hint} (or give the folder of a stimulus set)")


def check_model_name(name: str) -> None:
    """Refuse a name that is no alias and can be no folder or hub id either.

    Raises:
        UnknownName: With the closest names.
    """
    from vlm_probe.probes.models import ModelError
    from vlm_probe.probes.models.catalog import lookup

    try:
        lookup(name)
    except ModelError as error:
        if "/" not in name:
            raise UnknownName(str(error)) from error
        # A folder or hub id that is not there is the loader's to tell.


def check_run_folder(folder: Path, resume: bool) -> None:
    """Refuse a run folder that can be seen to be unusable, before anything slow happens.

    Args:
        folder: Of the run.
        resume: Whether a run that is there may be resumed.

    Raises:
        CommandError: If it holds a run that is not to be resumed.
        OutputError: If it holds anything else, or cannot be made or written.
    """
    from vlm_probe.probes.trials import KIND, RUN
    from vlm_probe.stimuli.output import check_claim

    if not resume and (folder / RUN).exists():
        raise CommandError(f"{folder} holds a run already: leave out --no-resume to resume it, or choose another --out")
    check_claim(folder, KIND)


def one_thread() -> None:
    """Keep the BLAS of this process to one thread, for work on small matrices.

    Its threads would spend several times as long waiting for each other. It reads this once, when numpy is imported.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def cores() -> int:
    """Processors that this process may use (fewer than the machine has, under Slurm or in a container)."""
    from vlm_probe.stimuli.ranges import PROCESSES

    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, int(PROCESSES.most))
