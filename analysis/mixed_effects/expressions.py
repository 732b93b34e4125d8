"""The one evaluator of formulas: what their parts may call, and the matrix of a part for the rows of a fit and for others.

formulaic expands the parts and keeps the state of their transformations, so that other rows are coded as those of the fit were. It never
sees the names of columns: symbols stand for them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.errors import FitError

Array = NDArray[Any]

SYMBOL = re.compile("ǂ([ct][0-9]+)ǂ")
"""A letter that Python accepts in names, and that is in few data: nobody calls a level so."""
MARKUP = re.compile(r"[⧛⧚]|(?:\x1b|(?<=⧛))?\[[0-9;]*m")
"""What formulaic sets places in a formula off with, in a terminal."""
CONSTANTS = {
    **dict.fromkeys(("TRUE", "True", "T"), "True"),
    **dict.fromkeys(("FALSE", "False", "F"), "False"),
    **dict.fromkeys(("NULL", "None"), "None"),
    "pi": "np.pi",
}
"""Constants in the arguments of a call, as Python writes them."""
SPELLINGS = {"factor": "C", "as.factor": "C", "as.numeric": "as_numeric"}
"""Functions of R by the names that they have here."""
FORMULAIC = frozenset(["C", "I", "bs", "cc", "center", "cr", "cs", "exp", "log2", "log10", "scale", "standardize"])
"""Functions that formulaic brings."""
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(np, name)
        for name in ["sqrt", "abs", "sin", "cos", "tan", "log1p", "expm1", "floor", "sign", "tanh", "arcsin"]
    },
    "ceiling": np.ceil,
    "round": np.round,
    "ifelse": np.where,
    "log": lambda x, base=np.e: np.log(x) if base == np.e else np.log(x) / np.log(base),
    "pmin": np.minimum,
    "pmax": np.maximum,
}


@dataclass(frozen=True)
class Variable:
    """A column in a formula.

    Attributes:
        column: Its name.
        is_factor: Whether its numbers are names, as `factor(x)` says.
    """

    column: str
    is_factor: bool = False


class Symbols:
    """What the symbols of a formula stand for: columns, and texts in quotation marks."""

    def __init__(self) -> None:
        self._variables: dict[str, Variable] = {}
        self.texts: dict[str, str] = {}

    def of(self, variable: Variable) -> str:
        """The symbol of a column."""
        known = {other: symbol for symbol, other in self._variables.items()}
        return known.get(variable) or self._new(self._variables, "c", variable)

    def of_text(self, text: str) -> str:
        """A symbol of a text."""
        return self._new(self.texts, "t", text)

    @staticmethod
    def _new(known: dict[str, Any], kind: str, value: Any) -> str:
        symbol = f"ǂ{kind}{len(known)}ǂ"
        known[symbol] = value
        return symbol

    def variables(self, part: str) -> dict[str, Variable]:
        """The columns that a part of a formula takes, by symbol, in their order."""
        found = dict.fromkeys(match.group() for match in SYMBOL.finditer(part))
        return {symbol: self._variables[symbol] for symbol in found if symbol in self._variables}

    def columns(self, part: str) -> list[str]:
        """Names of the columns that a part takes."""
        return list(dict.fromkeys(variable.column for variable in self.variables(part).values()))

    def plain(self, text: str) -> str:
        """A text with the names of columns in place of symbols; a column called Intercept is told from the intercept."""

        def name(match: re.Match[str]) -> str:
            symbol = match.group()
            if symbol not in self._variables:  # a text, or part of the name of a level
                return repr(self.texts[symbol]) if symbol in self.texts else symbol
            column = self._variables[symbol].column
            return f"`{column}`" if column == "Intercept" else column

        return SYMBOL.sub(name, text.replace("as_numeric(", "as.numeric("))


def is_function(name: str) -> bool:
    """Whether formulas may call a function of this name (which works row by row, or keeps what it learnt of the rows of the fit)."""
    if name.startswith("np."):
        function = getattr(np, name[3:], None)
        return isinstance(function, np.ufunc) or name in ("np.where", "np.round", "np.clip")
    return name in FORMULAIC or name in ELEMENTWISE or name in ("ns", "poly", "c", "as_numeric", "offset", "cbind")


@cache
def context() -> dict[str, Any]:
    """What formulas may call next to formulaic's own functions."""
    from formulaic.transforms import C
    from formulaic.utils.stateful_transforms import stateful_transform

    def as_numeric(values: Any) -> Array:
        numbers = as_numbers(pd.Series(values))
        if numbers is None:
            raise ValueError("as.numeric() of what is no number")
        return numbers

    own = {"np": np, "c": lambda *values: list(values), "as_numeric": as_numeric, "_factor": C}
    return ELEMENTWISE | own | {"ns": stateful_transform(natural_spline), "poly": stateful_transform(polynomial)}


def polynomial(x: Any, degree: int = 1, raw: bool = False, _state: Any = None) -> Any:
    """Orthogonal polynomials as in R, or powers if `raw`; both numbered from 1.

    Args:
        x: Values, (n,).
        degree: The highest power.
        raw: Whether to take the powers themselves.
        _state: Where formulaic keeps the coefficients.
    """
    from formulaic.transforms import poly

    if not raw:
        return poly(x, degree, _state=_state)
    return _columns({power: np.asarray(x, dtype=float) ** power for power in range(1, degree + 1)})


def _columns(found: dict[int, Array]) -> Any:
    """Columns as formulaic takes them."""
    from formulaic.materializers.types import FactorValues

    return FactorValues(found, kind="numerical", column_names=tuple(found), format="{name}[{field}]", encoded=False)


def natural_spline(
    x: Any,
    df: int | None = None,
    knots: Any = None,
    include_intercept: bool = False,
    _state: Any = None,
) -> Any:
    """R's `splines::ns`: cubic B-splines whose second derivative is 0 at both ends, and straight beyond them.

    Args:
        x: Values, (n,).
        df: Number of columns; the knots between are then quantiles.
        knots: The knots between the smallest and the largest value.
        include_intercept: Whether the columns contain the constant.
        _state: Where formulaic keeps the knots.
    """
    from scipy.interpolate import BSpline

    values = np.asarray(x, dtype=float)
    if not _state:
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        if knots is None:
            count = max((df or 1) - 1 - include_intercept, 0)
            knots = np.nanquantile(values, np.linspace(0, 1, count + 2)[1:-1])
        _state["knots"] = np.concatenate([[low] * 4, np.sort(np.atleast_1d(knots)), [high] * 4])
    t = _state["knots"]
    low, high, first = t[0], t[-1], int(not include_intercept)
    basis = BSpline(t, np.eye(len(t) - 4), 3)
    inside = np.clip(values, low, high)
    columns = basis(inside) + (values - inside)[:, None] * np.where(
        (values < low)[:, None], basis.derivative()(low), basis.derivative()(high)
    )
    bends = basis.derivative(2)(np.array([low, high]))[:, first:]
    rotation, _ = np.linalg.qr(bends.T, mode="complete")
    natural = columns[:, first:] @ rotation[:, 2:]
    return _columns(dict(enumerate(natural.T, 1)))


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


def as_factor(values: pd.Series) -> pd.Series:
    """A column as a categorical, as `factor(x)` says; whole numbers have names without a decimal point, 3 and not 3.0."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    try:
        levels = values.dropna().unique().tolist()
        with suppress(TypeError):  # numbers and text, which have no order
            levels = sorted(levels)
        return pd.Series(pd.Categorical(values.astype(object), levels), values.index)
    except TypeError:
        raise FitError(f"the column {values.name!r} holds no names of levels: make it text, with astype(str)") from None


@dataclass(frozen=True)
class Coded:
    """One part of a formula, which makes the matrix of any rows.

    Attributes:
        part: The part, in symbols.
        spec: formulaic's model specification, with the state of its transformations: the knots of a spline, the mean of a scale.
        symbols: What the symbols stand for.
        levels: Levels of each factor, by symbol.
        codings: Codings of the factors, by the name under which the specification looks for them.
    """

    part: str
    spec: Any
    symbols: Symbols
    levels: Mapping[str, tuple[Any, ...]]
    codings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Variable]:
        """The columns that the part takes, by symbol."""
        return self.symbols.variables(self.part)

    @property
    def factors(self) -> dict[str, tuple[Any, ...]]:
        """Levels of each categorical predictor, by name."""
        return {self.variables[symbol].column: levels for symbol, levels in self.levels.items()}

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of the numeric predictors."""
        return tuple(one.column for symbol, one in self.variables.items() if symbol not in self.levels)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows must have."""
        return tuple(dict.fromkeys(one.column for one in self.variables.values()))

    def matrix(self, rows: pd.DataFrame) -> Array:
        """The matrix (n, columns) of these rows.

        Raises:
            FitError: If the rows have a level that the fit did not, or cannot be transformed as those of the fit were.
        """
        found = {}
        for symbol, variable in self.variables.items():
            values = rows[variable.column]
            if symbol not in self.levels:
                numbers = as_numbers(values)
                if numbers is None:
                    raise FitError(
                        f"{variable.column} is a number in the fitted data, and is none in these rows: convert it"
                    )
                found[symbol] = pd.Series(numbers)
                continue
            levels = self.levels[symbol]
            unknown = set(values.dropna().tolist()) - set(levels)
            if unknown:
                raise FitError(
                    f"{variable.column} has no level {sorted(map(repr, unknown))[0]} in the fitted data: it has {levels}"
                )
            found[symbol] = pd.Series(pd.Categorical(values, categories=list(levels)))
        frame = pd.DataFrame(found, index=pd.RangeIndex(len(rows)))
        return matrix_of(self.part, self.spec, self.symbols, frame, self.codings)[0]


def in_symbols(frame: pd.DataFrame, variables: Mapping[str, Variable]) -> pd.DataFrame:
    """The columns of a part by symbol, those that a formula calls factors as categoricals.

    Args:
        frame: Rows, with numbers and categoricals.
        variables: The columns, by symbol.
    """
    found = {
        symbol: as_factor(frame[one.column]) if one.is_factor else frame[one.column]
        for symbol, one in variables.items()
    }
    return pd.DataFrame(found, index=frame.index)


def levels_of(frame: pd.DataFrame) -> dict[str, tuple[Any, ...]]:
    """Levels of those of the columns that are categoricals."""
    own = frame.select_dtypes("category")
    return {str(name): tuple(values.cat.categories) for name, values in own.items()}


def matrix_of(
    part: str,
    spec: Any,
    symbols: Symbols,
    frame: pd.DataFrame,
    codings: Mapping[str, Any],
    what: str = "part",
) -> tuple[Array, Any]:
    """The matrix (n, columns) of a specification, and the specification with the state of its transformations.

    Args:
        part: The part of the formula, for errors.
        spec: formulaic's model specification.
        symbols: What the symbols stand for.
        frame: Rows with the predictors, by symbol.
        codings: As in `Coded`.
        what: What the part is, for errors.

    Raises:
        FitError: If it cannot be evaluated.
    """
    from formulaic.errors import DataMismatchWarning, FormulaicError

    try:
        with warnings.catch_warnings():
            # Levels that the fit did not have would count as the reference level.
            warnings.simplefilter("error", DataMismatchWarning)
            matrix = spec.get_model_matrix(frame, context=context() | symbols.texts | dict(codings))
    except (FormulaicError, DataMismatchWarning) as error:
        raise FitError(cannot_evaluate(f"the {what} {part!r}", symbols, error)) from error
    return np.asarray(matrix, dtype=float).reshape(len(frame), -1), matrix.model_spec


def cannot_evaluate(what: str, symbols: Symbols, error: Exception) -> str:
    """One line about what cannot be evaluated, with the names of columns."""
    reason = " ".join(MARKUP.sub("", str(error)).split())
    return symbols.plain(f"{what} cannot be evaluated ({reason}); compute it as a column of the data beforehand")


def values_of(expression: str, symbols: Symbols, frame: pd.DataFrame, what: str) -> Array:
    """The values (n,) of a response or an offset.

    Args:
        expression: A column, or an expression of columns, in symbols.
        symbols: What the symbols stand for.
        frame: The data, with the columns by name.
        what: "response" or "offset", for errors.

    Raises:
        FitError: If it cannot be evaluated, or is not numeric.
    """
    from formulaic.transforms import TRANSFORMS
    from formulaic.utils.stateful_transforms import stateful_eval

    columns = {}
    for symbol, variable in symbols.variables(expression).items():
        values = frame[variable.column]
        numbers = as_numbers(values)
        columns[symbol] = values if numbers is None else pd.Series(numbers, frame.index)
    found: Any = columns.get(expression)
    if found is None:
        try:
            found = stateful_eval(expression, TRANSFORMS | context() | symbols.texts | columns, {}, {}, None)
        except Exception as error:  # whatever the functions of a formula may raise
            raise FitError(cannot_evaluate(repr(expression), symbols, error)) from error
    numbers = as_numbers(pd.Series(found)) if np.ndim(found) < 2 else None
    if numbers is None:
        seen = ", ".join(repr(value) for value in list(pd.unique(pd.Series(found)))[:4])
        fix = "make it 0 and 1, or True and False; two names will do for family='binomial'"
        raise FitError(
            f"the {what} {symbols.plain(expression)!r} is not numeric (it has {seen}):"
            f" {fix if what == 'response' else 'make it numbers'}"
        )
    return np.broadcast_to(numbers, (len(frame),)).copy()
