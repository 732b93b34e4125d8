"""Linear regression whose standard errors hold where the items of a group depend on each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vlm_probe.analysis.selection import Floats


def clustered(y: Floats, design: Floats, groups: Any) -> tuple[float, float]:
    """First coefficient of a linear regression and its variance, robust to dependence within groups (CR1).

    Args:
        y: Responses (n,).
        design: Predictors (n, k), the first of which is asked about.
        groups: The group of each row (n,).

    Returns:
        The coefficient, and its variance: nan where the rows cannot tell the coefficients, or are of one group alone.
    """
    rows, columns = design.shape
    if np.linalg.matrix_rank(design) < columns:
        return math.nan, math.nan
    bread = np.linalg.pinv(design.T @ design)
    beta = bread @ design.T @ y
    index = np.unique(groups, return_inverse=True)[1]
    count = int(index.max()) + 1
    if count < 2 or rows <= columns:
        return float(beta[0]), math.nan
    scores = np.zeros((count, design.shape[1]))
    np.add.at(scores, index, design * (y - design @ beta)[:, None])
    small = count / (count - 1) * (rows - 1) / (rows - columns)
    variance = small * (bread @ scores.T @ scores @ bread)[0, 0]
    # Items that all come out alike leave no residual; the variance of one more surprise keeps the run in the pool.
    return float(beta[0]), max(float(variance), 0.25 / (len(y) + 1) ** 2)
