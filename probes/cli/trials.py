"""`probe trials`: the trials of runs as one table, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from vlm_probe.probes.cli.settings import Config, Overwrite

if TYPE_CHECKING:
    import pandas as pd

app = App(name="trials", help="Write the trials of runs as one table.")
EFFECTS = ("method", "model", "manner", "test_task")
"""What may be compared, the first that differs between the trials."""


@app.command
def export(
    *runs: Annotated[Path, Parameter(name="RUNS", help="Folders of runs, or folders that hold runs.")],
    csv: Path,
    overwrite: Overwrite = False,
    config: Config = None,
) -> int:
    """Write the trials of runs as one CSV table, a row per trial, and print the lines of R that fit it with lme4.

    The table is the one that `probe analyze` works with, which reads it back.

    Args:
        csv: File to write.
    """
    from vlm_probe.analysis.frame import load
    from vlm_probe.probes.cli.console import show, tell
    from vlm_probe.probes.cli.errors import UsageError
    from vlm_probe.stimuli.output import claim_file, write_whole
    from vlm_probe.stimuli.plain_csv import write_csv

    if not runs:
        raise UsageError("no runs are named: give their folders, such as runs/tiny_towers-stability")
    claim_file(csv, overwrite=overwrite)
    found = load(runs)
    table = found.table
    for note in found.notes:
        tell(note)
    cells = table.astype(object).where(table.notna(), None)
    write_whole(csv, write_csv(list(cells.columns), cells.itertuples(index=False)))
    tell(f"{csv}: {len(table)} trials of {table['run'].nunique()} runs")
    show(in_r(table, csv))
    return 0


def in_r(table: pd.DataFrame, csv: Path) -> str:
    """The lines of R that read a table of trials and fit its first comparison.

    Args:
        table: The trials.
        csv: File that it was written to.
    """
    effect = next((name for name in EFFECTS if table[name].nunique() > 1), "1")
    repeated = (table["item_id"].value_counts() > 1).any()
    # Runs that are what is compared have no spread of their own.
    among = table["run"].nunique() > (1 if effect == "1" else table[effect].nunique())
    groups = (["run"] if among else []) + (["item_id"] if repeated else [])
    random = "".join(f" + (1 | {name})" for name in groups)
    fitted = f"{'glmer' if groups else 'glm'}(correct ~ {effect}{random}, data = d, family = binomial)"
    lines = [
        *(["library(lme4)"] if groups else []),
        f'd <- read.csv("{csv.as_posix()}", stringsAsFactors = TRUE)',
        f"m <- {fitted}",
        "summary(m)",
    ]
    return "\n".join(lines)
