"""From a formula and a table to numbers: responses, fixed-effect design, random-effect terms; and what was left out."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.mixed_effects.coding import coding
from analysis.mixed_effects.errors import FitError
from analysis.mixed_effects.families import FAMILIES, Family
from analysis.mixed_effects.formula import MixedFormula, RandomPart, parse
from analysis.mixed_effects.terms import RandomTerm

Array = NDArray[Any]
OF_NAMES = r"\bC\(\s*`?([\w.]+)`?\s*\)"
MATH = {name: getattr(np, name) for name in ("sqrt", "log2", "log1p", "abs", "sin", "cos")} | {"np": np}
"""What formulas may call beside formulaic's own functions."""
Column = str | Sequence[float] | Array | pd.Series | None


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
        names: Names of its columns.
        column_terms: Term of the formula that each column belongs to: `method:shift`.
        aliased: Columns that were left out because they follow from the others, with those.
        matrix: The fixed part, to be evaluated for other rows.
        terms: Random-effect terms.
        dropped: Reason -> number of rows left out for it.
        n_given: Number of rows of the table.
        success: What a response of two names counts as success: its second level; "" for numbers.
    """

    formula: MixedFormula
    family: Family
    frame: pd.DataFrame
    y: Array
    trials: Array
    weights: Array
    offset: Array
    x: Array
    names: tuple[str, ...]
    column_terms: tuple[str, ...]
    aliased: dict[str, str]
    matrix: FixedMatrix
    terms: tuple[RandomTerm, ...]
    dropped: dict[str, int]
    n_given: int
    success: str = ""

    @property
    def n(self) -> int:
        """Number of rows used."""
        return len(self.y)


@dataclass(frozen=True)
class FixedMatrix:
    """The fixed part of a formula, which makes the design of any rows.

    Attributes:
        spec: formulaic's model specification, with the state of its transformations.
        codings: Codings of the factors, by the name under which the specification looks for them.
        factors: Levels of each categorical predictor.
        numeric: Names of the numeric predictors.
        kept: Which of its columns are estimated.
        names: Names of all its columns.
    """

    spec: Any
    codings: Mapping[str, Any]
    factors: Mapping[str, tuple[Any, ...]]
    numeric: tuple[str, ...]
    kept: NDArray[np.bool_]
    names: tuple[str, ...]

    def full(self, frame: pd.DataFrame) -> Array:
        """The design of these rows with its aliased columns, (n, all columns)."""
        frame = frame.copy()
        for name, levels in self.factors.items():
            unknown = set(frame[name].dropna().unique()) - set(levels)
            if unknown:
                raise FitError(
                    f"{name} has no level {sorted(map(repr, unknown))[0]} in the fitted data: it has {levels}"
                )
            frame[name] = pd.Categorical(frame[name], categories=list(levels))
        matrix = self.spec.get_model_matrix(frame, context={**MATH, **_factor_function(), **self.codings})
        return np.asarray(matrix, dtype=float).reshape(len(frame), -1)

    def design(self, frame: pd.DataFrame) -> Array:
        """The design of these rows, (n, p)."""
        return self.full(frame)[:, self.kept]


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
        contrasts: One coding for all factors, or one per factor (see `coding.coding`).
        offset, trials, weights: A column's name, or one value per row.

    Raises:
        FitError: If the formula, the columns or the responses do not fit together.
    """
    parsed = parse(formula)
    # C(x) says that numbers are names; its coding is given by contrasts=.
    names = set(re.findall(OF_NAMES, parsed.fixed))
    parsed = replace(parsed, fixed=re.sub(OF_NAMES, r"\1", parsed.fixed))
    if family not in FAMILIES:
        raise FitError(f"there is no family {family!r}: use one of {', '.join(FAMILIES)}")
    if not isinstance(data, pd.DataFrame):
        raise FitError(f"the data are a {type(data).__name__}: give a pandas DataFrame with one row per trial")
    if not len(data):
        raise FitError("the data have no rows")
    predictors = _variables(parsed.fixed)
    effects = {part: _variables(part.effects) for part in parsed.random}
    groups = sorted({name for part in parsed.random for name in part.group})
    _require(data, [*predictors, *sorted(set().union(*effects.values())), *groups], parsed)

    frame = data.reset_index(drop=True)
    if names:
        frame = frame.assign(**{name: pd.Categorical(frame[name]) for name in names})
    extra = {
        name: _extra(frame, name, value)
        for name, value in (("offset", offset), ("trials", trials), ("weights", weights))
        if value is not None
    }
    if parsed.offsets:
        if offset is not None:
            raise FitError("the offset is given twice: in the formula, and as offset=; leave one of them out")
        extra["offset"] = sum((evaluate(frame, part) for part in parsed.offsets), np.zeros(len(frame)))
    success = ""
    if family == "binomial" and len(parsed.response) == 1:
        frame, success = _of_two_names(frame, parsed.response[0].strip("`"))
    response = [evaluate(frame, part) for part in parsed.response]
    used = list(dict.fromkeys([*predictors, *(name for names in effects.values() for name in names), *groups]))
    keep, dropped = _complete(frame, used, dict(zip(parsed.response, response, strict=True)), extra)
    frame = _with_factors(frame.loc[keep, used], [name for name in used if name not in groups or name in predictors])
    response = [values[keep] for values in response]
    extra = {name: values[keep] for name, values in extra.items()}

    n = len(frame)
    ones = np.ones(n)
    y, n_trials, row_weights = _response(
        FAMILIES[family], parsed, response, extra.get("trials"), extra.get("weights", ones)
    )
    matrix, x_full, column_terms = _fixed(parsed.fixed, frame, predictors, contrasts)
    kept, aliased = _aliased(x_full, matrix.names)
    matrix = FixedMatrix(matrix.spec, matrix.codings, matrix.factors, matrix.numeric, kept, matrix.names)
    return Design(
        formula=parsed,
        family=FAMILIES[family],
        frame=frame,
        y=y,
        trials=n_trials,
        weights=row_weights,
        offset=extra.get("offset", np.zeros(n)),
        x=x_full[:, kept],
        names=tuple(np.array(matrix.names, dtype=object)[kept]),
        column_terms=tuple(np.array(column_terms, dtype=object)[kept]),
        aliased=aliased,
        matrix=matrix,
        terms=_random_terms(parsed.random, frame),
        dropped=dropped,
        n_given=len(data),
        success=success,
    )


def _variables(part: str) -> list[str]:
    """Names of the columns that the right-hand side of a formula takes."""
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    try:
        factors = {factor for term in Formula(part) for factor in term.factors}
        names = set().union(*(_names(str(factor.expr), factor.eval_method.value) for factor in factors))
    except (FormulaicError, SyntaxError) as error:
        raise FitError(f"{part!r} is not the right-hand side of a formula ({error})") from error
    return sorted(names)


def _names(expression: str, kind: str) -> set[str]:
    """Names of the columns in one factor: a column, or a Python expression of columns."""
    if kind == "literal":
        return set()
    if kind == "lookup":
        return {expression}
    quoted = re.findall(r"`([^`]+)`", expression)
    tree = ast.parse(re.sub(r"`[^`]+`", "0", expression), mode="eval")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return {*quoted, *(names - called - {"np"})}


def _require(data: pd.DataFrame, names: Sequence[str], formula: MixedFormula) -> None:
    import difflib

    for name in names:
        if name not in data.columns:
            near = difflib.get_close_matches(name, [str(column) for column in data.columns], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else f": it has {', '.join(map(str, data.columns))}"
            raise FitError(f"{formula.text!r} needs the column {name!r}, which the data do not have{hint}")


def _extra(frame: pd.DataFrame, name: str, value: Column) -> Array:
    if isinstance(value, str) and value not in frame.columns:
        raise FitError(f"{name}={value!r}: the data have no such column")
    values: Array = np.asarray(frame[value] if isinstance(value, str) else value, dtype=float)
    if values.ndim == 0:
        values = np.full(len(frame), float(values))
    if values.shape != (len(frame),):
        raise FitError(f"{name} has {values.size} values for {len(frame)} rows: give one per row")
    return values


def _of_two_names(frame: pd.DataFrame, name: str) -> tuple[pd.DataFrame, str]:
    """With a response of two names as 0 and 1, and the name that is 1: the second, as in R."""
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


def evaluate(frame: pd.DataFrame, expression: str) -> Array:
    """The values of a response or an offset: a column, or an expression of columns."""
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
                raise FitError(
                    f"the response {name!r} is not numeric (it has {seen}): make it 0 and 1, or True and False; two names will"
                    " do for family='binomial'"
                ) from None
        return values.to_numpy(dtype=float, na_value=np.nan)
    try:
        # pandas knows log, exp and sqrt by their own names.
        evaluated = frame.eval(re.sub(r"\bnp\.", "", expression), engine="python")
    except Exception as error:
        raise FitError(f"{expression!r} cannot be evaluated ({error})") from error
    return np.broadcast_to(np.asarray(evaluated, dtype=float), (len(frame),)).copy()


def _complete(
    frame: pd.DataFrame, used: Sequence[str], response: Mapping[str, Array], extra: Mapping[str, Array]
) -> tuple[Array, dict[str, int]]:
    """Which rows have everything, and how many are left out for what: each row for its first reason."""
    keep = np.ones(len(frame), bool)
    dropped: dict[str, int] = {}
    columns: dict[str, Any] = {**response, **{name: frame[name] for name in used}, **extra}
    for name, values in columns.items():
        missing = np.asarray(pd.isna(values))
        numeric = isinstance(values, np.ndarray) or pd.api.types.is_float_dtype(values)
        infinite = np.isinf(np.asarray(values, dtype=float)) if numeric else np.zeros(len(frame), bool)
        for bad, reason in ((missing, f"{name} is missing"), (infinite, f"{name} is infinite")):
            if count := int((bad & keep).sum()):
                dropped[reason] = count
                keep &= ~bad
    if not keep.any():
        raise FitError(f"no row has everything that the formula needs: {_reasons(dropped)}")
    return keep, dropped


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count} rows)" for reason, count in dropped.items())


def _with_factors(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Everything that is not a number becomes a factor, with the levels that occur, in their order."""
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


def _response(
    family: Family, formula: MixedFormula, response: list[Array], trials: Array | None, weights: Array
) -> tuple[Array, Array, Array]:
    """Responses, numbers of trials, and weights of rows."""
    name = formula.response[0]
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


def _fixed(
    part: str, frame: pd.DataFrame, predictors: Sequence[str], contrasts: str | Mapping[str, Any]
) -> tuple[FixedMatrix, Array, list[str]]:
    from formulaic import Formula, ModelSpec
    from formulaic.errors import FormulaicError

    factors = {
        name: tuple(frame[name].cat.categories)
        for name in predictors
        if isinstance(frame[name].dtype, pd.CategoricalDtype)
    }
    if isinstance(contrasts, Mapping) and (unknown := sorted(set(contrasts) - set(factors))):
        raise FitError(f"contrasts for {unknown[0]!r}: it is not a categorical predictor of the formula")
    codings, renamed = {}, {}
    for number, (name, levels) in enumerate(factors.items()):
        scheme = contrasts.get(name, "treatment") if isinstance(contrasts, Mapping) else contrasts
        if len(levels) < 2:
            raise FitError(f"the factor {name!r} has one level only, {levels[0]!r}: leave it out of the formula")
        codings[f"_coding_{number}"] = coding(name, levels, scheme)
        renamed[name] = f"_factor({_quoted(name)}, _coding_{number})"
    try:
        parsed = Formula(part)
        summands = []
        for term in parsed:
            parts = [str(factor.expr) for factor in term.factors]
            summands.append(":".join(renamed.get(expr.strip("`"), _quoted(expr)) for expr in parts))
        text = " + ".join(summands) if "1" in summands else " + ".join(["0", *summands])
        spec = ModelSpec.from_spec(Formula(text), na_action="ignore")
        matrix = spec.get_model_matrix(frame, context={**MATH, **_factor_function(), **codings})
    except FormulaicError as error:
        raise FitError(f"the fixed part {part!r} cannot be evaluated ({error})") from error
    spec = matrix.model_spec

    def plain(label: str) -> str:
        for name, code in renamed.items():
            label = label.replace(code, name)
        return label

    names = tuple(plain(str(column)) for column in spec.column_names)
    if not names:
        raise FitError(f"the fixed part {part!r} has no columns: write `~ 1` for an intercept alone")
    values = np.asarray(matrix, dtype=float).reshape(len(frame), -1)
    bad = ~np.isfinite(values)
    if bad.any():
        column = names[int(np.flatnonzero(bad.any(axis=0))[0])]
        raise FitError(
            f"the predictor {column!r} is not finite in {int(bad.any(axis=1).sum())} rows; transform it otherwise"
        )
    column_terms = [""] * len(names)
    for term, indices in spec.term_indices.items():
        for index in indices:
            column_terms[index] = "Intercept" if str(term) == "1" else plain(str(term))
    numeric = tuple(name for name in predictors if name not in factors)
    everything = np.ones(len(names), bool)
    return FixedMatrix(spec, codings, factors, numeric, everything, names), values, column_terms


def _factor_function() -> dict[str, Any]:
    """formulaic's C under a name that no column has, for a column may be called C."""
    from formulaic.transforms import C

    return {"_factor": C}


def _quoted(name: str) -> str:
    return name if not name or name.isidentifier() or not _is_odd_name(name) else f"`{name}`"


def _is_odd_name(text: str) -> bool:
    """Whether this is the name of a column that is no Python name, rather than an expression."""
    return not any(mark in text for mark in "()[]+*/-`") and not text.replace(".", "").isdigit()


def _aliased(x: Array, names: Sequence[str]) -> tuple[NDArray[np.bool_], dict[str, str]]:
    """Which columns do not follow from those before them; for each that does, those of which it is made."""
    kept = np.ones(x.shape[1], bool)
    norms = np.linalg.norm(x, axis=0)
    scaled = x / np.where(norms > 0, norms, 1)
    gram = scaled.T @ scaled
    aliased: dict[str, str] = {}
    for column in range(x.shape[1]):
        before = np.flatnonzero(kept[:column])
        if norms[column] == 0:
            kept[column] = False
            aliased[names[column]] = "0 in all rows"
            continue
        if not len(before):
            continue
        weights = np.linalg.lstsq(gram[np.ix_(before, before)], gram[before, column], rcond=None)[0]
        if 1 - weights @ gram[before, column] > 1e-6:
            continue
        # The products of columns have half the digits: the columns themselves decide.
        residual = scaled[:, column] - scaled[:, before] @ weights
        residual -= (
            scaled[:, before]
            @ np.linalg.lstsq(gram[np.ix_(before, before)], scaled[:, before].T @ residual, rcond=None)[0]
        )
        if np.linalg.norm(residual) < 1e-7:
            kept[column] = False
            parts = [names[int(place)] for place, weight in zip(before, weights, strict=True) if abs(weight) > 1e-6]
            aliased[names[column]] = " + ".join(parts)
    return kept, aliased


def _random_terms(parts: Sequence[RandomPart], frame: pd.DataFrame) -> tuple[RandomTerm, ...]:
    """One term per grouping factor, with the effects of all its parts."""
    by_group: dict[tuple[str, ...], list[RandomPart]] = {}
    for part in parts:
        by_group.setdefault(part.group, []).append(part)
    return tuple(_random_term(group, members, frame) for group, members in by_group.items())


def _random_term(group: tuple[str, ...], parts: Sequence[RandomPart], frame: pd.DataFrame) -> RandomTerm:
    codes, levels = _levels(frame, group)
    names: list[str] = []
    columns: list[Array] = []
    free: list[tuple[int, int]] = []
    for part in parts:
        labels, values = effects_matrix(part.effects, frame)
        start = len(names)
        for label, column in zip(labels, values.T, strict=True):
            if label in names:
                raise FitError(f"{part}: {label} varies by {':'.join(group)} twice; write it in one bracket only")
            if not np.any(column):
                raise FitError(f"{part}: {label} is 0 in all rows")
            names.append(label)
            columns.append(column)
        own = range(start, len(names))
        free += [(i, j) for j in own for i in own if i >= j] if part.correlated else [(i, i) for i in own]
    values = np.column_stack(columns)
    scale = np.sqrt((values**2).mean(axis=0))
    return RandomTerm(":".join(group), tuple(names), codes, levels, values / scale, scale, tuple(free))


def effects_matrix(effects: str, frame: pd.DataFrame) -> tuple[list[str], Array]:
    """Names and columns (n, k) of what varies within one bracket."""
    from formulaic import model_matrix
    from formulaic.errors import FormulaicError

    if effects.strip() == "1":
        return ["Intercept"], np.ones((len(frame), 1))
    try:
        matrix = model_matrix(effects, frame, context=MATH, na_action="ignore")
    except FormulaicError as error:
        raise FitError(f"the random effects {effects!r} cannot be evaluated ({error})") from error
    values = np.asarray(matrix, dtype=float).reshape(len(frame), -1)
    labels = [str(name) for name in matrix.columns]
    if not np.isfinite(values).all():
        raise FitError(f"the random effects {effects!r} are not finite in all rows")
    return labels, values


def _levels(frame: pd.DataFrame, group: Sequence[str]) -> tuple[NDArray[np.int64], tuple[Any, ...]]:
    """Codes and names of the combinations of columns that occur, in the order of their levels."""
    codes = np.zeros(len(frame), dtype=np.int64)
    names: list[Any] = [""]
    for name in group:
        column = frame[name]
        factor = column if isinstance(column.dtype, pd.CategoricalDtype) else pd.Series(pd.Categorical(column))
        own = list(factor.cat.categories)
        both = codes * len(own) + factor.cat.codes.to_numpy(dtype=np.int64)
        found, codes = np.unique(both, return_inverse=True)
        names = [(f"{names[v // len(own)]}:{own[v % len(own)]}" if names != [""] else own[v % len(own)]) for v in found]
    return codes.astype(np.int64), tuple(names)
