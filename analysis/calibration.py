"""Calibration: are answers that a model gives 80 % probability right in 80 % of trials?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.pooling import mean_over_runs
from vlm_probe.analysis.proportions import wilson
from vlm_probe.analysis.result import Result, plain
from vlm_probe.analysis.selection import CELL, cells, need, plain_trials, present
from vlm_probe.stimuli.errors import InvalidInput

BINS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration(Result):
    """Calibration by cell of the design. The table has one row per cell.

    Attributes:
        bins: One row per cell and class of confidence: mean confidence, success rate with its Wilson interval, trials.
    """

    bins: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """As `Result.to_dict`, with the bins."""
        return {**super().to_dict(), "bins": [plain(row) for row in self.bins.to_dict("records")]}


def calibration(trials: pd.DataFrame, by: Sequence[str] = CELL) -> Calibration:
    """Mean confidence, success rate, expected calibration error and Brier score of every cell.

    Confidence is the probability of the answer given among all legal ones, so that guessing among two has at least one half.
    The expected calibration error (Naeini, Cooper & Hauskrecht, 2015) is the mean distance between confidence and success rate
    over ten classes of equal width, weighted by their trials. It is never 0 for finite data, so compare it between cells of
    equal size.

    Args:
        trials: A trial table; trials without confidence (the readout was a reply) are left out.
        by: Columns that make a cell.

    Raises:
        ValueError: If no trial has a confidence.
    """
    need(trials, "confidence", "success", "run")
    found = plain_trials(trials)
    found = found[found["confidence"].notna()]
    if found.empty:
        raise InvalidInput(
            "no trial has option probabilities, as calibration needs: run with `probe run --readout options`"
        )
    names = present(found, by)
    confidence = found["confidence"].to_numpy(float)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    found = found.assign(_bin=place, _error=(confidence - found["success"].to_numpy(float)) ** 2)
    rows, bins = [], []
    for key, members in cells(found, names):
        cell = dict(zip(names, key, strict=True))
        errors = [_error(own) for _, own in cells(members, ["run"])]
        mean, low, high = mean_over_runs(np.array(errors))
        rows.append(
            cell
            | {
                "confidence": float(members["confidence"].mean()),
                "success_rate": float(members["success"].mean()),
                "calibration_error": mean,
                "calibration_error_low": low,
                "calibration_error_high": high,
                "brier_score": float(members["_error"].mean()),
                "n_runs": len(errors),
                "n_trials": len(members),
            }
        )
        for number, own in members.groupby("_bin"):
            rate = wilson(float(own["success"].sum()), len(own))
            bins.append(
                cell
                | {
                    "bin": f"{int(str(number)) / BINS:.1f} to {(int(str(number)) + 1) / BINS:.1f}",
                    "confidence": float(own["confidence"].mean()),
                    "rate": rate.value,
                    "rate_low": rate.low,
                    "rate_high": rate.high,
                    "n": len(own),
                }
            )
    return Calibration(
        title="Calibration: confidence in the answer given against success",
        table=pd.DataFrame(rows),
        how=(
            f"confidence: probability of the answer given among all legal ones; error: {BINS} classes of equal width, per run,"
            " mean over runs with a 95 % t interval (runs - 1 df; none for a single run); Brier score: mean squared distance of"
            f" confidence from success; {len(found)} trials of {found['run'].nunique()} runs"
        ),
        bins=pd.DataFrame(bins),
    )


def _error(trials: pd.DataFrame) -> float:
    """Expected calibration error of one run."""
    sums = trials.groupby("_bin")[["confidence", "success"]].sum()
    return float((sums["confidence"] - sums["success"]).abs().sum()) / len(trials)
