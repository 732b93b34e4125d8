"""From a formula and a table to numbers: a model and its data, ready to be fitted."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.expressions import Variable, as_factor, as_numbers, values_of
from vlm_probe.analysis.mixed_effects.formula import MixedFormula, parse
from vlm_probe.analysis.mixed_effects.model_matrix import DistinctRows, FixedMatrix, fixed_part
from vlm_probe.analysis.mixed_effects.response import FAMILIES, Family, checked_response, of_two_names
from vlm_probe.analysis.mixed_effects.terms import Effects, RandomTerm, effects_of, random_terms

Array = NDArray[Any]
Column = str | Sequence[float] | Array | pd.Series | None
"""A column's name, one value per row, or a Series, whose index says which value is of which row."""
SHOWN = 4
"""Values of a column that an error shows."""


@dataclass(frozen=True)
class Design:
    """A model and its data, ready to be fitted.

    Attributes:
        formula: The formula in its parts.
        family: Distribution of the response.
        frame: The rows that are used, with the columns of the formula, factors as categoricals.
        y: Responses, (n,); numbers of successes for the binomial family.
        trials: Numbers of trials, (n,); ones for other families.
        weights: Weights of rows, (n,).
        offset: Known part of the linear predictor, (n,).
        x: Fixed-effect design without aliased columns, (n, p).
        matrix: The fixed part, to be evaluated for other rows.
        effects: What varies within each random part, to be evaluated for other rows.
        terms: Random-effect terms, one per grouping factor.
        dropped: Reason -> number of rows left out for it.
        success: What a response of two names counts as success: its second level; "" for numbers.
        remarks: What a reader has to know about how columns were taken.
    """

    formula: MixedFormula
    family: Family
    frame: pd.DataFrame
    y: Array
    trials: Array
    weights: Array
    offset: Array
    x: Array
    matrix: FixedMatrix
    effects: tuple[Effects, ...]
    terms: tuple[RandomTerm, ...]
    dropped: dict[str, int]
    success: str = ""
    remarks: tuple[str, ...] = ()

    @cached_property
    def distinct(self) -> DistinctRows:
        """`x` by its different rows."""
        return DistinctRows.of(self.x)

    @property
    def n(self) -> int:
        """Number of rows used."""
        return len(self.y)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of `x`."""
        return tuple(name for name, kept in zip(self.matrix.names, self.matrix.kept, strict=True) if kept)

    @property
    def column_terms(self) -> tuple[tuple[str, ...], ...]:
        """Term of the formula that each column of `x` belongs to: `("method", "shift")`, () for the intercept."""
        return tuple(term for term, kept in zip(self.matrix.column_terms, self.matrix.kept, strict=True) if kept)


def build(
    formula: str,
    data: pd.DataFrame,
    *,
    family: str,
    contrasts: str | Mapping[str, Any] = "treatment",
    offset: Column = None,
    trials: Column = None,
    weights: Column = None,
) -> Design:
    """Evaluate a formula on a table.

    Rows with a missing or infinite value in any column that is used are left out and counted by reason.

    Args:
        formula: In lme4's notation (see `formula.parse`).
        data: One row per trial, or per cell of counts.
        family: "gaussian", "binomial" or "poisson".
        contrasts: One coding for all factors, or one per factor (see `model_matrix.coding`).
        offset, trials, weights: A column's name, one value per row, or a Series, which is aligned by its index.

    Raises:
        FitError: If the formula, the columns or the responses do not fit together.
    """
    if family not in FAMILIES:
        raise FitError(f"there is no family {family!r}: use one of {', '.join(FAMILIES)}")
    data = named(data)
    parsed = parse(formula, list(data.columns))
    symbols = parsed.symbols
    groups = sorted({name for part in parsed.random for name in part.group})
    used = list(dict.fromkeys([*(one.column for one in _predictors(parsed)), *groups]))
    others = symbols.columns(" ".join([*parsed.response, *parsed.offsets]))
    frame = taken(data, list(dict.fromkeys([*used, *others])))
    given = _given(parsed, data, frame, {"offset": offset, "trials": trials, "weights": weights})
    response, success = _response(parsed, frame, family)
    frame, remarks = _typed(parsed, frame[used])
    names = [symbols.plain(part) for part in parsed.response]
    keep, dropped = complete(
        {**dict(zip(names, response, strict=True)), **{name: frame[name] for name in used}, **given}
    )
    frame = _without_unused_levels(frame.loc[keep])
    given = {name: values[keep] for name, values in given.items()}
    n = len(frame)
    y, n_trials, row_weights = checked_response(
        FAMILIES[family],
        names[0],
        [values[keep] for values in response],
        given.get("trials"),
        given.get("weights", np.ones(n)),
    )
    matrix, x = fixed_part(parsed.fixed, symbols, frame, contrasts)
    effects = tuple(effects_of(part, symbols, frame) for part in parsed.random)
    return Design(
        formula=parsed,
        family=FAMILIES[family],
        frame=frame,
        y=y,
        trials=n_trials,
        weights=row_weights,
        offset=given.get("offset", np.zeros(n)),
        x=x,
        matrix=matrix,
        effects=effects,
        terms=random_terms(effects, frame),
        dropped=dropped,
        success=success,
        remarks=remarks,
    )


def _predictors(parsed: MixedFormula) -> list[Variable]:
    """The columns that fixed and random effects are made of."""
    parts = [parsed.fixed, *(part.effects for part in parsed.random)]
    return list(parsed.symbols.variables(" ".join(parts)).values())


def _given(
    parsed: MixedFormula, data: pd.DataFrame, frame: pd.DataFrame, arguments: Mapping[str, Column]
) -> dict[str, Array]:
    """Offset, trials and weights, (n,) each, as far as there are any."""
    found = {name: given_column(data, name, value) for name, value in arguments.items() if value is not None}
    if parsed.offsets:
        if "offset" in found:
            raise FitError("the offset is given twice: in the formula, and as offset=; leave one of them out")
        parts = (values_of(part, parsed.symbols, frame, "offset") for part in parsed.offsets)
        found["offset"] = sum(parts, np.zeros(len(frame)))
    return found


def _typed(parsed: MixedFormula, frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The columns with predictors as numbers and categoricals; and what a reader has to know about how they were taken."""
    frame, remarks = frame.copy(), []
    predictors = _predictors(parsed)
    for name in dict.fromkeys(one.column for one in predictors):
        if all(one.is_factor for one in predictors if one.column == name):
            frame[name] = as_factor(frame[name])
        else:
            frame[name], remark = as_predictor(frame[name], name)
            remarks += [remark] if remark else []
    return frame, tuple(remarks)


def _without_unused_levels(frame: pd.DataFrame) -> pd.DataFrame:
    factors = frame.select_dtypes("category")
    return frame.assign(**{str(name): own.cat.remove_unused_categories() for name, own in factors.items()})


def _response(parsed: MixedFormula, frame: pd.DataFrame, family: str) -> tuple[list[Array], str]:
    """The response, or successes and failures; and the name that counts as success, if it holds two names."""
    variables = parsed.symbols.variables(parsed.response[0])
    if family == "binomial" and list(variables) == list(parsed.response):
        values, success = of_two_names(frame[variables[parsed.response[0]].column])
        if values is not None:
            return [values], success
    return [values_of(part, parsed.symbols, frame, "response") for part in parsed.response], ""


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
    what = " and ".join(sorted(kinds)) if _holds_objects(values) else str(values.dtype)
    raise FitError(
        f"the column {name!r} is neither numbers nor names ({what}: {_some(values)}): make it one or the other, with pd.to_numeric or"
        " astype(str)"
    )


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
