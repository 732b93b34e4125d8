"""The columns of a table as a model takes them: numbers, factors, values that are given apart; and the rows that have everything."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.errors import FitError

Array = NDArray[Any]
Column = str | Sequence[float] | Array | pd.Series | None
"""A column's name, one value per row, or a Series, whose index says which value is of which row."""
SHOWN = 4
"""Values of a column that an error shows."""


def named(data: Any) -> pd.DataFrame:
    """The table with text as names of columns, so that formulas can name them.

    Raises:
        FitError: If it is no table, or has no rows.
    """
    if not isinstance(data, pd.DataFrame):
        raise FitError(f"the data are a {type(data).__name__}: give a pandas DataFrame with one row per trial")
    if not len(data):
        raise FitError("the data have no rows")
    return data.set_axis([str(name) for name in data.columns], axis=1)


def taken(data: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Some of the columns, rows numbered.

    Raises:
        FitError: If there are two columns of one of these names.
    """
    for name in names:
        if (count := list(data.columns).count(name)) > 1:
            raise FitError(f"the data have {count} columns called {name!r}: rename or leave out all but one")
    return data[list(names)].reset_index(drop=True)


def as_numbers(values: pd.Series) -> Array | None:
    """The values (n,) as floats, what is missing as nan; None if they are no numbers. Decimals are numbers, text of numbers too."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_complex_dtype(values):
        return np.asarray(values.to_numpy(dtype=float, na_value=np.nan))
    if not (pd.api.types.is_object_dtype(values) or pd.api.types.is_string_dtype(values)):
        return None
    known = values.notna().to_numpy()
    found = np.full(len(values), np.nan)
    try:
        found[known] = [_float(value) for value in values[known]]
    except (TypeError, ValueError):
        return None
    return found


def _float(value: Any) -> float:
    if isinstance(value, str) and "_" in value:  # which Python would take for a separator of digits
        raise ValueError(value)
    return float(value)


def as_predictor(values: pd.Series, name: str) -> tuple[pd.Series, str]:
    """A column as floats or as a categorical, and what a reader has to know about it, or "".

    Args:
        values: Its values.
        name: Its name.

    Raises:
        FitError: If it is neither numbers nor names.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values, ""
    if pd.api.types.is_bool_dtype(values):
        return pd.Series(pd.Categorical(values), values.index), ""
    kinds = {_kind(value) for value in values.dropna()} if _holds_objects(values) else {"number"}
    found = as_numbers(values)
    if found is not None and kinds <= {"number"}:
        return pd.Series(found, values.index), ""
    if kinds in ({"text"}, {"truth"}):
        remark = ""
        if found is not None and kinds == {"text"}:
            remark = (
                f"{name} is text that reads as numbers, and is taken as a factor with {values.nunique():,} levels: make it numbers for a"
                " slope, with pd.to_numeric, or a pandas Categorical"
            )
        return pd.Series(pd.Categorical(values), values.index), remark
    what = " and ".join(sorted(kinds)) if found is None and _holds_objects(values) else str(values.dtype)
    raise FitError(
        f"the column {name!r} is neither numbers nor names ({what}: {_some(values)}): make it one or the other, with pd.to_numeric or"
        " astype(str)"
    )


def as_factor(values: pd.Series) -> pd.Series:
    """A column as a categorical, as `factor(x)` says; whole numbers have names without a decimal point, 3 and not 3.0."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    levels = sorted(values.dropna().unique().tolist())
    return pd.Series(pd.Categorical(values.astype(object), levels), values.index)


def _holds_objects(values: pd.Series) -> bool:
    return bool(pd.api.types.is_object_dtype(values) or pd.api.types.is_string_dtype(values))


def _kind(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "truth"
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, numbers.Number) and not isinstance(value, complex) else type(value).__name__


def _some(values: pd.Series) -> str:
    """The first few different values."""
    shown = (repr(value) if isinstance(value, str) else str(value) for value in values.iloc[:100])
    return ", ".join(list(dict.fromkeys(shown))[:SHOWN])


def given_column(data: pd.DataFrame, name: str, value: Column) -> Array:
    """The values of an argument, (n,); one number is that of all rows.

    Args:
        data: The table.
        name: What the argument is called, for errors.
        value: A column's name, one value per row, or one number. A Series belongs to the rows of its index.

    Raises:
        FitError: If there is no such column, not one value per row, or no telling which value belongs to which row.
    """
    if isinstance(value, str):
        if value not in data.columns:
            raise FitError(f"{name}={value!r}: the data have no such column")
        values: Any = taken(data, [value])[value]
    elif isinstance(value, pd.Series):
        values = _aligned(data, name, value)
    else:
        plain: Array = np.asarray(value)
        if plain.ndim > 1:
            raise FitError(f"{name} is a table: give one column of it")
        if plain.ndim and len(plain) != len(data):
            raise FitError(f"{name} has {len(plain)} values for {len(data)} rows: give one per row")
        values = pd.Series(np.broadcast_to(plain, len(data)))
    found = as_numbers(values)
    if found is None:
        raise FitError(f"{name} is not numeric (it has {_some(values)}): make it numbers")
    return found


def _aligned(data: pd.DataFrame, name: str, values: pd.Series) -> pd.Series:
    """A Series in the order of the rows, by its index."""
    if values.index.equals(data.index):
        return values
    for index, whose in ((values.index, f"the index of {name}"), (data.index, "the index of the data")):
        if not index.is_unique:
            raise FitError(
                f"{whose} has labels that repeat, so that values cannot be matched with rows: make {name} a column of the data, and give"
                " its name"
            )
    missing = data.index.difference(values.index, sort=False)
    if len(missing):
        labels = ", ".join(map(repr, missing[:3]))
        raise FitError(
            f"{name} has no value for {len(missing)} of {len(data)} rows by its index ({labels}{', ...' if len(missing) > 3 else ''}):"
            " make it a column of the data, and give its name"
        )
    return values.reindex(data.index)


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
