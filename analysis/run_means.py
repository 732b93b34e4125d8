"""Run means: the success of every run as one number, and contrasts of them by t tests, which assume least."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.cell_model import UNTRAINED, Estimate, estimate


def run_means(tested: pd.DataFrame) -> pd.DataFrame:
    """Success rate of every run on every test, beside that of the untrained model."""
    keys = ["run", "method", "training", "test"]
    text = tested.assign(**{name: tested[name].astype(str) for name in keys})
    rates = text.groupby(keys)["success"].mean().rename("rate").reset_index()
    base = rates[rates["method"] == UNTRAINED].groupby("test")["rate"].mean()
    return rates.assign(untrained=rates["test"].map(base))


def contrast_of_means(own: pd.DataFrame, weights: Mapping[str, float]) -> tuple[Estimate, float]:
    """The contrast of run means by a t test, and its effective number of runs.

    A run's value is its mean over tests of the difference from the untrained model, which is a constant here. Trainings
    on different tasks are different kinds of run: they count equally, and the variance is pooled within them.
    """
    trained = own[own["method"] != UNTRAINED]
    if trained.empty:
        return estimate(math.nan, math.nan, math.nan), math.nan
    start = trained["untrained"].fillna(0.0) if UNTRAINED in weights else 0.0
    values = trained.assign(value=trained["rate"] - start).groupby(["method", "training", "run"])["value"].mean()
    groups = values.groupby(["method", "training"])
    mean, size = groups.mean(), groups.size()
    squares = float(((values - groups.transform("mean")) ** 2).sum())
    kinds = mean.groupby("method").size()
    share = np.array([weights.get(method, 0.0) / kinds[method] for method, _ in mean.index])
    df = float(len(values) - len(mean))
    if df < 1 and len(values) > 1 and set(weights) & {UNTRAINED}:
        # One run per training: the trainings are the replications.
        df, squares = float(len(values) - 1), float(((values - values.mean()) ** 2).sum())
    n = 1 / float((share**2 / size.to_numpy(float)).sum())
    value = float(share @ mean.to_numpy(float))
    if df < 1:
        return estimate(value, math.nan, math.nan), n
    return estimate(value, math.sqrt(squares / df / n), df), n
