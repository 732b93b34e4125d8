"""The linear algebra of random effects: sparse, and by blocks.

Everything is about `H = L' Z'WZ L + I`, (size, size), where `L` is block diagonal with one small matrix per term. The
term with the most effects is eliminated first: within a term, levels do not share rows, so that its part of `H` is
block diagonal and costs next to nothing. What it leaves on the other terms (the Schur complement) is dense for crossed
factors, and is factorised as such; for nested ones see `nesting`. Of the inverse, only those blocks are ever computed
that pairs of levels have which occur together in a row (Takahashi et al., 1973).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.model_matrix import DistinctRows
from vlm_probe.analysis.mixed_effects.terms import RandomTerm

Array = NDArray[Any]

CHUNK = 2**22
"""Numbers that are worked on at once where all of them would need too much memory."""
SPARSE_BELOW = 0.08
"""Share of nonzeros below which a block of `H` is kept sparse: there, fewer products win over faster ones."""

SPARSE_PATTERNS_BELOW = 0.5
"""The same where levels come in few patterns, so that products of their blocks are as fast as those of whole matrices."""
PATTERN_FROM = 8
"""Levels of the leading term that occur with the same other effects, from which they are worked on as one matrix."""

NESTED_FROM = 64
"""Effects of a term from which it pays not to treat those of the terms nested in it as crossed with it."""


@dataclass(frozen=True)
class Pair:
    """Which levels of two terms occur together.

    Attributes:
        first, second: Places of the terms.
        rows, columns: Levels of the first and of the second, `(m,)` each, in rising order of (row, column).
        index: Pair of each row of the data, `(n,)` in 0..m-1.
    """

    first: int
    second: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    index: NDArray[np.int64]


@dataclass(frozen=True)
class Bundle:
    """Levels of the leading term that occur together with the same number `c` of other effects.

    Attributes:
        entries: Places of their blocks among the nonzeros, (m, k, c).
        columns: Those other effects, (m, c).
        rest: Number of all other effects.
    """

    entries: NDArray[np.int64]
    columns: NDArray[np.int64]
    rest: int

    def squares(self) -> NDArray[np.int64]:
        """Flat places of the pairs of those effects in the part of `H` of all other terms, (m, c, c)."""
        return self.columns[:, :, None] * self.rest + self.columns[:, None, :]


@dataclass(frozen=True)
class Pattern:
    """Levels of the leading term that occur together with the same `c` other effects, as items of a test do with its runs.

    Attributes:
        entries: Places of their blocks among the nonzeros, (m k, c).
        columns: Those other effects, (c,).
    """

    entries: NDArray[np.int64]
    columns: NDArray[np.int64]


class Layout:
    """Where the blocks of `H` are: worked out once for a design, and used for every factorisation.

    Args:
        terms: Random-effect terms.
        nest: Whether to look for a nested leading term.
    """

    def __init__(self, terms: Sequence[RandomTerm], nest: bool = True) -> None:
        self.terms = tuple(sorted(terms, key=lambda term: -term.size))
        self.offsets = np.cumsum([0, *(term.size for term in self.terms)])
        self.size = int(self.offsets[-1])
        self.pairs = tuple(self._pair(a, b) for a, b in combinations(range(len(self.terms)), 2))
        leading = self.terms[0].size
        self.rest = self.size - leading
        entries = sum(len(pair.rows) * self.terms[0].k * self.terms[pair.second].k for pair in self.leading_pairs)
        share = entries / max(leading * self.rest, 1)
        self.sparse = self.rest > 0 and share < SPARSE_BELOW
        self.patterns: list[Pattern] = []
        self.bundles: list[Bundle] = []
        # Nested: each level of the leading term occurs with one of the second, so that the second stays block diagonal too.
        if (
            nest
            and len(self.terms) > 1
            and len(self.pairs[0].rows) == self.terms[0].q
            and self.terms[1].size >= NESTED_FROM
        ):
            self.nesting: Nesting | None = Nesting(self)
        else:
            self.nesting = None
            if self.sparse or 0 < share < SPARSE_PATTERNS_BELOW:
                self._prepare_sparse()
                # Levels without a pattern of their own are slow to work on one by one where they have many entries.
                self.sparse = self.sparse or not self.bundles

    @cached_property
    def leading_pairs(self) -> list[Pair]:
        """The pairs of the leading term with each of the others."""
        return [pair for pair in self.pairs if pair.first == 0]

    def _pair(self, first: int, second: int) -> Pair:
        a, b = self.terms[first], self.terms[second]
        both, index = np.unique(a.codes * b.q + b.codes, return_inverse=True)
        return Pair(first, second, both // b.q, both % b.q, index)

    def _prepare_sparse(self) -> None:
        """Where the blocks of the leading term with the others go, as one matrix in compressed rows."""
        places = [self.places(pair) for pair in self.leading_pairs]
        row = np.concatenate([rows.ravel() for rows, _ in places])
        column = np.concatenate([columns.ravel() - self.offsets[1] for _, columns in places])
        self.csr_order = np.lexsort((column, row))
        self.csr_columns = column[self.csr_order]
        self.csr_starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=self.terms[0].size))])
        k = self.terms[0].k
        lengths = np.diff(self.csr_starts)[::k]
        self.patterns, alone = self._find_patterns(lengths)
        # Other levels of the leading term are worked on together with those that have as many entries.
        for c in np.unique(lengths[alone]):
            levels = alone[lengths[alone] == c]
            for some in np.array_split(levels, -(-len(levels) * int(c) ** 2 // CHUNK)):
                entries = self._entries(some, int(c))
                self.bundles.append(Bundle(entries, self.csr_columns[entries[:, 0]], self.rest))

    def _entries(self, levels: NDArray[np.int64], c: int) -> NDArray[np.int64]:
        """Places of the blocks of some leading levels among the nonzeros, (m, k, c)."""
        k = self.terms[0].k
        return np.asarray(self.csr_starts[levels[:, None] * k + np.arange(k)][:, :, None] + np.arange(c))

    def _find_patterns(self, lengths: NDArray[np.int64]) -> tuple[list[Pattern], NDArray[np.int64]]:
        """Levels of the leading term by the other effects that they occur with; and those levels that share them with few."""
        k = self.terms[0].k
        level = np.repeat(np.arange(len(lengths)), lengths)
        first_rows = np.concatenate(
            [np.arange(s, e) for s, e in zip(self.csr_starts[:-1:k], self.csr_starts[1::k], strict=True)]
        )
        # Sums of random numbers tell sets apart; whether sets are equal is then looked at, not believed.
        marks = np.bincount(
            level, np.random.default_rng(0).random(self.rest)[self.csr_columns[first_rows]], len(lengths)
        )
        _, group, sizes = np.unique(marks, return_inverse=True, return_counts=True)
        patterns, alone = [], [np.flatnonzero((sizes[group] < PATTERN_FROM) & (lengths > 0))]
        for number in np.flatnonzero(sizes >= PATTERN_FROM):
            levels = np.flatnonzero(group == number)
            c = int(lengths[levels[0]])
            entries = self._entries(levels, c) if (lengths[levels] == c).all() else np.zeros((0, k, 0), dtype=np.int64)
            columns = self.csr_columns[entries[:, 0]]
            if c and len(entries) and (columns == columns[0]).all():
                patterns.append(Pattern(entries.reshape(-1, c), columns[0]))
            elif c:
                alone.append(levels)
        return patterns, np.sort(np.concatenate(alone))

    def places(self, pair: Pair) -> tuple[Array, Array]:
        """Row and column in `H` of every entry of a pair's blocks, `(m, k_first, k_second)` each."""
        return self._places[pair.first, pair.second]

    @cached_property
    def _places(self) -> dict[tuple[int, int], tuple[Array, Array]]:
        return {(pair.first, pair.second): self._places_of(pair) for pair in self.pairs}

    def _places_of(self, pair: Pair) -> tuple[Array, Array]:
        a, b = self.terms[pair.first], self.terms[pair.second]
        rows = self.offsets[pair.first] + pair.rows[:, None, None] * a.k + np.arange(a.k)[:, None]
        columns = self.offsets[pair.second] + pair.columns[:, None, None] * b.k + np.arange(b.k)
        rows, columns = np.broadcast_arrays(rows, columns)
        return rows, columns

    def parts(self, vector: Array) -> list[Array]:
        """A vector (size,) or matrix (size, m) of effects as one view (q, k) or (q, k, m) per term."""
        return [
            vector[start:end].reshape(term.q, term.k, *vector.shape[1:])
            for term, start, end in zip(self.terms, self.offsets[:-1], self.offsets[1:], strict=True)
        ]

    def crossproducts(self, weights: Array | None = None) -> CrossProducts:
        """`Z'WZ`, by blocks, for weights (n,)."""
        n = len(self.terms[0].codes)
        weights = np.ones(n) if weights is None else weights
        diagonal = [_blocks(term, term, term.codes, term.q, weights) for term in self.terms]
        pairs = [
            _blocks(self.terms[pair.first], self.terms[pair.second], pair.index, len(pair.rows), weights)
            for pair in self.pairs
        ]
        return CrossProducts(self, diagonal, pairs)

    def project(self, vector: Array) -> Array:
        """`Z'v`, (size,), for a vector (n,)."""
        return np.concatenate([term.transposed_product(vector).ravel() for term in self.terms])

    def project_rows(self, matrix: DistinctRows, weights: Array) -> Array:
        """`Z'W X`, (size, p), for a matrix (n, p) and weights (n,)."""
        if matrix.is_plain:
            return np.column_stack([self.project(weights * column) for column in matrix.rows.T])
        m, found = len(matrix.rows), []
        for term in self.terms:
            places = term.codes * m + matrix.index
            columns = [
                np.bincount(places, weights if term.constant(a) else weights * term.values[:, a], term.q * m).reshape(
                    term.q, m
                )
                for a in range(term.k)
            ]
            found.append((np.stack(columns, axis=1).reshape(term.size, m)) @ matrix.rows)
        return np.vstack(found)

    def expand(self, effects: Array) -> Array:
        """`Z b`, (n,), for effects (size,)."""
        parts = [term.product(part) for term, part in zip(self.terms, self.parts(effects), strict=True)]
        return sum(parts[1:], parts[0])

    def scale(self, factors: Sequence[Array], vector: Array, *, transpose: bool = False) -> Array:
        """`L v`, or `L'v`, for a vector (size,) or matrix (size, m)."""
        scaled = [
            np.einsum("ba,qb...->qa..." if transpose else "ab,qb...->qa...", factor, part).reshape(
                -1, *vector.shape[1:]
            )
            for factor, part in zip(factors, self.parts(vector), strict=True)
        ]
        return np.concatenate(scaled)


def _blocks(a: RandomTerm, b: RandomTerm, index: Array, count: int, weights: Array) -> Array:
    """Sums of `w z_a z_b'` over the rows of each pair of levels, (count, k_a, k_b)."""
    blocks = np.empty((count, a.k, b.k))
    for i in range(a.k):
        left = weights if a.constant(i) else weights * a.values[:, i]
        for j in range(b.k):
            if a is b and j < i:
                blocks[:, i, j] = blocks[:, j, i]
            else:
                product = left if b.constant(j) else left * b.values[:, j]
                blocks[:, i, j] = np.bincount(index, product, count)
    return blocks


@dataclass(frozen=True)
class CrossProducts:
    """`Z'WZ` by blocks.

    Attributes:
        layout: Where the blocks are.
        diagonal: Diagonal blocks (q, k, k) per term.
        pairs: Blocks (m, k_first, k_second) per pair of terms.
    """

    layout: Layout
    diagonal: list[Array]
    pairs: list[Array]

    def factorise(self, factors: Sequence[Array]) -> Factorisation:
        """The factorisation of `H = L' Z'WZ L + I` for one small matrix `L` (k, k) per term."""
        diagonal = [
            sandwich(factor.T, block, factor) + np.eye(len(factor))
            for factor, block in zip(factors, self.diagonal, strict=True)
        ]
        pairs = [
            sandwich(factors[pair.first].T, block, factors[pair.second])
            for pair, block in zip(self.layout.pairs, self.pairs, strict=True)
        ]
        if self.layout.nesting is not None:
            return NestedFactorisation(self.layout, diagonal, pairs)
        return Factorisation(self.layout, diagonal, pairs)

    @cached_property
    def matrix(self) -> Any:
        """`Z'WZ` as one sparse matrix (size, size)."""
        layout = self.layout
        entries = []
        for a, block in enumerate(self.diagonal):
            own = layout.offsets[a] + np.arange(layout.terms[a].size).reshape(block.shape[:2])
            entries.append((block, *np.broadcast_arrays(own[:, :, None], own[:, None, :])))
        for pair, block in zip(layout.pairs, self.pairs, strict=True):
            rows, columns = layout.places(pair)
            entries += [(block, rows, columns), (block, columns, rows)]
        values, row, column = (np.concatenate([entry[i].ravel() for entry in entries]) for i in range(3))
        return scipy.sparse.csr_matrix((values, (row, column)), shape=(layout.size, layout.size))


class Factorisation:
    """`H`, factorised: its log-determinant, solutions, and the blocks of its inverse that are needed.

    Args:
        layout: Where the blocks are.
        diagonal: Diagonal blocks (q, k, k) per term.
        pairs: Blocks (m, k_first, k_second) per pair of terms.
        fill: What an elimination before this one takes off the part of all terms but the leading one, (rest, rest).
    """

    def __init__(self, layout: Layout, diagonal: list[Array], pairs: list[Array], fill: Array | None = None) -> None:
        self.layout = layout
        self._lead = layout.terms[0].size
        self._inverse, self.log_determinant = invert_blocks(diagonal[0])
        if not layout.rest:
            return
        leading = [block for pair, block in zip(layout.pairs, pairs, strict=True) if pair.first == 0]
        self._eliminated = [
            product(self._inverse[pair.rows], block) for pair, block in zip(layout.leading_pairs, leading, strict=True)
        ]
        self._weights = self._assemble(self._eliminated)  # D^-1 H_12
        schur = self._rest(diagonal, pairs)
        if fill is not None:
            schur -= fill
        self._subtract(schur, self._assemble(leading))
        self._cholesky = scipy.linalg.cholesky(schur, lower=True, overwrite_a=True, check_finite=False)
        self.log_determinant += 2 * float(np.log(np.diag(self._cholesky)).sum())

    def _subtract(self, schur: Array, leading: Any) -> None:
        """Take `H_21 D^-1 H_12` off the part of the other terms."""
        if not self.layout.sparse:
            schur -= leading.T @ self._weights
            return
        for pattern in self.layout.patterns:
            left, right = leading.data[pattern.entries], self._weights.data[pattern.entries]
            schur[np.ix_(pattern.columns, pattern.columns)] -= left.T @ right
        flat = schur.ravel()
        places: list[Array] = []
        values: list[Array] = []
        waiting = 0
        for last, bundle in enumerate(self.layout.bundles, 1 - len(self.layout.bundles)):
            left, right = leading.data[bundle.entries], self._weights.data[bundle.entries]
            values.append(product(left.transpose(0, 2, 1), right).ravel())
            places.append(bundle.squares().ravel())
            waiting += len(values[-1])
            if waiting > CHUNK or last == 0:
                flat -= np.bincount(np.concatenate(places), np.concatenate(values), len(flat))
                places, values, waiting = [], [], 0

    def _assemble(self, blocks: list[Array]) -> Any:
        """The blocks of the leading term with the rest as one matrix, sparse or dense."""
        layout = self.layout
        if layout.sparse:
            data = np.concatenate([block.ravel() for block in blocks])[layout.csr_order]
            shape = (self._lead, layout.rest)
            return scipy.sparse.csr_matrix((data, layout.csr_columns, layout.csr_starts), shape=shape)
        matrix = np.zeros((self._lead, layout.rest))
        for pair, block in zip(layout.leading_pairs, blocks, strict=True):
            rows, columns = layout.places(pair)
            matrix[rows, columns - self._lead] = block
        return matrix

    def _rest(self, diagonal: list[Array], pairs: list[Array]) -> Array:
        """The part of `H` of all terms but the leading one, dense; its upper triangle may be empty."""
        layout = self.layout
        matrix = np.zeros((layout.rest, layout.rest))
        for a in range(1, len(layout.terms)):
            rows, columns = self._own_places(a)
            matrix[rows, columns] = diagonal[a]
        for pair, block in zip(layout.pairs, pairs, strict=True):
            if pair.first > 0:
                rows, columns = layout.places(pair)
                matrix[columns - self._lead, rows - self._lead] = block
        return matrix

    def _own_places(self, a: int) -> tuple[Array, Array]:
        """Row and column, within the rest, of the diagonal blocks of a term, (q, k, k) each."""
        term, start = self.layout.terms[a], self.layout.offsets[a] - self._lead
        own = start + np.arange(term.size).reshape(term.q, term.k)
        return np.broadcast_arrays(own[:, :, None], own[:, None, :])  # type: ignore[return-value]

    def solve(self, right: Array) -> Array:
        """`H^-1 b`, for a vector (size,) or matrix (size, m)."""
        columns = right.reshape(len(right), -1)
        head, tail = columns[: self._lead], columns[self._lead :]
        q, k = self.layout.terms[0].q, self.layout.terms[0].k
        solved = np.matmul(self._inverse, head.reshape(q, k, -1)).reshape(self._lead, -1)
        if self.layout.rest:
            tail = scipy.linalg.cho_solve((self._cholesky, True), tail - self._weights.T @ head, check_finite=False)
            solved = np.concatenate([solved - self._weights @ tail, tail])
        return solved.reshape(right.shape)

    @cached_property
    def rest_inverse(self) -> Array:
        """The part of `H^-1` of all terms but the leading one, (rest, rest)."""
        (inverse, info) = scipy.linalg.lapack.dpotri(self._cholesky, lower=True)
        assert info == 0
        return np.tril(inverse) + np.tril(inverse, -1).T

    @cached_property
    def _minus_leading_inverse(self) -> list[Array]:
        """Blocks of `-H^-1` of the leading term with each other term, at the levels that occur together."""
        layout, inverse = self.layout, self.rest_inverse
        if layout.sparse:
            found = np.empty_like(self._weights.data)
            for pattern in layout.patterns:
                squares = inverse[np.ix_(pattern.columns, pattern.columns)]
                found[pattern.entries] = self._weights.data[pattern.entries] @ squares
            for bundle in layout.bundles:
                squares = np.take(inverse.ravel(), bundle.squares())
                found[bundle.entries] = np.matmul(self._weights.data[bundle.entries], squares)
            blocks = np.empty_like(found)
            blocks[layout.csr_order] = found
            ends = np.cumsum([block.size for block in self._eliminated])
            parts = np.split(blocks, ends[:-1])
            return [part.reshape(block.shape) for part, block in zip(parts, self._eliminated, strict=True)]
        whole = self._weights @ inverse
        places = [layout.places(pair) for pair in layout.leading_pairs]
        return [whole[rows, columns - self._lead] for rows, columns in places]

    @cached_property
    def inverse_diagonal(self) -> list[Array]:
        """Diagonal blocks of `H^-1`, (q, k, k) per term."""
        if not self.layout.rest:
            return [self._inverse]
        term = self.layout.terms[0]
        leading = self._inverse.copy()
        for pair, block, eliminated in zip(
            self.layout.leading_pairs, self._minus_leading_inverse, self._eliminated, strict=True
        ):
            own = product(block, eliminated.transpose(0, 2, 1))
            for i in range(term.k):
                for j in range(term.k):
                    leading[:, i, j] += np.bincount(pair.rows, own[:, i, j], term.q)
        return [leading, *self._others_diagonal]

    @property
    def _others_diagonal(self) -> list[Array]:
        """Diagonal blocks of `H^-1` of all terms but the leading one."""
        return [self.rest_inverse[self._own_places(a)] for a in range(1, len(self.layout.terms))]

    @property
    def _others_pairs(self) -> list[Array]:
        """Blocks of `H^-1` of the pairs without the leading term."""
        places = [self.layout.places(pair) for pair in self.layout.pairs if pair.first > 0]
        return [self.rest_inverse[rows - self._lead, columns - self._lead] for rows, columns in places]

    @cached_property
    def inverse_pairs(self) -> list[Array]:
        """Blocks of `H^-1` of every pair of levels that occur together, (m, k_first, k_second) per pair of terms."""
        if not self.layout.rest:
            return []
        # Pairs come in the order of their first term, so that those with the leading one come first.
        return [*(-block for block in self._minus_leading_inverse), *self._others_pairs]

    def leverages(self, factors: Sequence[Array]) -> Array:
        """`z_i' L H^-1 L' z_i` for every row of the data, (n,)."""
        layout = self.layout
        total = np.zeros(len(layout.terms[0].codes))
        for term, factor, block in zip(layout.terms, factors, self.inverse_diagonal, strict=True):
            _add_forms(total, term, term, sandwich(factor, block, factor.T), term.codes, 1.0)
        for pair, block in zip(layout.pairs, self.inverse_pairs, strict=True):
            a, b = layout.terms[pair.first], layout.terms[pair.second]
            _add_forms(total, a, b, sandwich(factors[pair.first], block, factors[pair.second].T), pair.index, 2.0)
        return total


def _add_forms(total: Array, a: RandomTerm, b: RandomTerm, blocks: Array, index: Array, times: float) -> None:
    """Add `times * z_a' M z_b` of every row, with the block `M` of its pair of levels."""
    for i in range(a.k):
        for j in range(b.k):
            form = (times * blocks[:, i, j])[index]
            if not a.constant(i):
                form *= a.values[:, i]
            if not b.constant(j):
                form *= b.values[:, j]
            total += form


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
            rows = np.concatenate([rows.ravel() for rows, _ in cells])
            columns = np.concatenate([columns.ravel() for _, columns in cells]) - layout.terms[0].size - self.start
            self.order = np.lexsort((columns, rows))
            self.columns = columns[self.order]
            self.starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=self.shape[0]))])

    def _places(self, pair: Pair, mine: Pair, layout: Layout) -> NDArray[np.int64]:
        q = layout.terms[pair.second].q
        return np.searchsorted(mine.rows * q + mine.columns, self.parent[pair.rows] * q + pair.columns)

    def border(self, blocks: list[Array]) -> Any:
        """The blocks of the leading term with the other terms as one sparse matrix."""
        values = np.concatenate([block.ravel() for block in blocks])[self.order]
        return scipy.sparse.csr_matrix((values, self.columns, self.starts), shape=self.shape)


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


def product(left: Array, right: Array) -> Array:
    """Products of many small matrices, (m, a, b) and (m, b, c): numpy's own is slow where b is 1."""
    return left * right if right.shape[1] == 1 else np.matmul(left, right)


def sandwich(left: Array, blocks: Array, right: Array) -> Array:
    """`left @ block @ right` for every block (m, a, b)."""
    if blocks.shape[1] == blocks.shape[2] == 1:
        return blocks * (left[0, 0] * right[0, 0])
    return left @ blocks @ right


def invert_blocks(blocks: Array) -> tuple[Array, float]:
    """Inverses of small positive definite matrices (q, k, k), and the sum of their log-determinants."""
    if blocks.shape[1] == 1:
        return 1 / blocks, float(np.log(blocks).sum())
    diagonal = np.einsum("qaa->qa", np.linalg.cholesky(blocks))
    return np.linalg.inv(blocks), 2 * float(np.log(diagonal).sum())
