"""Predictions of a fitted model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.columns import named, taken
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.expressions import values_of
from vlm_probe.analysis.mixed_effects.terms import codes_of

if TYPE_CHECKING:
    from vlm_probe.analysis.mixed_effects.result import FitResult

Array = NDArray[Any]


def predict(result: FitResult, data: pd.DataFrame | None, *, random: bool, scale: str) -> Array:
    """See `FitResult.predict`."""
    if scale not in ("response", "link"):
        raise FitError(f"there is no scale {scale!r}: use 'response' or 'link'")
    design, solution = result.design, result.solution
    if data is None:
        predictor = design.offset + design.x @ solution.beta
        if random:
            for term, modes in zip(solution.terms, solution.modes, strict=True):
                predictor = predictor + term.product(modes * term.scale)
    else:
        predictor = _of_rows(result, named(data), random=random)
    return predictor if scale == "link" else np.asarray(design.family.inverse_link(predictor))


def _of_rows(result: FitResult, rows: pd.DataFrame, *, random: bool) -> Array:
    """The linear predictor of other rows, (n,)."""
    design, solution = result.design, result.solution
    if np.any(design.offset) and not design.formula.offsets:
        raise FitError(
            "the model has an offset: predict the rows of the fit (data=None), or write it into the formula, offset(log(x))"
        )
    symbols = design.formula.symbols
    parts = [design.matrix.coded, *(one.coded for one in design.effects if random and one.coded is not None)]
    predictors = list(dict.fromkeys(name for part in parts for name in part.columns))
    groups = [name for one in design.effects if random for name in one.part.group]
    offsets = symbols.columns(" ".join(design.formula.offsets))
    needed = list(dict.fromkeys((*predictors, *groups, *offsets)))
    missing = [name for name in needed if name not in rows.columns]
    if missing:
        raise FitError(f"the rows to predict lack the column {missing[0]!r}")
    rows = taken(rows, needed)
    if predictors and rows[predictors].isna().any(axis=None):
        raise FitError("the rows to predict have missing values: leave them out first")
    predictor = design.matrix.full(rows)[:, design.matrix.kept] @ solution.beta
    for expression in design.formula.offsets:
        predictor = predictor + values_of(expression, symbols, rows, "offset")
    if not random:
        return np.asarray(predictor)
    modes = {term.columns: (term, mode) for term, mode in zip(solution.terms, solution.modes, strict=True)}
    for one in design.effects:
        term, mode = modes[one.part.group]
        codes = codes_of(one.part.group, term, design.frame, rows)
        known = codes >= 0
        for name, column in zip(one.names, one.matrix(rows).T, strict=True):
            predictor[known] += column[known] * mode[codes[known], term.names.index(name)]
    return np.asarray(predictor)
