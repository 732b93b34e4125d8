"""Psychometric functions of the signed margin: bias, slope, threshold and lapse rate of every run, and by cell over runs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2, norm

from vlm_probe.analysis.pooling import mean_over_runs
from vlm_probe.analysis.psychometric_fit import MAX_LAPSE, fit_functions, probability, steepest
from vlm_probe.analysis.result import Result, plain
from vlm_probe.analysis.selection import (
    CELL,
    Floats,
    cells,
    item_groups,
    judgements,
    need,
    plain_trials,
    present,
    signal_probability,
    signed_margin,
)
from vlm_probe.stimuli.errors import InvalidInput

QUARTER = float(norm.ppf(0.75))
CLASSES = 100
"""Classes of margins in which bootstrap samples are fitted; the estimates themselves come from every single margin."""
FEWEST = 20
"""Trials below which no function is fitted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Psychometric(Result):
    """Psychometric functions. The table has one row per cell, `runs` one per run.

    Attributes:
        runs: Parameters of every run with bootstrap intervals.
        draws: Run and its cell -> bootstrap parameters (resamples, 3), as `vlm_probe.analysis.psychometric_fit` has them.
        columns: That make a cell.
    """

    runs: pd.DataFrame
    draws: dict[tuple[Any, ...], Floats]
    columns: tuple[str, ...]

    def curves(self, margins: Floats) -> pd.DataFrame:
        """The mean curve of every cell with its 95 % bootstrap band (of items, for these runs), at these margins."""
        parts = []
        for key, own in cells(self.runs, self.columns):
            fitted = own[["intercept", "slope", "lapse_rate"]].to_numpy(float)
            mean = probability(margins, *fitted.T[:, :, None]).mean(0)
            drawn = [self.draws[(run, *key)] for run in own["run"]]
            bands = [probability(margins, *d.T[:, :, None]) for d in drawn]
            low, high = np.quantile(np.mean(bands, axis=0), (0.025, 0.975), axis=0)
            cell = dict(zip(self.columns, key, strict=True))
            parts.append(pd.DataFrame({**cell, "margin": margins, "p_signal": mean, "low": low, "high": high}))
        return pd.concat(parts, ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """As `Result.to_dict`, with the runs."""
        return {**super().to_dict(), "runs": [plain(row) for row in self.runs.to_dict("records")]}


def psychometric(trials: pd.DataFrame, by: Sequence[str] = CELL, resamples: int = 1000, seed: int = 0) -> Psychometric:
    """Fit P(signal) over the signed margin for every run, and average over the runs of a cell.

    Estimates are those of maximum likelihood. Their intervals come from resampling groups of items (foils and their mirror
    images stay together). A cell's interval is the t interval of its runs' parameters; of a single run it is its own.
    A run whose answers do not depend on the margin (likelihood ratio test of the slope, p > .05) has no threshold, and its
    lapse rate cannot be told from its bias: both are left undefined, and the slope is that without lapses.

    Args:
        trials: A trial table; tasks without two options or margins are left out.
        by: Columns that make a cell.
        resamples: Bootstrap samples per run.
        seed: Of the bootstrap.

    Raises:
        ValueError: If there is nothing to fit.
    """
    need(trials, "margin", "run")
    found = plain_trials(judgements(trials))
    columns = present(found, by)
    runs, draws, skipped, notes = [], {}, [], []
    for key, rows in cells(found, [*columns, "run"]):
        *cell, run = key
        try:
            margin = signed_margin(rows)
        except ValueError:
            skipped.append(f"{dict(zip(columns, cell, strict=True)).get('test_task', run)}")
            continue
        y = signal_probability(rows)
        known = np.isfinite(y) & np.isfinite(margin)
        if known.sum() < FEWEST or len(np.unique(np.sign(margin[known]))) < 2:
            notes.append(f"{run}: {int(known.sum())} readable answers on both sides of 0 are too few for a function")
            continue
        groups = item_groups(rows)
        rng = np.random.default_rng([seed, zlib.crc32("\0".join(map(str, key)).encode())])
        own, drawn = _fit_run(margin[known], y[known], groups[known], resamples, rng)
        runs.append({**dict(zip(columns, cell, strict=True)), "run": run, **own})
        draws[(run, *cell)] = drawn
    if not runs:
        raise InvalidInput(
            "no run has answers of a two-option judgement on both sides of margin 0, as a psychometric function needs"
        )
    if skipped:
        notes.append(f"left out, for their margin has no side for each answer: {', '.join(sorted(set(skipped)))}")
    frame = pd.DataFrame(runs)
    flat, steep = frame["flat"].sum(), frame["step"].sum()
    if flat:
        notes.append(f"{flat} of {len(frame)} runs: answers do not depend on the margin; no threshold, no lapse rate")
    if steep:
        notes.append(
            f"{steep} of {len(frame)} runs: a step within the smallest margins; the threshold is an upper limit"
        )
    if (frame["lapse"] > MAX_LAPSE - 1e-6).any():
        notes.append(f"a lapse rate reached its bound of {MAX_LAPSE}")
    graded = "p_correct" in found.columns and found["p_correct"].notna().any()
    return Psychometric(
        title="Psychometric functions of the signed margin, with 95 % intervals",
        table=_over_runs(frame, columns),
        how=(
            "maximum likelihood, P(signal) = lapse + (1 - 2 lapse) Phi(slope (margin - bias)); threshold: distance from the"
            " bias at which Phi is .75; slope_per_sd: slope per standard deviation of the margins"
            + ("; graded answer probabilities (quasi-likelihood)" if graded else "")
            + f"; runs: percentile bootstrap over groups of items, {resamples} samples, seed {seed}; cells: mean of runs, t interval"
            f" with runs - 1 df, never narrower than that of runs that do not differ (one run: its own interval); {int(frame['n'].sum())} trials"
        ),
        notes=tuple(notes),
        runs=frame,
        draws=draws,
        columns=tuple(columns),
    )


def _fit_run(
    margin: Floats, y: Floats, groups: Any, resamples: int, rng: np.random.Generator
) -> tuple[dict[str, Any], Floats]:
    """Estimates of one run with percentile intervals, and the bootstrap parameters."""
    one = np.ones((1, len(y)))
    straight, height = fit_functions(margin, one, y[None], lapses=False)
    share = y.mean()
    level = float((y * np.log(max(share, 1e-12)) + (1 - y) * np.log(max(1 - share, 1e-12))).sum())
    p_slope = float(chi2.sf(max(0.0, 2 * (height[0] - level)), 1))
    flat = p_slope > 0.05
    estimate = straight[0] if flat else fit_functions(margin, one, y[None])[0][0]
    drawn = fit_functions(*_resampled(margin, y, groups, resamples, rng), lapses=not flat, near=estimate)[0]
    step = bool(abs(estimate[1]) > 0.98 * steepest(margin))
    row: dict[str, Any] = {}
    values, samples = _reported(estimate), _reported(drawn)
    for name, value in values.items():
        undefined = flat and name in ("bias", "threshold", "lapse")
        low, high = np.quantile(samples[name], (0.025, 0.975), method="inverted_cdf")
        row[name] = np.nan if undefined else float(value)
        row[f"{name}_low"], row[f"{name}_high"] = (np.nan, np.nan) if undefined else (float(low), float(high))
    row |= {"p_slope": p_slope, "flat": flat, "step": step, "n": len(y), "groups": len(np.unique(groups))}
    # Margins of different tasks have different units; per standard deviation of its margins, slopes of tasks can be compared.
    row["slope_per_sd"] = float(estimate[1] * margin.std())
    row |= {"intercept": float(estimate[0]), "lapse_rate": float(estimate[2])}
    return row, drawn


def _reported(parameters: Floats) -> dict[str, Floats]:
    """The parameters that are reported."""
    intercept, slope, lapse = parameters.T
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = np.asarray(-intercept / slope)
    return {
        "bias": bias,
        "slope": np.asarray(slope),
        "threshold": _threshold(slope),
        "lapse": np.asarray(lapse),
        "p_at_0": probability(0.0, intercept, slope, lapse),
    }


def _threshold(slope: Floats | float) -> Floats:
    """Margin beyond the bias at which Phi is .75; infinite for a function that does not rise."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(np.asarray(slope) > 0, QUARTER / np.asarray(slope), np.inf))


def _resampled(
    margin: Floats, y: Floats, groups: Any, resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Bootstrap samples of whole groups as counts per class of margins: margins, trials, signal answers."""
    edges = np.unique(np.quantile(margin, np.linspace(0, 1, CLASSES + 1)[1:-1]))
    bins = np.searchsorted(edges, margin, side="right")
    bins = np.unique(bins, return_inverse=True)[1]
    index = np.unique(groups, return_inverse=True)[1]
    shape = (int(index.max()) + 1, int(bins.max()) + 1)
    trials, signals = np.zeros(shape), np.zeros(shape)
    np.add.at(trials, (index, bins), 1.0)
    np.add.at(signals, (index, bins), y)
    weights = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=resamples).astype(float)
    centres = np.bincount(bins, margin) / np.bincount(bins)
    return centres, weights @ trials, weights @ signals


def _over_runs(runs: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    rows = []
    for key, own in cells(runs, columns):
        row: dict[str, Any] = dict(zip(columns, key, strict=True))
        for name in ("bias", "slope", "lapse", "p_at_0"):
            if len(own) == 1:
                row |= {name: own[name].iloc[0]} | {
                    f"{name}_{end}": own[f"{name}_{end}"].iloc[0] for end in ("low", "high")
                }
            else:
                widths = (own[f"{name}_high"] - own[f"{name}_low"]).to_numpy(float) / 2
                mean, low, high = mean_over_runs(own[name].to_numpy(float), np.nan_to_num(widths, posinf=0.0))
                if name in ("lapse", "p_at_0"):
                    low, high = max(low, 0.0), min(high, 1.0)
                row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        # From the mean slope, for the threshold of a run that is nearly flat would swallow all others.
        row["slope_per_sd"] = float(own["slope_per_sd"].mean())
        for name, end in (("threshold", "slope"), ("threshold_low", "slope_high"), ("threshold_high", "slope_low")):
            row[name] = np.nan if own["flat"].all() else float(_threshold(row[end]))
        row |= {"n_runs": len(own), "n_trials": int(own["n"].sum())}
        rows.append(row)
    return pd.DataFrame(rows)
