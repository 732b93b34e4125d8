"""Grounding before physics: before a battery of controls, does the model see what the pictures show?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_probe.probes.run import RunConfig
    from vlm_probe.stimuli.dataset import StimulusSet

GROUNDING_N, GROUNDING_SEED = 120, 10_009
"""Size and seed of the grounding set that a battery of controls begins with."""


def ask_grounding(config: RunConfig, stimuli: StimulusSet, folder: Path, model: Any, jobs: int | None) -> None:
    """Ask the family's grounding questions, and say how many of each kind are right; the battery's summary begins with them, too.

    A model that cannot count the blocks is not failing at physics. Nothing is asked for a family without such a task,
    for a grounding set itself, or of an observer, which does not look at pictures.

    Args:
        config: Of the run; the grounding questions are asked of the same model with the same settings, in the plain
            manner.
        stimuli: What the battery is about.
        folder: Of the run; the grounding run goes into a folder inside it.
        model: The loaded model.
        jobs: Processes that make the questions' pictures; None takes all cores.
    """
    from vlm_probe.analysis.logs import GROUNDING
    from vlm_probe.analysis.summary import seen
    from vlm_probe.probes.cli.console import progress, tell
    from vlm_probe.probes.cli.resources import cores, drawn_alike
    from vlm_probe.probes.run import run
    from vlm_probe.stimuli.standard import further_set
    from vlm_probe.stimuli.tasks import get_task, task_names

    name = str(stimuli.card.get("task"))
    task = f"{get_task(name).family}-grounding" if name in task_names() else ""
    if task not in task_names() or task == name or not model.needs_images:
        return
    with progress("making grounding items") as step:
        items = further_set(
            task, GROUNDING_N, GROUNDING_SEED, **drawn_alike(stimuli), jobs=jobs or cores(), progress=step
        )
    plain = replace(config, stimuli=task, design="plain", examples=(0,), examples_from=None, limit=None, style="")
    with progress("grounding first") as step:
        run(plain, items, folder / GROUNDING, model=model, progress=step)
    right = ", ".join(f"{cell.label} {cell.accuracy.value:.2f}" for cell in seen(folder / GROUNDING))
    tell(f"grounding ({task}, {len(items)} items, share right): {right}")
