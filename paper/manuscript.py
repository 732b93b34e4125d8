"""Checks of a manuscript before it is typeset: that every number and case it uses is there, and that none was typed by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vlm_probe.paper.numbers import Numbers

MAIN, BODY = "main.tex", r"\begin{document}"
VALUE = re.compile(r"\\val\s*\{([^{}]*)\}")
CASE = re.compile(r"\\case\s*\{([^{}]*)\}\s*\{")
FILES = re.compile(r"\\(?:includegraphics(?:\[[^\]]*\])?|input)\s*\{([^{}]*)\}")
COMMENT = re.compile(r"(?<!\\)%.*")
# What has digits in it and is no number of a text: arguments that name things, lengths and options.
NAMES = re.compile(
    r"\\(?:val|label|ref|eqref|pageref|cite[a-z]*|input|includegraphics|begin|end|vspace|hspace|setlength|url|href"
    r"|bibliography|bibliographystyle|multicolumn|resizebox|small|addtolength)\*?(?:\[[^\]]*\])*(?:\{[^{}]*\})*"
)


def check(text: str, numbers: Numbers, folder: Path) -> list[str]:
    """What keeps a manuscript from being typeset with these results, one line each.

    Args:
        text: The manuscript, as LaTeX.
        numbers: That the study gives.
        folder: In which figures and tables are looked for.
    """
    found: list[str] = []
    code = _chosen("\n".join(COMMENT.sub("", line) for line in text.split("\n")), numbers, found)
    for name, line in _used(VALUE, code):
        if name not in numbers:
            found.append(f"line {line}: \\val{{{name}}} is no number of this study")
    for name, line in _used(FILES, code):
        places = [folder / (name + suffix) for suffix in ("", ".tex", ".pdf", ".png")]
        if name.startswith("generated/") and not any(place.is_file() for place in places):
            found.append(f"line {line}: there is no {name} of this study")
    found += [f"line {line}: the number {digits} is typed by hand: use \\val" for digits, line in typed(text)]
    return found


def typed(text: str) -> Iterator[tuple[str, int]]:
    """Numbers that were typed by hand into the body of a manuscript, with their lines."""
    _, begun, body = text.partition(BODY)
    if not begun:
        return
    first = text[: len(text) - len(body)].count("\n") + 1
    for number, line in enumerate(body.split("\n"), first):
        for match in re.finditer(r"\.?\d+(?:[.,]\d+)*", NAMES.sub("", COMMENT.sub("", line))):
            yield match.group(), number


def _used(pattern: re.Pattern[str], code: str) -> Iterator[tuple[str, int]]:
    for match in pattern.finditer(code):
        yield match.group(1).strip(), code.count("\n", 0, match.start()) + 1


def _chosen(code: str, numbers: Numbers, slips: list[str]) -> str:
    """The text with every `\\case` replaced by what is chosen, on as many lines as before; what is wrong with them goes to `slips`.

    Only what is chosen is typeset: the other texts may use numbers that this study does not have.
    """
    place = 0
    while match := CASE.search(code, place):
        name, start = match.group(1).strip(), match.end() - 1
        inner = _group(code, start)
        parts = _side_by_side(inner)
        texts = dict(zip((word.strip() for word in parts[::2]), parts[1::2], strict=False))
        slip = _slip(name, list(texts), numbers)
        if slip:
            slips.append(f"line {code.count(chr(10), 0, match.start()) + 1}: {slip}")
        whole = code[match.start() : start + len(inner) + 2]
        text = texts.get(numbers[name].text, "") if name in numbers else ""
        text += "\n" * (whole.count("\n") - text.count("\n"))
        code = code[: match.start()] + text + code[match.start() + len(whole) :]
        place = match.start()  # what was chosen can have cases in it
    return code


def _slip(name: str, words: list[str], numbers: Numbers) -> str:
    """What is wrong with the words of a `\\case`; empty if nothing is."""
    if name not in numbers:
        return f"\\case{{{name}}} is no verdict of this study"
    among = numbers[name].among
    if not among:
        return f"{name} is a number, and no verdict that \\case could decide by"
    lacking, unknown = [w for w in among if w not in words], [w for w in words if w not in among]
    if lacking:
        return f"\\case{{{name}}} says nothing for {', '.join(lacking)}"
    return f"\\case{{{name}}} has {', '.join(unknown)}, which it cannot be" if unknown else ""


def _group(code: str, start: int) -> str:
    """What is inside the brace at a place; everything that follows if it is never closed."""
    depth, place = 0, start
    while place < len(code):
        if code[place] == "\\":
            place += 1  # an escaped brace is a character
        elif code[place] in "{}":
            depth += 1 if code[place] == "{" else -1
            if depth == 0:
                return code[start + 1 : place]
        place += 1
    return code[start + 1 :]


def _side_by_side(inner: str) -> list[str]:
    """The braced groups of a text, one after the other."""
    found, place = [], inner.find("{")
    while place >= 0:
        found.append(_group(inner, place))
        place = inner.find("{", place + len(found[-1]) + 2)
    return found
