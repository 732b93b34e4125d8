"""Separation: predictors that foretell answers or counts of 0 perfectly, so that maximum likelihood estimates are infinite.

Found before a mixed model is fitted (Albert & Anderson, 1984; Konis, 2007; for counts Correia, Guimaraes & Zylkin, 2019). If a combination
of fixed effects separates right from wrong answers, or counts of 0 from others, the likelihood rises along it for any value of the random
effects.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import scipy.optimize
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.design import Design
from vlm_probe.analysis.mixed_effects.errors import SeparationError

Floats = NDArray[np.float64]

CERTAIN = 15.0
"""Log-odds, or logarithms of means, beyond which an estimate without random effects raises suspicion, to be settled by a linear programme."""
EXIT = (
    "merge or leave out levels, report such cells as counts with exact intervals, or give prior_sd=2.5 for estimates"
    " with a weak prior"
)


def check_separation(design: Design) -> None:
    """Look for complete and quasi-complete separation.

    Raises:
        SeparationError: If there is one, with the cell or the predictors.
    """
    if design.family.name == "gaussian" or _settled(design):
        return
    margins, held = _margins(design)
    direction = _separating(margins, held)
    if direction is None:
        return
    kind = "complete" if not len(held) and _strict(margins) else "quasi-complete"
    cell = _constant_cell(design)
    if cell:
        raise SeparationError(f"{kind} separation: {cell}; {EXIT}")
    parts = [
        name for name, weight in zip(design.names, direction, strict=True) if abs(weight) > 1e-7 and name != "Intercept"
    ]
    what = "the response" if design.family.name == "binomial" else "counts of 0"
    raise SeparationError(
        f"{kind} separation: {' and '.join(parts or design.names)} foretell{'s' if len(parts) == 1 else ''} {what} without error, so"
        f" that the estimate is infinite; {EXIT}"
    )


def _settled(design: Design) -> bool:
    """Whether the regression without random effects has a finite optimum, which excludes separation."""
    q, _ = design.distinct.orthonormal()
    gamma = np.zeros(q.rows.shape[1])
    if (
        design.family.name == "poisson"
    ):  # a first step of iteratively reweighted least squares: Newton's would go too far
        gamma = q.transposed_times(np.log(design.y + 0.5) - design.offset)
    for _ in range(12):
        moments = design.family.moments(design.y, design.trials, q.times(gamma) + design.offset)
        information = q.gram(moments.weight)
        gradient = q.transposed_times(design.y - moments.mean)
        try:
            step = np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            return False
        gamma = gamma + step
        if not np.isfinite(gamma).all() or np.abs(q.rows @ gamma).max() > CERTAIN:
            return False
        if gradient @ step < 1e-8:
            return True
    return False


def _margins(design: Design) -> tuple[Floats, Floats]:
    """Distinct rows, with columns of a largest value of 1: those whose product with a separating direction is at least 0, and at least
    once above it (the direction foretells the answer, or the 0), and those whose product is 0.
    """
    x = design.distinct.rows
    scaled = x / np.maximum(np.abs(x).max(axis=0), 1e-300)
    successes = design.distinct.totals(design.y)
    if design.family.name == "poisson":
        return -scaled[successes == 0], scaled[successes > 0]
    failures = design.distinct.totals(design.trials - design.y)
    return np.vstack([scaled[successes > 0], -scaled[failures > 0]]), np.zeros((0, x.shape[1]))


def _separating(margins: Floats, held: Floats) -> Floats | None:
    """A direction along which all margins are at least 0 and one is above it, and along which nothing moves that is held.

    Maximises the sum of the margins within a box, which is 0 if and only if there is none.
    """
    total = margins.sum(axis=0)
    found = scipy.optimize.linprog(
        -total / max(np.abs(total).max(initial=0.0), 1e-300),
        A_ub=-margins,
        b_ub=np.zeros(len(margins)),
        A_eq=held,
        b_eq=np.zeros(len(held)),
        bounds=[(-1, 1)] * margins.shape[1],
        method="highs",
    )
    if found.status != 0 or (margins @ found.x).max(initial=0.0) < 1e-6:
        return None
    return np.asarray(found.x)


def _strict(margins: Floats) -> bool:
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
    """The smallest cell of factor levels whose answers are all right or all wrong, or whose counts are all 0, in words."""
    factors = list(design.matrix.factors)
    for size in range(1, len(factors) + 1):
        for names in combinations(factors, size):
            table = (
                pd.DataFrame({"right": design.y, "of": design.trials})
                .groupby([design.frame[name] for name in names], observed=True)
                .sum()
            )
            for level, row in table.iterrows():
                levels = level if isinstance(level, tuple) else (level,)
                cell = ", ".join(f"{name} = {value}" for name, value in zip(names, levels, strict=True))
                if design.family.name == "poisson" and row["right"] == 0:
                    return f"all {row['of']:.0f} counts of the cell {cell} are 0, so that the logarithm of their mean is infinite"
                if design.family.name == "binomial" and row["right"] in (0, row["of"]):
                    kind = "1" if row["right"] else "0"
                    of = f"in all {row['of']:.0f} answers of the cell {cell}"
                    return f"the response is {kind} {of}, so that its log-odds are infinite"
    return ""
