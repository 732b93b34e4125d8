"""Signal detection: how well two states of the world are told apart (d'), and which answer is preferred (criterion)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from vlm_probe.analysis.pooling import pool
from vlm_probe.analysis.result import Result, plain
from vlm_probe.analysis.selection import CELL, cells, judgements, plain_trials, present, said_signal, truth_is_signal
from vlm_probe.stimuli.errors import InvalidInput


@dataclass(frozen=True)
class SignalDetection:
    """Sensitivity and bias of a two-option judgement.

    Attributes:
        d_prime: z(hit rate) - z(false alarm rate); 0 = cannot tell, nan if one of the two states never occurred.
        criterion: -(z(hit rate) + z(false alarm rate)) / 2; negative = prefers the signal answer, nan as above.
        hit_rate: Corrected proportion of signal answers when the signal was there.
        false_alarm_rate: Corrected proportion of signal answers when it was not.
        n_signal: Trials with the signal.
        n_noise: Trials without.
    """

    d_prime: float
    criterion: float
    hit_rate: float
    false_alarm_rate: float
    n_signal: int
    n_noise: int

    @property
    def variances(self) -> tuple[float, float]:
        """Sampling variances of d' and of the criterion (Gourevitch & Galanter, 1967; Macmillan & Creelman, eq. 13.4)."""
        if math.isnan(self.d_prime):
            return math.nan, math.nan
        parts = [
            rate * (1 - rate) / ((n + 1) * float(norm.pdf(norm.ppf(rate))) ** 2)
            for rate, n in ((self.hit_rate, self.n_signal), (self.false_alarm_rate, self.n_noise))
        ]
        return sum(parts), sum(parts) / 4


def signal_detection(hits: int, misses: int, false_alarms: int, correct_rejections: int) -> SignalDetection:
    """d' and criterion c with the log-linear correction, (count + 0.5) / (n + 1), which is applied always.

    Unlike replacing rates of 0 and 1 only when they happen, this correction is defined for every table and less biased
    (Hautus, 1995, Behavior Research Methods 27:46-51; Macmillan & Creelman, 2005, eqs. 1.5 and 2.1).

    Args:
        hits: Signal answers to signal trials.
        misses: Other answers to signal trials.
        false_alarms: Signal answers to the other trials.
        correct_rejections: Other answers to the other trials.

    Raises:
        ValueError: If a count is negative.
    """
    if min(hits, misses, false_alarms, correct_rejections) < 0:
        raise InvalidInput("counts of hits, misses, false alarms and correct rejections cannot be negative")
    n_signal, n_noise = hits + misses, false_alarms + correct_rejections
    if n_signal == 0 or n_noise == 0:
        # The corrected rate of zero trials is 0.5, which would pass for a measurement.
        return SignalDetection(math.nan, math.nan, math.nan, math.nan, n_signal, n_noise)
    hit_rate = (hits + 0.5) / (n_signal + 1)
    false_alarm_rate = (false_alarms + 0.5) / (n_noise + 1)
    z_hit, z_false = float(norm.ppf(hit_rate)), float(norm.ppf(false_alarm_rate))
    # Rounded, so that an unbiased observer gets 0 and not what is left of it in floating point.
    return SignalDetection(
        z_hit - z_false, round(-(z_hit + z_false) / 2, 12) + 0.0, hit_rate, false_alarm_rate, n_signal, n_noise
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sensitivity(Result):
    """d' and criterion by cell of the design, over runs.

    Attributes:
        runs: One row per run: counts, d', criterion with standard errors, and d' drawn to the mean of its cell.
    """

    runs: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """As `Result.to_dict`, with the runs."""
        return {**super().to_dict(), "runs": [plain(row) for row in self.runs.to_dict("records")]}


def sensitivity(trials: pd.DataFrame, by: Sequence[str] = CELL) -> Sensitivity:
    """d' and criterion of two-option judgements by cell, hierarchical over runs.

    Two stages: d' of every run with its sampling variance, then the random-effects mean of the cell with a t interval
    between runs (see `vlm_probe.analysis.pooling.pool`). A mixed probit with a random slope of the signal per run says the same in
    one stage, but three variance components cannot be estimated from three to five runs: such fits are singular as a rule.

    Args:
        trials: A trial table; other tasks and manners in it are left out, and so are replies that could not be read.
        by: Columns that make a cell.

    Raises:
        ValueError: If there is no two-option judgement.
    """
    found = plain_trials(judgements(trials))
    said = said_signal(found)
    found = found.assign(_truth=truth_is_signal(found), _said=said)[~np.isnan(said)]
    columns = present(found, by)
    rows, runs = [], []
    for key, members in cells(found, columns):
        single = []
        for (run,), own in cells(members, ["run"]):
            truth, yes = own["_truth"].to_numpy(bool), own["_said"].to_numpy(bool)
            hits, false_alarms = int((truth & yes).sum()), int((~truth & yes).sum())
            signals, noise = int(truth.sum()), int((~truth).sum())
            single.append((run, signal_detection(hits, signals - hits, false_alarms, noise - false_alarms)))
        detections = [detection for _, detection in single]
        d = pool([x.d_prime for x in detections], [x.variances[0] for x in detections])
        c = pool([x.criterion for x in detections], [x.variances[1] for x in detections])
        cell = dict(zip(columns, key, strict=True))
        signal = str(members["signal"].iloc[0])
        rows.append(
            {
                **cell,
                "signal": signal,
                "d_prime": d.mean,
                "d_low": d.low,
                "d_high": d.high,
                "d_se": d.se,
                "df": d.df,
                "p": d.p,
                "d_sd_runs": d.tau,
                "criterion": c.mean,
                "c_low": c.low,
                "c_high": c.high,
                "n_runs": d.n,
                "n_trials": len(members),
            }
        )
        for (run, x), drawn in zip(single, d.shrunken, strict=True):
            d_se, c_se = (math.sqrt(v) for v in x.variances)
            runs.append(
                {
                    **cell,
                    "run": run,
                    "hit_rate": x.hit_rate,
                    "false_alarm_rate": x.false_alarm_rate,
                    "d_prime": x.d_prime,
                    "d_se": d_se,
                    "d_shrunken": drawn,
                    "criterion": x.criterion,
                    "c_se": c_se,
                    "n_signal": x.n_signal,
                    "n_noise": x.n_noise,
                }
            )
    unread = int(np.isnan(said).sum())
    notes = [f"{unread} of {len(said)} replies could not be read and are left out"] if unread else []
    if any(row["n_runs"] == 1 for row in rows):
        notes.append("cells with one run: their intervals cover the sampling of items alone, not that of runs")
    return Sensitivity(
        title="Sensitivity d' and criterion c by cell, with 95 % intervals",
        table=pd.DataFrame(rows),
        how=(
            "log-linear correction, (count + 0.5) / (n + 1); runs pooled by random effects (REML), Hartung-Knapp t interval"
            f" with runs - 1 df; p tests d' = 0; {len(found)} trials of {found['run'].nunique()} runs"
        ),
        notes=tuple(notes),
        runs=pd.DataFrame(runs),
    )
