"""The fixed part of a formula: its design, the codings of its factors, and the columns that follow from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.coding import coding
from vlm_probe.analysis.mixed_effects.complete_rows import factors_of
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.model_matrix import Coded, matrix_of
from vlm_probe.analysis.mixed_effects.variables import quoted

Array = NDArray[Any]


@dataclass(frozen=True)
class FixedMatrix:
    """The fixed part of a formula, which makes the design of any rows.

    Attributes:
        coded: The part, with the codings of its factors.
        names: Names of all its columns.
        column_terms: Term of the formula that each of them belongs to: `method:shift`.
        kept: Which of its columns are estimated.
        aliased: Columns that are not, because they follow from the others, with those.
    """

    coded: Coded
    names: tuple[str, ...]
    column_terms: tuple[str, ...]
    kept: NDArray[np.bool_]
    aliased: dict[str, str]

    @property
    def factors(self) -> Mapping[str, tuple[Any, ...]]:
        """Levels of each categorical predictor."""
        return self.coded.factors

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of the numeric predictors."""
        return self.coded.numeric

    def full(self, rows: pd.DataFrame) -> Array:
        """The design of these rows with its aliased columns, (n, all columns). Raises FitError as `Coded.matrix`."""
        return self.coded.matrix(rows)


def fixed_part(
    part: str, frame: pd.DataFrame, predictors: Sequence[str], contrasts: str | Mapping[str, Any]
) -> tuple[FixedMatrix, Array]:
    """Evaluate the fixed part.

    Args:
        part: As formulaic writes it.
        frame: The rows of the fit, factors as categoricals.
        predictors: Columns that the part takes.
        contrasts: One coding for all factors, or one per factor (see `coding.coding`).

    Returns:
        The part, and its design of these rows without aliased columns, (n, p).

    Raises:
        FitError: If it cannot be evaluated, or a factor has one level only.
    """
    from formulaic import Formula, ModelSpec
    from formulaic.errors import FormulaicError

    factors = factors_of(frame, predictors)
    if isinstance(contrasts, Mapping) and (unknown := sorted(set(contrasts) - set(factors))):
        raise FitError(f"contrasts for {unknown[0]!r}: it is not a categorical predictor of the formula")
    codings, renamed = {}, {}
    for number, (name, levels) in enumerate(factors.items()):
        scheme = contrasts.get(name, "treatment") if isinstance(contrasts, Mapping) else contrasts
        if len(levels) < 2:
            raise FitError(f"the factor {name!r} has one level only, {levels[0]!r}: leave it out of the formula")
        codings[f"_coding_{number}"] = coding(name, levels, scheme)
        renamed[name] = f"_factor({quoted(name)}, _coding_{number})"
    try:
        summands = []
        for term in Formula(part):
            parts = [str(factor.expr) for factor in term.factors]
            summands.append(":".join(renamed.get(expr.strip("`"), quoted(expr)) for expr in parts))
        text = " + ".join(summands) if "1" in summands else " + ".join(["0", *summands])
        spec = ModelSpec.from_spec(Formula(text), na_action="ignore")
    except FormulaicError as error:
        raise FitError(f"the fixed part {part!r} cannot be evaluated ({error})") from error
    values, spec = matrix_of(part, spec, frame, codings, "fixed part")

    def plain(label: str) -> str:
        for name, code in renamed.items():
            label = label.replace(code, name)
        return label

    names = tuple(plain(str(column)) for column in spec.column_names)
    if not names:
        raise FitError(f"the fixed part {part!r} has no columns: write `~ 1` for an intercept alone")
    bad = ~np.isfinite(values)
    if bad.any():
        column = names[int(np.flatnonzero(bad.any(axis=0))[0])]
        raise FitError(
            f"the predictor {column!r} is not finite in {int(bad.any(axis=1).sum())} rows; transform it otherwise"
        )
    column_terms = [""] * len(names)
    for term, indices in spec.term_indices.items():
        for index in indices:
            column_terms[index] = "Intercept" if str(term) == "1" else plain(str(term))
    coded = Coded(part, spec, factors, tuple(name for name in predictors if name not in factors), codings)
    kept, aliased = _aliased(values, names)
    return FixedMatrix(coded, names, tuple(column_terms), kept, aliased), values[:, kept]


def _aliased(x: Array, names: Sequence[str]) -> tuple[NDArray[np.bool_], dict[str, str]]:
    """Which columns do not follow from those before them; for each that does, those of which it is made."""
    kept = np.ones(x.shape[1], bool)
    norms = np.linalg.norm(x, axis=0)
    scaled = x / np.where(norms > 0, norms, 1)
    gram = scaled.T @ scaled
    aliased: dict[str, str] = {}
    for column in range(x.shape[1]):
        before = np.flatnonzero(kept[:column])
        if norms[column] == 0:
            kept[column] = False
            aliased[names[column]] = "0 in all rows"
            continue
        if not len(before):
            continue
        weights = np.linalg.lstsq(gram[np.ix_(before, before)], gram[before, column], rcond=None)[0]
        if 1 - weights @ gram[before, column] > 1e-6:
            continue
        # The products of columns have half the digits: the columns themselves decide.
        residual = scaled[:, column] - scaled[:, before] @ weights
        residual -= (
            scaled[:, before]
            @ np.linalg.lstsq(gram[np.ix_(before, before)], scaled[:, before].T @ residual, rcond=None)[0]
        )
        if np.linalg.norm(residual) < 1e-7:
            kept[column] = False
            parts = [names[int(place)] for place, weight in zip(before, weights, strict=True) if abs(weight) > 1e-6]
            aliased[names[column]] = " + ".join(parts)
    return kept, aliased
