"""The plain test beside the model: contrasts of the mean responses of runs, each run one number.

With few runs this is the test whose error rate can be relied on: the unit of analysis is the
unit of assignment. It knows nothing of items, so that it has less power where runs saw different ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.stats

from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.marginal_means import Weights, contrast_weights, names_of

if TYPE_CHECKING:
    from vlm_probe.analysis.mixed_effects.result import FitResult


def group_means(result: FitResult, group: str, names: Sequence[str]) -> pd.DataFrame:
    """Mean response of every level of a grouping factor, within levels of other factors.

    Returns:
        One row per level and combination: the group, the names, `mean` (share of successes for the binomial family), `n` rows.

    Raises:
        FitError: If the model has no such grouping factor.
    """
    term = next((term for term in result.design.terms if term.group == group), None)
    if term is None:
        raise FitError(f"{group!r} is no grouping factor of {result.formula!r}; those are {', '.join(result.n_groups)}")
    levels = np.array(term.levels, dtype=object)[term.codes]
    table = pd.DataFrame({group: levels, "y": result.design.y, "of": result.design.trials})
    for name in names:
        table[name] = result.design.frame[name].to_numpy()
    sums = table.groupby([group, *names], observed=True, sort=False).agg(
        y=("y", "sum"), of=("of", "sum"), n=("y", "size")
    )
    return sums.assign(mean=sums["y"] / sums["of"]).reset_index()[[group, *names, "mean", "n"]]


def contrast_of_group_means(
    result: FitResult,
    of: str | Sequence[str],
    weights: str | Weights,
    by: str | Sequence[str] | None,
    group: str | None,
    level: float,
) -> pd.DataFrame:
    """See `FitResult.group_means_contrast`."""
    factors, within = names_of(of), names_of(by)
    for name in [*factors, *within]:
        if name not in result.design.matrix.factors:
            raise FitError(f"{name!r} is no categorical predictor of {result.formula!r}")
    group = group or _group_of(result, factors)
    table = group_means(result, group, [*factors, *within])
    table["cell"] = list(table[factors].itertuples(index=False, name=None)) if len(factors) > 1 else table[factors[0]]
    rows: list[dict[str, Any]] = []
    for own, members in table.groupby(within, observed=True, sort=False) if within else [((), table)]:
        if members[group].duplicated().any():
            raise FitError(
                f"{' and '.join(factors)} varies within {group}: the test on means of {group} compares factors that are the"
                f" same for all rows of a {group}; name it in by= or use the model's contrast"
            )
        by_cell = members.groupby("cell", observed=True, sort=False)["mean"].agg(["mean", "var", "size"])
        levels = _ordered(result, factors, list(by_cell.index))
        df = int(by_cell["size"].sum() - len(by_cell))
        variance = float(((by_cell["size"] - 1) * by_cell["var"].fillna(0)).sum() / df) if df > 0 else float("nan")
        for name, by_level in contrast_weights(factors, levels, weights).items():
            estimate = sum(weight * by_cell.loc[[cell], "mean"].iloc[0] for cell, weight in by_level.items())
            se = float(
                np.sqrt(variance * sum(w**2 / by_cell.loc[[cell], "size"].iloc[0] for cell, w in by_level.items()))
            )
            keys = own if isinstance(own, tuple) else (own,)
            rows.append(
                {**dict(zip(within, keys, strict=True)), "contrast": name, **_test(float(estimate), se, df, level)}
            )
    return pd.DataFrame(rows)


def _group_of(result: FitResult, factors: Sequence[str]) -> str:
    """The grouping factor with the fewest levels within which the factors do not vary."""
    for term in sorted(result.design.terms, key=lambda term: term.q):
        cells = result.design.frame[list(factors)].assign(_code=term.codes).drop_duplicates()
        if len(cells) == term.q:
            return term.group
    raise FitError(
        f"{' and '.join(factors)} varies within every grouping factor: name one with group=, and the rest in by="
    )


def _ordered(result: FitResult, factors: Sequence[str], cells: list[Any]) -> list[Any]:
    places = [{level: place for place, level in enumerate(result.design.matrix.factors[name])} for name in factors]
    return sorted(
        cells,
        key=lambda cell: [place[v] for place, v in zip(places, cell if len(factors) > 1 else (cell,), strict=True)],
    )


def _test(estimate: float, se: float, df: int, level: float) -> dict[str, float]:
    if not se > 0 or df < 1:
        # No variance between runs: there is nothing to test with, which is not the same as certainty.
        empty = dict.fromkeys(["statistic", "p", "ci_low", "ci_high"], float("nan"))
        return {"estimate": estimate, "se": se, "df": float(df), **empty}
    half = float(scipy.stats.t.ppf(0.5 + level / 2, df)) * se
    statistic = estimate / se
    p = float(2 * scipy.stats.t.sf(abs(statistic), df))
    low, high = estimate - half, estimate + half
    return {
        "estimate": estimate,
        "se": se,
        "df": float(df),
        "statistic": statistic,
        "p": p,
        "ci_low": low,
        "ci_high": high,
    }
