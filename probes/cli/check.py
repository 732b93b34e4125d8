"""`probe check`: does a task of your own keep the contract that every task has to keep?"""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Json
from vlm_probe.stimuli.errors import did_you_mean, reason_of

if TYPE_CHECKING:
    from vlm_probe.stimuli.tasks import Task


def check(
    task: Annotated[str, Parameter(name="TASK", help="my_package.my_module:MyTask, or the name of a registered task.")],
    /,
    *,
    json: Json = False,
    config: Config = None,
) -> int:
    """Check that a task keeps the contract: sampling, margins, scores, foils, images, prompts.

    Says which requirements it does not keep and what to do. Exits with 1 if there is anything.
    """
    from vlm_probe.probes.cli.console import progress, show, show_json, tell
    from vlm_probe.probes.cli.errors import FAILURE, SUCCESS
    from vlm_probe.stimuli.contract import CHECKS, check_task
    from vlm_probe.stimuli.tasks import task_names

    the_task = _load(task)
    with progress(f"checking {task}") as step:
        findings = check_task(the_task, step)
    name = getattr(the_task, "name", task)
    if json:
        rows = [{"check": f.check, "problem": f.problem, "fix": f.fix} for f in findings]
        show_json({"task": name, "checks": list(CHECKS), "findings": rows})
    elif findings:
        for finding in findings:
            show(f"{finding.check}: {finding}")
        show(f"{name}: {len(findings)} of {len(CHECKS)} checks found something")
    else:
        show(f"{name} keeps the contract ({len(CHECKS)} checks)")
        if name not in task_names():
            tell(
                f'The other commands know it once the pyproject.toml of its package says {name} = "{task}" under'
                ' [project.entry-points."probe.tasks"], and it is installed: pip install -e .'
            )
    return FAILURE if findings else SUCCESS


def _load(place: str) -> Task:
    """The task at module:Class, or of that name. Raises CommandError or UnknownName saying what is not there."""
    from vlm_probe.probes.cli.errors import CommandError
    from vlm_probe.probes.cli.resources import task_name
    from vlm_probe.stimuli.tasks import Task, get_task

    module_name, colon, attribute = place.partition(":")
    if not colon:
        if place.endswith(".py") or "." in place:
            raise CommandError(f"{place!r} names no class: write module:Class, such as my_package.my_module:MyTask")
        return get_task(task_name(place))
    # A console script does not have the working directory on its path, where somebody's own module most likely is.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise CommandError(f"{module_name} imports {error.name}, which is not installed: install it") from error
        raise CommandError(
            f"there is no module {module_name!r}: go to the folder that holds it, or install its package (pip install -e .)"
        ) from error
    except Exception as error:  # the module is somebody's own, and may raise anything
        raise CommandError(f"{module_name} cannot be imported ({_whose(error)}): mend it") from error
    found = getattr(module, attribute, None)
    if found is None:
        names = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, Task)]
        every = f"did you mean {', '.join(names)}?" if names else "it defines no task"
        hint = did_you_mean(attribute, names, every, cutoff=0.3)
        raise CommandError(f"{module_name} has no {attribute!r}: {hint}")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise CommandError(f"{place} is no task: make it a class derived from vlm_probe.stimuli.tasks.Task")
    missing = sorted(found.__abstractmethods__)
    if missing:
        raise CommandError(f"{place} does not define {', '.join(missing)}: every task needs them, see docs/own-task.md")
    try:
        return found()
    except Exception as error:
        raise CommandError(f"{place} cannot be made without arguments ({_whose(error)}): mend its __init__") from error


def _whose(error: Exception) -> str:
    """An error in the user's own code, with the last line in which it was."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {reason_of(error)}"  # which names the line
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {reason_of(error)}, in {last.filename}, line {last.lineno}"
