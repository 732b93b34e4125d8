"""Separation: predictors that foretell binary answers perfectly, so that maximum likelihood estimates are infinite.

Found before a mixed model is fitted (Albert & Anderson, 1984; Konis, 2007). If a combination of fixed effects separates
right from wrong answers, the likelihood rises along it for any value of the random effects.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import scipy.optimize
from numpy.typing import NDArray
from scipy.special import expit

from vlm_probe.analysis.mixed_effects.design import Design
from vlm_probe.analysis.mixed_effects.errors import SeparationError

CERTAIN = 15.0
"""Log-odds beyond which an estimate without random effects raises suspicion, to be settled by a linear programme."""
EXIT = (
    "merge or leave out levels, report such cells as counts with exact intervals, or give prior_sd=2.5 for estimates"
    " with a weak prior"
)


def check_separation(design: Design) -> None:
    """Look for complete and quasi-complete separation.

    Raises:
        SeparationError: If there is one, with the cell or the predictors.
    """
    if design.family.name != "binomial" or _settled(design):
        return
    x, successes, failures = _distinct(design)
    direction = _separating(x, successes, failures)
    if direction is None:
        return
    kind = "complete" if _strict(_margins(x, successes, failures)) else "quasi-complete"
    cell = _constant_cell(design)
    if cell:
        raise SeparationError(f"{kind} separation: {cell}, so that its log-odds are infinite; {EXIT}")
    parts = [
        name for name, weight in zip(design.names, direction, strict=True) if abs(weight) > 1e-7 and name != "Intercept"
    ]
    raise SeparationError(
        f"{kind} separation: {' and '.join(parts or design.names)} foretell{'s' if len(parts) == 1 else ''} the"
        f" response without error, so that the estimate is infinite; {EXIT}"
    )


def _settled(design: Design) -> bool:
    """Whether the logistic regression without random effects has a finite optimum, which excludes separation."""
    q, _ = np.linalg.qr(design.x)
    gamma = np.zeros(q.shape[1])
    for _ in range(12):
        predictor = q @ gamma + design.offset
        p = expit(predictor)
        weight = design.trials * p * (1 - p)
        information = q.T @ (weight[:, None] * q)
        gradient = q.T @ (design.y - design.trials * p)
        try:
            step = np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            return False
        gamma = gamma + step
        if not np.isfinite(gamma).all() or np.abs(q @ gamma).max() > CERTAIN:
            return False
        if gradient @ step < 1e-8:
            return True
    return False


def _distinct(design: Design) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Distinct rows of the design, with their numbers of successes and failures."""
    x, index = np.unique(design.x, axis=0, return_inverse=True)
    index = index.ravel()
    return x, np.bincount(index, design.y).astype(float), np.bincount(index, design.trials - design.y).astype(float)


def _separating(
    x: NDArray[np.float64], successes: NDArray[np.float64], failures: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """A direction along which successes are never lower, failures never higher, and something is strictly so.

    Maximises the sum of the margins of all answers within a box, which is 0 if and only if there is none.
    """
    margins = _margins(x, successes, failures)
    total = margins.sum(axis=0)
    found = scipy.optimize.linprog(
        -total / max(np.abs(total).max(), 1e-300),
        A_ub=-margins,
        b_ub=np.zeros(len(margins)),
        bounds=[(-1, 1)] * x.shape[1],
        method="highs",
    )
    if found.status != 0 or (margins @ found.x).max() < 1e-6:
        return None
    return np.asarray(found.x)


def _margins(
    x: NDArray[np.float64], successes: NDArray[np.float64], failures: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Rows, with columns of a largest value of 1, whose product with a direction is positive where it foretells the answer."""
    scaled = x / np.maximum(np.abs(x).max(axis=0), 1e-300)
    return np.vstack([scaled[successes > 0], -scaled[failures > 0]])


def _strict(margins: NDArray[np.float64]) -> bool:
    """Whether a direction foretells every single answer: the largest smallest margin within a box is above 0."""
    rows, columns = margins.shape
    found = scipy.optimize.linprog(
        np.r_[np.zeros(columns), -1.0],
        A_ub=np.column_stack([-margins, np.ones(rows)]),
        b_ub=np.zeros(rows),
        bounds=[(-1, 1)] * columns + [(None, 1)],
        method="highs",
    )
    return bool(found.status == 0 and -found.fun > 1e-7)


def _constant_cell(design: Design) -> str:
    """The smallest cell of factor levels whose answers are all right or all wrong, in words."""
    factors = list(design.matrix.factors)
    for size in range(1, len(factors) + 1):
        for names in combinations(factors, size):
            table = (
                pd.DataFrame({"right": design.y, "of": design.trials})
                .groupby([design.frame[name] for name in names], observed=True)
                .sum()
            )
            for level, row in table.iterrows():
                if row["right"] in (0, row["of"]):
                    levels = level if isinstance(level, tuple) else (level,)
                    cell = ", ".join(f"{name} = {value}" for name, value in zip(names, levels, strict=True))
                    kind = "1" if row["right"] else "0"
                    return f"the response is {kind} in all {row['of']:.0f} answers of the cell {cell}"
    return ""
