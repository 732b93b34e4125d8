"""Candidate replies as a tree of tokens: every distinct beginning once, in parts that go through a decoder together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = tuple[int, ...]
SPARE = 128
"""Nodes by which the trees of a batch may be filled up to one size: about what a pass of its own would cost."""


@dataclass(frozen=True)
class Tree:
    """The distinct beginnings of a set of candidates, parents before children.

    Attributes:
        tokens: Last token of each node.
        parents: Index of each node's parent; -1 for a first token.
        depths: Tokens before the last one.
        inner: Nodes that have children.
        leaves: Node at which each candidate ends.
    """

    tokens: npt.NDArray[np.int64]
    parents: npt.NDArray[np.int64]
    depths: npt.NDArray[np.int64]
    inner: npt.NDArray[np.int64]
    leaves: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Inner nodes of a tree that go through the decoder together, with all their ancestors.

    Attributes:
        tokens: Last token of each node (nodes,).
        depths: Tokens before it (nodes,).
        related: Which nodes each node sees: itself and its ancestors (nodes, nodes).
        children: Nodes of the tree whose token follows one of these (children,).
        sources: Place in this part of each child's parent (children,).
        words: Token of each child (children,).
    """

    tokens: npt.NDArray[np.int64]
    depths: npt.NDArray[np.int64]
    related: npt.NDArray[np.bool_]
    children: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]


_NONE = np.zeros(0, np.int64)
NOTHING = Part(_NONE, _NONE, np.zeros((0, 0), bool), _NONE, _NONE, _NONE)


def build_tree(candidates: Sequence[Tokens]) -> Tree:
    """The tree of the candidates, none of which may be empty."""
    nodes: dict[Tokens, int] = {}
    parents: list[int] = []
    for candidate in candidates:
        for end in range(1, len(candidate) + 1):
            if candidate[:end] not in nodes:
                parents.append(nodes[candidate[: end - 1]] if end > 1 else -1)
                nodes[candidate[:end]] = len(nodes)
    return Tree(
        tokens=np.array([beginning[-1] for beginning in nodes]),
        parents=np.array(parents),
        depths=np.array([len(beginning) - 1 for beginning in nodes]),
        inner=np.array(sorted({p for p in parents if p >= 0}), dtype=np.int64),
        leaves=np.array([nodes[candidate] for candidate in candidates]),
    )


def groups(trees: Sequence[Tree]) -> list[list[int]]:
    """Rows that go through the decoder together: smaller trees are filled up where that is cheaper than a pass."""
    rows_of: dict[int, list[int]] = {}
    for row, tree in enumerate(trees):
        rows_of.setdefault(id(tree), []).append(row)
    found: list[list[int]] = []
    waste = 0
    for rows in sorted(rows_of.values(), key=lambda rows: -len(trees[rows[0]].inner)):
        if found:
            waste += len(rows) * (len(trees[found[-1][0]].inner) - len(trees[rows[0]].inner))
            if waste <= SPARE:
                found[-1] += rows
                continue
        found.append(list(rows))
        waste = 0
    return [sorted(rows) for rows in found]


def part_of_tree(tree: Tree, nodes: Sequence[int]) -> Part:
    """The part of a tree that those nodes are, which come with all their ancestors.

    Args:
        tree: The tree.
        nodes: Of it, each after its parent.
    """
    place = {node: i for i, node in enumerate(nodes)}
    related = np.eye(len(nodes), dtype=bool)
    for i, node in enumerate(nodes):
        parent = int(tree.parents[node])
        if parent >= 0:
            related[i] |= related[place[parent]]
    children = np.flatnonzero(np.isin(tree.parents, nodes))
    return Part(
        tokens=tree.tokens[list(nodes)],
        depths=tree.depths[list(nodes)],
        related=related,
        children=children,
        sources=np.array([place[parent] for parent in tree.parents[children]]),
        words=tree.tokens[children],
    )


def divide(tree: Tree, limit: int) -> list[list[int]]:
    """The inner nodes, with all their ancestors, in groups of at most `limit` (or of one node and its ancestors).

    Args:
        tree: The tree.
        limit: Nodes of a group.
    """
    parts: list[list[int]] = []
    members: set[int] = set()
    for node in tree.inner.tolist():
        line = []
        while node >= 0 and node not in members:
            line.append(node)
            node = int(tree.parents[node])
        if parts and len(parts[-1]) + len(line) <= limit:
            parts[-1] += reversed(line)
            members.update(line)
            continue
        line = [line[0]]
        while (parent := int(tree.parents[line[-1]])) >= 0:
            line.append(parent)
        parts.append(list(reversed(line)))
        members = set(line)
    return parts


def stack(parts: Sequence[Part]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Tokens, depths and what sees what of several parts, the shorter ones filled up with node 0 that sees itself."""
    rows, width = len(parts), max(len(part.tokens) for part in parts)
    tokens, depths = np.zeros((rows, width), np.int64), np.zeros((rows, width), np.int64)
    related = np.broadcast_to(np.eye(width, dtype=bool), (rows, width, width)).copy()
    for row, part in enumerate(parts):
        n = len(part.tokens)
        tokens[row, :n], depths[row, :n], related[row, :n, :n] = part.tokens, part.depths, part.related
    return tokens, depths, related


def sums(tree: Tree, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The log-probability of every candidate, from those of its tokens.

    Args:
        tree: The tree.
        steps: (nodes,) log-probability of each node's token, given those before it.

    Returns:
        (candidates,).
    """
    totals = steps.copy()
    for depth in range(1, int(tree.depths.max()) + 1):
        nodes = np.flatnonzero(tree.depths == depth)
        totals[nodes] += totals[tree.parents[nodes]]
    return totals[tree.leaves]
