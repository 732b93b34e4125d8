"""Bins of margins that were measured and not designed: as many items in each, on either side of the boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.dataset import Item

BINS = 3
"""On each side of the boundary, as designed sets have."""


def with_bins(items: Sequence[Item]) -> list[Item]:
    """Items with the bin of their margin in their condition, so that success can be counted over the margin.

    Bins are those of the absolute margin, the same on both sides; none straddles the boundary. Items whose margin is 0, which
    may as well be one that nobody stated, have no bin.

    Args:
        items: Of one set.
    """
    sizes = np.array([abs(item.margin) for item in items if item.margin])
    if not len(sizes):
        return list(items)
    edges = np.unique([float(f"{edge:.3g}") for edge in np.quantile(sizes, np.linspace(0, 1, BINS + 1))])
    if len(edges) == 1:
        edges = np.array([0.0, edges[0]])
    return [_with_bin(item, edges) if item.margin else item for item in items]


def _with_bin(item: Item, edges: npt.NDArray[np.float64]) -> Item:
    # Rounding may leave the smallest and the largest just outside.
    place = int(np.clip(np.searchsorted(edges, abs(item.margin), side="right"), 1, len(edges) - 1))
    low, high = float(edges[place - 1]), float(edges[place])
    margin_bin = (low, high) if item.margin > 0 else (-high, -low)
    return replace(item, condition=replace(item.condition, margin_bin=margin_bin))
