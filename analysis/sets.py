"""The stimulus sets behind a report, as far as they are still where the runs found them: for rules and human responses.

A relative path is one from here, or from a folder above the run, as in a study.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from vlm_probe.analysis.frame import Trials
from vlm_probe.stimuli.dataset import StimulusError, StimulusSet


def find_sets(trials: Trials) -> dict[str, StimulusSet]:
    """Hash (first twelve digits) -> set, for those sets that are there and are the ones that were asked."""
    found: dict[str, StimulusSet] = {}
    for source in trials.sources:
        if not source.stimuli or source.stimuli[:12] in found or not source.set_path:
            continue
        for home in (Path(), *Path(source.path).parents):
            stimuli = _load(home / source.set_path)
            if stimuli is not None and stimuli.content_sha256 == source.stimuli:
                found[source.stimuli[:12]] = stimuli
                break
    return found


def _load(path: Path) -> StimulusSet | None:
    try:
        return StimulusSet.load(path) if path.is_dir() else None
    except (StimulusError, OSError):
        return None


def human_responses(sets: dict[str, StimulusSet]) -> pd.DataFrame:
    """The human responses that came with the sets: `item_id`, `participant`, `response`, `count`, `stimuli`."""
    rows = [
        asdict(response) | {"stimuli": code}
        for code, stimuli in sorted(sets.items())
        for response in stimuli.responses()
    ]
    return pd.DataFrame(rows, columns=None if rows else ["item_id", "participant", "response", "count", "stimuli"])
