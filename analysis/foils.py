"""Minimal pairs, control manners and shortcut rules: what is left of an accuracy once they are taken into account."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from analysis.pooling import Pooled, pool
from analysis.rates import rate_over_runs
from analysis.result import Result
from analysis.selection import CELL, Floats, cells, need, plain_trials, present

OVER_RUNS = (
    "runs pooled by random effects (REML, Hartung-Knapp t interval); one run: z interval from its groups of items"
)


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
        raise ValueError("no minimal pair was asked as a whole: run a set without --limit, or a larger part of it")
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


def controls(trials: pd.DataFrame, by: Sequence[str] = CELL) -> Result:
    """Every other manner of presentation against the plain one, on the same items by the same run.

    Args:
        trials: A trial table with more than one `manner` (or number of worked examples).
        by: Columns that make a cell.

    Raises:
        ValueError: If no item was asked in two manners.
    """
    need(trials, "manner", "run", "item_id", "success")
    table = trials[trials["attempt"] == 1] if "attempt" in trials.columns else trials
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
        raise ValueError("no item was asked both plainly and in another manner: use `probe run --design controls`")
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
                groups = single["group_id"] if "group_id" in single else single["item_id"]
                found.append(_clustered(difference, np.ones((len(single), 1)), groups.astype(str).to_numpy()))
                hits.append(int(single["success"].sum()))
                sizes.append(len(single))
            change, rate = _pooled(found), rate_over_runs(hits, sizes)
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


def adjusted_accuracy(trials: pd.DataFrame, rules: pd.DataFrame, by: Sequence[str] = CELL) -> Result:
    """Accuracy as it would be if the shortcut rules were right on half of the items.

    The mean of the accuracy where a rule is right and where it is wrong: who follows the rule gets .5 however well the rule
    does on the set, who knows the physics 1, who guesses .5. For all rules at once it is the intercept of a linear
    regression of success on the rules, coded +-1/2; for one rule this is the same number.

    Args:
        trials: A trial table.
        rules: `item_id`, and one boolean column per rule: whether its answer to the item is right (see `item_rules`).
        by: Columns that make a cell.

    Raises:
        ValueError: If no trial is about an item whose rules are known.
    """
    need(trials, "run", "item_id", "success")
    names = [name for name in rules.columns if name != "item_id"]
    plain = plain_trials(trials)
    plain = plain.assign(item_id=plain["item_id"].astype(str))
    known = plain.merge(rules.assign(item_id=rules["item_id"].astype(str)), on="item_id")
    if known.empty or not names:
        raise ValueError("the rules are about none of the items that were asked: give those of the same stimulus sets")
    columns, rows, notes = present(known, by), [], []
    for key, members in cells(known, columns):
        cell = dict(zip(columns, key, strict=True))
        varying = [name for name in names if members[name].notna().all() and members[name].nunique() == 2]
        fixed = [n for n in names if members[n].notna().all() and members[n].nunique() == 1]
        if fixed:
            notes.append(
                f"{cell.get('test_task', '')}: always right or always wrong, so nothing to adjust for: {', '.join(fixed)}"
            )
        kept = _independent(members[varying].to_numpy(float), varying)
        if len(kept) < len(varying):
            same = [name for name in varying if name not in kept]
            notes.append(f"{cell.get('test_task', '')}: says the same as other rules on these items: {', '.join(same)}")
        for label, chosen in [*((name, [name]) for name in varying), *([("all rules", kept)] if len(kept) > 1 else [])]:
            found = []
            for _, own in cells(members, ["run"]):
                design = np.column_stack([np.ones(len(own)), own[chosen].to_numpy(float) - 0.5])
                groups = own["group_id"] if "group_id" in own else own["item_id"]
                found.append(_clustered(own["success"].to_numpy(float), design, groups.astype(str).to_numpy()))
            value = _pooled(found)
            right = members[chosen[0]].to_numpy(bool)
            success = members["success"].to_numpy(float)
            one = len(chosen) == 1
            rows.append(
                cell
                | {
                    "rule": label,
                    "rate": float(success.mean()),
                    "rule_rate": float(right.mean()) if one else math.nan,
                    "where_right": float(success[right].mean()) if one else math.nan,
                    "where_wrong": float(success[~right].mean()) if one else math.nan,
                    "adjusted": value.mean,
                    "adjusted_low": value.low,
                    "adjusted_high": value.high,
                    "n_runs": value.n,
                    "n_trials": len(members),
                }
            )
    return Result(
        title="Success adjusted for shortcut rules, with 95 % intervals",
        table=pd.DataFrame(rows),
        how=(
            "adjusted: mean of the success where the rule is right and where it is wrong; all rules: intercept of a linear regression on"
            f" all of them, coded +-1/2, cluster-robust over groups of items; {OVER_RUNS}; {len(known)} trials"
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def item_rules(folder: str | Path) -> pd.DataFrame:
    """Which of its task's shortcut rules are right on every item of a set, for `adjusted_accuracy`.

    Raises:
        StimulusError: If the folder is no stimulus set.
    """
    from stimuli.baselines import item_cues
    from stimuli.dataset import StimulusSet
    from stimuli.tasks import get_task

    items = StimulusSet.load(folder).items
    tasks = {item.task: get_task(item.task) for item in items if item.scene is not None}
    rows: list[dict[str, Any]] = [
        {"item_id": item.item_id, **item_cues(tasks[item.task], item).rules} for item in items if item.scene is not None
    ]
    return pd.DataFrame(rows, columns=None if rows else ["item_id"])


def _clustered(y: Floats, design: Floats, groups: Any) -> tuple[float, float]:
    """First coefficient of a linear regression and its variance, robust to dependence within groups (CR1)."""
    bread = np.linalg.pinv(design.T @ design)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return math.nan, math.nan
    beta = bread @ design.T @ y
    index = np.unique(groups, return_inverse=True)[1]
    count = int(index.max()) + 1
    if count < 2:
        return float(beta[0]), math.nan
    scores = np.zeros((count, design.shape[1]))
    np.add.at(scores, index, design * (y - design @ beta)[:, None])
    rows, columns = design.shape
    small = count / (count - 1) * (rows - 1) / (rows - columns)
    variance = small * (bread @ scores.T @ scores @ bread)[0, 0]
    # Items that all come out alike leave no residual; the variance of one more surprise keeps the run in the pool.
    return float(beta[0]), max(float(variance), 0.25 / (len(y) + 1) ** 2)


def _variance(values: Floats) -> float:
    n = len(values)
    return max(float(values.var(ddof=1)) / n if n > 1 else math.nan, 0.25 / (n + 1) ** 2)


def _pooled(found: Sequence[tuple[float, float]]) -> Pooled:
    return pool([estimate for estimate, _ in found], [variance for _, variance in found])


def _independent(values: Floats, names: Sequence[str]) -> list[str]:
    """Columns that add something to those before them and to a constant."""
    kept: list[int] = []
    for column in range(values.shape[1]):
        chosen = np.column_stack([np.ones(len(values)), values[:, [*kept, column]]])
        if np.linalg.matrix_rank(chosen) == chosen.shape[1]:
            kept.append(column)
    return [names[column] for column in kept]


def _same(own: pd.DataFrame) -> float:
    if "answer" not in own.columns:
        return math.nan
    a, b = own["answer"].astype(object), own["answer_intact"].astype(object)
    read = (a.notna() & b.notna()).to_numpy(bool)
    return float(np.mean((a == b).to_numpy(bool)[read])) if read.any() else math.nan
