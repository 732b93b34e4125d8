"""Building a paper: from a study to figures, tables and numbers, and from these and a manuscript to a PDF."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vlm_probe.analysis.section import MissingData
from vlm_probe.paper import manuscript, tex
from vlm_probe.paper.numbers import Numbers
from vlm_probe.paper.part import Part
from vlm_probe.paper.study.pack import REMARKS
from vlm_probe.paper.study_results import PaperError, Study, read_study
from vlm_probe.stimuli.errors import reading
from vlm_probe.stimuli.output import claim

log = logging.getLogger(__name__)

HOME = Path(__file__).parent
KIND = "paper"
GENERATED, NUMBERS, FIGURES, TABLES = "generated", "numbers", "figures", "tables"
PARTS = (
    *("design", "stimuli", "perception", "controls", "observers", "trained", "contrasts", "hypotheses"),
    *("transfer", "conditions", "learning", "psychometry", "decoding"),
)
"""Files in `paper/parts`."""
NEEDED = ("contrasts", "trained", "transfer")
"""Parts without which the manuscript that comes along has nothing to say; it does without any other."""
SHOWN = 8
"""Slips of a manuscript that are named at once."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Paper:
    """What was made.

    Attributes:
        out: The folder.
        pdf: The paper, or None.
        figures, tables: Files.
        numbers: How many there are.
        missing: Part -> why it was not made.
        failed: Parts that could not be made although they should: news for the makers of this program.
        unfinished: Runs of the study that are not finished, and left out.
        problem: Why there is no PDF, with what to do; empty if there is one.
        lacks_tex: Whether it is only that TeX is not installed.
    """

    out: Path
    pdf: Path | None
    figures: tuple[str, ...]
    tables: tuple[str, ...]
    numbers: int
    missing: dict[str, str]
    failed: tuple[str, ...]
    unfinished: int
    problem: str
    lacks_tex: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {
            **{name: getattr(self, name) for name in ("numbers", "missing", "unfinished", "problem", "lacks_tex")},
            "out": str(self.out),
            "pdf": None if self.pdf is None else str(self.pdf),
            **{name: list(getattr(self, name)) for name in ("figures", "tables", "failed")},
        }

    def __str__(self) -> str:
        lines = [
            f"{len(self.figures)} figures, {len(self.tables)} tables and {self.numbers} numbers: {self.out / GENERATED}"
        ]
        lines += (
            [f"{self.unfinished} runs are not finished, and left out: build it again when they are"]
            if self.unfinished
            else []
        )
        lines += [f"not made: {part}: {why}" for part, why in self.missing.items()]
        lines.append(f"paper: {self.pdf}" if self.pdf is not None else f"no PDF: {self.problem}")
        return "\n".join(lines)


def build(folder: Path, out: Path, text: Path = HOME / manuscript.MAIN, progress: Progress | None = None) -> Paper:
    """Build a paper.

    Args:
        folder: Of the study, or of its packed results.
        out: Folder to write to; what an earlier build left there is replaced, if nobody has changed it.
        text: The manuscript.
        progress: Told how many steps are done, and how many there are.

    Raises:
        OutputError: If `out` holds something else than an earlier paper, was changed since, or cannot be written.
        PaperError: If there is no study.
    """
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(PARTS) + 2)

    with claim(out, KIND) as output:
        output.check()
        study = read_study(folder)
        remarks = folder / REMARKS
        with reading(remarks, PaperError, "save it as UTF-8"):
            remarked = remarks.read_text(encoding="utf-8") if remarks.is_file() else ""
        step()
        with output.scratch() as made:
            paper = _build(study, remarked, made, out, text, step)
            output.replace_all(made)
    return paper


def _build(study: Study, remarked: str, made: Path, out: Path, text: Path, step: Callable[[], None]) -> Paper:
    """Make everything in a folder from which it is moved to `out`."""
    generated = made / GENERATED
    for name in (FIGURES, TABLES):
        (generated / name).mkdir(parents=True)
    numbers, missing, failed = Numbers(), {}, []
    for name in PARTS:
        try:
            _write(_make(name, study), generated, numbers)
        except MissingData as reason:
            missing[name] = str(reason)
        except Exception as error:  # one part that fails must not cost the others
            log.debug("part %s", name, exc_info=True)
            failed.append(name)
            missing[name] = f"could not be computed ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        step()
    for name in PARTS:
        numbers.verdict(f"part.{name}", "missing" if name in missing else "made", ("made", "missing"))
    (generated / f"{NUMBERS}.tex").write_text(numbers.to_latex(), encoding="utf-8")
    (generated / f"{NUMBERS}.json").write_text(numbers.to_json(), encoding="utf-8")
    (generated / REMARKS).write_text(remarked, encoding="utf-8")
    slips = _lay_out(text, made, numbers, missing)
    pdf, problem = (None, slips) if slips else tex.typeset(made / manuscript.MAIN)
    step()
    return Paper(
        out=out,
        pdf=None if pdf is None else out / pdf.name,
        figures=tuple(sorted(p.stem for p in (generated / FIGURES).glob("*.pdf"))),
        tables=tuple(sorted(p.stem for p in (generated / TABLES).glob("*.tex"))),
        numbers=len(numbers.values),
        missing=missing,
        failed=tuple(failed),
        unfinished=study.unfinished,
        problem=problem,
        lacks_tex=not slips and bool(tex.lacking()),
    )


def _make(name: str, study: Study) -> Part:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them is in the notes of the results
        made: Part = import_module(f"vlm_probe.paper.parts.{name}").part(study)
    return made


def _write(part: Part, generated: Path, numbers: Numbers) -> None:
    for name, draw in part.figures.items():
        draw(generated / FIGURES / name)
    for name, latex in part.tables.items():
        (generated / TABLES / f"{name}.tex").write_text(latex, encoding="utf-8")
    numbers.join(part.numbers)


def _lay_out(text: Path, out: Path, numbers: Numbers, missing: dict[str, str]) -> str:
    """Put the manuscript and its bibliographies next to what was generated; what does not fit, or nothing."""
    main = out / manuscript.MAIN
    shutil.copyfile(text, main)
    for bibliography in text.parent.glob("*.bib"):
        shutil.copyfile(bibliography, out / bibliography.name)
    slips = manuscript.check(main.read_text(encoding="utf-8"), numbers, out)
    remarks = manuscript.BODY + (out / GENERATED / REMARKS).read_text(encoding="utf-8")
    slips += [f"{REMARKS}, {slip}" for slip in manuscript.check(remarks, numbers, out)]
    if not slips:
        return ""
    if text == HOME / manuscript.MAIN and (lacking := [part for part in NEEDED if part in missing]):
        return (
            f"the paper of this project is about trained models and what carries over, and the study lacks that"
            f" ({missing[lacking[0]]}): train and test some, or give a manuscript of your own (--manuscript)"
        )
    more = f" (and {len(slips) - SHOWN} more)" if len(slips) > SHOWN else ""
    return f"{text.name} and this study do not fit: {'; '.join(slips[:SHOWN])}{more}"
