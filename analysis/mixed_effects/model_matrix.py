"""The fixed part of a formula: its design, the codings of its factors, and the columns that follow from others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.expressions import (
    Coded,
    Symbols,
    cannot_evaluate,
    in_symbols,
    levels_of,
    matrix_of,
)

Array = NDArray[Any]

SCHEMES = ("treatment", "sum", "helmert", "poly", "sequential")


@dataclass(frozen=True)
class DistinctRows:
    """A matrix (n, p) by its different rows: designs of factors have few, and products with them cost as much less.

    Attributes:
        rows: The different rows, (m, p).
        index: Which of them every row is, (n,).
    """

    rows: Array
    index: NDArray[np.int64]

    @classmethod
    def of(cls, matrix: Array) -> DistinctRows:
        """Find them; where most rows differ, all are kept in their order."""
        # One random number per row tells rows apart at the cost of one product; equality is then looked at, not believed.
        mark = matrix @ np.random.default_rng(0).normal(size=matrix.shape[1])
        _, first, index = np.unique(mark, return_index=True, return_inverse=True)
        if 2 * len(first) > len(matrix) or not np.array_equal(matrix[first][index], matrix):
            return cls(matrix, np.arange(len(matrix)))
        return cls(matrix[first], index)

    @property
    def is_plain(self) -> bool:
        """Whether all rows were kept."""
        return len(self.rows) == len(self.index)

    def times(self, weights: Array) -> Array:
        """`X @ weights`, (n,)."""
        product: Array = self.rows @ weights
        return product if self.is_plain else product[self.index]

    def totals(self, vector: Array) -> Array:
        """Sums of a vector (n,) over equal rows, (m,)."""
        return vector if self.is_plain else np.bincount(self.index, vector, len(self.rows))

    def transposed_times(self, vector: Array) -> Array:
        """`X.T @ vector`, (p,)."""
        return np.asarray(self.rows.T @ self.totals(vector))

    def gram(self, weights: Array) -> Array:
        """`X.T @ W @ X`, (p, p), for weights (n,)."""
        return np.asarray(self.rows.T @ (self.totals(weights)[:, None] * self.rows))

    def orthonormal(self) -> tuple[DistinctRows, Array]:
        """`Q` with orthonormal columns, and the triangular `R` (p, p), whose product is the matrix."""
        roots = np.sqrt(self.totals(np.ones(len(self.index))))[:, None]
        q, r = np.linalg.qr(self.rows * roots)
        return DistinctRows(q / roots, self.index), r


@dataclass(frozen=True)
class FixedMatrix:
    """The fixed part of a formula, which makes the design of any rows.

    Attributes:
        coded: The part, with the codings of its factors.
        names: Names of all its columns.
        column_terms: Term of the formula that each of them belongs to: `("method", "shift")` for `method:shift`, () for the intercept.
        kept: Which of its columns are estimated.
        aliased: Columns that are not, because they follow from the others, with those.
    """

    coded: Coded
    names: tuple[str, ...]
    column_terms: tuple[tuple[str, ...], ...]
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
    part: str, symbols: Symbols, rows: pd.DataFrame, contrasts: str | Mapping[str, Any]
) -> tuple[FixedMatrix, Array]:
    """Evaluate the fixed part.

    Args:
        part: As formulaic writes it, in symbols.
        symbols: What the symbols stand for.
        rows: The rows of the fit, with numbers and categoricals.
        contrasts: One coding for all factors, or one per factor (see `coding`).

    Returns:
        The part, and its design of these rows without aliased columns, (n, p).

    Raises:
        FitError: If it cannot be evaluated, or a factor has one level only.
    """
    variables = symbols.variables(part)
    frame = in_symbols(rows, variables)
    levels = levels_of(frame)
    names = {symbol: variables[symbol].column for symbol in levels}
    if isinstance(contrasts, Mapping) and (unknown := sorted(set(contrasts) - set(names.values()))):
        raise FitError(f"contrasts for {unknown[0]!r}: it is not a categorical predictor of the formula")
    codings, codes = {}, {}
    for number, (symbol, name) in enumerate(names.items()):
        scheme = contrasts.get(name, "treatment") if isinstance(contrasts, Mapping) else contrasts
        if len(levels[symbol]) < 2:
            raise FitError(
                f"the factor {name!r} has one level only, {levels[symbol][0]!r}: leave it out of the formula"
            )
        codings[f"_coding_{number}"] = coding(name, levels[symbol], scheme)
        codes[symbol] = f"_factor({symbol}, _coding_{number})"
    spec = _specification(part, symbols, codes)
    values, spec = matrix_of(part, spec, symbols, frame, codings, "fixed part")

    def plain(label: str) -> str:
        for symbol, code in codes.items():
            label = label.replace(code, symbol)
        return symbols.plain(label)

    labels = tuple(plain(str(column)) for column in spec.column_names)
    if not labels:
        raise FitError(f"the fixed part {symbols.plain(part)!r} has no columns: write `~ 1` for an intercept alone")
    if twice := next((label for place, label in enumerate(labels) if label in labels[:place]), ""):
        raise FitError(f"two coefficients are called {twice!r}: rename the column of that name")
    bad = ~np.isfinite(values)
    if bad.any():
        column = labels[int(np.flatnonzero(bad.any(axis=0))[0])]
        raise FitError(
            f"the predictor {column!r} is not finite in {int(bad.any(axis=1).sum())} rows; transform it otherwise"
        )
    column_terms: list[tuple[str, ...]] = [()] * len(labels)
    for term, indices in spec.term_indices.items():
        for index in indices:
            column_terms[index] = tuple(plain(str(factor.expr)) for factor in term.factors if str(factor.expr) != "1")
    kept, aliased = _aliased(values, labels)
    coded = Coded(part, spec, symbols, levels, codings)
    return FixedMatrix(coded, labels, tuple(column_terms), kept, aliased), values[:, kept]


def _specification(part: str, symbols: Symbols, codes: Mapping[str, str]) -> Any:
    """formulaic's specification of the part, with the codings of its factors."""
    from formulaic import Formula, ModelSpec
    from formulaic.errors import FormulaicError

    try:
        summands = []
        for term in Formula(part):
            factors = [(str(factor.expr), factor.eval_method.value == "python") for factor in term.factors]
            summands.append(":".join(codes.get(expr, f"{{{expr}}}" if call else expr) for expr, call in factors))
        text = " + ".join(summands) if "1" in summands else " + ".join(["0", *summands])
        return ModelSpec.from_spec(Formula(text), na_action="ignore")
    except (FormulaicError, SyntaxError) as error:
        raise FitError(cannot_evaluate(f"the fixed part {part!r}", symbols, error)) from error


def levels_in(label: str, term: Sequence[str]) -> dict[str, str]:
    """Levels in the name of a column, by factor: {"method": "ppo"} of `method[T.ppo]:margin`.

    Args:
        label: Name of the column.
        term: Factors and numbers that it is a product of.
    """
    pattern = ":".join(rf"{re.escape(name)}(?:\[(?:[A-Z]\.)?(.*)\])?" for name in term)
    match = re.fullmatch(pattern, label, re.DOTALL)
    found = match.groups() if match else ()
    return {name: level for name, level in zip(term, found, strict=False) if level is not None}


def _aliased(x: Array, names: Sequence[str]) -> tuple[NDArray[np.bool_], dict[str, str]]:
    """Which columns do not follow from those before them; for each that does, those of which it is made."""
    kept = np.ones(x.shape[1], bool)
    aliased: dict[str, str] = {}
    x = DistinctRows.of(x).rows  # which depend on each other as all rows do
    norms = np.linalg.norm(x, axis=0)
    scaled = x / np.where(norms > 0, norms, 1)
    gram = scaled.T @ scaled
    if _independent(gram):
        return kept, aliased
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


def _independent(gram: Array) -> bool:
    """Whether no column of a matrix follows from those before it, as its crossproducts (p, p) tell."""
    try:
        return bool((np.diag(np.linalg.cholesky(gram)) ** 2 > 1e-6).all())
    except np.linalg.LinAlgError:
        return False


def coding(factor: str, levels: Sequence[Any], scheme: Any) -> Any:
    """The contrasts of one factor, as formulaic takes them.

    Args:
        factor: Its name, for errors.
        levels: Its levels in order.
        scheme: "treatment" (each level against the first), "sum" (each but the last against the mean of all), "helmert", "poly",
            "sequential" (each against the one before); `("treatment", level)` for another reference level; or planned
            contrasts, `{name: {level: weight}}`, one fewer than levels, whose estimates the coefficients will be.

    Raises:
        FitError: If there is no such scheme or level, or if planned contrasts do not fit the levels.
    """
    from formulaic.transforms import contrasts

    if isinstance(scheme, str) and scheme in SCHEMES:
        if scheme == "treatment":
            return contrasts.TreatmentContrasts(base=levels[0])
        of = {
            "sum": contrasts.SumContrasts,
            "helmert": contrasts.HelmertContrasts,
            "poly": contrasts.PolyContrasts,
            "sequential": contrasts.DiffContrasts,
        }
        return of[scheme]()
    if isinstance(scheme, tuple) and len(scheme) == 2 and scheme[0] == "treatment":
        if scheme[1] not in levels:
            raise FitError(f"{factor} has no level {scheme[1]!r} to compare with; it has {_listed(levels)}")
        return contrasts.TreatmentContrasts(base=scheme[1])
    if isinstance(scheme, Mapping):
        return contrasts.CustomContrasts(_planned(factor, levels, scheme), names=list(scheme))
    raise FitError(f"{scheme!r} is no coding of {factor}: use one of {_listed(SCHEMES)}, or planned contrasts")


def _planned(factor: str, levels: Sequence[Any], scheme: Mapping[str, Mapping[Any, float]]) -> NDArray[np.float64]:
    """The coding matrix whose coefficients are the planned contrasts (Schad et al., 2020, J. Mem. Lang. 110)."""
    if len(scheme) != len(levels) - 1:
        raise FitError(
            f"{factor} has {len(levels)} levels, so it takes {len(levels) - 1} planned contrasts, not {len(scheme)}"
        )
    unknown = sorted({str(level) for weights in scheme.values() for level in weights} - {str(v) for v in levels})
    if unknown:
        raise FitError(f"{factor} has no level {_listed(unknown)}; it has {_listed(levels)}")
    hypotheses = np.array([[float(weights.get(level, 0)) for level in levels] for weights in scheme.values()])
    for name, row in zip(scheme, hypotheses, strict=True):
        if abs(row.sum()) > 1e-9:
            raise FitError(f"the weights of contrast {name!r} of {factor} sum to {row.sum():g}; they must sum to 0")
    full = np.vstack([np.full(len(levels), 1 / len(levels)), hypotheses])
    if np.linalg.matrix_rank(full) < len(levels):
        raise FitError(f"the planned contrasts of {factor} depend on each other; leave one out, or change it")
    return np.asarray(np.linalg.inv(full)[:, 1:])


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(repr(value) for value in values)
