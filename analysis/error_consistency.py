"""Error consistency: is a model right and wrong on the same items as an observer, beyond what success rates alone make of it?"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.pooling import mean_over_runs
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.selection import CELL, Floats, cells, item_groups, need, plain_trials, present
from vlm_probe.stimuli.errors import InvalidInput


def error_consistency(
    trials: pd.DataFrame, observers: pd.DataFrame, by: Sequence[str] = CELL, resamples: int = 1000, seed: int = 0
) -> Result:
    """Whether runs are right and wrong on the same items as observers, beyond what their success rates make them.

    Cohen's kappa of being right (Geirhos, Meding & Wichmann, 2020): 0 for independent errors, 1 for the same ones. The ideal
    observer makes no errors, so that its kappa is undefined: the run's success says everything there.

    Args:
        trials: A trial table of models.
        observers: A trial table of observers (`model` names them) on the same items.
        by: Columns that make a cell.
        resamples: Bootstrap samples of groups of items, for cells with one run.
        seed: Of the bootstrap.

    Raises:
        ValueError: If no observer was asked an item that a model was asked.
    """
    need(trials, "run", "item_id", "success")
    need(observers, "model", "item_id", "success")
    shared = [
        "item_id",
        *(n for n in ("test_task", "shift", "shift_level") if n in trials.columns and n in observers.columns),
    ]
    text = dict.fromkeys(shared, "object")
    watched = plain_trials(observers).groupby(["model", *shared], observed=True)["success"].mean().reset_index()
    watched = watched.rename(columns={"model": "observer", "success": "its"}).astype(text)
    table = plain_trials(trials).drop(columns="observer", errors="ignore").astype(text).merge(watched, on=shared)
    if table.empty:
        raise InvalidInput("no observer was asked the items that the models were asked: run them on the same set")
    columns, rows = present(table, by), []
    for key, members in cells(table, [*columns, "observer"]):
        *cell, observer = key
        counts = {
            run: _tables(own["success"].to_numpy(float), np.round(own["its"].to_numpy(float)), item_groups(own))
            for (run,), own in cells(members, ["run"])
        }
        kappas = [float(_kappa(table.sum(0)[None])[0]) for table in counts.values()]
        mean, low, high = mean_over_runs(kappas)
        if len(counts) == 1:
            ((run, single),) = counts.items()
            rng = np.random.default_rng([seed, zlib.crc32(f"{run} {key}".encode())])
            weights = rng.multinomial(len(single), np.full(len(single), 1 / len(single)), size=resamples)
            drawn = _kappa(weights @ single)
            if np.isfinite(drawn).any():
                low, high = (float(x) for x in np.nanquantile(drawn, (0.025, 0.975)))
        same = (members["success"] == np.round(members["its"])).groupby(members["run"], observed=True).mean().mean()
        rows.append(
            dict(zip(columns, cell, strict=True))
            | {
                "observer": observer,
                "success": float(members.groupby("run", observed=True)["success"].mean().mean()),
                "observer_success": float(members.groupby("item_id", observed=True)["its"].first().mean()),
                "agreement": float(same),
                "kappa": mean,
                "kappa_low": low,
                "kappa_high": high,
                "n_runs": len(kappas),
                "n_trials": len(members),
            }
        )
    return Result(
        title="Errors of models beside those of observers, with 95 % intervals",
        table=pd.DataFrame(rows),
        how=(
            "agreement: share of items on which both are right or both wrong; kappa: agreement beyond that of independent errors"
            f" with the same success rates, undefined where one side has no errors, and such runs are left out of its mean; several runs: t interval of their kappas; one run: bootstrap over groups of items,"
            f" {resamples} samples, seed {seed}; {len(table)} pairs of trials"
        ),
    )


def _tables(a: Floats, b: Floats, groups: Any) -> Floats:
    """Per group of items: both right, only a, only b, neither (groups, 4)."""
    index = np.unique(groups, return_inverse=True)[1]
    counts = np.zeros((int(index.max()) + 1, 4))
    np.add.at(counts, (index, np.where(a == 1, np.where(b == 1, 0, 1), np.where(b == 1, 2, 3))), 1.0)
    return counts


def _kappa(counts: Floats) -> Floats:
    n = counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (counts[:, 0] + counts[:, 1]) / n, (counts[:, 0] + counts[:, 2]) / n
        expected = a * b + (1 - a) * (1 - b)
        observed = (counts[:, 0] + counts[:, 3]) / n
        kappa = (observed - expected) / (1 - expected)
    # A rater who is always right (or never) has no errors to be consistent with.
    varied = (np.minimum(a, 1 - a) > 0) & (np.minimum(b, 1 - b) > 0)
    return np.asarray(np.where(varied, kappa, np.nan))
