"""Output: results to stdout, progress to stderr; a moving bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vlm_probe.stimuli.plain_json import dumps

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


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
    """A line for the user that is not a result."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def show(result: Any) -> None:
    """A result: a rich renderable (a table, a summary) or plain text."""
    from rich.console import Console

    # Rich assumes 80 columns where there is no terminal, and would cut wide tables there.
    width = None if sys.stdout.isatty() else 120
    Console(width=width, highlight=False, soft_wrap=isinstance(result, str)).print(result, markup=False)


def show_json(data: Any) -> None:
    """A result as one JSON document."""
    print(dumps(data, indent=2))  # noqa: T201
