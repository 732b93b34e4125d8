"""Parts of a formula as matrices: formulaic's specification of each is kept, so that other rows are coded as those of the fit were."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.variables import context

Array = NDArray[Any]


@dataclass(frozen=True)
class Coded:
    """One part of a formula, which makes the matrix of any rows.

    Attributes:
        part: The part, as it was written.
        spec: formulaic's model specification, with the state of its transformations: the knots of a spline, the mean of a scale.
        factors: Levels of each categorical predictor.
        numeric: Names of the numeric predictors.
        codings: Codings of the factors, by the name under which the specification looks for them.
    """

    part: str
    spec: Any
    factors: Mapping[str, tuple[Any, ...]]
    numeric: tuple[str, ...]
    codings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def variables(self) -> tuple[str, ...]:
        """Columns that rows must have."""
        return (*self.factors, *self.numeric)

    def matrix(self, rows: pd.DataFrame) -> Array:
        """The matrix (n, columns) of these rows.

        Raises:
            FitError: If the rows have a level that the fit did not, or cannot be transformed as those of the fit were.
        """
        frame = rows[list(self.variables)].copy() if self.variables else pd.DataFrame(index=range(len(rows)))
        for name, levels in self.factors.items():
            unknown = set(frame[name].dropna().unique()) - set(levels)
            if unknown:
                raise FitError(
                    f"{name} has no level {sorted(map(repr, unknown))[0]} in the fitted data: it has {levels}"
                )
            frame[name] = pd.Categorical(frame[name], categories=list(levels))
        return matrix_of(self.part, self.spec, frame, self.codings)[0]


def matrix_of(
    part: str, spec: Any, frame: pd.DataFrame, codings: Mapping[str, Any], what: str = "part"
) -> tuple[Array, Any]:
    """The matrix (n, columns) of a specification, and the specification with the state of its transformations.

    Args:
        part: The part of the formula, for errors.
        spec: formulaic's model specification.
        frame: Rows with the predictors.
        codings: As in `Coded`.
        what: What the part is, for errors.

    Raises:
        FitError: If it cannot be evaluated.
    """
    from formulaic.errors import DataMismatchWarning, FormulaicError

    try:
        with warnings.catch_warnings():
            # Levels that the fit did not have would count as the reference level.
            warnings.simplefilter("error", DataMismatchWarning)
            matrix = spec.get_model_matrix(frame, context=context() | dict(codings))
    except (FormulaicError, DataMismatchWarning) as error:
        raise FitError(f"the {what} {part!r} cannot be evaluated ({' '.join(str(error).split())})") from error
    return np.asarray(matrix, dtype=float).reshape(len(frame), -1), matrix.model_spec
