"""What a model expects: estimated marginal means and their contrasts, on a balanced reference grid as in emmeans; and predictions of rows.

Factors that are not asked about are averaged over with equal weights, numeric predictors are held at their mean. Means
are taken on the scale of the link; the response scale shows them transformed back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.design import named, taken
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.expressions import values_of
from vlm_probe.analysis.mixed_effects.fitted import FittedModel
from vlm_probe.analysis.mixed_effects.inference import adjusted, estimates, with_odds_ratios
from vlm_probe.analysis.mixed_effects.terms import codes_of

Array = NDArray[Any]
Weights = Mapping[str, Mapping[Any, float]]


@dataclass(frozen=True)
class Grid:
    """Combinations of levels that were asked for, with their weights of the fixed effects.

    Attributes:
        cells: One row per combination, one column per name asked for.
        weights: Combinations of the fixed effects, (m, p); NaN where a mean cannot be estimated.
    """

    cells: pd.DataFrame
    weights: Array


def names_of(names: str | Sequence[str] | None) -> list[str]:
    """A list of names from one name, several, or none."""
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def reference_grid(result: FittedModel, names: Sequence[str], at: Mapping[str, Any] | None) -> Grid:
    """The means of all combinations of levels of some predictors.

    Args:
        result: The fit.
        names: Predictors that are crossed; factors with all their levels, numeric ones at their mean.
        at: Values (one or several) of predictors instead.

    Raises:
        FitError: If one of them is no fixed predictor, or a value no level of it.
    """
    matrix = result.design.matrix
    at = dict(at or {})
    known = [*matrix.factors, *matrix.numeric]
    for name in [*names, *at]:
        if name not in known:
            raise FitError(
                f"{name!r} is no fixed predictor of {result.formula!r}; those are {', '.join(known) or 'none'}"
            )
    values: dict[str, list[Any]] = {}
    for name, levels in matrix.factors.items():
        values[name] = _several(at[name]) if name in at else list(levels)
    for name in (name for name in matrix.numeric if name not in values):
        values[name] = _several(at[name]) if name in at else [float(result.design.frame[name].mean())]
    order = [*names, *(name for name in values if name not in names)]
    rows = pd.DataFrame(list(product(*(values[name] for name in order))), columns=order)
    if not order:
        rows = pd.DataFrame(index=range(1))
    full = matrix.full(rows)
    _mark_inestimable(result, full)
    design = full[:, matrix.kept]
    if not names:
        return Grid(pd.DataFrame(index=range(1)), design.mean(axis=0, keepdims=True))
    count = int(np.prod([len(values[name]) for name in names]))
    cells = rows[list(names)].iloc[:: len(rows) // count].reset_index(drop=True)
    return Grid(cells, design.reshape(count, len(rows) // count, -1).mean(axis=1))


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, np.ndarray, pd.Series, pd.Index)) else [value]


def _mark_inestimable(result: FittedModel, full: Array) -> None:
    """Put NaN into rows that are no combination of the rows of the data, where columns were left out."""
    kept = result.design.matrix.kept
    if kept.all():
        return
    # A left-out column is a combination of the kept ones in the data; it has to be the same one here.
    data = result.design.matrix.full(result.design.frame)
    combination = np.linalg.lstsq(data[:, kept], data[:, ~kept], rcond=None)[0]
    off = np.abs(full[:, ~kept] - full[:, kept] @ combination).max(axis=1) > 1e-6
    full[off] = np.nan


def emmeans(
    result: FittedModel,
    of: str | Sequence[str],
    *,
    by: str | Sequence[str] | None,
    at: Mapping[str, Any] | None,
    level: float,
    df: str | None,
) -> pd.DataFrame:
    """See `FitResult.emmeans`."""
    grid = reference_grid(result, [*names_of(by), *names_of(of)], at)
    offset = float(result.design.offset.mean())
    table = estimates(result, grid.weights, level=level, df=df, offset=offset)
    family = result.design.family
    if family.name != "gaussian":
        table["response"] = family.inverse_link(table["estimate"].to_numpy())
        table["response_se"] = family.inverse_link_slope(table["estimate"].to_numpy()) * table["se"]
        table["response_low"] = family.inverse_link(table["ci_low"].to_numpy())
        table["response_high"] = family.inverse_link(table["ci_high"].to_numpy())
    return pd.concat([grid.cells, table.drop(columns=["statistic", "p"])], axis=1)


def contrast(
    result: FittedModel,
    of: str | Sequence[str] | Mapping[str, float],
    weights: str | Weights,
    *,
    by: str | Sequence[str] | None,
    at: Mapping[str, Any] | None,
    adjust: str,
    level: float,
    df: str | None,
) -> pd.DataFrame:
    """See `FitResult.contrast`."""
    if isinstance(of, Mapping):
        label, rows = of_coefficients(result, of)
        labels = pd.DataFrame({"contrast": [label]})
    else:
        labels, rows = _of_means(result, names_of(of), weights, names_of(by), at)
    table = with_odds_ratios(estimates(result, rows, level=level, df=df), result.design.family.name)
    if adjust != "none":
        table.insert(5, "p_adjusted", adjusted(table["p"], adjust))
    return pd.concat([labels, table], axis=1)


def of_coefficients(result: FittedModel, of: Mapping[str, float]) -> tuple[str, Array]:
    """A combination of coefficients in words, and its weights (1, p).

    Args:
        result: The fit.
        of: Weights of coefficients by name.

    Raises:
        FitError: If there is no such coefficient.
    """
    unknown = [name for name in of if name not in result.design.names]
    if unknown:
        raise FitError(f"there is no coefficient {unknown[0]!r}; there are {', '.join(result.design.names)}")
    label = " ".join(f"{value:+g} {name}" for name, value in of.items()).removeprefix("+")
    return label, np.array([[float(of.get(name, 0)) for name in result.design.names]])


def _of_means(
    result: FittedModel, of: list[str], weights: str | Weights, by: list[str], at: Mapping[str, Any] | None
) -> tuple[pd.DataFrame, Array]:
    grid = reference_grid(result, [*by, *of], at)
    groups = grid.cells.groupby(by, sort=False, observed=True).indices if by else {(): np.arange(len(grid.cells))}
    labels, rows = [], []
    for group, places in groups.items():
        levels = [
            row if len(of) > 1 else row[0] for row in grid.cells.loc[places, of].itertuples(index=False, name=None)
        ]
        for name, by_level in contrast_weights(of, levels, weights).items():
            vector = np.array([by_level.get(cell, 0.0) for cell in levels])
            # 0 times what cannot be estimated is not in the contrast.
            rows.append(vector[vector != 0] @ grid.weights[places][vector != 0])
            own = group if isinstance(group, tuple) else (group,)
            labels.append({**dict(zip(by, own, strict=True)), "contrast": name})
    return pd.DataFrame(labels), np.array(rows)


def contrast_weights(of: Sequence[str], levels: list[Any], weights: str | Weights) -> dict[str, dict[Any, float]]:
    """Contrasts by name, each with the weights of levels: planned ones checked, standard ones by their name.

    Args:
        of: Factors that are compared, for errors.
        levels: Their levels in order; tuples where there are several factors.
        weights: As for `FitResult.contrast`.

    Raises:
        FitError: If there are no such contrasts, or no such level.
    """
    if not isinstance(weights, str):
        for name, by_level in weights.items():
            unknown = [level for level in by_level if level not in levels]
            if unknown:
                raise FitError(f"contrast {name!r}: {' and '.join(of)} has no level {unknown[0]!r}; it has {levels}")
        return {name: {level: float(value) for level, value in by_level.items()} for name, by_level in weights.items()}
    if weights == "pairwise":
        return {f"{_label(a)} - {_label(b)}": {a: 1.0, b: -1.0} for a, b in combinations(levels, 2)}
    if weights == "sequential":
        return {f"{_label(b)} - {_label(a)}": {b: 1.0, a: -1.0} for a, b in pairwise(levels)}
    if weights == "treatment":
        return {f"{_label(b)} - {_label(levels[0])}": {b: 1.0, levels[0]: -1.0} for b in levels[1:]}
    if weights == "effect":
        share = 1 / len(levels)
        return {f"{_label(a)} - mean": {b: float(a == b) - share for b in levels} for a in levels}
    raise FitError(
        f"there are no contrasts {weights!r}: use pairwise, treatment (against the first level), sequential, effect"
        " (against the mean of all), or {name: {level: weight}}"
    )


def _label(level: Any) -> str:
    return ", ".join(map(str, level)) if isinstance(level, tuple) else str(level)


def predict(result: FittedModel, data: pd.DataFrame | None, *, random: bool, scale: str) -> Array:
    """See `FitResult.predict`."""
    if scale not in ("response", "link"):
        raise FitError(f"there is no scale {scale!r}: use 'response' or 'link'")
    design, solution = result.design, result.solution
    if data is None:
        predictor = design.offset + design.x @ solution.beta
        if random:
            for term, modes in zip(solution.terms, solution.modes, strict=True):
                predictor = predictor + term.product(modes * term.scale)
    else:
        predictor = _of_rows(result, named(data), random=random)
    return predictor if scale == "link" else np.asarray(design.family.inverse_link(predictor))


def _of_rows(result: FittedModel, rows: pd.DataFrame, *, random: bool) -> Array:
    """The linear predictor of other rows, (n,)."""
    design, solution = result.design, result.solution
    if np.any(design.offset) and not design.formula.offsets:
        raise FitError(
            "the model has an offset: predict the rows of the fit (data=None), or write it into the formula, offset(log(x))"
        )
    symbols = design.formula.symbols
    parts = [design.matrix.coded, *(one.coded for one in design.effects if random and one.coded is not None)]
    predictors = list(dict.fromkeys(name for part in parts for name in part.columns))
    groups = [name for one in design.effects if random for name in one.part.group]
    offsets = symbols.columns(" ".join(design.formula.offsets))
    needed = list(dict.fromkeys((*predictors, *groups, *offsets)))
    missing = [name for name in needed if name not in rows.columns]
    if missing:
        raise FitError(f"the rows to predict lack the column {missing[0]!r}")
    rows = taken(rows, needed)
    if predictors and rows[predictors].isna().any(axis=None):
        raise FitError("the rows to predict have missing values: leave them out first")
    predictor = design.matrix.full(rows)[:, design.matrix.kept] @ solution.beta
    for expression in design.formula.offsets:
        predictor = predictor + values_of(expression, symbols, rows, "offset")
    if not random:
        return np.asarray(predictor)
    modes = {term.columns: (term, mode) for term, mode in zip(solution.terms, solution.modes, strict=True)}
    for one in design.effects:
        term, mode = modes[one.part.group]
        codes = codes_of(one.part.group, term, design.frame, rows)
        known = codes >= 0
        for name, column in zip(one.names, one.matrix(rows).T, strict=True):
            predictor[known] += column[known] * mode[codes[known], term.names.index(name)]
    return np.asarray(predictor)
