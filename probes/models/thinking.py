"""Models that think before they answer: whether a prompt asks for a thought, and where in a reply the thought ends.

A thought stands between two tags, such as `<think>` and `</think>`. Some chat templates open it at the end of the prompt, some
close an empty one there, and some leave it to the model to open it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.options import THOUGHT_LENGTH, THOUGHT_TOKENS
from vlm_probe.stimuli.plain_json import parse_object
from vlm_probe.stimuli.ranges import check_ranges, ranged

Mode = Literal["auto", "off", "on"]
MODES = ("auto", "off", "on")
SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning", "use_thinking", "think")
"""Variables by which chat templates are told to open a thought, or not to; the first that changes a prompt is taken."""
RESERVED = (
    *(
        "messages",
        "conversation",
        "chat_template",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
    ),
    *("tokenize", "return_dict", "return_tensors", "processor_kwargs", "bos_token", "eos_token", "strftime_now"),
)
"""Names that the toolkit or transformers gives to templates."""
_WORDS = r"think|thought|reason|reflect|analysis|scratch_?pad|rationale|deliberat|ponder|chain_of_thought|\bcot\b"
_TAG = re.compile(
    r"<\|channel>\s*thought|<unused94>\s*thought|<\|?[^<>|/\s][^<>|]{0,40}\|?>|◁[^◁▷/]{1,20}▷|\[[A-Za-z_]{1,20}\]"
)
_CLOSES = re.compile(r"(?<![a-z])(end|close|stop)(?![a-z])|^<channel", re.IGNORECASE)
_CLOSING = re.compile(r"</(?:\w{1,12}:)?(?:think|thinking|thought|reasoning)>|◁/think▷|\[/THINK\]")
_ODD = {"<|channel>": "<channel|>", "<unused94>": "<unused95>"}
_ENDS = (("begin", "end"), ("start", "end"), ("open", "close"))
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,60}")
_PLAIN: dict[str, Any] = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True)
class Thinking:
    """Whether a model is to think before it answers.

    Attributes:
        mode: "auto" as its makers have it by default, "off" or "on".
        arguments: Further arguments of its chat template: `key=value`, separated by commas, or a JSON object.
        max_tokens: Tokens that a thought may have.

    Raises:
        ModelError: If there is no such mode, or the arguments cannot be read.
        OutOfRange: If a thought may have no tokens, or too many.
    """

    mode: Mode = "auto"
    arguments: str = ""
    max_tokens: int = ranged(THOUGHT_TOKENS, THOUGHT_LENGTH)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.mode not in MODES:
            raise ModelError(f"--thinking is {self.mode!r}: use {', '.join(MODES)}")
        self.given  # noqa: B018

    @cached_property
    def given(self) -> dict[str, Any]:
        """The arguments as the template gets them. Raises ModelError if they cannot be read."""
        try:
            if self.arguments.lstrip().startswith("{"):
                found = parse_object(self.arguments.encode())
            else:
                pairs = [part.partition("=") for part in self.arguments.split(",") if part.strip()]
                if not all(equals for _, equals, _ in pairs):
                    raise ValueError("no =")
                found = {key.strip(): _value(value.strip()) for key, _, value in pairs}
        except ValueError as error:
            raise ModelError(
                f"--chat-template-args is {self.arguments[:60]!r} ({error}): write key=value,key=value"
            ) from error
        wrong = [key for key in found if key in RESERVED or not _NAME.fullmatch(key)]
        if wrong:
            raise ModelError(f"--chat-template-args cannot set {wrong[0]!r}: leave it out")
        return found


AUTO = Thinking()
"""As the makers have it."""


@dataclass(frozen=True)
class Tags:
    """The two tags of a thought."""

    opening: str
    closing: str


def tags_of(opening: str, template: str = "") -> Tags:
    """A thought's opening tag with the tag that closes it.

    Args:
        opening: The opening tag.
        template: Text of the chat template, which may name the closing one.
    """
    odd = next((closing for start, closing in _ODD.items() if opening.startswith(start)), "")
    slashed = re.sub(r"^(<\|?|\[|◁)", r"\1/", opening)
    swapped = [_swap(opening, one, other) for one, other in _ENDS if one in opening.lower()]
    likely = [odd] if odd else [*swapped, slashed]
    return Tags(opening, next((tag for tag in likely if tag in template), likely[0]))


def opened(text: str) -> str:
    """The opening tag of a thought with which a text begins, white space aside; empty if it begins with none."""
    found = _TAG.match(text.lstrip())
    return found.group() if found is not None and is_thought(found.group()) else ""


def opened_at_end(tail: str, extra: Callable[[str], bool]) -> str:
    """The tag at the end of a prompt that opens a thought, white space aside; empty if there is none.

    Args:
        tail: What the prompt has after the user's words.
        extra: Tells whether a tag is not there where the template writes a reply, so that it opens a thought by whatever name.
    """
    found = [tag for tag in _TAG.finditer(tail) if not tail[tag.end() :].strip()]
    if not found or _CLOSES.search(found[-1].group()):
        return ""
    tag = found[-1].group()
    return tag if is_thought(tag) or extra(tag) else ""


def closes_thought(tail: str) -> bool:
    """Whether what a prompt has after the user's words holds a thought that is closed."""
    tags = [found for found in _TAG.finditer(tail) if is_thought(found.group())]
    return any(tags_of(tag.group(), tail).closing in tail[tag.end() :] for tag in tags)


def mentions_thought(template: str) -> bool:
    """Whether the text of a chat template names a tag of thoughts."""
    return any(is_thought(found.group()) for found in _TAG.finditer(template))


def is_thought(tag: str) -> bool:
    """Whether a tag is named after thinking."""
    return re.search(_WORDS, tag, re.IGNORECASE) is not None and not _CLOSES.search(tag)


def split(text: str, tags: Tags | None) -> tuple[str | None, str, bool]:
    """A reply as thought and answer.

    Args:
        text: The reply, or a part of it.
        tags: Those of the thought that the prompt has opened; None if it has opened none.

    Returns:
        The thought, None if there is none; what follows it; and whether the thought is closed.
    """
    tag = "" if tags else opened(text)
    tags = tags or (tags_of(tag) if tag else None)
    if tags is None:
        closing = _CLOSING.search(text)  # of a thought that was opened elsewhere, as by the template of a server
        return (text[: closing.start()].strip(), text[closing.end() :], True) if closing else (None, text, True)
    body = text.lstrip().removeprefix(tags.opening)  # some models open again what the prompt has opened
    thought, closed, answer = body.partition(tags.closing)
    return thought.strip(), answer if closed else "", bool(closed)


def _swap(tag: str, one: str, other: str) -> str:
    return re.sub(
        one, lambda found: other.upper() if found.group().isupper() else other, tag, count=1, flags=re.IGNORECASE
    )


def _value(text: str) -> Any:
    """A value as a template gets it: a truth value, a number or a text."""
    if text.lower() in _PLAIN:
        return _PLAIN[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
