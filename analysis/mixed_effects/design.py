"""From a formula and a table to numbers: a model and its data, ready to be fitted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.complete_rows import complete, with_factors
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.families import FAMILIES, Family
from vlm_probe.analysis.mixed_effects.fixed_part import FixedMatrix, fixed_part
from vlm_probe.analysis.mixed_effects.formula import MixedFormula, parse
from vlm_probe.analysis.mixed_effects.random_parts import Effects, effects_of, random_terms
from vlm_probe.analysis.mixed_effects.response import Column, checked_response, evaluate, given_column, of_two_names
from vlm_probe.analysis.mixed_effects.terms import RandomTerm
from vlm_probe.analysis.mixed_effects.variables import NUMBERS_AS_NAMES, require, variables_of

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

    @property
    def n(self) -> int:
        """Number of rows used."""
        return len(self.y)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of `x`."""
        return tuple(name for name, kept in zip(self.matrix.names, self.matrix.kept, strict=True) if kept)

    @property
    def column_terms(self) -> tuple[str, ...]:
        """Term of the formula that each column of `x` belongs to: `method:shift`."""
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
        contrasts: One coding for all factors, or one per factor (see `coding.coding`).
        offset, trials, weights: A column's name, or one value per row.

    Raises:
        FitError: If the formula, the columns or the responses do not fit together.
    """
    parsed = parse(formula)
    # C(x) says that numbers are names; its coding is given by contrasts=.
    named = set(re.findall(NUMBERS_AS_NAMES, parsed.fixed))
    parsed = replace(parsed, fixed=re.sub(NUMBERS_AS_NAMES, r"\1", parsed.fixed))
    if family not in FAMILIES:
        raise FitError(f"there is no family {family!r}: use one of {', '.join(FAMILIES)}")
    if not isinstance(data, pd.DataFrame):
        raise FitError(f"the data are a {type(data).__name__}: give a pandas DataFrame with one row per trial")
    if not len(data):
        raise FitError("the data have no rows")
    predictors = variables_of(parsed.fixed)
    varying = [name for part in parsed.random for name in variables_of(part.effects)]
    groups = sorted({name for part in parsed.random for name in part.group})
    used = list(dict.fromkeys([*predictors, *varying, *groups]))
    require(data, used, parsed.text)

    frame = data.reset_index(drop=True)
    if named:
        frame = frame.assign(**{name: pd.Categorical(frame[name]) for name in named})
    given = {
        name: given_column(frame, name, value)
        for name, value in (("offset", offset), ("trials", trials), ("weights", weights))
        if value is not None
    }
    if parsed.offsets:
        if offset is not None:
            raise FitError("the offset is given twice: in the formula, and as offset=; leave one of them out")
        parts = (evaluate(frame, part, "offset") for part in parsed.offsets)
        given["offset"] = sum(parts, np.zeros(len(frame)))
    success = ""
    if family == "binomial" and len(parsed.response) == 1:
        frame, success = of_two_names(frame, parsed.response[0].strip("`"))
    response = {part: evaluate(frame, part) for part in parsed.response}
    keep, dropped = complete({**response, **{name: frame[name] for name in used}, **given})
    frame = with_factors(frame.loc[keep, used], [name for name in used if name not in groups or name in predictors])
    given = {name: values[keep] for name, values in given.items()}
    n = len(frame)
    y, n_trials, row_weights = checked_response(
        FAMILIES[family],
        parsed.response[0],
        [response[part][keep] for part in parsed.response],
        given.get("trials"),
        given.get("weights", np.ones(n)),
    )
    matrix, x = fixed_part(parsed.fixed, frame, predictors, contrasts)
    effects = tuple(effects_of(part, frame) for part in parsed.random)
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
    )
