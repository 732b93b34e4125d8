"""`probe power`: how many runs and items it takes to find a difference, or to show that there is none."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from vlm_probe.probes.cli.settings import Config, Json


def power(
    *,
    runs: str = "3..20",
    items: str = "50..1000",
    effect: float = 0.1,
    base: float = 0.5,
    against: Literal["method", "base"] = "method",
    run_sd: float = 0.3,
    item_sd: float = 0.7,
    interaction_sd: float = 0.2,
    alpha: float = 0.05,
    bound: float = 0.1,
    simulations: int = 1000,
    check: int = 0,
    seed: int = 0,
    out: Path | None = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Simulate the planned contrast: its power for numbers of runs and items, and how often it errs without an effect.

    Args:
        runs: Runs (seeds) per method: `3,5,10`, or `3..20` for numbers in between.
        items: Items that every run answers, likewise.
        effect: Difference of success rates that is to be found.
        base: Success rate of what is compared with.
        against: `method`: another method with as many runs. `base`: the untrained model, a single run.
        run_sd: Standard deviation between runs of a method (log odds); the report of a pilot states it.
        item_sd: Of items (log odds).
        interaction_sd: Of items for one method alone (log odds).
        alpha: Level of the tests.
        bound: Difference below which two success rates are called equivalent.
        simulations: Simulated data sets per cell, with the effect and as many without.
        check: Data sets of two cells that the mixed-effects model itself is fitted to, next to the fast test.
        seed: Of the simulation.
        out: Folder for the figure (PDF and PNG) and the table (CSV, JSON).
    """
    from vlm_probe.analysis.power import Scenario, grid
    from vlm_probe.analysis.power import power as simulate
    from vlm_probe.probes.cli.console import progress, show, show_json, tell
    from vlm_probe.probes.cli.errors import SUCCESS, UsageError
    from vlm_probe.stimuli.output import claim

    scenario = Scenario(
        effect=effect,
        base=base,
        against=against,
        run_sd=run_sd,
        item_sd=item_sd,
        interaction_sd=interaction_sd,
        alpha=alpha,
        bound=bound,
    )
    try:
        sizes = grid(runs, "runs"), grid(items, "items")
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    with claim(out, "power analysis") if out is not None else nullcontext() as folder:
        if folder is not None:
            folder.check()
        with progress("simulating") as step:
            found = simulate(*sizes, scenario, simulations, seed, check, step)
        if json:
            show_json(found.to_dict())
        else:
            show(str(found))
        if folder is not None:
            from vlm_probe.analysis.figures.power import write

            write(found, folder)
            tell(f"figure and table: {out}")
    return SUCCESS
