"""LaTeX: typesetting with latexmk where TeX is installed, and what to install where it is not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

INSTALL = (
    "apt-get install --no-install-recommends latexmk texlive-latex-recommended texlive-fonts-recommended lmodern"
    " (macOS: brew install --cask basictex, then tlmgr install latexmk)"
)
PROGRAMS = ("latexmk", "pdflatex", "bibtex")
LIMIT_S = 900
EPOCH = "1735689600"
"""Seconds since 1970 that the PDF carries as its date, so that equal results give equal bytes."""


def lacking() -> list[str]:
    """Programs of TeX that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def typeset(main: Path) -> tuple[Path | None, str]:
    """Typeset a manuscript in its folder.

    Args:
        main: The file.

    Returns:
        The PDF, or None and why there is none, with what to do.
    """
    if missing := lacking():
        return (
            None,
            f"{', '.join(missing)} not installed: {INSTALL}; everything else is made, and the same command adds the PDF",
        )
    pdf = main.with_suffix(".pdf")
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error", "-quiet", main.name]
    environment = os.environ | {"SOURCE_DATE_EPOCH": EPOCH, "FORCE_SOURCE_DATE": "1", "max_print_line": "1000"}
    try:
        subprocess.run(command, cwd=main.parent, env=environment, capture_output=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return None, f"latexmk did not end within {LIMIT_S} s: see {main.with_suffix('.log').name} beside it"
    log = main.with_suffix(".log")
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if not pdf.exists():
        return None, f"{_first_error(text)}; see {log.name} beside it"
    undefined = re.findall(r"(?:Citation|Reference) `([^']+)'.*undefined", text)
    if undefined:
        return (
            None,
            f"undefined in the text: {', '.join(sorted(set(undefined)))}; add them to references.bib, or label them",
        )
    for suffix in (".aux", ".bbl", ".blg", ".fdb_latexmk", ".fls", ".out", ".log"):
        main.with_suffix(suffix).unlink(missing_ok=True)
    return pdf, ""


def _first_error(log: str) -> str:
    """What TeX says went wrong, in one line."""
    for line in log.split("\n"):
        if line.startswith("! ") or re.match(r"\S+\.tex:\d+: ", line):
            package = re.search(r"File `([^']+)' not found", line)
            return f"TeX lacks {package.group(1)}: {INSTALL}" if package else " ".join(line.split())
    return "latexmk failed"
