"""What the documentation shows as code: its fenced blocks, in order, with what is said to the tests about each.

Blocks of commands are `sh` (commands alone) or `console` (commands after `$ `, and what they print). They are all executed
but for those behind a comment that says why not:

    <!-- not run: needs a GPU -->

Their commands are still looked at, as are all others. What a `console` block prints is compared with what comes out, `...`
standing for any number of lines or words, unless a comment says why it differs: `<!-- output differs: measured at full size -->`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
LANGUAGES = {"sh", "console", "python", "toml", "text", "yaml", "json", "csv", "latex", "bibtex"}
FENCE = re.compile(r"^(\s*)(```+)(\S*)\s*$")
NOTE = re.compile(r"^\s*<!-- (not run|output differs): (.+?) -->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Where it is.
        line: Number of its first line of code.
        language: What the fence says.
        text: The code, as it is shown.
        not_run: Why it is not executed, if a comment before it says so.
        differs: Why what comes out is not what is shown, likewise.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str = ""
    differs: str = ""

    @property
    def place(self) -> str:
        """Page and line, as an editor takes them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> str:
        """The commands of a `sh` or `console` block, as one script."""
        if self.language == "sh":
            return self.text
        return "\n".join(command for command, _ in self.dialogue())

    def dialogue(self) -> list[tuple[str, str]]:
        """Every command of a `console` block with what it prints."""
        turns: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                turns.append((line[2:], []))
            elif turns and turns[-1][0].endswith("\\"):
                turns[-1] = (f"{turns[-1][0]}\n{line}", [])
            else:
                assert turns, f"{self.place}: a console block begins with a command after '$ '"
                turns[-1][1].append(line)
        return [(command, "\n".join(printed)) for command, printed in turns]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    notes: dict[str, str] = {}
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        if note := NOTE.match(line):
            notes[note[1]] = note[2]
        elif opened := FENCE.match(line):
            indent, fence, language = opened.groups()
            body: list[str] = []
            for _, inner in lines:
                if inner.strip() == fence:
                    break
                body.append(inner.removeprefix(indent))
            text = "\n".join(body)
            found.append(
                Block(page, number + 1, language, text, notes.get("not run", ""), notes.get("output differs", ""))
            )
            notes = {}
        elif line.strip():
            notes = {}
    return found


def spans(page: Path) -> list[tuple[int, str]]:
    """The code within the sentences of a page, with its line."""
    inside = False
    found = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            found += [(number, text) for text in re.findall(r"`([^`]+)`", line)]
    return found


def files(page: Path) -> dict[str, str]:
    """The files that a page shows: blocks that begin with their name in a comment."""
    named = ((re.match(r"# ([\w-]+\.(?:toml|yaml))\n", block.text), block.text) for block in blocks(page))
    return {name[1]: text for name, text in named if name}
