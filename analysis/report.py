"""The report: runs in; `report.md`, figures, tables and `analysis.json` out. The same logs give the same bytes.

What the runs cannot answer is said, with what is missing; a section that fails costs itself alone.
"""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlm_probe.analysis import tables
from vlm_probe.analysis.frame import load
from vlm_probe.analysis.material import ReportData, Settings, select
from vlm_probe.analysis.registration import Registration
from vlm_probe.analysis.result import Result, plain
from vlm_probe.analysis.section import Figure, MissingData, Section
from vlm_probe.stimuli.errors import ProbeError, reason_of
from vlm_probe.stimuli.output import OutputFolder, claim
from vlm_probe.stimuli.plain_json import dumps

log = logging.getLogger(__name__)

REPORT, DATA, FIGURES, TABLES = "report.md", "analysis.json", "figures", "tables"
KIND = "report"
SECTIONS = (
    ("data", "The data"),
    ("perception", "Perception"),
    ("accuracy", "Success rates"),
    ("contrasts", "Planned contrasts"),
    ("transfer", "Transfer"),
    ("model", "The mixed-effects model"),
    ("detection", "Sensitivity and bias"),
    ("pairs", "Minimal pairs and shortcuts"),
    ("controls", "Control conditions"),
    ("psychometry", "Psychometric functions"),
    ("observers", "Errors beside those of observers"),
    ("calibration", "Calibration"),
    ("learning", "Learning"),
    ("attempts", "Several attempts"),
    ("people", "Agreement with people"),
)
"""Files in `analysis/sections`, in the order of the report, with the headings they have if there is no answer."""
REGISTERED, BEFORE = ("registered", "Registered contrasts"), "contrasts"
"""The section that there is with a registration only, and the one that it precedes."""
NEVER_EXPLORATORY = ("data", REGISTERED[0])
LONGEST = 40
"""Rows of a table that `report.md` shows."""
PACKAGES = ("vlm-probe", "numpy", "scipy", "pandas", "statsmodels", "matplotlib")

DEFAULTS = Settings()

Progress = Callable[[str], None]
"""Told what is done next, in a few words."""


@dataclass(frozen=True)
class Report:
    """A finished analysis.

    Attributes:
        sections: Answered ones and others.
        failed: Keys of sections that could not be computed although they should: news for the makers of this program.
        data: The contents of `analysis.json`.
        out: Where it is.
    """

    sections: tuple[Section, ...]
    failed: tuple[str, ...]
    data: dict[str, Any]
    out: Path

    def __str__(self) -> str:
        lines = [f"{section.title}: {_brief(section)}" for section in self.sections]
        return "\n".join([*lines, f"report: {self.out / REPORT}"])


def analyse(
    paths: Iterable[str | Path],
    out: Path,
    settings: Settings = DEFAULTS,
    progress: Progress | None = None,
    registration: Registration | None = None,
) -> Report:
    """Analyse runs and write everything to a folder, whose earlier report is replaced.

    Args:
        paths: As for `vlm_probe.analysis.frame.load`.
        out: Folder; made if it is not there.
        settings: What a reader can change.
        progress: Told what is done next, one section after the other.
        registration: What was planned beforehand; everything else is then called exploratory.

    Raises:
        FrameError: If the runs cannot be made into one table.
        OutputError: If `out` holds something else than a report, another process is writing to it, or it cannot be written.
        RunError: If a folder holds no run.
    """
    tell = progress or _quiet
    with claim(out, KIND) as folder:
        folder.check()
        material = select(load(paths), settings, registration)
        sections, failed = answer(material, tell)
        data = _data(sections, material)
        tell("writing figures and tables")
        _write(folder, sections, data)
    return Report(tuple(sections), tuple(failed), data, out)


def _write(folder: OutputFolder, sections: list[Section], data: dict[str, Any]) -> None:
    """Write a report next to its place, and move it there when it is whole: it is never half of one and half of another."""
    with folder.scratch() as made:
        shown = []
        for section in sections:
            shown.append(_drawn(section, made / FIGURES))
            _write_tables(section, made / TABLES)
        (made / DATA).write_text(dumps(data, indent=1) + "\n", encoding="utf-8")
        (made / REPORT).write_text(_markdown(shown, data), encoding="utf-8")
        folder.replace_all(made, last=REPORT)


def _quiet(now: str) -> None:
    """Nobody wants to know."""


def answer(material: ReportData, progress: Progress = _quiet) -> tuple[list[Section], list[str]]:
    """All sections, and the keys of those that could not be computed although they should.

    Args:
        material: What the report is about.
        progress: Told the title of every section before it is computed.
    """
    wanted = list(SECTIONS)
    is_registered = material.registration is not None
    if is_registered:
        wanted.insert([key for key, _ in SECTIONS].index(BEFORE), REGISTERED)
    sections, failed = [], []
    for number, (key, title) in enumerate(wanted, 1):
        progress(f"{title} ({number} of {len(wanted)})")
        section, worked = _section(key, title, material)
        if is_registered and key not in NEVER_EXPLORATORY:
            section = replace(section, title=f"{section.title} (exploratory)")
        sections.append(section)
        failed += [] if worked else [key]
    return sections, failed


def _section(key: str, title: str, material: ReportData) -> tuple[Section, bool]:
    """A section, or why there is none; and whether that is as it should be."""
    make = import_module(f"vlm_probe.analysis.sections.{key}").section
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is in the notes of the results
            return make(material), True
    except MissingData as reason:
        return Section(key, title, "", missing=str(reason)), True
    except Exception as error:  # one section that fails must not cost the others
        if isinstance(error, ProbeError):  # of the data, and not of this program
            return Section(key, title, "", missing=" ".join(str(error).split())), True
        log.debug("section %s", key, exc_info=True)
        text = " ".join(str(error).split())[:300]
        return Section(key, title, "", missing=f"could not be computed ({type(error).__name__}: {text})"), False


def _drawn(section: Section, folder: Path) -> Section:
    """Draw the figures of a section; the section with those that could be drawn. One that fails must not cost the report."""
    figures = []
    for figure in section.figures:
        try:
            figure.draw(folder / figure.name)
        except OSError:  # the disk
            raise
        except Exception as error:
            log.warning("the figure %s could not be drawn: %s", figure.name, reason_of(error))
        else:
            figures.append(figure)
    return replace(section, figures=tuple(figures))


def _data(sections: list[Section], material: ReportData) -> dict[str, Any]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return {
        "format": 1,
        "settings": asdict(material.settings),
        "sources": [plain(asdict(source)) for source in material.trials.sources],
        "left_out": [asdict(dropped) for dropped in material.trials.dropped],
        "choices": list(material.choices),
        "registration": None if material.registration is None else plain(asdict(material.registration)),
        "sections": {section.key: section.to_dict() for section in sections},
        "versions": found,
    }


def _write_tables(section: Section, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in section.results.items():
        stem = f"{section.key}-{name}"
        (folder / f"{stem}.csv").write_text(tables.csv(result.table), encoding="utf-8")
        notes = [_sentence(result.how), *map(_sentence, result.notes)]
        text = tables.latex(result.table, _sentence(result.title), f"tab:{stem}", notes)
        (folder / f"{stem}.tex").write_text(text, encoding="utf-8")


def _markdown(sections: list[Section], data: dict[str, Any]) -> str:
    parts = ["# Analysis\n"]
    number = 0
    for section in sections:
        parts.append(f"## {section.title}\n")
        if section.missing:
            parts.append(f"*Not answered:* {_sentence(section.missing)}\n")
            continue
        parts.append(f"*{section.question}*\n")
        if section.answer:
            parts.append("".join(f"- {line}\n" for line in section.answer))
        for figure in section.figures:
            number += 1
            parts.append(_figure(figure, number))
        told: set[str] = set()
        for name, result in section.results.items():
            parts.append(_table(section, name, result, told))
    settings = ", ".join(f"{name} {value}" for name, value in data["settings"].items())
    parts.append("## How this was made\n")
    parts.append(
        f"Settings: {settings}. Every number above is in `{DATA}` with all its digits, beside the versions of what computed"
        f" it; every table is in `{TABLES}/` as CSV and LaTeX (booktabs), every figure in `{FIGURES}/` as PDF and PNG.\n"
    )
    logs = "".join(f"- `{s['path']}` {s['sha256'][:12]}, {s['n']} trials\n" for s in data["sources"])
    parts.append(
        f"<details><summary>The logs, with the first digits of their SHA-256</summary>\n\n{logs}\n</details>\n"
    )
    return "\n".join(parts)


def _figure(figure: Figure, number: int) -> str:
    return f"![{figure.name}]({FIGURES}/{figure.name}.png)\n\n**Figure {number}.** {figure.caption}\n"


def _table(section: Section, name: str, result: Result, told: set[str]) -> str:
    """A table with how it was computed, which is not said again where it has been `told` in this section."""
    lines = [_sentence(f"How: {result.how}"), *(_sentence(f"Note: {note}") for note in result.notes)]
    new = [line for line in lines if line not in told]
    told.update(lines)
    left = len(result.table) - LONGEST
    more = f"\n... and {left} rows more in the file.\n" if left > 0 else ""
    how = "\n".join(new) if new else "How: as above."
    return (
        f"**{_sentence(result.title)}** (`{TABLES}/{section.key}-{name}.csv`, `.tex`)\n\n"
        f"{tables.markdown(result.table.head(LONGEST))}{more}\n<sub>{how}</sub>\n"
    )


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _brief(section: Section) -> str:
    if section.missing:
        return f"not answered: {section.missing}"
    return " ".join(section.answer[:2]) if section.answer else f"{len(section.results)} tables"
