"""Comparison with observers: does a model err where a simulator through noise errs, and how much noise would that be?"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.pooling import mean_over_runs
from analysis.result import Result
from analysis.selection import (
    CELL,
    Floats,
    cells,
    judgements,
    need,
    plain_trials,
    present,
    said_signal,
    signal_probability,
)

LAPSES = np.linspace(0.0, 0.4, 41)
"""Lapse rates among which the likeliest is taken: answers by the toss of a coin, with twice this probability."""


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
        raise ValueError("no observer was asked the items that the models were asked: run them on the same set")
    columns, rows = present(table, by), []
    for key, members in cells(table, [*columns, "observer"]):
        *cell, observer = key
        kappas: list[float] = []
        drawn = np.empty(0)
        for (run,), own in cells(members, ["run"]):
            rng = np.random.default_rng([seed, zlib.crc32(f"{run} {key}".encode())])
            groups = (own["group_id"] if "group_id" in own else own["item_id"]).astype(str).to_numpy()
            counts = _tables(own["success"].to_numpy(float), np.round(own["its"].to_numpy(float)), groups)
            kappas.append(float(_kappa(counts.sum(0)[None])[0]))
            weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
            drawn = _kappa(weights @ counts)
        mean, low, high = mean_over_runs(kappas)
        if len(kappas) == 1 and np.isfinite(drawn).any():
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
            f" with the same success rates; several runs: t interval of their kappas; one run: bootstrap over groups of items,"
            f" {resamples} samples, seed {seed}; {len(table)} pairs of trials"
        ),
    )


def fit_noise(
    trials: pd.DataFrame, responses: pd.DataFrame, by: Sequence[str] = CELL, resamples: int = 1000, seed: int = 0
) -> Result:
    """The noise with which a simulating observer would answer most nearly as a run does.

    Maximum likelihood over the observer's noise sigma and a lapse rate, from the observer's response probabilities at several
    sigmas (`probe observers` tabulates them); between these, the likelihood is interpolated by a parabola over log sigma.

    Args:
        trials: A trial table of two-option judgements.
        responses: `item_id`, `sigma`, `p_signal`: what the observer answers at each noise, for the same signal answer.
        by: Columns that make a cell.
        resamples: Bootstrap samples of groups of items.
        seed: Of the bootstrap.

    Raises:
        ValueError: If there are fewer than three sigmas, or none of the items was judged.
    """
    need(responses, "item_id", "sigma", "p_signal")
    wide = responses.assign(item_id=responses["item_id"].astype(str)).pivot(
        index="item_id", columns="sigma", values="p_signal"
    )
    wide = wide.dropna()
    sigmas = wide.columns.to_numpy(float)
    if len(sigmas) < 3:
        raise ValueError(f"fitting a noise needs responses at three sigmas or more, got {len(sigmas)}")
    found = plain_trials(judgements(trials))
    found = found.assign(item_id=found["item_id"].astype(str), _p=signal_probability(found), _said=said_signal(found))
    found = found[found["item_id"].isin(wide.index) & found["_p"].notna()]
    if found.empty:
        raise ValueError("the observer's responses are about none of the items that were judged: tabulate the same set")
    columns, rows, edge = present(found, by), [], 0
    for key, own in cells(found, [*columns, "run"]):
        *cell, run = key
        p = wide.loc[own["item_id"]].to_numpy(float)
        groups = (own["group_id"] if "group_id" in own else own["item_id"]).astype(str).to_numpy()
        parts = _log_likelihoods(own["_p"].to_numpy(float), p, groups)
        sigma, lapse, height, inside = _maximum(parts.sum(0)[None], sigmas)
        rng = np.random.default_rng([seed, zlib.crc32("\0".join(map(str, key)).encode())])
        weights = rng.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), size=resamples).astype(float)
        drawn = _maximum(np.tensordot(weights, parts, axes=1), sigmas)[0]
        low, high = np.quantile(drawn, (0.025, 0.975))
        edge += not inside[0]
        rows.append(
            dict(zip(columns, cell, strict=True))
            | {
                "run": run,
                "sigma": float(sigma[0]),
                "sigma_low": float(low),
                "sigma_high": float(high),
                "lapse": float(lapse[0]),
                # Bits per answer that the observer saves over a coin; below 0.1 it explains next to nothing.
                "bits": float(height[0]) / len(own) / math.log(2) + 1,
                "inside": bool(inside[0]),
                "n_trials": len(own),
            }
        )
    notes = (f"{edge} of {len(rows)} runs: the likeliest sigma is at an end of those tabulated: a limit, no estimate",)
    return Result(
        title="Noise of a simulating observer that answers as the run does, with 95 % intervals",
        table=pd.DataFrame(rows),
        how=(
            f"maximum likelihood over sigma ({', '.join(f'{s:g}' for s in sigmas)}; parabola over log sigma between them) and a lapse"
            f" rate; percentile bootstrap over groups of items, {resamples} samples, seed {seed}; bits: per answer, beyond a coin;"
            f" {len(found)} trials"
        ),
        notes=notes if edge else (),
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


def _log_likelihoods(y: Floats, p: Floats, groups: Any) -> Floats:
    """Log-likelihood of the answers of every group of items (groups, sigmas, lapses)."""
    mixed = np.clip(LAPSES + (1 - 2 * LAPSES) * p[:, :, None], 1e-9, 1 - 1e-9)
    each = y[:, None, None] * np.log(mixed) + (1 - y[:, None, None]) * np.log1p(-mixed)
    index = np.unique(groups, return_inverse=True)[1]
    parts = np.zeros((int(index.max()) + 1, *each.shape[1:]))
    np.add.at(parts, index, each)
    return parts


def _maximum(heights: Floats, sigmas: Floats) -> tuple[Floats, Floats, Floats, Any]:
    """Likeliest sigma and lapse rate of every set (sets, sigmas, lapses), the height, and whether it is inside the range."""
    profile, lapse = heights.max(2), LAPSES[heights.argmax(2)]
    top = profile.argmax(1)
    rows = np.arange(len(top))
    inside = (top > 0) & (top < len(sigmas) - 1)
    x, i = np.log(sigmas), np.clip(top, 1, len(sigmas) - 2)
    x0, x1, x2 = x[i - 1], x[i], x[i + 1]
    y0, y1, y2 = profile[rows, i - 1], profile[rows, i], profile[rows, i + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        slope_left, slope_right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
        # The parabola through three points has these slopes at the midpoints.
        vertex = (x0 + x1) / 2 - slope_left * ((x2 - x0) / 2) / (slope_right - slope_left)
    peak = np.where(inside & np.isfinite(vertex), np.clip(vertex, x0, x2), x[top])
    return np.exp(peak), lapse[rows, top], profile[rows, top], inside
