"""Standard errors where items settle the answers, as at temperature 0: those of the rates themselves, carried over to log odds.

Where runs of a training answer most items alike, the variance of items has no estimate on the scale of log odds that a Laplace
approximation would hold for, and three equal runs must not count as three. The log odds of cells are then those of their rates over all
items, and their covariance is that of the rates over crossed items and runs (as `vlm_probe.analysis.run_means`, for all cells at once):

- items: from what every item adds to the rate of each cell (a sandwich with items as clusters; Liang & Zeger, 1986, Biometrika
  73:13-22), so that cells with the same items are compared item by item, with half an observation added to each cell of such
  a comparison (Agresti & Min, 2005, Stat Med 24:729-740): items that all agree leave some doubt;
- runs: what they vary by beyond chance, in log odds, pooled over cells by least squares; 0 at least.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vlm_probe.analysis.selection import Floats

ADDED = 0.5
"""Observations added to each of the four cells of a comparison of two cells by item."""


@dataclass(frozen=True)
class Spread:
    """How rates of cells vary.

    Attributes:
        items: Covariance of the cells' rates over items (cells, cells).
        run_sd: Standard deviation of runs in log odds.
    """

    items: Floats
    run_sd: float


def spread(data: pd.DataFrame) -> Spread:
    """Measure it.

    Args:
        data: `success`, `cell` (a categorical), `trained`, `run`, `test`, `item` and `training`, one row per trial.
    """
    order = list(data["cell"].cat.categories)
    of_cell = data.groupby("cell", observed=True)["success"]
    moved = (data["success"] - of_cell.transform("mean")) / of_cell.transform("size")
    table = moved.groupby([data["test"], data["item"], data["cell"]], observed=True).sum().unstack("cell")
    asked = table.notna().sum().reindex(order).to_numpy(float)
    added = table.fillna(0.0).reindex(columns=order)
    n = added.groupby(level="test").transform("size").to_numpy(float)
    u = added.to_numpy(float) * np.sqrt(n / np.maximum(n - 1, 1))[:, None]
    covariance: Floats = u.T @ u + np.diag(ADDED / asked**2)
    return Spread(covariance, _run_sd(data[data["trained"] == 1]))


def _run_sd(trained: pd.DataFrame) -> float:
    """Standard deviation of runs of a training in log odds, beyond chance in single answers."""
    cell = ["training", "cell"]
    numerator = denominator = 0.0
    for _, own in trained.groupby(cell, observed=True):
        answers = own.pivot_table(index="item", columns="run", values="success", observed=True).dropna()
        items, runs = answers.shape
        if runs < 2 or items < 2:
            continue
        y = answers.to_numpy(float)
        of_run, of_item = y.mean(0), y.mean(1, keepdims=True)
        chance = float(((y - of_run - of_item + y.mean()) ** 2).sum()) / ((runs - 1) * (items - 1))
        excess = float(of_run.var(ddof=1)) - chance / items
        slope = float(y.mean() * (1 - y.mean())) ** 2
        numerator += (runs - 1) * slope * excess
        denominator += (runs - 1) * slope**2
    return float(np.sqrt(max(numerator / denominator, 0.0))) if denominator > 0 else 0.0
