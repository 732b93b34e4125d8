"""Random-effect terms: which level of a grouping factor a row belongs to, and what varies between the levels; for the rows of a fit and for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from vlm_probe.analysis.mixed_effects.formula import RandomPart

Array = NDArray[Any]


@dataclass(frozen=True)
class RandomTerm:
    """All random effects of one grouping factor.

    The covariance of a level's effects is `L @ L.T` (times the residual variance in a linear model) with a lower
    triangular `L` (k, k), of which the entries in `free` are parameters: all of them for correlated effects, the
    diagonal for uncorrelated ones.

    Attributes:
        columns: The columns of the grouping factor: `("run", "family")` for `run:family`.
        names: Names of the effects, `(k,)`.
        codes: Level of each row, `(n,)` in 0..q-1.
        levels: Names of the levels, `(q,)`.
        values: Design of the effects, `(n, k)`, scaled by `scale`.
        scale: Root mean square of each column before scaling, `(k,)`: parameters of order one fit better.
        free: (row, column) of the free entries of `L`, columns first.
        at: Their rows, and their columns.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    codes: NDArray[np.int64]
    levels: tuple[Any, ...]
    values: Array
    scale: Array
    free: tuple[tuple[int, int], ...]
    at: tuple[NDArray[np.int64], NDArray[np.int64]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows, columns = (np.array([place[side] for place in self.free], dtype=int) for side in (0, 1))
        object.__setattr__(self, "at", (rows, columns))

    @property
    def group(self) -> str:
        """Name of the grouping factor: `run`, or `run:family`."""
        return ":".join(self.columns)

    @property
    def q(self) -> int:
        """Number of levels."""
        return len(self.levels)

    @property
    def k(self) -> int:
        """Number of effects of a level."""
        return len(self.names)

    @property
    def size(self) -> int:
        """Number of random effects."""
        return self.q * self.k

    def factor(self, parameters: Array) -> Array:
        """The matrix `L` (k, k) of these parameters."""
        factor = np.zeros((self.k, self.k))
        factor[self.at] = parameters
        return factor

    def sums(self, rows: Array) -> Array:
        """Sums of a vector (n,) over the rows of each level, (q,)."""
        return np.bincount(self.codes, rows, self.q)

    def product(self, effects: Array) -> Array:
        """`Z @ b` (n,) for effects `b` (q, k) of the scaled design."""
        if self.k == 1:
            taken = effects[:, 0][self.codes]
            return taken if self.constant(0) else taken * self.values[:, 0]
        return np.einsum("nk,nk->n", self.values, effects[self.codes])

    def transposed_product(self, vector: Array) -> Array:
        """`Z.T @ vector`, (q, k), for a vector (n,)."""
        columns = [
            np.bincount(self.codes, vector if self.constant(a) else vector * self.values[:, a], self.q)
            for a in range(self.k)
        ]
        return np.stack(columns, axis=1)

    def multiples(self, effect: int, column: Array, within: Array | None = None) -> Array | None:
        """What a column (n,) is of an effect within each level, (q,), if it is a multiple of it there; None if in some level it is not.

        Args:
            effect: Place of the effect.
            column: The column.
            within: Rows that are looked at, (n,); None for all.
        """
        values = self.values[:, effect]
        square = np.bincount(self.codes, values**2, self.q)
        found = np.bincount(self.codes, values * column, self.q) / np.where(square > 0, square, 1)
        off = np.abs(column - values * found[self.codes])
        size = float(np.abs(column).max()) or 1.0
        return found if (off if within is None else off[within]).max(initial=0.0) < 1e-8 * size else None

    def constant(self, column: int) -> bool:
        """Whether a column of the design is 1 throughout, as an intercept is (a column of that name has backquotes)."""
        return self.names[column] == "Intercept"


@dataclass(frozen=True)
class Effects:
    """What varies within one bracket, which makes the design of any rows.

    Attributes:
        part: The bracket.
        coded: Its effects; None for an intercept alone.
        names: Names of its columns.
    """

    part: RandomPart
    coded: Coded | None
    names: tuple[str, ...]

    def matrix(self, rows: pd.DataFrame) -> Array:
        """The design (n, k) of these rows. Raises FitError as `Coded.matrix`, and if it is not finite."""
        values = np.ones((len(rows), 1)) if self.coded is None else self.coded.matrix(rows)
        if not np.isfinite(values).all():
            raise FitError(f"the random effects {self.part} are not finite in all rows")
        return values


def effects_of(part: RandomPart, symbols: Symbols, rows: pd.DataFrame) -> Effects:
    """The effects of one bracket, as the rows of the fit code them.

    Args:
        part: The bracket.
        symbols: What its symbols stand for.
        rows: The rows of the fit, with numbers and categoricals.

    Raises:
        FitError: If they cannot be evaluated.
    """
    from formulaic import Formula, ModelSpec
    from formulaic.errors import FormulaicError

    if part.effects.strip() == "1":
        return Effects(part, None, ("Intercept",))
    try:
        spec = ModelSpec.from_spec(Formula(part.effects), na_action="ignore")
    except (FormulaicError, SyntaxError) as error:
        raise FitError(cannot_evaluate(f"the random effects {part}", symbols, error)) from error
    variables = symbols.variables(part.effects)
    frame = in_symbols(rows, variables)
    for symbol, levels in levels_of(frame).items():
        if len(levels) < 2:
            name = variables[symbol].column
            raise FitError(
                f"{part}: the factor {name!r} has one level only, {levels[0]!r}: leave it out of the random effects"
            )
    _, spec = matrix_of(part.effects, spec, symbols, frame, {}, "random effects")
    coded = Coded(part.effects, spec, symbols, levels_of(frame))
    return Effects(part, coded, tuple(symbols.plain(str(name)) for name in spec.column_names))


def random_terms(effects: Sequence[Effects], frame: pd.DataFrame) -> tuple[RandomTerm, ...]:
    """One term per grouping factor, with the effects of all its brackets.

    Args:
        effects: Those of every bracket.
        frame: The rows of the fit.

    Raises:
        FitError: If an effect varies by the same factor twice, or is 0 in all rows.
    """
    by_group: dict[tuple[str, ...], list[Effects]] = {}
    for one in effects:
        by_group.setdefault(one.part.group, []).append(one)
    return tuple(_term(group, members, frame) for group, members in by_group.items())


def _term(group: tuple[str, ...], effects: Sequence[Effects], frame: pd.DataFrame) -> RandomTerm:
    codes, levels = _levels(frame, group)
    names: list[str] = []
    columns: list[Array] = []
    free: list[tuple[int, int]] = []
    for one in effects:
        start = len(names)
        for name, column in zip(one.names, one.matrix(frame).T, strict=True):
            if name in names:
                raise FitError(f"{one.part}: {name} varies by {':'.join(group)} twice; write it in one bracket only")
            if not np.any(column):
                raise FitError(f"{one.part}: {name} is 0 in all rows")
            names.append(name)
            columns.append(column)
        own = range(start, len(names))
        free += [(i, j) for j in own for i in own if i >= j] if one.part.correlated else [(i, i) for i in own]
    values = np.column_stack(columns)
    scale = np.sqrt((values**2).mean(axis=0))
    return RandomTerm(tuple(group), tuple(names), codes, levels, values / scale, scale, tuple(free))


def _levels(frame: pd.DataFrame, group: Sequence[str]) -> tuple[NDArray[np.int64], tuple[Any, ...]]:
    """Codes and names of the combinations of columns that occur, in the order of their levels."""
    codes = np.zeros(len(frame), dtype=np.int64)
    names: list[Any] = [""]
    for name in group:
        column = frame[name]
        try:
            factor = column if isinstance(column.dtype, pd.CategoricalDtype) else pd.Series(pd.Categorical(column))
        except TypeError:
            raise FitError(f"the column {name!r} holds no names to group by: make it text, with astype(str)") from None
        own = list(factor.cat.categories)
        both = codes * len(own) + factor.cat.codes.to_numpy(dtype=np.int64)
        found, codes = np.unique(both, return_inverse=True)
        names = [(f"{names[v // len(own)]}:{own[v % len(own)]}" if names != [""] else own[v % len(own)]) for v in found]
    return codes.astype(np.int64), tuple(names)


def codes_of(group: Sequence[str], term: RandomTerm, frame: pd.DataFrame, rows: pd.DataFrame) -> NDArray[np.int64]:
    """The level of other rows, (n,): its place in the term, or -1 for one that the fit did not have.

    Args:
        group: Columns of the grouping factor.
        term: Its term.
        frame: The rows of the fit.
        rows: The other rows.

    Raises:
        FitError: If two levels of the fit read alike, as 3 and "3" do.
    """
    known = _as_text(frame, group).assign(code=term.codes).drop_duplicates()
    if known.duplicated(list(range(len(group)))).any():
        raise FitError(
            f"levels of {term.group} are numbers and the same numbers as text: make them all one or the other"
        )
    found = _as_text(rows, group).merge(known, on=list(range(len(group))), how="left")["code"]
    return found.fillna(-1).to_numpy(dtype=np.int64)


def _as_text(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The columns as text, numbered, so that a level is known again whether it is a number or its name: 3, 3.0, "3"."""

    def text(value: Any) -> str:
        whole = isinstance(value, float | np.floating) and float(value).is_integer()
        return str(int(value) if whole else value)

    return pd.DataFrame({place: frame[name].astype(object).map(text).to_numpy() for place, name in enumerate(names)})


def split(terms: tuple[RandomTerm, ...], parameters: Array) -> list[Array]:
    """The matrices `L` of all terms, of their parameters one after the other.

    Args:
        terms: The terms.
        parameters: Free entries of all of them, (d,).
    """
    factors, start = [], 0
    for term in terms:
        factors.append(term.factor(parameters[start : start + len(term.free)]))
        start += len(term.free)
    return factors


def diagonal_mask(terms: tuple[RandomTerm, ...]) -> NDArray[np.bool_]:
    """Which parameters are on the diagonal of their `L`."""
    return np.array([i == j for term in terms for i, j in term.free], dtype=bool)
