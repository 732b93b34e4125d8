"""Exit codes, and how errors are told: one line on stderr that ends with what to do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vlm_probe.stimuli.ranges import OutOfRange

if TYPE_CHECKING:
    from cyclopts import CycloptsError

SUCCESS, FAILURE, USAGE, FAILED_TRIALS, INTERRUPTED = 0, 1, 2, 3, 130

# By module, because an error can only be of a class whose module is loaded, and loading them here would be slow.
_EXPECTED = {
    "vlm_probe.finetune.config": "TrainingError",
    "vlm_probe.probes.models": "ModelError",
    "vlm_probe.probes.trials": "RunError",
    "vlm_probe.probes.study.fields": "StudyError",
    "vlm_probe.stimuli.dataset": "StimulusError",
    "vlm_probe.stimuli.tasks": "UnknownTask",
}
_OURS = ("vlm_probe",)


class CommandError(Exception):
    """A command cannot do what was asked; the message says why and ends with the fix."""


class UsageError(CommandError):
    """Arguments that do not go together, or name nothing: a slip on the command line."""


class UnknownName(UsageError):
    """An argument names a model or a task that does not exist."""


def expected(error: Exception) -> bool:
    """Whether an error is news for the user rather than a bug of ours.

    That is one of our named errors, an error of the file system, or a ValueError or a missing optional package that our own
    code tells about (one that comes from inside a library is a bug: it deserves its traceback).
    """
    named = (getattr(sys.modules.get(module), name, None) for module, name in _EXPECTED.items())
    if isinstance(error, (CommandError, OutOfRange, OSError, *(cls for cls in named if cls is not None))):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
    return isinstance(error, (ValueError, ModuleNotFoundError)) and raised_in.split(".")[0] in _OURS


def names_nothing(error: Exception) -> bool:
    """Whether the error is a slip on the command line, such as a task or a model that does not exist."""
    unknown_task = getattr(sys.modules.get("vlm_probe.stimuli.tasks"), "UnknownTask", UnknownName)
    return isinstance(error, (UsageError, OutOfRange, unknown_task))


def as_line(error: Exception) -> str:
    """The message of an expected error, in one line."""
    if isinstance(error, OutOfRange):
        return f"--{error.name.replace('_', '-')} {error.reason}"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return f"{text}; choose another folder, or check its permissions and free space"
    return " ".join(str(error).split()) or type(error).__name__


def usage_line(error: CycloptsError) -> str:
    """The message of a usage error, in one line that names the help page."""
    error.verbose = False
    command = " ".join(["probe", *(error.command_chain or ())])
    return f"{' '.join(str(error).split()).rstrip('.')}; see `{command} --help`"


def report(line: str) -> None:
    """Tell an error."""
    print(f"probe: {line}", file=sys.stderr)  # noqa: T201
