"""Some of a study's cells: those whose names match a pattern, and what they need."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from vlm_probe.probes.study.cells import Cell, count_by_kind
from vlm_probe.probes.study.fields import StudyError, did_you_mean


def matching(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match one of the patterns; all if there are none.

    Args:
        cells: Of the study.
        patterns: As a shell writes them: `adapters/*`, `runs/*_sft_*`.

    Raises:
        StudyError: If nothing matches a pattern.
    """
    for pattern in patterns:
        if not any(fnmatchcase(cell.id, pattern) for cell in cells):
            kinds = ", ".join(f"{kind}/* ({n})" for kind, n in count_by_kind(cells).items())
            hint = did_you_mean(pattern, [cell.id for cell in cells]) if "*" not in pattern else f"there are {kinds}"
            raise StudyError(f"--only {pattern}: no cell of the study is called that; {hint}")
    return [cell for cell in cells if not patterns or any(fnmatchcase(cell.id, pattern) for pattern in patterns)]


def with_needs(cells: Sequence[Cell], chosen: Sequence[Cell]) -> list[Cell]:
    """Chosen cells and all that must be done before them, in the order of the study.

    Args:
        cells: Of the study, those that others need first.
        chosen: Some of them.
    """
    kept = {cell.id for cell in chosen}
    owner = {step.id: cell.id for cell in cells for step in cell.steps}
    for cell in reversed(cells):  # what is needed stands before what needs it
        if cell.id in kept:
            kept |= {owner[need] for need in cell.needs}
    return [cell for cell in cells if cell.id in kept]
