"""`probe analyze`: from runs to statistics, figures, tables and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Json


def analyze(
    runs: Annotated[
        tuple[Path, ...],
        Parameter(name="RUNS", help="Folders of runs, folders that hold runs, or trial tables (.csv, .parquet)."),
    ],
    /,
    *,
    out: Path = Path("analysis"),
    bound: float = 0.1,
    seed: int = 0,
    registered: Path | None = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Analyse runs: success, transfer, planned contrasts, equivalence, psychometric functions, controls and more.

    Writes OUT/report.md with figures and tables, and OUT/analysis.json with every number. The same logs give the same
    bytes. What the runs cannot answer is said.

    Args:
        out: Folder of the report; an earlier report in it is replaced.
        bound: Difference between success rates below which two are called equivalent.
        seed: Of bootstrap samples.
        registered: Registration of a study (`probe study freeze`), or its folder: the contrasts that were planned are tested as such,
            with the bound of the registration, and everything else is called exploratory.
    """
    from vlm_probe.probes.cli.resources import one_thread

    one_thread()
    from vlm_probe.analysis.material import Settings
    from vlm_probe.analysis.registration import read_registration
    from vlm_probe.analysis.report import analyse
    from vlm_probe.probes.cli.console import show, show_json, tell
    from vlm_probe.probes.cli.errors import FAILURE, SUCCESS

    plan = None if registered is None else read_registration(registered)
    report = analyse(runs, out, Settings(seed=seed, bound=bound), lambda now: tell(f"analysing: {now}"), plan)
    if json:
        show_json(report.data)
    else:
        show(str(report))
    for key in report.failed:
        tell(f"the section {key} could not be computed: see {out / 'report.md'}")
    return FAILURE if report.failed else SUCCESS
