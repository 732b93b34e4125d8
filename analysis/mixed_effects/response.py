"""What is predicted: responses, numbers of trials, weights and offsets of rows, from columns and expressions of columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.families import Family

Array = NDArray[Any]
Column = str | Sequence[float] | Array | pd.Series | None
"""A column's name, or one value per row."""


def given_column(frame: pd.DataFrame, name: str, value: Column) -> Array:
    """The values of an argument, (n,); one number is that of all rows.

    Args:
        frame: The data.
        name: What the argument is called, for errors.
        value: A column's name, one value per row, or one number.

    Raises:
        FitError: If there is no such column, or not one value per row.
    """
    if isinstance(value, str) and value not in frame.columns:
        raise FitError(f"{name}={value!r}: the data have no such column")
    values: Array = np.asarray(frame[value] if isinstance(value, str) else value, dtype=float)
    if values.ndim == 0:
        values = np.full(len(frame), float(values))
    if values.shape != (len(frame),):
        raise FitError(f"{name} has {values.size} values for {len(frame)} rows: give one per row")
    return values


def of_two_names(frame: pd.DataFrame, name: str) -> tuple[pd.DataFrame, str]:
    """The data with a response of two names as 0 and 1, and the name that is 1: the second, as in R.

    Args:
        frame: The data.
        name: Column of the response; one that does not hold two names is left as it is.
    """
    if name not in frame.columns:
        return frame, ""
    values = frame[name]
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = list(values.cat.remove_unused_categories().cat.categories)
    elif pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return frame, ""
    else:
        levels = sorted(values.dropna().unique(), key=str)
    if len(levels) != 2 or not all(isinstance(level, str) for level in levels):
        return frame, ""
    numbers = values.astype(object).map({levels[0]: 0.0, levels[1]: 1.0}).astype(float)
    return frame.assign(**{name: numbers}), levels[1]


def evaluate(frame: pd.DataFrame, expression: str, what: str = "response") -> Array:
    """The values (n,) of a response or an offset.

    Args:
        frame: The data.
        expression: A column, or an expression of columns.
        what: What the values are, for errors.

    Raises:
        FitError: If it cannot be evaluated, or is not numeric.
    """
    name = expression.strip("`")
    if name in frame.columns:
        values = frame[name]
        if isinstance(values.dtype, pd.CategoricalDtype) or not (
            pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)
        ):
            seen = ", ".join(repr(value) for value in list(pd.unique(values))[:4])
            try:
                return pd.to_numeric(values.astype(object)).to_numpy(dtype=float)
            except (TypeError, ValueError):
                fix = "make it 0 and 1, or True and False; two names will do for family='binomial'"
                raise FitError(
                    f"the {what} {name!r} is not numeric (it has {seen}): {fix if what == 'response' else 'make it numbers'}"
                ) from None
        return values.to_numpy(dtype=float, na_value=np.nan)
    try:
        # pandas knows log, exp and sqrt by their own names.
        evaluated = frame.eval(re.sub(r"\bnp\.", "", expression), engine="python")
    except Exception as error:
        raise FitError(f"{expression!r} cannot be evaluated ({error})") from error
    return np.broadcast_to(np.asarray(evaluated, dtype=float), (len(frame),)).copy()


def checked_response(
    family: Family, name: str, response: Sequence[Array], trials: Array | None, weights: Array
) -> tuple[Array, Array, Array]:
    """Responses (numbers of successes for the binomial family), numbers of trials, and weights of rows, (n,) each.

    Args:
        family: Distribution of the response.
        name: What the response is called, for errors.
        response: The response; or successes and failures.
        trials: Numbers of trials, if they were given.
        weights: Weights of rows; of proportions, their numbers of trials.

    Raises:
        FitError: If these are no responses of the family.
    """
    first = response[0]
    if np.any(weights <= 0):
        raise FitError("weights must be greater than 0: leave out the rows that are to count for nothing")
    if family.name != "binomial":
        if len(response) == 2 or trials is not None:
            raise FitError("successes, failures and trials belong to family='binomial'")
        if family.name == "poisson" and (np.any(first < 0) or np.any(first != np.round(first))):
            raise FitError(f"the response {name!r} of family='poisson' must be counts: 0, 1, 2, ...")
        if family.name == "poisson" and np.any(weights != 1):
            raise FitError("family='poisson' takes no weights: for exposure, give offset=log(exposure)")
        return first, np.ones_like(first), weights
    if len(response) == 2:
        if trials is not None:
            raise FitError("give either cbind(successes, failures), or trials=")
        trials = first + response[1]
    elif trials is not None:
        # Counts out of the trials, or proportions of them.
        first = first * trials if np.all(first <= 1) and np.any(trials > 1) and np.any(first % 1) else first
    else:
        # As in glm: a proportion and its weight are a proportion and its number of trials.
        trials, first = weights, first * weights
    successes = np.round(first)
    if np.any(np.abs(successes - first) > 1e-6 * np.maximum(trials, 1)) and np.all(trials == np.round(trials)):
        raise FitError(
            f"the response {name!r} of family='binomial' must be 0 and 1 (or True and False), cbind(successes,"
            " failures), or a proportion with trials="
        )
    first = successes if np.all(trials == np.round(trials)) else first
    if np.any(first < 0) or np.any(first > trials):
        raise FitError(f"the response {name!r} has values outside 0 and the number of trials")
    if np.any(trials <= 0):
        raise FitError(f"{int((trials <= 0).sum())} rows have no trials: leave them out")
    return first, trials, np.ones_like(first)
