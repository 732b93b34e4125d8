"""`probe paper`: from a study to the figures, tables and numbers of a paper, and its PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Json


def paper(
    study: Annotated[
        Path, Parameter(name="STUDY", help="Folder of a study (studies/NAME), or what `probe study pack` made.")
    ],
    /,
    *,
    out: Path = Path("paper-build"),
    manuscript: Path | None = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Build a paper: figures, tables, every number as a LaTeX macro, and the PDF where TeX is installed.

    Writes OUT/generated (figures, tables, numbers.tex, numbers.json), OUT/main.tex and OUT/main.pdf. A manuscript that uses a
    number that the study does not give, or has one typed by hand, is not typeset. Without TeX everything but the PDF is made.

    Args:
        out: Folder of the paper; what an earlier build left there is replaced.
        manuscript: LaTeX file to use instead of the paper of this project; bibliographies next to it come along.
    """
    from vlm_probe.probes.cli.resources import one_thread

    one_thread()
    from vlm_probe.paper.build import HOME, build
    from vlm_probe.paper.manuscript import MAIN
    from vlm_probe.probes.cli.console import progress, show, show_json, tell
    from vlm_probe.probes.cli.errors import FAILURE, SUCCESS, CommandError
    from vlm_probe.stimuli.errors import reading

    text = manuscript or HOME / MAIN
    with reading(text, CommandError, "give a LaTeX file in UTF-8, or leave out --manuscript"):
        text.read_text(encoding="utf-8")
    with progress("building the paper") as step:
        made = build(study, out, text, step)
    if json:
        show_json(made.to_dict())
    else:
        show(str(made))
    for name in made.failed:
        tell(f"the part {name} failed, although it should not: {made.missing[name]}")
    # A machine without TeX is no failure; a manuscript that does not fit its study is one.
    return FAILURE if made.failed or (made.pdf is None and not made.lacks_tex) else SUCCESS
