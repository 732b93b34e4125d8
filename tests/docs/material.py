"""What a page takes for granted: the files and folders of a reader who has come that far."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from tests.analysis.conftest import run_rows, write_run
from tests.analysis.mixed_effects.conftest import simulate
from tests.docs.blocks import ROOT
from tests.paper.conftest import write_study

MINE = """
from inclined_plane import InclineSlide


class Mine(InclineSlide):
    def demonstrate(self, scene, question, rng):
        return "stays"
"""

MANUSCRIPT = r"""
\documentclass{article}
\input{generated/numbers}
\begin{document}
Of \val{trials} trials.
\end{document}
"""


def runs(folder: Path) -> None:
    """Runs of an untrained model and of two trainings."""
    for task in ("towers-stability", "balance-tilt"):
        write_run(folder / f"runs/base-{task}", run_rows(task, n=24))
        for seed in range(2):
            rows = run_rows(task, n=24, seed=seed)
            write_run(
                folder / f"runs/sft-{seed}-{task}", rows, method="sft", train_tasks=["towers-stability"], seed=seed
            )


def own_set(folder: Path) -> None:
    """Photographs, tables and answers of people."""
    (folder / "photos").mkdir()
    table, people = ["file,answer,margin,pair,surface,n_yes,n_no"], ["subject,stimulus,said,rt"]
    for index in range(1, 13):
        falls = index % 2 == 0
        name = f"tower{index:02}.jpg"
        picture = Image.new("RGB", (80, 60), "white")
        for level in range(3):
            left = 30 + 8 * level * falls
            ImageDraw.Draw(picture).rectangle((left, 45 - 12 * level, left + 15, 56 - 12 * level), fill="peru")
        picture.save(folder / "photos" / name)
        says, margin, votes = ("falls", -0.28, "5,15") if falls else ("stands", 0.32, "17,3")
        table.append(f"{name},{says},{margin},{'abcdef'[(index - 1) // 2]},wood,{votes}")
        people.append(f"s01,{name},{'no' if falls else 'yes'},{1.1 if falls else 0.84:.2f}")
    (folder / "trials.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    (folder / "people.csv").write_text("\n".join(people) + "\n", encoding="utf-8")
    items = [",".join(line.split(",")[:4]) for line in table]
    (folder / "items.csv").write_text("\n".join(items) + "\n", encoding="utf-8")
    slips = "\n".join(table).replace("tower02.jpg", "towr02.jpg", 1).splitlines()
    slips[8] = slips[8].replace("falls", "perhaps")
    slips[11] = slips[11].replace("0.32", "big")
    (folder / "slips.csv").write_text("\n".join(slips) + "\n", encoding="utf-8")


def own_task(folder: Path) -> None:
    """The example, installed, and a task with a mistake in it."""
    example = ROOT / "examples" / "inclined_plane"
    shutil.copy(example / "inclined_plane.py", folder)
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    info = folder / "inclined_plane-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: inclined-plane\nVersion: 0.1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[probe.tasks]\nincline-slide = inclined_plane:InclineSlide\n", encoding="utf-8"
    )


def trials(folder: Path) -> None:
    """A table of trials of three methods."""
    simulate(runs=5, items=30, per_run=30).to_csv(folder / "trials.csv", index=False)


def paper(folder: Path) -> None:
    """A study that was run, and a manuscript about it."""
    write_study(folder / "studies" / "mine")
    (folder / "text").mkdir()
    (folder / "text" / "main.tex").write_text(MANUSCRIPT, encoding="utf-8")


def studies(folder: Path) -> None:
    """The studies of the repository."""
    shutil.copytree(ROOT / "examples" / "study", folder / "examples" / "study")


MATERIAL: dict[str, Callable[[Path], None]] = {
    "from-lme4.md": trials,
    "own-set.md": own_set,
    "own-task.md": own_task,
    "paper.md": paper,
    "reading-statistics.md": runs,
    "report.md": runs,
    "slurm.md": studies,
}
