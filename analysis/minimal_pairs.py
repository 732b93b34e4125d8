"""Minimal pairs scored as wholes: what is left of success when one answer to both members of a pair earns nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from scipy.stats import binomtest

from vlm_probe.analysis.pooling import OVER_RUNS, pool
from vlm_probe.analysis.rates import rate_over_runs
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.selection import CELL, Floats, cells, need, plain_trials, present
from vlm_probe.stimuli.errors import InvalidInput


def pairs(trials: pd.DataFrame, by: Sequence[str] = CELL) -> Result:
    """Foils scored jointly: a minimal pair is right only if all its members are.

    The members of a pair differ in one thing, and in the right answer. Who answers by anything else gives both the same answer:
    one right, one wrong, no pair right. Who guesses gets both right as often as both wrong; so the share of pairs with both
    right minus that with none right measures the use of what differs, free of any bias towards an answer.

    Args:
        trials: A trial table; pairs with members that are missing are left out.
        by: Columns that make a cell.

    Raises:
        ValueError: If there are no pairs.
    """
    need(trials, "pair_id", "run", "success")
    plain = plain_trials(trials)
    plain = plain[plain["pair_id"].notna() & (plain["pair_id"].astype(str) != "")]
    columns = present(plain, by)
    keys = [*columns, "run", *present(plain, ("readout", "stimuli", "sample")), "pair_id"]
    scored = plain.groupby(keys, observed=True)["success"].agg(["sum", "size"]).reset_index()
    scored = scored[scored["size"] > 1]
    if scored.empty:
        raise InvalidInput("no minimal pair was asked as a whole: run a set without --limit, or a larger part of it")
    rows = []
    for key, members in cells(scored, columns):
        both, none, n, net = [], [], [], []
        for _, own in cells(members, ["run"]):
            right = own["sum"].to_numpy(int)
            all_right, none_right = right == own["size"].to_numpy(int), right == 0
            both.append(int(all_right.sum()))
            none.append(int(none_right.sum()))
            n.append(len(own))
            difference = all_right.astype(float) - none_right
            net.append((float(difference.mean()), _variance(difference)))
        rate, zero = rate_over_runs(both, n), rate_over_runs(none, n)
        gain = pool([x for x, _ in net], [v for _, v in net])
        decided = sum(both) + sum(none)
        single = len(n) == 1
        rows.append(
            dict(zip(columns, key, strict=True))
            | {
                "both_right": rate.value,
                "both_low": rate.low,
                "both_high": rate.high,
                "none_right": zero.value,
                "same_answer": 1 - rate.value - zero.value,
                "net": gain.mean,
                "net_low": max(gain.low, -1.0),
                "net_high": min(gain.high, 1.0),
                "p": binomtest(sum(both), decided).pvalue if single and decided else gain.p,
                "n_runs": len(n),
                "n_pairs": sum(n),
            }
        )
    return Result(
        title="Minimal pairs scored as wholes, with 95 % intervals",
        table=pd.DataFrame(rows),
        how=(
            "both_right, none_right: shares of pairs; net: their difference, 0 without use of what differs in the pair; same_answer:"
            f" the rest; {OVER_RUNS}; p tests net = 0 (one run: exact sign test of pairs); {int(scored['size'].sum())} trials"
        ),
    )


def _variance(values: Floats) -> float:
    n = len(values)
    return max(float(values.var(ddof=1)) / n if n > 1 else math.nan, 0.25 / (n + 1) ** 2)
