"""Shortcut rules: what is left of success once the rules of a set's audit are taken into account."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.cell_model import estimate
from vlm_probe.analysis.clustered import clustered
from vlm_probe.analysis.pooling import OVER_RUNS, pool
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.selection import (
    CELL,
    Floats,
    cells,
    item_groups,
    judgements,
    need,
    plain_trials,
    present,
    said_signal,
    signed_margin,
    truth_is_signal,
)
from vlm_probe.stimuli.errors import InvalidInput


def adjusted_success(trials: pd.DataFrame, rules: pd.DataFrame, by: Sequence[str] = CELL) -> Result:
    """The success rate as it would be if the shortcut rules were right on half of the items.

    The mean of the success where a rule is right and where it is wrong: who follows the rule gets .5 however well the rule
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
        raise InvalidInput(
            "the rules are about none of the items that were asked: give those of the same stimulus sets"
        )
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
                found.append(clustered(own["success"].to_numpy(float), design, item_groups(own)))
            value = pool(*zip(*found, strict=True))
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


def cue_reliance(trials: pd.DataFrame, rules: pd.DataFrame, by: Sequence[str] = CELL) -> Result:
    """How much answers follow the physical margin and each shortcut cue, side by side, and how RL and SFT differ in that.

    Linear regression of the signal answer (1, or 0 for the other) on the signed margin (per two standard deviations; Gelman, 2008, Stat Med
    27:2865) and on what each rule would answer (coded +-1/2), so that a weight is the change in the probability of the answer. Where the cues and the margin are
    nearly the same on these items, the weights have wide intervals.

    Args:
        trials: A trial table of two-option judgements.
        rules: As for `adjusted_success`.
        by: Columns that make a cell.

    Raises:
        InvalidInput: If no trial is about an item whose rules are known.
    """
    names = [name for name in rules.columns if name != "item_id"]
    plain = plain_trials(judgements(trials))
    plain = plain.assign(item_id=plain["item_id"].astype(str), _said=said_signal(plain), _signal=truth_is_signal(plain))
    known = plain.merge(rules.assign(item_id=rules["item_id"].astype(str)), on="item_id")
    known = known[known["_said"].notna()]
    if known.empty:
        raise InvalidInput(
            "the rules are about none of the items that were asked: give those of the same stimulus sets"
        )
    columns, rows = present(known, by), []
    for key, members in cells(known, columns):
        varying = [name for name in names if members[name].notna().all()]
        predictors = {"margin": signed_margin(members)}
        predictors["margin"] = predictors["margin"] / (2 * predictors["margin"].std())
        # A rule that is right says the signal where it is true, one that is wrong where it is not.
        said = {name: members[name].to_numpy(bool) == (members["_signal"].to_numpy(float) == 1) for name in varying}
        predictors |= {name: value - 0.5 for name, value in said.items() if value.any() and not value.all()}
        kept = _independent(np.column_stack(list(predictors.values())), list(predictors))
        for name in kept:
            order = [name, *(other for other in kept if other != name)]
            found = []
            for run in dict.fromkeys(members["run"]):
                own = (members["run"] == run).to_numpy(bool)
                design = np.column_stack([*(predictors[other][own] for other in order), np.ones(int(own.sum()))])
                found.append(clustered(members["_said"].to_numpy(float)[own], design, item_groups(members[own])))
            value = pool(*zip(*found, strict=True))
            rows.append(
                dict(zip(columns, key, strict=True))
                | {
                    "cue": name,
                    "weight": value.mean,
                    "weight_low": value.low,
                    "weight_high": value.high,
                    "se": value.se,
                    "df": value.df,
                }
                | {"p": value.p, "n_runs": value.n, "n_trials": len(members)}
            )
    return Result(
        title="What answers follow: weights of the physical margin and of shortcut cues, with 95 % intervals",
        table=pd.DataFrame(rows),
        how=(
            "linear regression of the signal answer on the signed margin (per two standard deviations) and on every rule's answer (±1/2), cluster-robust over groups of"
            f" items, valid replies only; {OVER_RUNS}; {len(known)} trials"
        ),
    )


def reliance_by_method(found: Result, learners: Sequence[str], imitation: str = "sft") -> Result:
    """Weights of cues after RL less those after SFT, of the same training tasks, regime and test.

    Args:
        found: Of `cue_reliance`.
        learners: Methods of RL.
        imitation: The method that they are compared with.
    """
    table = found.table
    where = [name for name in present(table, CELL) if name != "method"] + ["cue"]
    rows = []
    for key, own in cells(table, where):
        acted, watched = (own[own["method"].astype(str).isin(names)] for names in (learners, [imitation]))
        if acted.empty or watched.empty:
            continue
        variance = float((acted["se"] ** 2).sum()) / len(acted) ** 2 + float(watched["se"].iloc[0]) ** 2
        df = float(min(acted["df"].min(), watched["df"].min()))
        e = estimate(float(acted["weight"].mean() - watched["weight"].iloc[0]), math.sqrt(variance), df)
        numbers = {"difference": e.value, "difference_low": e.low, "difference_high": e.high, "df": df, "p": e.p}
        rows.append(
            dict(zip(where, key, strict=True))
            | numbers
            | {"n_runs": int(acted["n_runs"].sum() + watched["n_runs"].sum())}
        )
    return Result(
        title="What answers follow after RL less what they follow after SFT, with 95 % intervals",
        table=pd.DataFrame(rows),
        how=f"mean weight over methods of RL less that of SFT; t with the fewer degrees of freedom of the two, not corrected; {found.how}",
    )


def item_rules(folder: str | Path) -> pd.DataFrame:
    """Which of its task's shortcut rules are right on every item of a set, for `adjusted_success`.

    Raises:
        StimulusError: If the folder is no stimulus set.
    """
    from vlm_probe.stimuli.baselines import item_cues
    from vlm_probe.stimuli.dataset import StimulusSet
    from vlm_probe.stimuli.tasks import get_task

    items = StimulusSet.load(folder).items
    tasks = {item.task: get_task(item.task) for item in items if item.scene is not None}
    rows: list[dict[str, Any]] = [
        {"item_id": item.item_id, **item_cues(tasks[item.task], item).rules} for item in items if item.scene is not None
    ]
    return pd.DataFrame(rows, columns=None if rows else ["item_id"])


def _independent(values: Floats, names: Sequence[str]) -> list[str]:
    """Columns that add something to those before them and to a constant."""
    kept: list[int] = []
    for column in range(values.shape[1]):
        chosen = np.column_stack([np.ones(len(values)), values[:, [*kept, column]]])
        if np.linalg.matrix_rank(chosen) == chosen.shape[1]:
            kept.append(column)
    return [names[column] for column in kept]
