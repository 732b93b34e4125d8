"""Help pages as plain text. (Those of cyclopts import rich, which costs more than everything else that a help page needs.)"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from cyclopts import App

FLAGS = ("--help", "-h")
WIDEST, COLUMN = 100, 26
"""Characters of a line, and of the names before what they mean."""

Entries = list[tuple[str, str]]
"""Names and meanings."""


def show_help(app: App, given: Sequence[str], groups: Mapping[str, Iterable[tuple[str, str]]], epilogue: str) -> None:
    """Print the help page of the command that the arguments name.

    Args:
        app: The command line.
        given: Arguments, with one of `FLAGS` among them.
        groups: Titles of the groups of commands of the program itself -> their names and what they do.
        epilogue: Last paragraph of every page.
    """
    chain = []
    for word in given:
        if word.startswith("-") or app.default_command is not None or word not in app:
            break
        app = app[word]
        chain.append(word)
    program = " ".join(["probe", *chain])
    if app.default_command is not None:
        usage, sections = _options(app)
    else:
        usage = "COMMAND [OPTIONS]"
        named = [(name, _first_line(app[name].help)) for name in app if not name.startswith("-")] if chain else []
        sections = {"Commands": named} if chain else {title: list(entries) for title, entries in groups.items()}
    width = min(WIDEST, shutil.get_terminal_size().columns)
    said = getattr(app.default_command, "__doc__", None) or app.help
    lines = [f"Usage: {program} {usage}", "", *_paragraphs(said, width)]
    for title, entries in sections.items():
        lines += ["", f"{title}:"]
        for names, meaning in entries:
            lines += _entry(names, meaning, width)
    sys.stdout.write("\n".join([*lines, "", *textwrap.wrap(epilogue, width), ""]))


def _options(app: App) -> tuple[str, dict[str, Entries]]:
    """The usage of a command, and its options by group."""
    found: dict[Any, Entries] = defaultdict(list)
    usage = []
    meanings = _meanings(app.default_command)
    for argument in app.assemble_argument_collection(parse_docstring=False):
        if argument.names == ("*",):
            meanings |= _meanings(argument.hint)
        if argument.names == ("*",) or not argument.show:
            continue
        choices = [str(choice) for choice in argument.get_choices() or () if choice]
        is_flag = argument.hint is bool
        value = "" if is_flag else "{" + "|".join(choices) + "}" if choices else _metavar(argument.hint)
        positional = not argument.names[0].startswith("-")
        names = ", ".join(name for name in argument.names if name not in argument.negatives)
        entry = argument.names[0] if positional else f"{names} {value}".rstrip()
        meaning = [argument.parameter.help or meanings.get(argument.field_info.name, ""), *_default(argument)]
        groups: Any = argument.parameter.group
        group = next(iter(groups))
        found[group].append((entry, " ".join(filter(None, meaning))))
        if argument.required:
            usage.append(argument.names[0] if positional else f"{argument.names[0]} {value}")
    # Arguments without an option come first, groups that have no place of their own after them.
    order = sorted(
        found, key=lambda group: group.sort_key if isinstance(group.sort_key, int) else -(group.name == "Arguments")
    )
    return " ".join([*usage, "[OPTIONS]"]), {"Options" if g.name == "Parameters" else g.name: found[g] for g in order}


def _meanings(thing: object) -> dict[str, str]:
    """Argument or attribute -> what its docstring says of it, in one line."""
    text = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {5,}.+)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def _default(argument: Any) -> Iterator[str]:
    if argument.required:
        yield "(required)"
        return
    default = argument.field_info.default
    if argument.negatives:
        yield f"(default: {'yes' if default else 'no'}; {argument.negatives[0]} turns it off)"
    elif default not in (None, "", (), inspect.Parameter.empty) and default is not False:
        yield f"(default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"


def _metavar(hint: Any) -> str:
    """How the value of an option is called, such as INT."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None) and kind is not Ellipsis]
    if getattr(hint, "__origin__", None) is tuple:
        return f"{_metavar(kinds[0])},..."
    return _metavar(kinds[0]) if kinds else {"str": "TEXT"}.get(hint.__name__, hint.__name__.upper())


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]


def _paragraphs(text: str, width: int) -> list[str]:
    """What a docstring says before it comes to arguments."""
    blocks = text.split("\n\n")
    ends = (number for number, block in enumerate(blocks) if block.strip().startswith(("Args:", "Raises:", "Returns:")))
    wrapped = [textwrap.wrap(" ".join(block.split()), width) for block in blocks[: next(ends, len(blocks))]]
    return [line for block in wrapped if block for line in ("", *block)][1:]


def _entry(names: str, meaning: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(meaning, width - COLUMN) or [""]
    first = f"  {names}"
    if len(first) >= COLUMN - 1:
        return [first, *(" " * COLUMN + line for line in wrapped)]
    return [first.ljust(COLUMN) + wrapped[0], *(" " * COLUMN + line for line in wrapped[1:])]
