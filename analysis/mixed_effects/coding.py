"""Codings of factors: what the coefficients of a categorical predictor are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.errors import FitError

SCHEMES = ("treatment", "sum", "helmert", "poly", "sequential")


def coding(factor: str, levels: Sequence[Any], scheme: Any) -> Any:
    """The contrasts of one factor, as formulaic takes them.

    Args:
        factor: Its name, for errors.
        levels: Its levels in order.
        scheme: "treatment" (each level against the first), "sum" (each but the last against the mean of all), "helmert", "poly",
            "sequential" (each against the one before); `("treatment", level)` for another reference level; or planned
            contrasts, `{name: {level: weight}}`, one fewer than levels, whose estimates the coefficients will be.

    Raises:
        FitError: If there is no such scheme or level, or if planned contrasts do not fit the levels.
    """
    from formulaic.transforms import contrasts

    if isinstance(scheme, str) and scheme in SCHEMES:
        if scheme == "treatment":
            return contrasts.TreatmentContrasts(base=levels[0])
        of = {
            "sum": contrasts.SumContrasts,
            "helmert": contrasts.HelmertContrasts,
            "poly": contrasts.PolyContrasts,
            "sequential": contrasts.DiffContrasts,
        }
        return of[scheme]()
    if isinstance(scheme, tuple) and len(scheme) == 2 and scheme[0] == "treatment":
        if scheme[1] not in levels:
            raise FitError(f"{factor} has no level {scheme[1]!r} to compare with; it has {_listed(levels)}")
        return contrasts.TreatmentContrasts(base=scheme[1])
    if isinstance(scheme, Mapping):
        return contrasts.CustomContrasts(_planned(factor, levels, scheme), names=list(scheme))
    raise FitError(f"{scheme!r} is no coding of {factor}: use one of {_listed(SCHEMES)}, or planned contrasts")


def _planned(factor: str, levels: Sequence[Any], scheme: Mapping[str, Mapping[Any, float]]) -> NDArray[np.float64]:
    """The coding matrix whose coefficients are the planned contrasts (Schad et al., 2020, J. Mem. Lang. 110)."""
    if len(scheme) != len(levels) - 1:
        raise FitError(
            f"{factor} has {len(levels)} levels, so it takes {len(levels) - 1} planned contrasts, not {len(scheme)}"
        )
    unknown = sorted({str(level) for weights in scheme.values() for level in weights} - {str(v) for v in levels})
    if unknown:
        raise FitError(f"{factor} has no level {_listed(unknown)}; it has {_listed(levels)}")
    hypotheses = np.array([[float(weights.get(level, 0)) for level in levels] for weights in scheme.values()])
    for name, row in zip(scheme, hypotheses, strict=True):
        if abs(row.sum()) > 1e-9:
            raise FitError(f"the weights of contrast {name!r} of {factor} sum to {row.sum():g}; they must sum to 0")
    full = np.vstack([np.full(len(levels), 1 / len(levels)), hypotheses])
    if np.linalg.matrix_rank(full) < len(levels):
        raise FitError(f"the planned contrasts of {factor} depend on each other; leave one out, or change it")
    return np.asarray(np.linalg.inv(full)[:, 1:])


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(repr(value) for value in values)
