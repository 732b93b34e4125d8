"""Several attempts at an item: success within one, two, three, beside as many independent guesses."""

from __future__ import annotations

import pandas as pd

from analysis.material import Material
from analysis.rates import HOW, by_cell
from analysis.result import Result
from analysis.section import Section, Unanswerable
from analysis.selection import cells

CELL = ("model", "method", "train_tasks", "regime", "test_task", "shift", "shift_level", "memory", "attempts")


def section(material: Material) -> Section:
    """Success within so many attempts. Raises Unanswerable if every item was tried once."""
    models = material.models
    tried = models[(models["attempts"] > 1) & (models["manner"] == "")] if len(models) else models
    if tried.empty:
        raise Unanswerable("every item was tried once: add runs of an action with `probe run --attempts 3`")
    rows = []
    for key, own in cells(tried, CELL):
        most = int(str(key[-1]))
        first = own.assign(_when=own["attempt"].where(own["success"] == 1))
        solved = first.groupby(["run", "item_id", "sample", "stimuli"], observed=True)["_when"].min().reset_index()
        single = None
        for within in range(1, most + 1):
            rate = by_cell(solved.assign(success=(solved["_when"] <= within).astype(int), cell=0), ["cell"]).iloc[0]
            single = float(rate["rate"]) if single is None else single
            rows.append(
                dict(zip(CELL, key, strict=True))
                | {"within": within}
                | {name: rate[name] for name in ("rate", "rate_low", "rate_high")}
                | {
                    "independent_rate": 1 - (1 - single) ** within,
                    "n_runs": int(rate["n_runs"]),
                    "n_items": len(solved),
                }
            )
    table = pd.DataFrame(rows).astype({"within": int})
    last = table[table["within"] == table["attempts"].astype(int)]
    better = int((last["rate_low"] > last["independent_rate"]).sum())
    return Section(
        "attempts",
        "Several attempts",
        "Does seeing what an attempt came to help the next one?",
        (
            f"In {better} of {len(last)} cells success within all attempts is above that of as many independent attempts, each as"
            " good as the first (95 % interval).",
        ),
        {
            "within": Result(
                title="Success within so many attempts, with 95 % intervals",
                table=table,
                how=f"{HOW}; independent_rate: 1 - (1 - success of the first attempt) ** attempts; {len(tried)} trials",
            )
        },
    )
