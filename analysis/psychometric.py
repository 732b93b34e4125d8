"""Psychometric functions of the signed margin: bias, slope, threshold and lapse rate of every run, and by cell over runs.

    P(signal | x) = lapse + (1 - 2 lapse) Phi(intercept + slope x)

They are fitted by maximum likelihood, one or thousands at once for the bootstrap. Lapses are trials answered by the toss of a coin, with
probability 2 `lapse`, so that the function ends at `lapse` and 1 - `lapse` (Wichmann & Hill, 2001, Percept Psychophys 63:1293-1313, with
equal lapse rates, as is usual for yes-no tasks). In these parameters the likelihood is smooth everywhere; bias and threshold, which run
away when the slope is 0, follow from them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr
from scipy.stats import chi2, norm

from vlm_probe.analysis.pooling import mean_over_runs
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

Flags = npt.NDArray[np.bool_]

MAX_LAPSE = 0.4
"""A function that ends at .4 and .6 is all but flat, and its other parameters mean nothing."""
TINY = 1e-10
ITERATIONS, HEAT = 200, 3
"""Steps of a climb at most, and steps after which climbs of a data set that have met go on as one."""
MET = 0.01
"""Functions are the same climb if they differ by less than this at every margin."""
ENOUGH = 1e-10
"""Gain in log-likelihood at which a climb has arrived."""
BLOCK = 30_000
"""Margins of data sets that are worked on together: as many as stay in the processor's cache."""
GRID = (9, (0.02, 0.06, 0.15, 0.4, 1.0), (0.0, 0.02, 0.08, 0.2, 0.35))
"""Where the search may start: so many points of subjective equality, slopes as shares of the steepest, and lapse rates."""
CLIMBS, FEW_CLIMBS = 16, 3
"""Grid points that are climbed from, for single data sets and for many. A step has an optimum between any two margins."""


def probability(x: Floats | float, intercept: Floats | float, slope: Floats | float, lapse: Floats | float) -> Floats:
    """P(signal) at the signed margins x.

    Args:
        x: Signed margins.
        intercept, slope, lapse: Parameters, of a shape that goes with that of the margins.
    """
    return np.asarray(lapse + (1 - 2 * np.asarray(lapse)) * ndtr(intercept + slope * np.asarray(x, dtype=float)))


def steepest(x: Floats) -> float:
    """The slope beyond which a function is a step as far as these margins can tell."""
    size = np.abs(x[x != 0])
    return 4.0 / max(float(np.quantile(size, 0.05)), float(size.max()) / 1000) if len(size) else 1.0


def fit_functions(
    x: Floats, n: Floats, signals: Floats, *, lapses: bool = True, near: Floats | None = None
) -> tuple[Floats, Floats]:
    """Maximum-likelihood parameters of many data sets with the same margins.

    Args:
        x: Signed margins (k,).
        n: Trials at each margin (sets, k); may be fractional, or 0.
        signals: Signal answers among them (sets, k); may be fractional, for graded answers.
        lapses: Estimate the lapse rate, else it is 0.
        near: Parameters (3,) that those of all sets are near to, as those of bootstrap samples are near to the estimate.

    Returns:
        Parameters (sets, 3): intercept, slope, lapse; and log-likelihoods (sets,).
    """
    scale = float(np.abs(x).max()) or 1.0
    units = np.array([1.0, scale, 1.0])
    z, limit = x / scale, steepest(x) * scale
    start = np.zeros(3) if near is None else near * units
    blocks = np.array_split(np.arange(len(n)), -(-n.size // BLOCK))
    found = [_optima(z, n[block], signals[block], start, limit, lapses) for block in blocks]
    parameters, value = (np.concatenate(part) for part in zip(*found, strict=True))
    return parameters / units, value


def _optima(z: Floats, n: Floats, signals: Floats, near: Floats, limit: float, lapses: bool) -> tuple[Floats, Floats]:
    """The highest optima of some sets."""
    start = np.tile(near, (len(n), 1))
    # Without lapses the likelihood is concave: any start will do.
    found, value = _climb(z, n, signals, start * [1, 1, 0], limit, free_lapse=False)
    if lapses:
        starts = [found, start, *_best_of_grid(z, n, signals, limit)]
        found, value = _highest(z, n, signals, np.stack(starts), limit)
    return found, value


def _highest(z: Floats, n: Floats, signals: Floats, starts: Floats, limit: float) -> tuple[Floats, Floats]:
    """The highest optima that climbs from several starts (starts, sets, 3) lead to."""
    count = len(n)
    sets = np.tile(np.arange(count), len(starts))
    parameters, value = _climb(
        z, n[sets], signals[sets], starts.reshape(-1, 3), limit, free_lapse=True, iterations=HEAT
    )
    curves = probability(z, *parameters.T[:, :, None]).reshape(len(starts), count, -1)
    heights = value.reshape(len(starts), count)
    leads = np.ones((len(starts), count), dtype=bool)
    for i, j in combinations(range(len(starts)), 2):
        met = np.abs(curves[i] - curves[j]).max(1) < MET
        ahead = heights[i] >= heights[j]
        leads[j] &= ~(met & ahead)
        leads[i] &= ~(met & ~ahead)
    left = np.flatnonzero(leads)
    parameters[left], value[left] = _climb(
        z, n[sets[left]], signals[sets[left]], parameters[left], limit, free_lapse=True
    )
    value[~leads.ravel()] = -np.inf
    best = value.reshape(len(starts), count).argmax(0) * count + np.arange(count)
    return parameters[best], value[best]


def _best_of_grid(z: Floats, n: Floats, signals: Floats, limit: float) -> list[Floats]:
    """The likeliest points of the grid for every set, each (sets, 3)."""
    count, shares, lapses = GRID
    centres = np.unique(np.r_[0.0, np.quantile(z, np.linspace(0.05, 0.95, count - 1))])
    slopes = limit * np.array([sign * share for share in shares for sign in (1, -1)])
    points = np.array([(c, b, lapse) for c in centres for b in slopes for lapse in lapses])
    grid = np.column_stack([-points[:, 0] * points[:, 1], points[:, 1], points[:, 2]])
    p = np.clip(probability(z, *grid.T[:, :, None]), TINY, 1 - TINY)
    heights = signals @ np.log(p).T + (n - signals) @ np.log1p(-p).T
    found = []
    for _ in range(CLIMBS if len(n) == 1 else FEW_CLIMBS):
        best = heights.argmax(1)
        found.append(grid[best])
        heights[np.arange(len(n)), best] = -np.inf
    return found


def _climb(
    z: Floats,
    n: Floats,
    signals: Floats,
    start: Floats,
    limit: float,
    *,
    free_lapse: bool,
    iterations: int = ITERATIONS,
) -> tuple[Floats, Floats]:
    """Newton's method within the bounds, damped (Levenberg-Marquardt), for all sets at once.

    Where the likelihood is not concave, Fisher's information stands for its curvature.
    """
    low, high = np.array([-np.inf, -limit, 0.0]), np.array([np.inf, limit, MAX_LAPSE])
    parameters = np.clip(start, low, high)
    powers = np.column_stack([np.ones_like(z), z, z * z])
    value, gradient, observed = _expansion(powers, n, signals, parameters)
    damping = np.full(len(n), 1e-3)
    going = np.arange(len(n))
    for _ in range(iterations):
        own, slope = parameters[going], gradient[going]
        held = ((own <= low) & (slope < 0)) | ((own >= high) & (slope > 0))
        held[:, 2] |= not free_lapse
        slope[held] = 0.0
        information = _freed(observed[going], held)
        bent = np.flatnonzero(~_convex(information))
        if len(bent):
            information[bent] = _freed(_expected(powers, n[going[bent]], own[bent]), held[bent])
        diagonal = np.einsum("bii->bi", information)
        diagonal *= 1 + damping[going, None]
        diagonal += 1e-9 + 1e-9 * diagonal.max(1, keepdims=True)
        trial = np.clip(own + np.linalg.solve(information, slope[:, :, None])[:, :, 0], low, high)
        reached, *there = _expansion(powers, n[going], signals[going], trial)
        gain = reached - value[going]
        accepted = gain >= 0
        taken = going[accepted]
        parameters[taken], value[taken] = trial[accepted], reached[accepted]
        gradient[taken], observed[taken] = there[0][accepted], there[1][accepted]
        damping[going] *= np.where(accepted, 0.1, 8.0)
        finished = (accepted & (gain < ENOUGH)) | (damping[going] > 1e10)
        going = going[~finished]
        if not len(going):
            break
    return parameters, value


def _freed(information: Floats, held: Flags) -> Floats:
    """Information (sets, 3, 3) with that of parameters which are held at a bound out of the way."""
    information[held[:, :, None] | held[:, None, :]] = 0.0
    diagonal = np.einsum("bii->bi", information)
    diagonal += held
    return information


def _convex(matrices: Floats) -> Flags:
    """Which matrices (sets, 3, 3) are positive definite, by their leading minors."""
    minor = matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] ** 2
    return np.asarray((matrices[:, 0, 0] > 0) & (minor > 0) & (np.linalg.det(matrices) > 0))


def _expansion(powers: Floats, n: Floats, signals: Floats, parameters: Floats) -> tuple[Floats, Floats, Floats]:
    """Log-likelihood (sets,), gradient (sets, 3) and observed information (sets, 3, 3)."""
    p, by_eta, by_lapse, eta = _derivatives(powers[:, 1], parameters)
    q, failures = 1 - p, n - signals
    value = (signals * np.log(p) + failures * np.log(q)).sum(1)
    won, lost = signals / p, failures / q
    residual, seen = won - lost, won / p + lost / q
    first = residual * by_eta
    gradient = np.column_stack([first @ powers[:, :2], (residual * by_lapse).sum(1)])
    information = _squares(powers, seen, by_eta, by_lapse)
    # What the curvature of p adds: its second derivatives are -eta by_eta, and by slope and lapse -2 by_eta / (1 - 2 lapse).
    bend = (first * eta) @ powers
    information[:, 0, 0] += bend[:, 0]
    information[:, 1, 1] += bend[:, 2]
    information[:, 0, 1] += bend[:, 1]
    twist = gradient[:, :2] * (2 / (1 - 2 * parameters[:, 2:]))
    information[:, :2, 2] += twist
    information[:, 1, 0], information[:, 2, :2] = information[:, 0, 1], information[:, :2, 2]
    return value, gradient, information


def _expected(powers: Floats, n: Floats, parameters: Floats) -> Floats:
    """Fisher's information (sets, 3, 3)."""
    p, by_eta, by_lapse, _ = _derivatives(powers[:, 1], parameters)
    return _squares(powers, n / (p * (1 - p)), by_eta, by_lapse)


def _derivatives(z: Floats, parameters: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """P(signal), its derivatives by eta = intercept + slope z and by the lapse rate, and eta, all (sets, k)."""
    intercept, slope, lapse = parameters.T[:, :, None]
    eta = intercept + slope * z
    phi = ndtr(eta)
    p = np.clip(lapse + (1 - 2 * lapse) * phi, TINY, 1 - TINY)
    return p, ((1 - 2 * lapse) / np.sqrt(2 * np.pi)) * np.exp(-0.5 * eta * eta), 1 - 2 * phi, eta


def _squares(powers: Floats, weight: Floats, by_eta: Floats, by_lapse: Floats) -> Floats:
    """Weighted sums of products of the first derivatives of p, (sets, 3, 3)."""
    scaled = weight * by_eta
    square, cross = (scaled * by_eta) @ powers, (scaled * by_lapse) @ powers[:, :2]
    information = np.empty((len(weight), 3, 3))
    information[:, 0, 0], information[:, 1, 1] = square[:, 0], square[:, 2]
    information[:, 0, 1] = information[:, 1, 0] = square[:, 1]
    information[:, :2, 2] = information[:, 2, :2] = cross
    information[:, 2, 2] = (weight * by_lapse**2).sum(1)
    return information


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
        draws: Run and its cell -> bootstrap parameters (resamples, 3), as `vlm_probe.analysis.psychometric` has them.
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
