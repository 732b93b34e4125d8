"""Conditions: the factor levels of an item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.errors import InvalidInput

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Condition:
    """The factor levels of one item.

    Attributes:
        count: Number of objects the physics is about (blocks of a tower).
        margin_bin: Signed interval of the physical margin, dimensionless; (0, 0) where a task has no margin.
        build: How the outcome relates to the obvious cue: "plain" (the cue is right), "tricky" (the cue is wrong), or a
            value that the family defines.
        mirrored: Whether the scene is the left-right mirror image of its base scene.
        shown: How a quantity that a plain image does not show is given ("arrow", "text", ...); empty where there is none.
        shifts: Visual and physical shifts as (name, level 1 to 3), in the order in which they are applied.

    Raises:
        ValueError: If the bin is empty, or the count below 1.
    """

    count: int
    margin_bin: tuple[float, float] = (0.0, 0.0)
    build: str = "plain"
    mirrored: bool = False
    shown: str = ""
    shifts: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        low, high = self.margin_bin
        if low > high:
            raise InvalidInput(f"margin bin ({low}, {high}) is empty: give the lower edge first")
        if self.count < 1:
            raise InvalidInput(f"count must be at least 1, got {self.count}")

    @property
    def code(self) -> str:
        """The factors as one string, e.g. `n3_m+0.10+0.20_tricky_mir`."""
        low, high = self.margin_bin
        parts = [f"n{self.count}"]
        if (low, high) != (0.0, 0.0):
            parts.append(f"m{low:+.2f}{high:+.2f}")
        parts.append(self.build)
        if self.shown:
            parts.append(self.shown)
        if self.mirrored:
            parts.append("mir")
        parts += [f"{name}{level}" for name, level in self.shifts]
        return "_".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "margin_bin": list(self.margin_bin),
            "shifts": [list(shift) for shift in self.shifts],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Condition:
        """Inverse of `to_dict`.

        Raises:
            TypeError, ValueError, KeyError: On malformed data.
        """
        low, high = data["margin_bin"]
        # Sets made before shifts could be combined have one, by name, which was always "none".
        data = {name: value for name, value in data.items() if name not in ("shift", "level")}
        shifts = tuple((str(name), int(level)) for name, level in data.get("shifts", ()))
        return cls(**(data | {"margin_bin": (float(low), float(high)), "shifts": shifts}))


def in_bin(values: Floats | float, margin_bin: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """Which values lie inside the bin, edges excluded so that rounding cannot carry an item into the next one.

    Args:
        values: (...,) margins.
        margin_bin: From, to.

    Returns:
        (...,).
    """
    low, high = margin_bin
    return np.asarray((np.asarray(values) > low + 1e-9) & (np.asarray(values) < high - 1e-9))
