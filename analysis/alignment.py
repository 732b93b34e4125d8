"""Alignment with participants: do models answer as participants do, item by item, and as well as participants predict each other?"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from vlm_probe.analysis.humans import Humans, human_answers, of_the_same_items
from vlm_probe.analysis.kappa import FEWEST_SHARED, kappas_of_samples, kappas_with_each, pairwise_kappas
from vlm_probe.analysis.result import Result, plain
from vlm_probe.analysis.selection import (
    CELL,
    Floats,
    cells,
    judgements,
    plain_trials,
    present,
    said_signal,
    signal_probability,
    truth_is_signal,
)

FEWEST = 3
"""Items with a readable answer below which a run is not compared with participants."""
LARGEST_SHARE = 0.25
"""Part of the variance of a run's answers over items that one item may carry: above it agreement is a matter of that item alone."""


THIN = "one item carries more than a quarter of the variation of its answers, so that agreement item by item cannot be told"
OF_ITEMS = ("r", "r_low", "r_high", "spearman", "r_single", "kappa_low", "kappa_high")
"""What is withheld then."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment(Result):
    """Alignment of models with participants. The table has one row per run and task.

    Attributes:
        ceilings: What participants reach among each other, one row per task.
        kappas: Task -> Cohen's kappas of all pairs of participants; empty where only counts are known.
        items: Item by item: P(signal) of participants and of every run.
    """

    ceilings: pd.DataFrame
    kappas: dict[str, Floats]
    items: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """As `Result.to_dict`, with the ceilings."""
        return {**super().to_dict(), "ceilings": [plain(row) for row in self.ceilings.to_dict("records")]}


def alignment(
    trials: pd.DataFrame, responses: pd.DataFrame, by: Sequence[str] = CELL, resamples: int = 1000, seed: int = 0
) -> Alignment:
    """Compare every run with participants who answered the same items.

    Args:
        trials: A trial table of two-option judgements, as `vlm_probe.analysis.frame` makes it.
        responses: Human responses, as `vlm_probe.analysis.humans.human_answers` takes them.
        by: Columns that make a cell.
        resamples: Bootstrap samples: participants and items are drawn again, independently of each other.
        seed: Of the bootstrap.

    Raises:
        ValueError: If no judged item has human responses.
    """
    found, responses = of_the_same_items(plain_trials(judgements(trials)), responses)
    columns = present(found, by)
    rows, ceilings, points, notes, kappas = [], [], [], [], {}
    for (task,), of_task in cells(found, ["test_task"]):
        signal = str(of_task["signal"].iloc[0])
        people = human_answers(responses, signal, sorted(of_task["item_id"].unique()))
        truth = of_task.assign(_t=truth_is_signal(of_task)).groupby("item_id")["_t"].first().loc[list(people.items)]
        among = pairwise_kappas(people)
        kappas[str(task)] = among
        ceiling = _ceiling(people, among, truth.to_numpy(float))
        ceilings.append({"test_task": task, "signal": signal, **ceiling})
        points.append(
            pd.DataFrame(
                {"test_task": task, "run": "people", "item_id": people.items, "p_signal": people.p, "n": people.n}
            )
        )
        for key, own in cells(of_task, [*columns, "run"]):
            *cell, run = key
            rng = np.random.default_rng([seed, zlib.crc32("\0".join(map(str, key)).encode())])
            own = own.assign(_p=signal_probability(own), _said=said_signal(own))
            model = own.groupby("item_id")[["_p", "_said", "success"]].mean().reindex(list(people.items))
            known = int(model["_p"].notna().sum())
            if known < FEWEST:
                notes.append(f"{run} on {task}: it gave a readable answer to {known} of the items, too few to compare")
                continue
            row = _compared(model, people, among, resamples, rng)
            if model["_p"].nunique() > 1 and largest_share(model["_p"].to_numpy(float)) > LARGEST_SHARE:
                notes.append(f"{run} on {task}: {THIN}")
                row |= dict.fromkeys(OF_ITEMS, math.nan)
            rows.append({**dict(zip(columns, cell, strict=True)), "run": run, **row})
            points.append(
                pd.DataFrame(
                    {
                        "test_task": task,
                        "run": run,
                        "item_id": people.items,
                        "p_signal": model["_p"].to_numpy(),
                        "n": 1.0,
                    }
                )
            )
    counted = any(row["n_people"] == 0 for row in ceilings)
    if counted:
        notes.insert(0, "only counts of responses are known: kappas are those with a person drawn at random")
    return Alignment(
        title="Agreement of models with people, item by item, with 95 % intervals",
        table=pd.DataFrame(rows),
        how=(
            "r, rmse: P(signal) of the run against the share of people; kappa: mean Cohen's kappa with single people (of counts without an interval); majority_success: of the majority vote, ties counting half; percentile bootstrap"
            f" over {'answers' if counted else 'participants'} and items, {resamples} samples, seed {seed}; r_single: mean correlation with"
            " single people, to be compared with the noise ceiling (leave-one-out below, rater included above);"
            f" {len(found)} trials"
        ),
        notes=tuple(notes),
        ceilings=pd.DataFrame(ceilings),
        kappas=kappas,
        items=pd.concat(points, ignore_index=True),
    )


def largest_share(values: Floats) -> float:
    """The largest part of the sum of squares about the mean that one item carries: 1 / k, about, where k items dissent from the rest.

    Args:
        values: A run's answers to the items; nan where there is none.
    """
    known = values[np.isfinite(values)]
    squares = (known - known.mean()) ** 2 if len(known) else known
    return float(squares.max() / squares.sum()) if len(known) and squares.sum() > 0 else 1.0


def _compared(
    model: pd.DataFrame, people: Humans, among: Floats, resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    graded, said = model["_p"].to_numpy(float), model["_said"].to_numpy(float)
    # Of graded answers, the one that the run would give.
    said = np.where(np.isnan(said), np.where(np.isnan(graded), np.nan, graded > 0.5), np.round(said))
    kept = np.flatnonzero(np.isfinite(graded))
    p, human = graded[kept], people.p[kept]
    signals, answers = people.resampled(rng, resamples)
    drawn = rng.integers(0, len(kept), (resamples, len(kept)))
    take = kept[drawn]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.take_along_axis(signals / answers, take, axis=1)
    again = graded[take]
    r, rmse = _pearson(again, shares), np.sqrt(np.nanmean((again - shares) ** 2, axis=1))
    single = _single_correlations(graded, people)
    kappa, pairs = kappas_with_each(said, people), among[np.isfinite(among)]
    row: dict[str, Any] = {
        "success": float(model["success"].mean()),  # over all items that were asked: an invalid reply is wrong
        "r": float(_pearson(p[None], human[None])[0]),
        "spearman": float(_pearson(rankdata(p)[None], rankdata(human)[None])[0]),
        "rmse": float(np.sqrt(np.mean((p - human) ** 2))),
        "kappa": _mean(kappa),
        # How many pairs of participants agree less than the run does with participants, of those with enough items in common.
        "kappa_percentile": float(np.mean(pairs < _mean(kappa))) if len(pairs) and len(kappa) else math.nan,
        "r_single": _mean(single),
    }
    for name, values in (("r", r), ("rmse", rmse)):
        row[f"{name}_low"], row[f"{name}_high"] = _interval(values)
    # Of counts, whose participants are not known, there is nothing to draw again.
    drawn_kappas = np.empty(0) if people.counted else kappas_of_samples(said, people, resamples, rng)
    row["kappa_low"], row["kappa_high"] = _interval(drawn_kappas)
    return row | {"n_items": len(kept), "n_people": len(people.participants), "n_responses": int(people.n.sum())}


def _ceiling(people: Humans, among: Floats, truth: Floats) -> dict[str, Any]:
    """What participants reach among each other: the bounds within which the best possible model lies."""
    n, p = people.n, people.p
    several = n > 1
    spread = float(p[several].var(ddof=1)) if several.sum() > 1 else math.nan
    # The part of the variance between items that is noise of finitely many answers; as split halves, without the splitting.
    noise = float((p[several] * (1 - p[several]) / (n[several] - 1)).mean()) if several.any() else math.nan
    reliability = max(0.0, 1 - noise / spread) if spread > 0 else math.nan
    lower = upper = math.nan
    if not people.counted:
        shares = people.shares
        total, count = people.signals.sum(0), people.answers.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            others = (total - people.signals) / (count - people.answers)
        lower = _mean(_row_correlations(shares, others))
        upper = _mean(_row_correlations(shares, np.broadcast_to(p, shares.shape)))
    share_right = np.where(truth == 1, p, 1 - p)
    return {
        "human_success": float(share_right.mean()),
        "majority_success": float(((share_right > 0.5) + 0.5 * (share_right == 0.5)).mean()),
        "reliability": reliability,
        "r_ceiling": math.sqrt(reliability) if reliability == reliability else math.nan,
        "rmse_floor": math.sqrt(noise) if noise == noise else math.nan,
        "r_single_lower": lower,
        "r_single_upper": upper,
        "kappa_people": _mean(among),
        "kappa_people_low": _interval(among)[0],
        "kappa_people_high": _interval(among)[1],
        "n_items": len(people.items),
        "n_people": len(people.participants),
        "n_responses": int(n.sum()),
    }


def _single_correlations(graded: Floats, people: Humans) -> Floats:
    if people.counted:
        return np.empty(0)
    shares = people.shares
    return _row_correlations(shares, np.broadcast_to(graded, shares.shape))


def _row_correlations(a: Floats, b: Floats) -> Floats:
    """Correlation of every row of a with that of b over what both have; rows with too little or without variance left out."""
    found = []
    for x, y in zip(a, b, strict=True):
        both = np.isfinite(x) & np.isfinite(y)
        if both.sum() >= FEWEST_SHARED and x[both].std() > 0 and y[both].std() > 0:
            found.append(float(np.corrcoef(x[both], y[both])[0, 1]))
    return np.array(found)


def _pearson(x: Floats, y: Floats) -> Floats:
    """Row-wise correlations; nan where a row does not vary."""
    both = np.isfinite(x) & np.isfinite(y)
    n = both.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        dx = np.where(both, x - np.where(both, x, 0).sum(1, keepdims=True) / n, 0)
        dy = np.where(both, y - np.where(both, y, 0).sum(1, keepdims=True) / n, 0)
        norm = np.sqrt((dx**2).sum(1) * (dy**2).sum(1))
        return np.asarray(np.where(norm > 1e-12, (dx * dy).sum(1) / norm, np.nan))


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)] if len(values) else values
    return float(known.mean()) if len(known) else math.nan


def _interval(values: Floats) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing but nan: the interval is nan, too
        low, high = np.nanquantile(values, (0.025, 0.975)) if len(values) else (math.nan, math.nan)
    return float(low), float(high)
