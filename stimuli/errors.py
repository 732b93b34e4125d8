"""Errors that are reported to users in one line: their base class, and a wrapper for reading files of unknown origin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path

LONGEST_REASON = 200
"""Characters that are quoted of another library's message; some quote the whole file."""


class ProbeError(Exception):
    """Something that the user can put right; the message is one line that names the thing and ends with the fix."""


class InvalidInput(ProbeError, ValueError):
    """An argument, an option or a table that cannot be used as it is."""


class UnknownName(ProbeError, LookupError):
    """A name that nothing has, such as that of a task or a model; the message lists the closest names."""


class NotInstalled(ProbeError, ModuleNotFoundError):
    """An optional package that is needed and is not installed; the message ends with the line that installs it."""


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it. A folder of that name without code is none."""
    spec = util.find_spec(package)
    return spec is not None and spec.origin is not None


@contextmanager
def reading(file: str | Path, error: type[ProbeError], fix: str) -> Iterator[None]:
    """Read a file that anybody may have written, or half written: whatever goes wrong is one error that names the file.

    Args:
        file: The file (or what it is called), for the message.
        error: Class of the error that is raised. Errors of this class that are raised inside pass as they are.
        fix: What to do about it, as the end of the message.

    Raises:
        ProbeError: Of the class `error`, in place of every other exception.
    """
    try:
        yield
    except error:
        raise
    except Exception as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise error(f"cannot read {file} ({problem.strerror}): {fix}") from problem
        raise error(f"{file} is damaged ({reason_of(problem)}): {fix}") from problem


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: not a name in another encoding, nor half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole_text(text: str) -> str:
    """A text in which halves of surrogate pairs are replacement characters, as where bytes are decoded: it can be written."""
    return text if is_text(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def reason_of(problem: BaseException) -> str:
    """What an exception says, as a short phrase in one line."""
    if isinstance(problem, RecursionError):
        return "nested too deeply"
    if isinstance(problem, MemoryError):
        return "too large for the memory"
    if isinstance(problem, UnicodeDecodeError):
        return f"not UTF-8 at byte {problem.start}"
    if isinstance(problem, KeyError):
        return f"it has no {str(problem)[:LONGEST_REASON]}"
    if isinstance(problem, (TypeError, AttributeError)):
        return f"a value of the wrong type: {_brief(problem)}"
    return _brief(problem)


def _brief(problem: BaseException) -> str:
    """The message in one line that any terminal and any UTF-8 file takes."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    text = text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."
    return text.encode("utf-8", "backslashreplace").decode()
