"""What a finished run leaves beside its trials: the summary on stdout and in summary.json, and the figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_probe.stimuli.output import OutputFolder


FIGURE, SUMMARY = "psychometric.png", "summary.json"


def write_summary(run: OutputFolder, as_json: bool) -> bool:
    """Summarise a run, to stdout and to summary.json. Where that fails there is a warning: the trials are what counts.

    Args:
        run: Folder of the run.
        as_json: Print the JSON object instead of the tables.

    Returns:
        Whether there is anything to draw: replies that could be read.
    """
    from vlm_probe.probes.cli.console import show, show_json

    is_readable = False
    with warning_of("summary"):
        from vlm_probe.analysis.summary import summarise

        summary = summarise(run.path)
        data = summary.to_dict()
        with warning_of(SUMMARY):
            run.write_json(SUMMARY, data)
        if as_json:
            show_json(data)
        else:
            show(summary)
        is_readable = not summary.problem
    return is_readable


def write_figure(run: OutputFolder, references: Mapping[str, Path]) -> None:
    """Draw a run's psychometric.png. Where that fails there is a warning.

    Args:
        run: Folder of the run.
        references: Label -> folder of an observer's run on the same set, to be drawn as a line.

    Raises:
        OutputError: If it cannot be written.
    """
    from vlm_probe.probes.cli.console import tell
    from vlm_probe.probes.trials import read_trials

    with warning_of("figure"):
        from vlm_probe.analysis.figures.single import draw
        from vlm_probe.analysis.summary import summarise

        lines = {name: read_trials(folder) for name, folder in references.items()}
        with run.file(FIGURE) as partial:
            is_drawn = draw({summarise(run.path).name: read_trials(run.path)}, partial, lines) is not None
        if is_drawn:
            tell(f"figure: {run.path / FIGURE}")


@contextmanager
def warning_of(what: str) -> Iterator[None]:
    """Go on without a figure or a summary that could not be made, with one line that says why: it must not cost the results."""
    from vlm_probe.probes.cli.console import tell
    from vlm_probe.stimuli.errors import reason_of

    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        tell(f"no {what}: {reason_of(error)}; the trials are not affected")
