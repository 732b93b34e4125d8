"""What decoding is compared with: permuted values, and arbitrary values per type of scene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.decoding.crossval import permuted
from vlm_probe.stimuli.dataset import Item

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def permutations(items: Sequence[Item], groups: Ints, draws: int, rng: np.random.Generator) -> list[Ints]:
    """Orders of the items in which scenes have the values of others (`crossval.permuted`).

    Args:
        items: The items, whose roles and mirroring are kept together.
        groups: (n,) running number of each item's group.
        draws: How many orders.
        rng: Draws them.

    Returns:
        The orders, each (n,) indices of items.
    """
    cells = [(item.role, item.condition.mirrored) for item in items]
    return [permuted(groups, cells, rng) for _ in range(draws)]


def permuted_columns(values: npt.NDArray[np.generic], orders: Sequence[Ints]) -> npt.NDArray[np.generic]:
    """(n, orders) the values in these orders.

    Args:
        values: (n,) of the items.
        orders: Each (n,) indices of items.
    """
    return np.stack([values[order] for order in orders], axis=1) if orders else values[:, None][:, :0]


def arbitrary_columns(
    values: npt.NDArray[np.generic], types: npt.NDArray[np.str_], draws: int, rng: np.random.Generator
) -> npt.NDArray[np.generic]:
    """(n, draws) control tasks (Hewitt & Liang 2019): every type of scene has one value, drawn from the real values.

    A probe that does well on these has learnt an arbitrary table, so that only what it does better on the real values
    (its selectivity) speaks of what the states represent. Draws in which all types got the same value are drawn again.

    Args:
        values: (n,) of the items, from which the arbitrary ones are drawn.
        types: (n,) type of each item's scene.
        draws: How many tasks.
        rng: Draws them.
    """
    names, numbers = np.unique(types, return_inverse=True)
    columns: list[npt.NDArray[np.generic]] = []
    while len(columns) < draws and len(names) > 1:
        of_type = rng.choice(values, size=len(names))
        if len(set(of_type.tolist())) > 1:
            columns.append(of_type[numbers])
    return np.stack(columns, axis=1) if columns else values[:, None][:, :0]


def types_shared(types: npt.NDArray[np.str_], groups: npt.NDArray[np.int64]) -> float:
    """Share of the items whose type of scene comes in more than one group, so that it can be learnt and tested.

    Args:
        types: (n,) type of each item's scene.
        groups: (n,) running number of each item's group.
    """
    several = {kind for kind in set(types.tolist()) if len(set(groups[types == kind].tolist())) > 1}
    return float(np.mean([kind in several for kind in types.tolist()]))
