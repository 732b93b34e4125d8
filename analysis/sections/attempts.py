"""Several attempts at an item: success within one, two, three, next to as many independent guesses."""

from __future__ import annotations

import pandas as pd

from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.rates import HOW, by_cell
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import MissingData, Section
from vlm_probe.analysis.selection import CELL, cells, present

TRIED = ("memory", "attempts")
"""What several attempts differ in, besides the cell of the design."""


def section(material: ReportData) -> Section:
    """Success within so many attempts. Raises Unanswerable if every item was tried once."""
    models = material.models
    tried = models[(models["attempts"] > 1) & (models["manner"] == "")] if len(models) else models
    if tried.empty:
        raise MissingData("every item was tried once: add runs of an action with `probe run --attempts 3`")
    rows = []
    columns = [*present(tried, CELL), *TRIED]
    for key, own in cells(tried, columns):
        most = int(str(key[-1]))
        items = _items(own)
        single = None
        for within in range(1, most + 1):
            # Where an attempt has not taken place that could still have solved the item, nothing is known of it.
            known = items[(items["solved"] <= within) | (items["made"] >= within)]
            if known.empty:
                continue
            rate = by_cell(known.assign(success=(known["solved"] <= within).astype(int), cell=0), ["cell"]).iloc[0]
            single = float(rate["rate"]) if single is None else single
            rows.append(
                dict(zip(columns, key, strict=True))
                | {"within": within}
                | {name: rate[name] for name in ("rate", "rate_low", "rate_high")}
                | {
                    "independent_rate": 1 - (1 - single) ** within,
                    "n_runs": int(rate["n_runs"]),
                    "n_items": len(known),
                }
            )
    if not rows:
        raise MissingData("no item has a first attempt that took place: run `probe run --attempts 3` to its end")
    table = pd.DataFrame(rows)
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


def _items(tried: pd.DataFrame) -> pd.DataFrame:
    """Every item of every run: attempts `made` from the first on without a gap, and the one that `solved` it (nan: none)."""
    by = ["run", "item_id", "sample", "stimuli"]
    ordered = tried.sort_values("attempt", kind="stable")
    place = ordered.groupby(by, observed=True).cumcount() + 1
    ordered = ordered[(ordered["attempt"] == place).to_numpy(bool)]
    solved = ordered["attempt"].where(ordered["success"] == 1)
    items = ordered.assign(made=ordered["attempt"], solved=solved).groupby(by, observed=True)
    return items.agg({"made": "max", "solved": "min"}).reset_index()
