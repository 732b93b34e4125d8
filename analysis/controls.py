"""Control manners of presentation against the plain one, on the same items by the same run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from vlm_probe.analysis.clustered import clustered
from vlm_probe.analysis.pooling import OVER_RUNS, pool
from vlm_probe.analysis.rates import rate_over_runs
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.selection import CELL, cells, first_attempts, item_groups, need, present
from vlm_probe.stimuli.errors import InvalidInput


def controls(trials: pd.DataFrame, by: Sequence[str] = CELL) -> Result:
    """Every other manner of presentation against the plain one, on the same items by the same run.

    Args:
        trials: A trial table with more than one `manner` (or number of worked examples).
        by: Columns that make a cell.

    Raises:
        ValueError: If no item was asked in two manners.
    """
    need(trials, "manner", "run", "item_id", "success")
    table = first_attempts(trials)
    codes = table["manner"].astype(str)
    if "examples" in table.columns:
        shown = table["examples"].astype(int).astype(str)
        codes = codes.where(shown == "0", codes.str.cat(shown + " examples", sep=" ").str.strip())
    table = table.assign(_code=codes)
    columns = present(table, by)
    keys = [*columns, "run", "item_id", *present(table, ("readout", "stimuli", "sample"))]
    values = ["success", *present(table, ("answer", "group_id"))]
    intact = table.loc[table["_code"] == "", [*keys, *values]]
    both = table.loc[table["_code"] != "", [*keys, "_code", *values]].merge(intact, on=keys, suffixes=("", "_intact"))
    if both.empty:
        raise InvalidInput("no item was asked both plainly and in another manner: use `probe run --design controls`")
    order = list(dict.fromkeys(both["_code"]))
    rows = []
    for key, members in cells(both, columns):
        for code in order:
            own = members[members["_code"] == code]
            if own.empty:
                continue
            found, hits, sizes = [], [], []
            for _, single in cells(own, ["run"]):
                difference = single["success"].to_numpy(float) - single["success_intact"].to_numpy(float)
                found.append(clustered(difference, np.ones((len(single), 1)), item_groups(single)))
                hits.append(int(single["success"].sum()))
                sizes.append(len(single))
            change, rate = pool(*zip(*found, strict=True)), rate_over_runs(hits, sizes)
            rows.append(
                dict(zip(columns, key, strict=True))
                | {
                    "manner": code,
                    "rate": rate.value,
                    "rate_low": rate.low,
                    "rate_high": rate.high,
                    "intact_rate": float(own["success_intact"].mean()),
                    "difference": change.mean,
                    "difference_low": change.low,
                    "difference_high": change.high,
                    "df": change.df,
                    "p": change.p,
                    "same_answer": _same(own),
                    "n_runs": len(sizes),
                    "n_items": sum(sizes),
                }
            )
    return Result(
        title="Control manners against the plain one on the same items, with 95 % intervals",
        table=pd.DataFrame(rows),
        how=(
            f"difference: success in the manner minus success in the plain one, paired by item within run; {OVER_RUNS}; same_answer:"
            f" share of items answered alike, of those that could be read in both; {len(both)} pairs of trials"
        ),
    )


def _same(own: pd.DataFrame) -> float:
    if "answer" not in own.columns:
        return math.nan
    a, b = own["answer"].astype(object), own["answer_intact"].astype(object)
    read = (a.notna() & b.notna()).to_numpy(bool)
    return float(np.mean((a == b).to_numpy(bool)[read])) if read.any() else math.nan
