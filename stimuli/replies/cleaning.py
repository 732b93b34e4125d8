"""From a raw reply to plain lower-case text: typography, turns and tokens of chat templates, thoughts, markup.

Every step is a table or one regular expression without nested repetition, so that the time grows with the length of the reply.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

_CHARACTERS = (
    (
        "\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\u202a\u202b\u202c\u202d\u202e\ufeff\u00ad\ufe0f¿¡",
        "",
    ),
    ("。｡।॥۔։．", ". "),
    ("、，،", ", "),
    ("；؛", "; "),
    ("：∶", ":"),
    ("؟", "?"),
    ("…⋯", "..."),
    ("“”„‟«»「」『』《》〈〉【】〔〕〝〞", '"'),
    ("‘’‚‛‹›´", "'"),
    ("‐‑", "-"),
    ("−﹣", "−"),  # a minus in earnest: it is never a bullet
    ("‒–—―⸺", "–"),  # dashes: a minus only where they touch a number
    ("→➔➜➡⟶⇒⟹", "->"),
    ("∴", " so "),
    ("∵", " because "),
    ("≈≃≅∼～〜", "~"),
    ("º˚", "°"),
    ("•◦▪‣·●○■□", "*"),
)
TYPOGRAPHY = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {
    ord(character): plain for characters, plain in _CHARACTERS for character in characters
}
"""What characters other than ASCII stand for; full-width forms stand for their ASCII twins."""

CHINESE = (
    (r"(?:最终)?(?:答案|回答)\s*(?:是|为)?\s*:?", " answer: "),
    (r"向左(?:移动|边)?|往左(?:移动|边)?", " left "),
    (r"向右(?:移动|边)?|往右(?:移动|边)?", " right "),
    (r"厘米|公分", " cm "),
    (r"毫米", " mm "),
    (r"(?<=[0-9])\s*度", "°"),
    (r"(?<=[0-9])\s*[到至]\s*(?=[0-9])", " to "),
    (r"或者|或", " or "),
    (r"不是", " not "),
    (r"如果|除非", " if "),
    (r"因为|由于", " because "),
    (r"所以|因此", " so "),
)
"""The few Chinese words around an answer that is itself a number or a word of the prompt."""

_NOT = re.compile(r"(?<![\w!.?])!(?=[a-z(])")
_MINUTES = re.compile(r"(?<=[0-9])'(?!\w)")
_DASHES = re.compile(r"--+(?!>)")
_SYMBOLS = re.compile("[\u2600-\u27bf\U0001f000-\U0001faff]")


def normalised(text: str) -> str:
    """The text in lower case, with plain punctuation.

    Args:
        text: Any text.
    """
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii():
        text = _SYMBOLS.sub(" ", text.translate(TYPOGRAPHY))
        for pattern, plain in CHINESE:
            text = re.sub(pattern, plain, text)
    text = _NOT.sub(" not ", _DASHES.sub(" – ", text.lower().replace("!=", "≠")))
    text = _MINUTES.sub(" minutes", text) if text.count("'") == 1 else text
    return _with_inches(text) if '"' in text else text


def _with_inches(text: str) -> str:
    """The text, with a quotation mark that opens right after a number as the unit that it is."""
    parts = text.split('"')
    for k in range(0, len(parts) - 1, 2):
        if parts[k][-1:].isdigit():
            parts[k] += " inch "
    return '"'.join(parts)


_ASSISTANT = frozenset({"assistant", "model", "ai", "bot", "gpt", "chatbot", "/inst"})
_ROLE = re.compile(
    r"<\|im_start\|>\s*(\w+)\s*\n?|<start_of_turn>\s*(\w+)\s*\n?|<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>"
    r"|<\|(user|assistant|system|observation)\|>|<\|start\|>(\w+)|<\|turn>(\w+)\s*\n?|\[(/?inst)\]"
    r"|(?m:^)[ \t]*(?:\*\*)?(user|human|assistant|ai|model|gpt|bot|chatbot)(?:\*\*)?[ \t]*:(?:\*\*)?"
    r"|(?<=\s)(assistant):"
)
_PREFIX = re.compile(r"\s*(?:assistant|model|ai|bot|gpt|chatbot)[ \t]*(?::|\n)")
_END = re.compile(
    r"</s>|<eos>|<end_of_turn>|<turn\|>|<end_of_utterance>|<\|(?:im_end|endoftext|eot_id|eom_id|end_of_text|end|return|eos|end_of_turn_token"
    r"|end▁of▁sentence)\|>"
)
_CHANNELS = (
    (re.compile(r"<think\s*/>"), ""),
    (
        re.compile(r"(?:<\|start\|>assistant)?<\|channel\|>\s*(?:analysis|commentary)[^<>|]{0,40}<\|message\|>"),
        "<think>",
    ),
    (
        re.compile(r"(?:<\|end\|>)?\s*(?:<\|start\|>assistant)?<\|channel\|>\s*final[^<>|]{0,40}<\|message\|>"),
        "</think>",
    ),
    (re.compile(r"<\|channel>\s*thought\s*\n"), "<think>"),
    (re.compile(r"<channel\|>"), "</think>"),
    (re.compile(r"<unused94>\s*thought\s*\n"), "<think>"),
    (re.compile(r"<unused95>"), "</think>"),
)
_THOUGHT = re.compile(
    r"<\s*(/?)\s*(?:\w{1,12}:)?(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad|rationale|caption|summary)"
    r"(?:\s[^<>/]{0,40})?>"
    r"|◁(/?)think▷|\[(/?)think\]|<\|(begin|end)_of_thought\|>|<\|(start|end)_thinking\|>"
)
_CLOSING = ("/", "end")
_SPECIAL = re.compile(
    r"<\|[^<>|]{1,40}\|>|</?(?:s|pad|unk|bos|eos|image|img|video|end_of_turn|start_of_turn|end_of_utterance|fake_token_around_image|row_\d+_col_\d+"
    r"|response|output|seed:answer)>"
)


def said(text: str) -> str | None:
    """What the model says to whoever asked: its first turn, without thoughts. None if it never stopped thinking.

    Args:
        text: The normalised reply.
    """
    for pattern, replacement in _CHANNELS:
        text = pattern.sub(replacement, text) if "<" in text else text
    text = _first_turn(text)
    if not any(mark in text for mark in ("<", "◁", "[")):
        return text
    kept, place, thinking = "", 0, False
    for tag in _THOUGHT.finditer(text):
        closes = any(group in _CLOSING for group in tag.groups() if group)
        if thinking and not closes:
            continue  # a thought that speaks of its own tag
        # Text before a closing tag is thought, whether or not this reply holds the opening one.
        kept = "" if closes and not thinking else kept if thinking else kept + text[place : tag.start()]
        place, thinking = tag.end(), not closes
    if thinking:
        return None
    rest = text[place:]
    if place and not (kept + rest).strip():
        return None
    return _PREFIX.sub("", kept + rest, count=1) if _PREFIX.match(kept + rest) else kept + rest


def _first_turn(text: str) -> str:
    """The assistant's first turn that holds anything, up to the token that ends it."""
    role, place, found = "assistant", 0, []
    for mark in _ROLE.finditer(text):
        found.append((role, text[place : mark.start()]))
        role, place = next(group for group in mark.groups() if group), mark.end()
    found.append((role, text[place:]))
    turn = ""
    for role, part in found:
        if role in _ASSISTANT:
            turn += f"{part}\n"
        elif _END.sub("", turn).strip():
            break
    for end in _END.finditer(turn):
        if _END.sub("", turn[: end.start()]).strip():
            return turn[: end.start()]
    return _END.sub("", turn)


_OPENING_TAG = re.compile(
    r"<\s*(?:final[ _]?answer|answer|conclusion|solution|ans)\s*>|<\|(?:begin_of_solution|start_response)\|>"
)
_CLOSING_TAG = re.compile(
    r"<\s*/\s*(?:final[ _]?answer|answer|conclusion|solution|ans)\s*>|<\|(?:end_of_solution|end_response)\|>"
)
_PLACEHOLDERS = frozenset(
    {"", "and", "...", "your answer", "answer", "your answer here", "answer here", "final answer"}
)


def blocks(text: str) -> tuple[list[str], str]:
    """What stands in answer tags, and the text without tags of which the other one is missing.

    Args:
        text: What the model said.

    Raises:
        Unfinished: If an answer tag is open and none was closed.
    """
    if "<" not in text:
        return [], text
    found, place = [], 0
    while (begin := _OPENING_TAG.search(text, place)) and (end := _CLOSING_TAG.search(text, begin.end())):
        found.append(text[begin.end() : end.start()])
        place = end.end()
    found = [block for block in found if block.strip(" \n\t.\"'`*") not in _PLACEHOLDERS]
    if not found and _OPENING_TAG.search(text, place):
        raise Unfinished
    return found, _CLOSING_TAG.sub(" ", text)


class Unfinished(Exception):
    """A reply ends inside its answer."""


_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|<\|begin_of_box\|>")
_BRACES = re.compile(r"[{}]")
_END_OF_BOX = "<|end_of_box|>"


def boxes(text: str) -> tuple[list[str], str]:
    r"""What stands in boxes (`\boxed{}`, box tokens), and the text with their contents in their places.

    Args:
        text: What the model said.

    Raises:
        Unfinished: If a box is never closed.
    """
    if "box" not in text:
        return [], text
    found, parts, place = [], [], 0
    while begin := _BOX.search(text, place):
        end, after = _end_of_box(text, begin)
        found.append(text[begin.end() : end])
        parts += [text[place : begin.start()], " ", found[-1], " "]
        place = after
    return found, "".join(parts) + text[place:].replace(_END_OF_BOX, " ")


def _end_of_box(text: str, begin: re.Match[str]) -> tuple[int, int]:
    """Where a box's contents end, and where the text after it begins."""
    if begin.group().startswith("<"):
        end = text.find(_END_OF_BOX, begin.end())
        if end < 0:
            raise Unfinished
        return end, end + len(_END_OF_BOX)
    depth = 1
    for brace in _BRACES.finditer(text, begin.end()):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return brace.start(), brace.end()
    raise Unfinished


class Entry(NamedTuple):
    """One entry of a JSON object, as text."""

    key: str
    value: str


_OBJECT = re.compile(r"\{([^{}]*)\}")
_ENTRY = re.compile(
    r"""\s*["']?([^\W\d][\w ()\-]{0,40})["']?\s*[:=]\s*("[^"\\]*"|'[^'\\]*'|\[[^\[\]{}]*\]|[^,{}\[\]"'\n]+)\s*(?:,|;|$|(?=\n))"""
)
_OBJECTS = 20
"""More objects than this in one reply are data, not an answer."""


def objects(text: str) -> tuple[list[list[Entry]], str]:
    """The entries of the innermost JSON objects, strict or not, and the text without these objects.

    Args:
        text: What the model said.
    """
    if "{" not in text:
        return [], text
    found, parts, place = [], [], 0
    for match in _OBJECT.finditer(text):
        entries = list(_entries(match.group(1)))
        if entries:
            found.append(entries)
            parts += [text[place : match.start()], " "]
            place = match.end()
    if len(found) > _OBJECTS:
        return [], text
    return found, "".join(parts) + text[place:]


def _entries(inner: str) -> Iterator[Entry]:
    """The entries of one object; none if any of them is not understood."""
    place, found = 0, []
    while place < len(inner.rstrip()):
        entry = _ENTRY.match(inner, place)
        if not entry:
            return
        found.append(Entry(re.sub(r"[_()]", " ", entry.group(1)).strip(), entry.group(2).strip().strip("\"'")))
        place = entry.end()
    yield from found


_BOLD = re.compile(r"(\*\*|__)([^*_\n]{1,80})\1")
_LATEX = (
    (
        r"\\(?:text(?:bf|it|rm|tt|sf|normal)?|math(?:bf|rm|it|tt|sf|bb)|mbox|operatorname|underline|emph|bm|boldsymbol)\s*\{([^{}]*)\}",
        r"\1",
    ),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2"),
    (r"\^\s*(?:\{\s*)?\\circ\b(?:\s*\})?|\\degree\b|\\deg\b", "°"),
    (r"\\(?:left|right)\s*(?=[()\[\]|.\\])", ""),
    (r"\\[,;:! ]|\\q?quad\b|\\\\", " "),
    (r"\\approx\b|\\sim\b", "~"),
    (r"\\pm\b", "±"),
    (r"\\times\b|\\cdot\b", "×"),
    (r"\\(?:long)?rightarrow\b|\\to\b|\\implies\b", "->"),
    (r"\\therefore\b", " so "),
    (r"\\delta\b\s*", "δ"),
    (r"\\(?:theta|alpha|phi|varphi)\b", "θ"),
    (r"\\([%&#_{}])", r"\1"),
    (r"\\[()\[\]]", " "),
    (r"\$\$", "$"),
    (r"\$([^$]*)\$", r" \1 "),
    (r"\$(?![0-9])", " "),
)
_MARKDOWN = (
    (r"```(?:(?:json|text|txt|plaintext|markdown|md|latex|python|html|xml|yaml)(?=\s))?", "\n"),
    (r"`", ""),
    (r"</?(?:p|br|div|li|ul|ol|h[1-6])\b[^<>]{0,80}>", "\n"),
    (r"</?(?:b|i|u|em|strong|span|font|code|pre|mark|center)\b[^<>]{0,80}>", ""),
    (r"(?<=[0-9])[ \t]*\*+[ \t]*(?=[0-9])", " × "),
    (r"\*", ""),
    (r"_", " "),
    # Bullets, headings and quotations; a dash before a number may be a minus, and > a comparison.
    (r"(?m)^[ \t]*(?:(?:#{1,6}|[-–+>])[ \t]+(?=[^\W\d]|[\"'(#>]))+", ""),
    (r"(?m)^[ \t]*#{1,6}[ \t]+", ""),
    (r"(?m)^[ \t]*[0-9]{1,2}\)[ \t]+(?=[^\W\d])", ""),
    (r"(?<=[0-9])~(?=[a-z])", " "),
)
_LATEX_STEPS = tuple((re.compile(pattern), plain) for pattern, plain in _LATEX)
_MARKDOWN_STEPS = tuple((re.compile(pattern), plain) for pattern, plain in _MARKDOWN)
_MARKUP = frozenset("\\$`<*_#>-–+~)")


def plain(text: str) -> str:
    """The text without special tokens and markup.

    Args:
        text: What the model said.
    """
    if _MARKUP.isdisjoint(text):
        return text
    if "<" in text:
        text = _SPECIAL.sub(" ", text)
    if "\\" in text or "$" in text:
        for _ in range(3):  # \boxed{\text{\textbf{yes}}}
            text = _LATEX_STEPS[0][0].sub(_LATEX_STEPS[0][1], text)
        for pattern, replacement in _LATEX_STEPS[1:]:
            text = pattern.sub(replacement, text)
    for pattern, replacement in _MARKDOWN_STEPS:
        text = pattern.sub(replacement, text)
    return text


class Bold(NamedTuple):
    """A bold span: its text, the sentence before it, and what follows it."""

    text: str
    before: str
    after: str


def bold(text: str) -> list[Bold]:
    """The bold spans of a text.

    Args:
        text: What the model said, with its markup.
    """
    if "**" not in text and "__" not in text:
        return []
    found = []
    for span in _BOLD.finditer(text):
        before = text[max(0, span.start() - 300) : span.start()]
        sentence = before[max(before.rfind(mark) for mark in ".!?\n") + 1 :]
        found.append(Bold(span.group(2), sentence, text[span.end() : span.end() + 40]))
    return found
