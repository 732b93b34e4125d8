"""What a finished run leaves beside its trials: the summary on stdout and in summary.json, and the figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

FIGURE, SUMMARY = "psychometric.png", "summary.json"


def write_summary(run: Path, as_json: bool) -> bool:
    """Summarise a run folder, to stdout and to summary.json. Where that fails there is a warning: the trials are what counts.

    Args:
        run: Folder of the run.
        as_json: Print the JSON object instead of the tables.

    Returns:
        Whether there is anything to draw: replies that could be read.
    """
    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.trials import write_whole

    is_readable = False
    with warning_of("summary"):
        from vlm_probe.analysis.summary import summarise

        summary = summarise(run)
        data = summary.to_dict()
        with warning_of(SUMMARY):
            write_whole(run / SUMMARY, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        if as_json:
            show_json(data)
        else:
            show(summary)
        is_readable = not summary.problem
    return is_readable


def write_figure(run: Path, references: Mapping[str, Path]) -> None:
    """Draw a run folder's psychometric.png. Where that fails there is a warning.

    Args:
        run: Folder of the run.
        references: Label -> folder of an observer's run on the same set, to be drawn as a line.
    """
    from vlm_probe.probes.cli.console import tell
    from vlm_probe.probes.trials import read_trials

    with warning_of("figure"):
        from vlm_probe.analysis.figures.single import draw
        from vlm_probe.analysis.summary import summarise

        lines = {name: read_trials(folder) for name, folder in references.items()}
        figure = draw({summarise(run).name: read_trials(run)}, run / FIGURE, lines)
        if figure is not None:
            tell(f"figure: {figure}")


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
