"""Elimination of nested terms: where each level of the leading term lies within one level of the next, both stay block diagonal.

`(1 | item) + (1 | item:training)` beside runs is such a model. Eliminating the effects of `item:training` leaves the items
independent of each other given the runs, so that they are eliminated like a leading term of their own, and only the few
effects of the other terms are dense. Without this, a thousand items would be a dense matrix of a thousand rows.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.elimination import Factorisation, Layout, Pair, invert_blocks, product

Array = NDArray[Any]


class Nesting:
    """Where the effects of a nested leading term go: worked out once for a design.

    Args:
        layout: Of a design whose leading term is nested in the second one.
    """

    def __init__(self, layout: Layout) -> None:
        self.inner = Layout(layout.terms[1:], nest=False)
        self.parent = layout.leading_pairs[0].columns  # of each level of the leading term
        self.others = layout.leading_pairs[1:]
        self.start = int(layout.terms[1].size)  # of the other terms, within the rest
        second = layout.terms[1]
        count = layout.terms[0].q
        ones = np.ones(count)
        self.sum = scipy.sparse.csr_matrix((ones, (self.parent, np.arange(count))), shape=(second.q, count))
        # Of every pair of a leading level with one of another term, that of its parent, which occurs in the same rows.
        of_parent = [pair for pair in layout.pairs if pair.first == 1]
        self.places = [self._places(pair, mine, layout) for pair, mine in zip(self.others, of_parent, strict=True)]
        cells = [layout.places(pair) for pair in self.others]
        self.shape = (layout.terms[0].size, layout.rest - self.start)
        if cells:
            self.rows = np.concatenate([rows.ravel() for rows, _ in cells])
            self.columns = np.concatenate([columns.ravel() for _, columns in cells]) - layout.terms[0].size - self.start

    def _places(self, pair: Pair, mine: Pair, layout: Layout) -> NDArray[np.int64]:
        q = layout.terms[pair.second].q
        return np.searchsorted(mine.rows * q + mine.columns, self.parent[pair.rows] * q + pair.columns)

    def border(self, blocks: list[Array]) -> Any:
        """The blocks of the leading term with the other terms as one sparse matrix."""
        values = np.concatenate([block.ravel() for block in blocks])
        return scipy.sparse.csr_matrix((values, (self.rows, self.columns)), shape=self.shape)


class NestedFactorisation(Factorisation):
    """`H`, factorised in two steps: the leading term, then everything else with the second term leading.

    Args:
        layout: Where the blocks are; its `nesting` must be there.
        diagonal: Diagonal blocks (q, k, k) per term.
        pairs: Blocks (m, k_first, k_second) per pair of terms.
    """

    def __init__(self, layout: Layout, diagonal: list[Array], pairs: list[Array]) -> None:
        assert layout.nesting is not None
        self.layout, self._nesting = layout, layout.nesting
        self._lead = layout.terms[0].size
        self._inverse, self.log_determinant = invert_blocks(diagonal[0])
        leading = [block for pair, block in zip(layout.pairs, pairs, strict=True) if pair.first == 0]
        rest = [block for pair, block in zip(layout.pairs, pairs, strict=True) if pair.first > 0]
        self._eliminated = [
            product(self._inverse[pair.rows], block) for pair, block in zip(layout.leading_pairs, leading, strict=True)
        ]
        to_parent = leading[0].transpose(0, 2, 1)
        own = diagonal[1] - self._summed(product(to_parent, self._eliminated[0]))
        for number, (pair, places) in enumerate(zip(self._nesting.others, self._nesting.places, strict=True)):
            taken = product(to_parent[pair.rows], self._eliminated[1 + number])
            rest[number] = rest[number] - _added(taken, places, len(rest[number]))
        fill = None
        if self._nesting.others:
            self._border = self._nesting.border(self._eliminated[1:])  # D^-1 H_13
            fill = (self._nesting.border(leading[1:]).T @ self._border).toarray()
        self._inner = Factorisation(self._nesting.inner, [own, *diagonal[2:]], rest, fill)
        self.log_determinant += self._inner.log_determinant

    def _summed(self, blocks: Array) -> Array:
        """Sums over the levels within each parent, (q_second, a, b), of blocks (q, a, b)."""
        return np.asarray(self._nesting.sum @ blocks.reshape(len(blocks), -1)).reshape(-1, *blocks.shape[1:])

    def solve(self, right: Array) -> Array:
        """`H^-1 b`, for a vector (size,) or matrix (size, m)."""
        columns = right.reshape(len(right), -1)
        m = columns.shape[1]
        first, second = self.layout.terms[:2]
        start = self._nesting.start
        head, tail = columns[: self._lead].reshape(first.q, first.k, m), columns[self._lead :].copy()
        weights = self._eliminated[0]
        tail[:start] -= self._summed(np.matmul(weights.transpose(0, 2, 1), head)).reshape(start, m)
        if self._nesting.others:
            tail[start:] -= self._border.T @ columns[: self._lead]
        tail = self._inner.solve(tail)
        of_parent = tail[:start].reshape(second.q, second.k, m)[self._nesting.parent]
        solved = (np.matmul(self._inverse, head) - np.matmul(weights, of_parent)).reshape(self._lead, m)
        if self._nesting.others:
            solved -= self._border @ tail[start:]
        return np.concatenate([solved, tail]).reshape(right.shape)

    @cached_property
    def _minus_leading_inverse(self) -> list[Array]:
        nesting, weights = self._nesting, self._eliminated[0]
        parent = nesting.parent
        with_parent = product(weights, self._inner.inverse_diagonal[0][parent])
        found = []
        if nesting.others:
            between = self._inner.inverse_pairs
            across = self._border @ self._inner.rest_inverse
            for number, (pair, places) in enumerate(zip(nesting.others, nesting.places, strict=True)):
                inverse = between[number][places]
                back = product(self._eliminated[1 + number], inverse.transpose(0, 2, 1))
                with_parent = with_parent + _added(back, pair.rows, len(with_parent))
                rows, columns = self.layout.places(pair)
                direct = across[rows, columns - self._lead - nesting.start]
                found.append(product(weights[pair.rows], inverse) + direct)
        return [with_parent, *found]

    @property
    def _others_diagonal(self) -> list[Array]:
        return self._inner.inverse_diagonal

    @property
    def _others_pairs(self) -> list[Array]:
        return self._inner.inverse_pairs


def _added(blocks: Array, places: NDArray[np.int64], count: int) -> Array:
    """Sums of the blocks (m, a, b) with the same place, (count, a, b)."""
    total = np.empty((count, *blocks.shape[1:]))
    for i in range(blocks.shape[1]):
        for j in range(blocks.shape[2]):
            total[:, i, j] = np.bincount(places, blocks[:, i, j], count)
    return total
