"""The random parts of a formula: what varies between the levels of grouping factors, for the rows of a fit and for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.complete_rows import factors_of
from vlm_probe.analysis.mixed_effects.errors import FitError
from vlm_probe.analysis.mixed_effects.formula import RandomPart
from vlm_probe.analysis.mixed_effects.model_matrix import Coded, matrix_of
from vlm_probe.analysis.mixed_effects.terms import RandomTerm
from vlm_probe.analysis.mixed_effects.variables import variables_of

Array = NDArray[Any]


@dataclass(frozen=True)
class Effects:
    """What varies within one bracket, which makes the design of any rows.

    Attributes:
        part: The bracket.
        coded: Its effects; None for an intercept alone.
        names: Names of its columns.
    """

    part: RandomPart
    coded: Coded | None
    names: tuple[str, ...]

    def matrix(self, rows: pd.DataFrame) -> Array:
        """The design (n, k) of these rows. Raises FitError as `Coded.matrix`, and if it is not finite."""
        values = np.ones((len(rows), 1)) if self.coded is None else self.coded.matrix(rows)
        if not np.isfinite(values).all():
            raise FitError(f"the random effects {self.part.effects!r} are not finite in all rows")
        return values


def effects_of(part: RandomPart, frame: pd.DataFrame) -> Effects:
    """The effects of one bracket, as the rows of the fit code them.

    Args:
        part: The bracket.
        frame: The rows of the fit, factors as categoricals.

    Raises:
        FitError: If they cannot be evaluated.
    """
    from formulaic import Formula, ModelSpec
    from formulaic.errors import FormulaicError

    if part.effects.strip() == "1":
        return Effects(part, None, ("Intercept",))
    try:
        spec = ModelSpec.from_spec(Formula(part.effects), na_action="ignore")
    except FormulaicError as error:
        raise FitError(f"the random effects {part.effects!r} cannot be evaluated ({error})") from error
    _, spec = matrix_of(part.effects, spec, frame, {}, "random effects")
    variables = variables_of(part.effects)
    factors = factors_of(frame, variables)
    coded = Coded(part.effects, spec, factors, tuple(name for name in variables if name not in factors))
    return Effects(part, coded, tuple(str(name) for name in spec.column_names))


def random_terms(effects: Sequence[Effects], frame: pd.DataFrame) -> tuple[RandomTerm, ...]:
    """One term per grouping factor, with the effects of all its brackets.

    Args:
        effects: Those of every bracket.
        frame: The rows of the fit.

    Raises:
        FitError: If an effect varies by the same factor twice, or is 0 in all rows.
    """
    by_group: dict[tuple[str, ...], list[Effects]] = {}
    for one in effects:
        by_group.setdefault(one.part.group, []).append(one)
    return tuple(_term(group, members, frame) for group, members in by_group.items())


def _term(group: tuple[str, ...], effects: Sequence[Effects], frame: pd.DataFrame) -> RandomTerm:
    codes, levels = _levels(frame, group)
    names: list[str] = []
    columns: list[Array] = []
    free: list[tuple[int, int]] = []
    for one in effects:
        start = len(names)
        for name, column in zip(one.names, one.matrix(frame).T, strict=True):
            if name in names:
                raise FitError(f"{one.part}: {name} varies by {':'.join(group)} twice; write it in one bracket only")
            if not np.any(column):
                raise FitError(f"{one.part}: {name} is 0 in all rows")
            names.append(name)
            columns.append(column)
        own = range(start, len(names))
        free += [(i, j) for j in own for i in own if i >= j] if one.part.correlated else [(i, i) for i in own]
    values = np.column_stack(columns)
    scale = np.sqrt((values**2).mean(axis=0))
    return RandomTerm(":".join(group), tuple(names), codes, levels, values / scale, scale, tuple(free))


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


def codes_of(group: Sequence[str], term: RandomTerm, frame: pd.DataFrame, rows: pd.DataFrame) -> NDArray[np.int64]:
    """The level of other rows, (n,): its place in the term, or -1 for one that the fit did not have.

    Args:
        group: Columns of the grouping factor.
        term: Its term.
        frame: The rows of the fit.
        rows: The other rows.

    Raises:
        FitError: If two levels of the fit read alike, as 3 and "3" do.
    """
    known = _as_text(frame, group).assign(code=term.codes).drop_duplicates()
    if known.duplicated(list(range(len(group)))).any():
        raise FitError(
            f"levels of {term.group} are numbers and the same numbers as text: make them all one or the other"
        )
    found = _as_text(rows, group).merge(known, on=list(range(len(group))), how="left")["code"]
    return found.fillna(-1).to_numpy(dtype=np.int64)


def _as_text(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The columns as text, numbered, so that a level is known again whether it is a number or its name: 3, 3.0, "3"."""

    def text(value: Any) -> str:
        whole = isinstance(value, float | np.floating) and float(value).is_integer()
        return str(int(value) if whole else value)

    return pd.DataFrame({place: frame[name].astype(object).map(text).to_numpy() for place, name in enumerate(names)})
