"""The documentation, done: every page's commands in order, in an empty folder, with the smallest sizes that do the whole."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import vlm_probe.stimuli.standard
from tests.docs import shell
from tests.docs.blocks import PAGES, Block, blocks, files
from tests.docs.material import MATERIAL
from tests.docs.sizes import ITEMS, small
from vlm_probe.probes.cli import main
from vlm_probe.stimuli.tasks import get_task

SLOW = {
    "adapters.md",
    "analysis.md",
    "decoding.md",
    "designs.md",
    "interaction.md",
    "paper.md",
    "shifts.md",
    "training-ablations.md",
    "tutorial.md",
}
"""Pages that train models, read hidden states, or make many sets."""
EXECUTED = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
    for page in PAGES
    if any(block.language in ("sh", "console", "python") and not block.not_run for block in blocks(page))
]


def probe(arguments: Sequence[str], folder: Path) -> tuple[int, str]:
    """The command line in this process: its exit code, and what it prints; if it fails, what it says of that, too."""
    before = Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main(small(arguments))
    finally:
        os.chdir(before)
    code = end.value.code
    assert isinstance(code, int)
    told = [line for line in err.getvalue().splitlines(keepends=True) if not re.search(r": \d+/\d+$", line)]
    return code, out.getvalue() + ("".join(told) if code else "")


def agree(shown: str, printed: str) -> bool:
    """Whether a text is the one that is shown, where `...` stands for anything and white space for white space."""
    parts = [re.escape(" ".join(part.split())).replace(r"\ ", r"\s+") for part in shown.split("...")]
    return re.fullmatch(r"\s*" + r"[\s\S]*".join(parts) + r"\s*", printed) is not None


def execute(block: Block, folder: Path, names: dict[str, object]) -> None:
    """Do what a block shows. Raises AssertionError if it fails, or prints something else than is shown."""
    if block.language == "python":
        exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), names)
    elif block.language == "sh":
        code, printed = shell.run(f"set -e\n{block.text}", folder, {"probe": probe})
        assert code == 0, f"{block.place}: exit code {code}\n{printed}"
    elif block.language == "console":
        for command, shown in block.dialogue():
            code, printed = shell.run(command, folder, {"probe": probe})
            compared = shown and not block.differs
            # A command may fail if what it then says is what the page is about.
            assert compared or code == 0, f"{block.place}: exit code {code} of {command}\n{printed}"
            assert not compared or agree(shown, printed), f"{block.place}: {command} prints\n{printed}"


@pytest.mark.parametrize("page", EXECUTED)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PROBE_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vlm_probe.stimuli.standard, "STANDARD_N", ITEMS)
    monkeypatch.setattr(vlm_probe.stimuli.standard, "STANDARD_SIZE", 64)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for file, text in files(page).items():
        (folder / file).write_text(text, encoding="utf-8")
    MATERIAL.get(page.name, lambda _: None)(folder)
    get_task.cache_clear()
    names: dict[str, object] = {}
    try:
        for block in blocks(page):
            if not block.not_run:
                execute(block, folder, names)
    finally:
        get_task.cache_clear()
        for name in ("inclined_plane", "mine"):
            sys.modules.pop(name, None)
