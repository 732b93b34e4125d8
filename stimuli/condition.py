"""Conditions: the factor levels of an item, which its identifier spells out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Condition:
    """The factor levels of one item.

    Attributes:
        count: Number of objects the physics is about (blocks of a tower).
        margin_bin: Signed interval of the physical margin, dimensionless; (0, 0) where a task has no margin.
        build: How the outcome relates to the obvious cue: "plain" (the cue is right), "tricky" (the cue is wrong), or a
            value that the family defines.
        mirrored: Whether the scene is the left-right mirror image of its base scene.
        shift: "none", or the name of a visual or physical shift.
        level: Strength of the shift, 1 to 3; 0 for none.
    """

    count: int
    margin_bin: tuple[float, float] = (0.0, 0.0)
    build: str = "plain"
    mirrored: bool = False
    shift: str = "none"
    level: int = 0

    def __post_init__(self) -> None:
        low, high = self.margin_bin
        if low > high:
            raise ValueError(f"margin bin ({low}, {high}) is empty: give the lower edge first")
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")

    @property
    def code(self) -> str:
        """The factors as a string for item identifiers, e.g. `n3_m+0.10+0.20_tricky_mir`."""
        low, high = self.margin_bin
        parts = [f"n{self.count}"]
        if (low, high) != (0.0, 0.0):
            parts.append(f"m{low:+.2f}{high:+.2f}")
        parts.append(self.build)
        if self.mirrored:
            parts.append("mir")
        if self.shift != "none":
            parts.append(f"{self.shift}{self.level}")
        return "_".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {name: getattr(self, name) for name in self.__slots__} | {"margin_bin": list(self.margin_bin)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Condition:
        """Inverse of `to_dict`. Raises TypeError or ValueError on malformed data."""
        low, high = data["margin_bin"]
        return cls(**(data | {"margin_bin": (float(low), float(high))}))
