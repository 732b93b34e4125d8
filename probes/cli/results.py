"""What a finished run leaves beside its trials: the summary on stdout and in summary.json, and the figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_probe.stimuli.output import OutputFolder

FIGURE, SUMMARY = "psychometric.png", "summary.json"


def write_summary(run: OutputFolder, as_json: bool) -> None:
    """Summarise a run, to stdout and to summary.json.

    Args:
        run: Folder of the run.
        as_json: Print the JSON object instead of the tables.

    Raises:
        OutputError: If it cannot be written.
    """
    from vlm_probe.analysis.summary import summarise
    from vlm_probe.probes.cli.console import show, show_json

    summary = summarise(run.path)
    data = summary.to_dict()
    run.write_json(SUMMARY, data)
    if as_json:
        show_json(data)
    else:
        show(summary)


def write_figure(run: OutputFolder, references: Mapping[str, Path]) -> None:
    """Draw a run's psychometric.png.

    Args:
        run: Folder of the run.
        references: Label -> folder of an observer's run on the same set, to be drawn as a line.

    Raises:
        OutputError: If it cannot be written.
    """
    from vlm_probe.analysis.figures.single import draw
    from vlm_probe.analysis.summary import summarise
    from vlm_probe.probes.cli.console import tell
    from vlm_probe.probes.trials import read_trials

    rows = read_trials(run.path)
    label = summarise(run.path).name if rows else ""
    lines = {name: read_trials(folder) for name, folder in references.items()}
    with run.file(FIGURE) as partial:
        is_drawn = draw({label: rows}, partial, lines) is not None
    if is_drawn:
        tell(f"figure: {run.path / FIGURE}")
