"""From a formula and a table to numbers: a model and its data, ready to be fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.columns import (
    Column,
    as_factor,
    as_predictor,
    complete,
    given_column,
    named,
    taken,
)
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.expressions import values_of
from vlm_probe.analysis.mixed_effects.formula import MixedFormula, parse
from vlm_probe.analysis.mixed_effects.model_matrix import FixedMatrix, fixed_part
from vlm_probe.analysis.mixed_effects.response import FAMILIES, Family, checked_response, of_two_names
from vlm_probe.analysis.mixed_effects.terms import Effects, RandomTerm, effects_of, random_terms

Array = NDArray[Any]


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
    variables = symbols.variables(" ".join([parsed.fixed, *(part.effects for part in parsed.random)])).values()
    predictors = list(dict.fromkeys(one.column for one in variables))
    groups = sorted({name for part in parsed.random for name in part.group})
    used = list(dict.fromkeys([*predictors, *groups]))
    frame = taken(data, list(dict.fromkeys([*used, *symbols.columns(" ".join([*parsed.response, *parsed.offsets]))])))

    given = {
        name: given_column(data, name, value)
        for name, value in (("offset", offset), ("trials", trials), ("weights", weights))
        if value is not None
    }
    if parsed.offsets:
        if offset is not None:
            raise FitError("the offset is given twice: in the formula, and as offset=; leave one of them out")
        parts = (values_of(part, symbols, frame, "offset") for part in parsed.offsets)
        given["offset"] = sum(parts, np.zeros(len(frame)))
    response, success = _response(parsed, frame, family)
    frame = frame[used].copy()
    remarks = []
    for name in predictors:
        if all(one.is_factor for one in variables if one.column == name):
            frame[name] = as_factor(frame[name])
            continue
        frame[name], remark = as_predictor(frame[name], name)
        remarks += [remark] if remark else []
    names = [symbols.plain(part) for part in parsed.response]
    keep, dropped = complete(
        {**dict(zip(names, response, strict=True)), **{name: frame[name] for name in used}, **given}
    )
    frame = frame.loc[keep]
    for name in predictors:
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            frame[name] = frame[name].cat.remove_unused_categories()
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
        remarks=tuple(remarks),
    )


def _response(parsed: MixedFormula, frame: pd.DataFrame, family: str) -> tuple[list[Array], str]:
    """The response, or successes and failures; and the name that counts as success, if it holds two names."""
    variables = parsed.symbols.variables(parsed.response[0])
    if family == "binomial" and list(variables) == list(parsed.response):
        values, success = of_two_names(frame[variables[parsed.response[0]].column])
        if values is not None:
            return [values], success
    return [values_of(part, parsed.symbols, frame, "response") for part in parsed.response], ""
