"""Exit codes, and how errors are told: one line on stderr that ends with what to do."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from vlm_probe.probes.cli.console import discard, tell
from vlm_probe.stimuli.errors import ProbeError, is_text
from vlm_probe.stimuli.errors import UnknownName as UnknownName
from vlm_probe.stimuli.ranges import OutOfRange

if TYPE_CHECKING:
    from cyclopts import CycloptsError

SUCCESS, FAILURE, USAGE, FAILED_TRIALS, INTERRUPTED = 0, 1, 2, 3, 130

LONGEST_LINE = 1000
"""Characters of a message; the fix is at its end."""
_WRONG_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.EINVAL)


class CommandError(ProbeError):
    """A command cannot do what was asked; the message says why and ends with the fix."""


class UsageError(CommandError):
    """Arguments that do not go together, or name nothing: a slip on the command line."""


def expected(error: Exception) -> bool:
    """Whether an error is news for the user: one of our own, or one of the file system. Any other is a bug, with a traceback."""
    return isinstance(error, (ProbeError, OSError))


def names_nothing(error: Exception) -> bool:
    """Whether the error is a slip on the command line, such as a task or a model that does not exist."""
    return isinstance(error, (UsageError, OutOfRange, UnknownName))


def as_line(error: Exception) -> str:
    """The message of an expected error, in one line."""
    if isinstance(error, OutOfRange):
        return f"--{error.name.replace('_', '-')} {error.reason}"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        fix = (
            "check the path"
            if error.errno in _WRONG_PATH
            else "choose another folder, or check its permissions and free space"
        )
        return _shown(f"{text}; {fix}")
    return _shown(" ".join(str(error).split())) or type(error).__name__


def _shown(text: str) -> str:
    """A text of bounded length, without characters that could steer a terminal: messages quote files of anybody."""
    text = text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE // 2]} ... {text[-LONGEST_LINE // 2 :]}"
    return "".join(character if character.isprintable() else "?" for character in text)


def usage_line(error: CycloptsError, given: Sequence[str], options: Callable[[], Sequence[tuple[str, ...]]]) -> str:
    """The message of a usage error, in one line that names the help page.

    Args:
        error: As cyclopts tells it.
        given: The arguments of the command line.
        options: (command, ..., option) of every option that there is.
    """
    from cyclopts import MissingArgumentError

    error.verbose = False
    chain = tuple(error.command_chain or ())
    text = _unknown_option(chain, given, options())
    if not text and isinstance(error, MissingArgumentError) and error.argument is not None:
        text = f"{' '.join(['probe', *chain])} needs {error.argument.name}"
    return f"{text or ' '.join(str(error).split()).removesuffix('.')}; see `{' '.join(['probe', *chain])} --help`"


def _unknown_option(chain: tuple[str, ...], given: Sequence[str], options: Sequence[tuple[str, ...]]) -> str:
    """What is wrong with the first option that a command does not have, and what may have been meant; empty if it has all."""
    import difflib

    own = {path[-1] for path in options if path[:-1] == chain}
    names = [text[2:].partition("=")[0].replace("_", "-") for text in given if text.startswith("--") and len(text) > 2]
    name = next((name for name in names if name not in own and name.removeprefix("no-") not in own | {"help"}), "")
    if not name or not own:
        return ""
    close = difflib.get_close_matches(name, own, n=1, cutoff=0.7)
    others = sorted({" ".join(("probe", *path[:-1])) for path in options if path[-1] == name})
    meant = [f"did you mean --{close[0]}?"] if close else []
    meant += [f"it is an option of {', '.join(others)}"] if others else []
    return f"unknown option --{name}" + (f": {' or '.join(meant)}" if meant else "")


def report(line: str) -> None:
    """Tell an error, where there is still somebody to tell."""
    try:
        tell(f"probe: {line}")
    except BrokenPipeError:
        discard(sys.stderr)


def check_texts(texts: Mapping[str, str]) -> None:
    """Refuse what no file takes that is written later: names that are not UTF-8, and texts with a zero byte.

    Args:
        texts: What it is, as in "--out", -> what was given.

    Raises:
        UsageError: If there is one.
    """
    for name, text in texts.items():
        if not is_text(text):
            # As the bytes that it is, where Python had it from a file name.
            shown = re.sub(
                "[\udc80-\udcff]+", lambda part: os.fsencode(part[0]).decode("utf-8", "backslashreplace"), text
            )
            hint = "rename it, or give another"
            if not sys.getfilesystemencoding().startswith("utf"):
                hint = "set LC_ALL=C.UTF-8 (this locale has ASCII names only), or rename it"
            raise UsageError(f"{name} is {shown[:200]}, which is not UTF-8: {hint}")
        if "\0" in text:
            raise UsageError(f"{name} has a zero byte in it: remove it")
