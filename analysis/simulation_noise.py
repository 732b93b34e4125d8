"""The noise of a simulating observer: with how much of it would an observer who simulates what it sees answer as a run does?"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

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
    signal_probability,
)
from vlm_probe.stimuli.errors import InvalidInput

LAPSES = np.linspace(0.0, 0.4, 41)
"""Lapse rates among which the likeliest is taken: answers by the toss of a coin, with twice this probability."""


def fit_noise(
    trials: pd.DataFrame, responses: pd.DataFrame, by: Sequence[str] = CELL, resamples: int = 1000, seed: int = 0
) -> Result:
    """The noise with which a simulating observer would answer most nearly as a run does.

    Maximum likelihood over the observer's noise sigma and a lapse rate, from the observer's response probabilities at several
    sigmas (of runs of `vlm_probe.probes.models.observers`, say); between these, the likelihood is interpolated by a parabola over log sigma.

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
        raise InvalidInput(f"fitting a noise needs responses at three sigmas or more, got {len(sigmas)}")
    found = plain_trials(judgements(trials))
    found = found.assign(item_id=found["item_id"].astype(str), _p=signal_probability(found), _said=said_signal(found))
    found = found[found["item_id"].isin(wide.index) & found["_p"].notna()]
    if found.empty:
        raise InvalidInput(
            "the observer's responses are about none of the items that were judged: tabulate the same set"
        )
    columns, rows, edge = present(found, by), [], 0
    for key, own in cells(found, [*columns, "run"]):
        *cell, run = key
        p = wide.loc[own["item_id"]].to_numpy(float)
        parts = _log_likelihoods(own["_p"].to_numpy(float), p, item_groups(own))
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
