"""Random-effect terms: which level of a grouping factor a row belongs to, and what varies between the levels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class RandomTerm:
    """All random effects of one grouping factor.

    The covariance of a level's effects is `L @ L.T` (times the residual variance in a linear model) with a lower
    triangular `L` (k, k), of which the entries in `free` are parameters: all of them for correlated effects, the
    diagonal for uncorrelated ones.

    Attributes:
        group: Name of the grouping factor, `run` or `run:family`.
        names: Names of the effects, `(k,)`.
        codes: Level of each row, `(n,)` in 0..q-1.
        levels: Names of the levels, `(q,)`.
        values: Design of the effects, `(n, k)`, scaled by `scale`.
        scale: Root mean square of each column before scaling, `(k,)`: parameters of order one fit better.
        free: (row, column) of the free entries of `L`, columns first.
    """

    group: str
    names: tuple[str, ...]
    codes: NDArray[np.int64]
    levels: tuple[Any, ...]
    values: Array
    scale: Array
    free: tuple[tuple[int, int], ...]
    rows: Array = field(init=False, repr=False)
    columns: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", np.array([i for i, _ in self.free], dtype=int))
        object.__setattr__(self, "columns", np.array([j for _, j in self.free], dtype=int))

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
        factor[self.rows, self.columns] = parameters
        return factor

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

    def constant(self, column: int) -> bool:
        """Whether a column of the design is 1 throughout, as an intercept is."""
        return self.names[column] == "Intercept"


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
