"""Predictions of a fitted model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.mixed_effects.design import effects_matrix, evaluate
from analysis.mixed_effects.errors import FitError

if TYPE_CHECKING:
    from analysis.mixed_effects.result import FitResult

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
        predictor = _of_rows(result, data.reset_index(drop=True), random=random)
    return predictor if scale == "link" else np.asarray(design.family.inverse_link(predictor))


def _of_rows(result: FitResult, data: pd.DataFrame, *, random: bool) -> Array:
    design, solution = result.design, result.solution
    if np.any(design.offset) and not design.formula.offsets:
        raise FitError(
            "the model has an offset: predict the rows of the fit (data=None), or write it into the formula, offset(log(x))"
        )
    needed = [*design.matrix.factors, *design.matrix.numeric]
    missing = [name for name in needed if name not in data.columns]
    if missing:
        raise FitError(f"the rows to predict lack the column {missing[0]!r}")
    if needed and data[needed].isna().any(axis=None):
        raise FitError("the rows to predict have missing values: leave them out first")
    full = design.matrix.full(data[needed] if needed else pd.DataFrame(index=range(len(data))))
    predictor = full[:, design.matrix.kept] @ solution.beta
    for expression in design.formula.offsets:
        predictor = predictor + evaluate(data, expression)
    if not random:
        return predictor
    modes = {term.group: (term, mode) for term, mode in zip(solution.terms, solution.modes, strict=True)}
    for part in design.formula.random:
        term, mode = modes[":".join(part.group)]
        frame = data.copy()
        for name in design.frame.columns:
            if isinstance(design.frame[name].dtype, pd.CategoricalDtype) and name in frame and name not in part.group:
                frame[name] = pd.Categorical(frame[name], categories=design.frame[name].cat.categories)
        labels, values = effects_matrix(part.effects, frame)
        place = {str(level): index for index, level in enumerate(term.levels)}
        keys = data[part.group[0]].astype(str)
        for name in part.group[1:]:
            keys = keys + ":" + data[name].astype(str)
        codes = keys.map(place).to_numpy(dtype=float)
        known = np.isfinite(codes)
        for label, column in zip(labels, values.T, strict=True):
            if label in term.names:
                effect = mode[:, term.names.index(label)]
                predictor[known] += column[known] * effect[codes[known].astype(int)]
    return predictor
