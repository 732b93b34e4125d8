"""Every command that the documentation shows is one that the program understands, whether it is executed here or not."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from cyclopts import CycloptsError

from tests.docs import shell
from tests.docs.blocks import LANGUAGES, PAGES, ROOT, Block, blocks, files, spans
from vlm_probe.probes.cli import app
from vlm_probe.probes.trials import TABLE

SCRIPTS = [block for page in PAGES for block in blocks(page) if block.language in ("sh", "console")]
FOREIGN = {"git", "latexmk", "rm", "lmms/bin/pip", "sbatch", "squeue", "sudo", "ssh", "transformers", "vllm", "watch"}
"""Programs of others, whose options are theirs."""


def test_the_columns_of_trials_are_listed_as_they_are_declared() -> None:
    lines = [f"| `{column.name}` | {column.allowed} | {column.meaning} |" for column in TABLE]
    page = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    assert "\n".join(["| Column | Holds | Meaning |", "|---|---|---|", *lines, ""]) in page, "\n".join(lines)


def parse(arguments: Sequence[str]) -> str:
    """What `probe` would say of a command line, without doing anything: nothing if it is right."""
    try:
        app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return str(error)
    return ""


def check(command: Sequence[str]) -> str:
    """What is wrong with a command; nothing if it is right."""
    name, *arguments = command
    if name == "probe":
        return parse(arguments)
    if name in ("accelerate", "torchrun"):
        assert "-m" in arguments, f"{command} starts no module"
        module, *rest = arguments[arguments.index("-m") + 1 :]
        return parse(rest) if module == "vlm_probe" else f"there is no module {module}"
    if name == "make":
        known = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return "; ".join(f"no target {word}" for word in arguments if "=" not in word and word not in known)
    if name == "python" and arguments[:1] not in (["-m"], ["-c"]):
        script = ROOT / arguments[0]
        if not script.is_file():
            return f"there is no {arguments[0]}"
        text = script.read_text(encoding="utf-8")
        names = {word: word.removeprefix("--").replace("-", "_") for word in arguments if word.startswith("--")}
        known = [word for word, name in names.items() if f'"{word}"' in text or re.search(rf"\b{name}: ", text)]
        return "; ".join(f"no option {word}" for word in names if word not in known)
    if name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        ours = re.findall(r"(?:vlm-probe|\.)\[([^]]+)\]", " ".join(arguments))
        return "; ".join(f"no extra {extra}" for found in ours for extra in found.split(",") if extra not in extras)
    return ""


@pytest.mark.parametrize("block", SCRIPTS, ids=lambda block: block.place)
def test_every_command_is_understood(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file, text in files(block.page).items():
        Path(file).write_text(text, encoding="utf-8")
    complaints: list[str] = []

    def answer(name: str) -> shell.Answer:
        def look(arguments: Sequence[str], _: Path) -> tuple[int, str]:
            if wrong := check([name, *arguments]):
                complaints.append(f"{name} {shlex.join(arguments)}: {wrong}")
            return 0, ""

        return look

    # Bash finds nothing but these, so that nothing is done, and a program that nobody has thought of is noticed.
    (tmp_path / "bin").mkdir()
    for harmless in ("basename", "cat", "seq"):
        (tmp_path / "bin" / harmless).symlink_to(str(shutil.which(harmless)))
    names = {
        "probe",
        "accelerate",
        "torchrun",
        "make",
        "python",
        "pip",
        "cd",
        "head",
        "ls",
        "mkdir",
        "source",
        *FOREIGN,
    }
    answers = {name: answer(name) for name in names if not ("/" in name and name not in block.text)}
    _, printed = shell.run(block.commands(), tmp_path, answers, path=str(tmp_path / "bin"))
    assert not complaints, f"{block.place}: " + "\n".join(complaints)
    assert not printed, f"{block.place}: {printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist_with_their_options(page: Path) -> None:
    for line, text in spans(page):
        # A variable may stand before the command: `OPENAI_API_KEY=... probe run`.
        if not (command := re.fullmatch(r"(?:[A-Z_]+=\S+ )*probe (.+)", text)):
            continue
        words = [word for word in command[1].split() if word not in ("...", "--help")]
        if not words:
            continue
        commands, apps, rest = app.parse_commands(words)
        names = {"--help", "--version"}
        if apps[-1].default_command is not None:
            names |= {name for argument in apps[-1].assemble_argument_collection() for name in argument.names}
        unknown = [word for word in rest if word.startswith("-") and word.partition("=")[0] not in names]
        assert commands or words[0] == "COMMAND", f"{page.name}:{line}: there is no `{text}`"
        assert not unknown, f"{page.name}:{line}: `{text}` has no {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_is_fenced_says_what_it_is_and_can_be_read(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: the language of a block is one of {sorted(LANGUAGES)}"
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
    inside, before = False, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        inside ^= line.strip().startswith("```")
        unfenced = not inside and line.startswith("    ") and not before and not line.strip().startswith(("-", "```"))
        assert not unfenced, f"{page.name}:{number}: code is shown between fences, with its language"
        before = line.strip()


def test_every_option_is_explained() -> None:
    reference = app.generate_docs()
    assert reference.count("* `--") > 200
    assert re.findall(r"^\* (`[^`]+`): *(?:\*|$)", reference, re.MULTILINE) == []


def test_every_page_is_in_the_navigation_and_links_lead_somewhere() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(re.findall(r"[\w/-]+\.md", str(site["nav"])))
    docs = ROOT / "docs"
    assert {page.relative_to(docs).as_posix() for page in PAGES if page.is_relative_to(docs)} == listed
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"
                assert (page.parent / link).resolve().is_relative_to(docs if page.is_relative_to(docs) else ROOT), link
