"""Output: results to stdout, progress to stderr; a moving bar on a terminal, plain lines elsewhere; streams of any encoding."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

PLAIN = "vlm_probe.plain"
"""Name of the error handler for characters that a terminal lacks."""
_PLAIN = dict(zip("−–—’‘“”′→←≤≥×·±²°…", "---''\"\"'><<>x.~2o.", strict=True))
"""What stands for such a character; for all others it is a question mark. One for one, so that tables stay aligned."""


def prepare_streams() -> None:
    """Make stdout and stderr take any text: in ASCII or another encoding, with half characters in it, or closed by the caller."""
    codecs.register_error(PLAIN, _plainly)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _fill(number)
            # Owned by the process to its end, like the stream that it stands for.
            setattr(sys, name, Path(os.devnull).open("w" if number else "r", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)


def discard(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere: its reader has gone or its disk is full, and Python would complain at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fill(number: int) -> None:
    """Put something into a descriptor that is closed, so that no file that is opened later gets it, and what is printed."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        os.set_inheritable(number, True)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show how far a long piece of work is.

    Args:
        what: What is being done, as a short phrase.

    Yields:
        A function to call with (done, total); nothing is shown before its first call.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None, visible=False)
            yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
    else:
        last = -1

        def line(done: int, total: int) -> None:
            nonlocal last
            tenth = 10 * done // max(total, 1)
            if tenth != last:
                last = tenth
                tell(f"{what}: {done}/{total}")

        yield line


def tell(text: str) -> None:
    """A line for the user that is not a result. Where stderr cannot be written, such as on a full disk, work goes on without it."""
    try:
        print(text, file=sys.stderr, flush=True)  # noqa: T201
    except BrokenPipeError:
        raise
    except OSError:
        discard(sys.stderr)


def show(result: Any) -> None:
    """A result: a rich renderable (a table, a summary) or plain text."""
    from rich.console import Console

    # Rich assumes 80 columns where there is no terminal, and would cut wide tables there.
    width = None if sys.stdout.isatty() else 120
    Console(width=width, highlight=False, soft_wrap=isinstance(result, str)).print(result, markup=False)


def show_json(data: Any) -> None:
    """A result as one JSON document."""
    from vlm_probe.stimuli.plain_json import dumps

    # In a stream of another encoding, escapes keep what replacement characters would lose.
    is_unicode = str(getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
    text = dumps(data, indent=2, ascii_only=not is_unicode)
    print(text)  # noqa: T201
