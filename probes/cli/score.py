"""`probe score`: read and score the replies of a run again, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Json


def score(
    run: Annotated[Path, Parameter(name="RUN", help="Folder of the run.")],
    /,
    *,
    stimuli: str | None = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Read the replies of a run with the current parser, score them again without a model, and rewrite its summary and figure.

    Args:
        stimuli: The set it was made with; needed only if that has moved.
    """
    from vlm_probe.probes.cli.console import tell
    from vlm_probe.probes.cli.errors import CommandError
    from vlm_probe.probes.cli.resources import find_stimuli
    from vlm_probe.probes.cli.results import write_figure, write_summary
    from vlm_probe.probes.readout import rescore
    from vlm_probe.probes.trials import KIND, TRIALS, parser_of, read_run
    from vlm_probe.stimuli.output import claim
    from vlm_probe.stimuli.replies import VERSION

    record = read_run(run)
    made_with = stimuli or str(record.get("stimuli", {}).get("path", ""))
    if not (run / TRIALS).is_file():
        raise CommandError(f"{run} has no {TRIALS} on the disk that could be scored: give the folder of a run")
    found = find_stimuli(made_with, None)
    with claim(run, KIND) as output:
        scored = rescore(output, found)
        tell(f"{scored.n} trials scored, {scored.changed} of them differently from before")
        tell(f"readings that changed: {scored.readings} (parser {parser_of(record)} before, parser {VERSION} now)")
        if write_summary(output, json):
            write_figure(output, {})
    return 0
