"""Transfer from source to target: what training on each task changes on each tested task, and in which direction.

One row per source (tasks and regime of a training run, over methods) and target (a tested task), and the same for each method. Tests of a task under
shifts are nested within it and share its weight. Two measures are compared with the untrained model: success, and the signed score of
`vlm_probe.analysis.measures`, which is below 0 where answers are turned round.

Tests. A contrast is a difference of means of runs, so that its variance is that of crossed random effects, runs + items - residual (Clark, 1973; see
`vlm_probe.analysis.run_means`), here with groups of foils and mirror images for items. The part between runs has as many degrees of freedom as there are
runs beyond one of each kind; the whole has Satterthwaite's. Where every method was trained once, the methods are the runs of one kind; a
single run is tested over items. Next to it stands the largest p of single runs over items: that of "each of these runs".

Holm's correction is over all transfer contrasts of a model, both measures; so are those of reversals and of the equivalence tests. Learning of the
source is a family of its own, and so are the contrasts of single methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from vlm_probe.analysis.cell_model import UNTRAINED, Estimate
from vlm_probe.analysis.equivalence import equivalence
from vlm_probe.analysis.labels import trained_on
from vlm_probe.analysis.measures import balance, code, measure_cells
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.run_means import Compared, Side, compare, fieller
from vlm_probe.analysis.selection import Floats, cells, item_groups
from vlm_probe.analysis.training import RANDOM_ANSWERS
from vlm_probe.analysis.transfer import with_names
from vlm_probe.analysis.transfer_verdicts import ALL, RULE, corrected
from vlm_probe.stimuli.errors import InvalidInput

POWER = 0.8


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer(Result):
    """Source -> target contrasts. The table has one row per model, source, method (or all) and target.

    Attributes:
        runs: One row per run: the gain on its source, its p, and whether it learned it.
        ratios: Transfer ratios, target gain / source gain, with Fieller intervals.
        measures: Of every run on every test; None if the table has no answers.
    """

    runs: pd.DataFrame
    ratios: pd.DataFrame
    measures: Result | None = None


@dataclass(frozen=True)
class Block:
    """The answers of all runs of a model to the items of one tested task: arrays (runs, items), nan where a run was not asked.

    Attributes:
        values: Measure -> values: success, signed score, and success among valid replies.
        weights: Measure -> weight of every item (items,); they sum to 1.
        strata: Measure -> what items are centred in (items,).
        clusters: Group of foils and mirror images of every item (items,).
        invalid: Whether a reply was invalid.
        asked: Which runs were asked every item (runs,).
        sided: Whether the signed score has sides, so that answers can be reversed.
    """

    values: Mapping[str, Floats]
    weights: Mapping[str, Floats]
    strata: Mapping[str, NDArray[np.int64]]
    clusters: NDArray[np.int64]
    invalid: Floats
    asked: NDArray[np.bool_]
    sided: bool


def block_of(trials: pd.DataFrame, runs: Sequence[str]) -> Block:
    """The answers to the items of one tested task or several, from a table of `with_names`.

    Args:
        trials: Of the tasks; shifted tests are nested within them.
        runs: The runs of all blocks, in their order.
    """
    data = trials.assign(run=trials["run"].astype(str), invalid=0.0, score=math.nan)
    if "status" in data:
        data["invalid"] = (data["status"].astype(str) != "ok").to_numpy(float)
    sided = False
    sides = pd.Series(0.0, data.index)
    if {"truth", "answer"} <= set(data.columns):
        for _, own in data.groupby("test", sort=False):
            coded = code(own)
            data.loc[own.index, "score"] = coded.score
            sides.loc[own.index] = coded.side
            sided |= coded.kind == "sides"
    data = data.assign(side=sides, cluster=item_groups(data))
    items = data.groupby(["test", "item"], sort=False)[["side", "cluster", "task"]].first().reset_index()
    place = {name: index for index, name in enumerate(items["item"])}
    found = {}
    for name in ("success", "score", "invalid"):
        table = data.pivot_table(index="run", columns="item", values=name, aggfunc="mean", dropna=False, observed=True)
        found[name] = table.reindex(index=list(runs), columns=list(place)).to_numpy(float)
    test = pd.factorize(items["test"])[0].astype(np.int64)
    n_tests = int(test.max()) + 1
    # Tasks weigh the same, tests of a task within it, and items of a test within that.
    task = pd.factorize(items["task"])[0][np.unique(test, return_index=True)[1]]
    even = (1 / (int(task.max()) + 1) / np.bincount(task)[task])[test] / np.bincount(test)[test]
    side = items["side"].to_numpy(float)
    balanced = np.concatenate([balance(side[test == k]) for k in range(n_tests)])[
        np.argsort(np.argsort(test, kind="stable"))
    ]
    strata = {"success": test, "signed": test * 3 + (side + 1).astype(np.int64)}
    with np.errstate(invalid="ignore"):
        valid = np.where(found["invalid"] > 0, np.nan, found["success"])
    for k in range(n_tests):
        here = test == k
        counts = np.isfinite(valid[:, here]).sum(1, keepdims=True)
        mean = np.nansum(valid[:, here], 1, keepdims=True) / np.where(counts > 0, counts, np.nan)
        # Left out: at the mean of the valid ones, whose deviations weigh as much more as there are fewer of them.
        more = (valid[:, here] - mean) * here.sum() / np.where(counts > 0, counts, 1)
        valid[:, here] = mean + np.where(np.isfinite(more), more, 0.0)
    return Block(
        values={"success": found["success"], "signed": found["score"], "valid": valid},
        weights={"success": even, "signed": even * balanced, "valid": even},
        strata=strata | {"valid": test},
        clusters=pd.factorize(items["cluster"])[0].astype(np.int64),
        invalid=found["invalid"],
        asked=np.isfinite(found["success"]).all(1),
        sided=sided,
    )


def transfer_contrasts(
    trials: pd.DataFrame,
    baselines: pd.DataFrame | None = None,
    bound: float = 0.1,
    alpha: float = 0.05,
    seed: int = 0,
) -> Transfer:
    """Compare every source with the untrained model on every target, and measure what answers say about the truth.

    Args:
        trials: A trial table; observers and trials that are not plain are left out.
        baselines: Of `ReportData.baselines`, for the best of them by test.
        bound: Difference in success rate that would matter; of signed scores, whose range is twice as wide, twice of it.
        alpha: Level of the tests.
        seed: Of the permutations of the measures.

    Raises:
        InvalidInput: If no trained model was tested.
    """
    table = with_names(trials)
    measured = measure_cells(table, seed) if {"truth", "answer"} <= set(table.columns) else None
    if (table["method"].astype(str) == UNTRAINED).all():
        raise InvalidInput(
            "none of the runs is of a trained model: transfer needs runs with adapters next to the base model"
        )
    parts: list[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]] = []
    for (model,), own in cells(table, ["model"]):
        found = _of_model(own, baselines, bound, alpha)
        if measured is not None:
            found = (_with_measures(found[0], measured.table, found[1]), *found[1:])
        table_, runs_, ratios_ = (frame.assign(model=str(model)) for frame in found)
        parts.append((table_, runs_, ratios_))
    whole, runs, ratios = (pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True))
    notes = []
    if not (table["method"].astype(str) == UNTRAINED).any():
        notes.append("there is no run of the untrained model: differences from it are unknown")
    missed = sum(learned is False for learned in runs["learned"])
    if missed:
        notes.append(
            f"{missed} of {len(runs)} runs are not better than the untrained model on their own source (one-sided, p < {alpha:g}, over items):"
            " the contrasts without them are in the columns that end in “learned”"
        )
    return Transfer(
        title="Transfer from source to target: differences from the untrained model, with 95 % intervals",
        table=whole,
        how=(
            "difference: of success rates; signed: mean signed score (hit rate minus false-alarm rate of the side of the truth), signed_difference: less"
            " that of the untrained model; tests of a task weighted alike, tasks nested over their shifts; methods weighted alike; variance: runs +"
            " items - residual (Clark, 1973), groups of foils and mirror images as items; t with Satterthwaite's df from those"
            " between runs and items (one run: items alone); p_each: the largest p of single runs over items; Holm over all"
            f" transfer contrasts of both measures, over all reversals, and over all equivalence tests (TOST within ±{bound:g}, signed score ±{2 * bound:g}), learning of"
            " sources and single methods apart; ruled_out: the smallest true"
            f" difference that the equivalence test had {POWER:.0%} power to rule out; {RULE}; alpha {alpha:g}; {len(table)} trials of"
            f" {table['run'].nunique()} runs"
        ),
        notes=tuple(notes),
        runs=runs,
        ratios=ratios,
        measures=measured,
    )


def _with_measures(frame: pd.DataFrame, measured: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """With the means over runs of what was measured on each target, next to those of the untrained model."""
    names = ["information", "d_prime", "correlation", "direction_accuracy"]
    means = measured.groupby(["task", "run"], observed=True)[names].mean().reset_index()
    means = means.astype({"task": str, "run": str})
    untrained = means[~means["run"].isin(runs["run"])].groupby("task")[names].mean()
    rows = []
    for source, method, target in zip(frame["source"], frame["method"], frame["target"], strict=True):
        own = runs.loc[(runs["source"] == source) & ((runs["method"] == method) | (method == ALL)), "run"]
        found = means[(means["task"] == target) & means["run"].isin(own)][names].mean().to_dict()
        base = untrained.loc[target] if target in untrained.index else pd.Series(math.nan, names)
        rows.append(found | {f"{name}_untrained": base[name] for name in names})
    return pd.concat([frame, pd.DataFrame(rows, index=frame.index)], axis=1)


def condition_contrasts(
    trials: pd.DataFrame,
    wanted: Sequence[tuple[str, tuple[str, str], tuple[str, str], str]],
    bound: float = 0.1,
    alpha: float = 0.05,
) -> Result:
    """Compare any two training conditions at a level of transfer, over the methods that both have.

    Args:
        trials: A trial table.
        wanted: Name, (train_tasks, regime) of either side, and the level, which is that of the first side's tests.
        bound: As for `transfer_contrasts`.
        alpha: Level of the tests.
    """
    table = with_names(trials)
    rows, notes = [], []
    for (model,), of_model in cells(table, ["model"]):
        for name, left, right, level in wanted:
            row = _condition_row(of_model, left, right, level, bound, alpha)
            if row is None:
                notes.append(
                    f"{name} ({level}): no test was taken by runs of both conditions with a method that both have"
                )
            else:
                rows.append({"model": str(model), "contrast": name, "transfer": level, **row})
    frame = pd.DataFrame(rows)
    if len(frame):
        frame = corrected(frame.assign(method=ALL, limit=""), alpha).drop(columns=["method", "limit"])
    return Result(
        title="Contrasts of training conditions, with 95 % intervals",
        table=frame,
        how=(
            "difference: of mean success rates, tasks weighted alike; signed: of mean signed scores; variance: runs + items - residual (Clark, 1973), t with"
            f" Satterthwaite's df; Holm over all contrasts of both measures; equivalence: TOST within ±{bound:g} (signed score: ±{2 * bound:g}); {RULE}; alpha {alpha:g}"
        ),
        notes=tuple(notes),
    )


def _condition_row(
    table: pd.DataFrame, left: tuple[str, str], right: tuple[str, str], level: str, bound: float, alpha: float
) -> dict[str, Any] | None:
    """One contrast of conditions; None where they have nothing in common."""
    of = pd.Series(list(zip(table["train_tasks"].astype(str), table["regime"].astype(str), strict=True)), table.index)
    own, other = table[of == left], table[of == right]
    methods = set(own["method"].astype(str)) & set(other["method"].astype(str))
    tests = set(own.loc[own["transfer"].astype(str) == level, "test"]) & set(other["test"])
    both = pd.concat([own, other])
    both = both[both["test"].isin(tests) & both["method"].astype(str).isin(methods)]
    if both.empty:
        return None
    facts = both.assign(run=both["run"].astype(str)).drop_duplicates("run")
    block = block_of(both, list(facts["run"]))
    kind = facts["method"].astype(str).to_numpy()
    is_left = of.loc[facts.index].map(lambda pair: pair == left).to_numpy(bool)
    a, b = (_asked(block, Side(np.flatnonzero(mask), tuple(kind[mask]))) for mask in (is_left, ~is_left))
    if not len(a.runs) or not len(b.runs):
        return None
    row: dict[str, Any] = {"n_targets": both["task"].nunique(), "n_runs": len(a.runs), "n_runs_other": len(b.runs)}
    row["invalid"] = float(np.nanmean(block.invalid[a.runs]))
    row["invalid_untrained"] = float(np.nanmean(block.invalid[b.runs]))
    for measure, end in (("success", ""), ("signed", "signed_")):
        if np.isfinite(block.values[measure]).all():
            row |= _difference(
                _contrast(block, measure, a, b), end, bound if measure == "success" else 2 * bound, alpha
            )
    valid = _contrast(block, "valid", a, b).over_runs
    return row | {"difference_valid": valid.value, "p_valid": valid.p}


def _difference(found: Compared, end: str, bound: float, alpha: float) -> dict[str, Any]:
    """A difference with its tests, as columns."""
    e = found.over_runs
    return {
        f"{end}difference": e.value,
        f"{end}difference_low": e.low,
        f"{end}difference_high": e.high,
        f"{end}df": e.df,
        f"{end}p": e.p,
        f"{end}p_each": found.each,
        f"{end}p_equivalence": equivalence(e.value, e.se, bound, e.df, alpha).p,
        f"{end}ruled_out": _ruled_out(e, alpha),
    }


def _of_model(
    table: pd.DataFrame, baselines: pd.DataFrame | None, bound: float, alpha: float
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The contrasts, runs and ratios of one model."""
    facts = table.assign(
        run=table["run"].astype(str),
        method=table["method"].astype(str),
        source=[
            trained_on(*pair)
            for pair in zip(table["train_tasks"].astype(str), table["regime"].astype(str), strict=True)
        ],
    ).drop_duplicates("run")
    names = list(facts["run"])
    blocks = {str(task): block_of(own, names) for (task,), own in cells(table, ["task"])}
    untrained = np.flatnonzero((facts["method"] == UNTRAINED).to_numpy())
    runs = _learned(facts, blocks, untrained, alpha)
    learned = dict(zip(runs["run"], runs["learned"], strict=True)) if len(runs) else {}
    sources = _sources(facts)
    limits = {task: _limit(block, sources, untrained, bound) for task, block in blocks.items()}
    rows, ratios = [], []
    for (source, method), side in sources.items():
        first = facts.iloc[side.runs[0]]
        tasks = tuple(str(first["train_tasks"]).split("+"))
        for task, block in blocks.items():
            row = {
                "source": source,
                "train_tasks": str(first["train_tasks"]),
                "regime": str(first["regime"]),
                "method": method,
                "target": task,
                "transfer": _level(table, source, task, facts, side),
            }
            row |= _compared(block, side, untrained, names, learned, bound, alpha)
            row |= _against_control(block, side, sources, source, method)
            row |= _baseline(baselines, task) | {"limit": limits[task]}
            rows.append(row)
            if untrained.size and method == ALL and task not in tasks:
                ratios.append(
                    {"source": source, "target": task}
                    | _ratio([blocks[t] for t in tasks if t in blocks], block, side, untrained)
                )
    frame = pd.DataFrame(rows)
    frame = corrected(frame, alpha)
    return frame, runs, pd.DataFrame(ratios)


def _sources(facts: pd.DataFrame) -> dict[tuple[str, str], Side]:
    """(source, method or "all") -> runs."""
    found: dict[tuple[str, str], Side] = {}
    trained = (facts["method"] != UNTRAINED).to_numpy()
    for source in dict.fromkeys(facts["source"][trained]):
        own = np.flatnonzero(trained & (facts["source"] == source).to_numpy())
        methods = facts["method"].to_numpy()[own]
        found[source, ALL] = Side(own, tuple(methods))
        for method in dict.fromkeys(methods) if len(set(methods)) > 1 else ():
            found[source, method] = Side(own[methods == method], (method,) * int((methods == method).sum()))
    return found


def _learned(
    facts: pd.DataFrame, blocks: Mapping[str, Block], untrained: NDArray[np.int64], alpha: float
) -> pd.DataFrame:
    """Whether every trained run is better than the untrained model on the tasks of its source."""
    rows = []
    for place, fact in enumerate(facts.to_dict("records")):
        if fact["method"] == UNTRAINED:
            continue
        tasks = [task for task in str(fact["train_tasks"]).split("+") if task in blocks and blocks[task].asked[place]]
        gains, ps = [], []
        for task in tasks if untrained.size else ():
            found = _contrast(blocks[task], "success", Side(np.array([place]), ("run",)), _base(untrained))
            gains.append(float(found.of_runs[0]))
            ps.append(float(found.runs_p[0]))
        # Several source tasks: any of them, corrected.
        p = min(1.0, min(ps) * len(ps)) if ps else math.nan
        rows.append(
            {
                "run": fact["run"],
                "source": fact["source"],
                "method": fact["method"],
                "source_gain": float(np.mean(gains)) if gains else math.nan,
                "p": p,
                "learned": bool(p < alpha) if ps else None,
            }
        )
    return pd.DataFrame(rows, columns=["run", "source", "method", "source_gain", "p", "learned"])


def _base(untrained: NDArray[np.int64]) -> Side | None:
    return Side(untrained, (UNTRAINED,) * len(untrained), fixed=True) if untrained.size else None


def _contrast(block: Block, measure: str, a: Side, b: Side | None) -> Compared:
    return compare(block.values[measure], block.weights[measure], block.strata[measure], block.clusters, a, b)


def _asked(block: Block, side: Side) -> Side:
    keep = block.asked[side.runs]
    return Side(side.runs[keep], tuple(kind for kind, ok in zip(side.kinds, keep, strict=True) if ok), side.fixed)


def _compared(
    block: Block,
    side: Side,
    untrained: NDArray[np.int64],
    names: Sequence[str],
    learned: Mapping[str, bool | None],
    bound: float,
    alpha: float,
) -> dict[str, Any]:
    """Everything about one source (or method of it) on one target."""
    own = _asked(block, side)
    base = _base(untrained[block.asked[untrained]])
    row: dict[str, Any] = {
        "n_runs": len(own.runs),
        "n_learned": sum(learned.get(names[r]) is not False for r in own.runs),
    }
    if not len(own.runs):
        return row
    row["invalid"] = float(np.nanmean(block.invalid[own.runs]))
    for measure, end in (("success", ""), ("signed", "signed_")):
        if measure == "signed" and not np.isfinite(block.values["signed"][own.runs]).all():
            continue
        alone = _contrast(block, measure, own, None)
        row["rate" if measure == "success" else "signed"] = alone.over_runs.value
        if measure == "signed" and block.sided:
            row |= {
                "signed_low": alone.over_runs.low,
                "signed_high": alone.over_runs.high,
                "p_reversed": _one_sided(alone),
            }
        if base is None:
            continue
        found = _contrast(block, measure, own, base)
        row |= {f"{end}untrained": alone.over_runs.value - found.over_runs.value}
        row |= _difference(found, end, bound if measure == "success" else 2 * bound, alpha)
        kept = [r for r in range(len(own.runs)) if learned.get(names[own.runs[r]]) is not False]
        if 0 < len(kept) < len(own.runs):
            part = Side(own.runs[kept], tuple(own.kinds[k] for k in kept))
            again = _contrast(block, measure, part, base)
            row |= {f"{end}difference_learned": again.over_runs.value, f"{end}p_learned": again.over_runs.p}
    if base is not None:
        row["invalid_untrained"] = float(np.nanmean(block.invalid[base.runs]))
        valid = _contrast(block, "valid", own, base)
        row |= {"difference_valid": valid.over_runs.value, "p_valid": valid.over_runs.p}
    return row


def _one_sided(alone: Compared) -> float:
    """That the signed score is not below 0."""
    if alone.over_runs.value >= 0:
        return 1.0
    return alone.over_runs.p / 2


def _ruled_out(e: Estimate, alpha: float) -> float:
    """The smallest bound within which TOST would have shown equivalence with `POWER`, were there no difference."""
    if not (e.se > 0 and e.df > 0):
        return math.nan
    return float((student.ppf(1 - alpha, e.df) + student.ppf(1 - (1 - POWER) / 2, e.df)) * e.se)


def _against_control(
    block: Block, side: Side, sources: Mapping[tuple[str, str], Side], source: str, method: str
) -> dict[str, Any]:
    """The difference from adapters trained on random legal answers, where the study has them."""
    if RANDOM_ANSWERS in source or method != ALL:
        return {}
    control = next(
        (
            own
            for (name, of), own in sources.items()
            if of == ALL and RANDOM_ANSWERS in name and name.partition(" (")[0] == source.partition(" (")[0]
        ),
        None,
    )
    if control is None:
        return {}
    a, b = _asked(block, side), _asked(block, control)
    if not len(a.runs) or not len(b.runs):
        return {}
    found = _contrast(block, "success", a, b).over_runs
    return {
        "control_difference": found.value,
        "control_low": found.low,
        "control_high": found.high,
        "control_p": found.p,
    }


def _limit(block: Block, sources: Mapping[tuple[str, str], Side], untrained: NDArray[np.int64], bound: float) -> str:
    """Whether all conditions are so near to 0 or 1 that none can differ by the bound."""
    sides = [_asked(block, own) for (_, method), own in sources.items() if method == ALL]
    places = [own.runs for own in sides if len(own.runs)] + ([untrained] if untrained.size else [])
    rates = [float(np.nanmean(block.values["success"][place] @ block.weights["success"])) for place in places]
    if rates and max(rates) < bound:
        return "floor"
    return "ceiling" if rates and min(rates) > 1 - bound else ""


def _level(table: pd.DataFrame, source: str, task: str, facts: pd.DataFrame, side: Side) -> str:
    """The level of transfer, of the unshifted test where there is one."""
    if "transfer" not in table:
        return ""
    runs = set(facts["run"].to_numpy()[side.runs])
    own = table[(table["task"] == task) & table["run"].astype(str).isin(runs)]
    plain = own[own["shift"].astype(str) == "none"] if "shift" in own else own
    found = (plain if len(plain) else own)["transfer"].dropna().astype(str)
    return str(found.iloc[0]) if len(found) else ""


def _baseline(baselines: pd.DataFrame | None, task: str) -> dict[str, Any]:
    """The best that needs no physics on the unshifted test of a task, and what it is."""
    if baselines is None or baselines.empty or "best_baseline" not in baselines:
        return {}
    own = baselines[baselines["test_task"].astype(str) == task]
    own = own[own["best_baseline"].notna()]
    if own.empty:
        return {}
    return {"best_baseline": float(own["best_baseline"].iloc[0]), "baseline": str(own["baseline"].iloc[0])}


def _ratio(origin: Sequence[Block], target: Block, side: Side, untrained: NDArray[np.int64]) -> dict[str, Any]:
    """Target gain / source gain with its Fieller interval; none where the source gain is not significantly different from 0."""
    row: dict[str, Any] = dict.fromkeys(("ratio", "ratio_low", "ratio_high"), math.nan)
    base = _base(untrained)
    asked = [own for own in side.runs if target.asked[own] and all(block.asked[own] for block in origin)]
    if not origin or len(asked) < 2:
        return row | {"n_runs": len(asked)}
    kinds = tuple(kind for run, kind in zip(side.runs, side.kinds, strict=True) if run in asked)
    own = Side(np.array(asked), kinds)
    gains = [_contrast(block, "success", own, base) for block in origin]
    t = _contrast(target, "success", own, base)
    source = float(np.mean([g.over_runs.value for g in gains]))
    v_source = float(np.sum([g.over_runs.se**2 for g in gains])) / len(gains) ** 2
    df = min(t.over_runs.df, *(g.over_runs.df for g in gains))
    of_source = np.mean([g.of_runs for g in gains], axis=0)
    centred = [
        x
        - pd.Series(x)
        .groupby(list(kinds) if len(set(kinds)) < len(kinds) else [0] * len(kinds))
        .transform("mean")
        .to_numpy()
        for x in (of_source, t.of_runs)
    ]
    freedom = max(len(asked) - (len(set(kinds)) if len(set(kinds)) < len(kinds) else 1), 1)
    covariance = float(centred[0] @ centred[1]) / freedom / len(asked)
    low, high = fieller(t.over_runs.value, source, t.over_runs.se**2, v_source, covariance, df)
    return row | {
        "target_gain": t.over_runs.value,
        "source_gain": source,
        "ratio": t.over_runs.value / source if math.isfinite(low) else math.nan,
        "ratio_low": low,
        "ratio_high": high,
        "df": df,
        "n_runs": len(asked),
    }
