"""Where an adapter comes from: the trainings that came before the one that goes on from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.adapter_folder import TRAINING, read_trained
from vlm_probe.probes.models.model_folder import weights_hash

UNKNOWN = "unknown"


def lineage(folder: Path) -> list[dict[str, Any]]:
    """The trainings that led to what lies in a folder, the earliest first; empty for a base model.

    Args:
        folder: Of an adapter that is gone on from, or of a model that was trained in full or merged.

    Returns:
        One entry per training: method, tasks, seed, samples, and the hash of what came of it. What nobody wrote down is
        `UNKNOWN`.

    Raises:
        ModelError: If the folder's files are damaged.
    """
    try:
        trained = read_trained(folder)
    except ModelError:
        if (folder / TRAINING).is_file():
            raise
        return []
    made = trained.training
    if trained.kind == "full" and "method" not in made:
        return []  # a base model, whatever else it says about itself
    own = {
        "method": made.get("method", UNKNOWN),
        "tasks": made.get("tasks", []),
        "seed": made.get("seed"),
        "samples": (made.get("budget") or {}).get("samples"),
        "sha256": trained.sha256 or weights_hash(folder),
    }
    return [*made.get("lineage", []), own]
