"""What the model is shown: one scene of every family, with a question about it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vlm_probe.analysis.levels import family_of
from vlm_probe.analysis.section import Unanswerable
from vlm_probe.paper.figures.stimuli import Shown, stimuli
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.tasks import FAMILIES, get_task

ITEMS, SEED, SIZE = 8, 4, 256


def part(study: Study) -> Part:
    """One item of every family that was tested. Raises Unanswerable if none of the tasks is one of ours."""
    asked = [str(t) for t in dict.fromkeys(study.plain["test_task"].astype(str)) if not get_task(str(t)).held_out]
    tasks = {family_of(task): task for task in sorted(asked, key=lambda t: get_task(t).kind)}
    if not set(tasks) & set(FAMILIES):
        raise Unanswerable("none of the tasks that were tested can be drawn")
    return Part(figures={"stimuli": lambda stem: _draw([tasks[f] for f in FAMILIES if f in tasks], stem)})


def _draw(tasks: list[str], stem: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shown = []
        for task in tasks:
            opened: StimulusSet = make_set(task, ITEMS, SEED, Path(folder) / task, size=SIZE)
            item = opened.items[0]
            shown.append(Shown(family_of(task), opened.path / item.file_name, item.question.prompt))
        stimuli(shown, stem)
