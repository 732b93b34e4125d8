"""Which rows a model uses: those that have everything, with what is no number as factors; and what was left out, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.errors import FitError

Array = NDArray[Any]


def complete(columns: Mapping[str, Array | pd.Series]) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which rows have a finite value everywhere.

    Args:
        columns: Name -> values (n,) of everything that is used.

    Returns:
        Whether each row is complete, (n,); and reason -> number of rows left out for it, each for its first.

    Raises:
        FitError: If no row is.
    """
    keep = np.ones(len(next(iter(columns.values()))), bool)
    dropped: dict[str, int] = {}
    for name, values in columns.items():
        missing = np.asarray(pd.isna(values))
        numeric = isinstance(values, np.ndarray) or pd.api.types.is_float_dtype(values)
        infinite = np.isinf(np.asarray(values, dtype=float)) if numeric else np.zeros(len(keep), bool)
        for bad, reason in ((missing, f"{name} is missing"), (infinite, f"{name} is infinite")):
            if count := int((bad & keep).sum()):
                dropped[reason] = count
                keep &= ~bad
    if not keep.any():
        reasons = ", ".join(f"{reason} ({count} rows)" for reason, count in dropped.items())
        raise FitError(f"no row has everything that the formula needs: {reasons}")
    return keep, dropped


def with_factors(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows, with those of the columns that are no numbers as categoricals of the levels that occur, in their order.

    Args:
        frame: The rows.
        names: Columns that are looked at; others stay as they are.
    """
    frame = frame.copy()
    for name in names:
        values = frame[name]
        if isinstance(values.dtype, pd.CategoricalDtype):
            frame[name] = values.cat.remove_unused_categories()
        elif pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
            frame[name] = pd.Categorical(values)
        else:
            frame[name] = values.astype(float)
    return frame


def factors_of(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Levels of those of the columns that are factors, by name."""
    return {
        name: tuple(frame[name].cat.categories) for name in names if isinstance(frame[name].dtype, pd.CategoricalDtype)
    }
