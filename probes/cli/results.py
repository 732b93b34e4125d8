"""What a finished run leaves beside its trials: the summary on stdout and in summary.json, and the figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlm_probe.stimuli.plain_json import dumps

FIGURE, SUMMARY = "psychometric.png", "summary.json"


def write_summary(run: Path, as_json: bool) -> None:
    """Summarise a run folder, to stdout and to summary.json.

    Args:
        run: Folder of the run.
        as_json: Print the JSON object instead of the tables.

    Raises:
        RunError: If the disk does not take it.
    """
    from vlm_probe.analysis.summary import summarise
    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.trials import write_whole

    summary = summarise(run)
    data = summary.to_dict()
    write_whole(run / SUMMARY, dumps(data, indent=2) + "\n")
    if as_json:
        show_json(data)
    else:
        show(summary)


def write_figure(run: Path, references: Mapping[str, Path]) -> None:
    """Draw a run folder's psychometric.png.

    Args:
        run: Folder of the run.
        references: Label -> folder of an observer's run on the same set, to be drawn as a line.
    """
    from vlm_probe.analysis.figures.single import draw
    from vlm_probe.analysis.summary import summarise
    from vlm_probe.probes.cli.console import tell
    from vlm_probe.probes.trials import read_trials

    rows = read_trials(run)
    label = summarise(run).name if rows else ""
    lines = {name: read_trials(folder) for name, folder in references.items()}
    figure = draw({label: rows}, run / FIGURE, lines)
    if figure is not None:
        tell(f"figure: {figure}")
