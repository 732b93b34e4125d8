"""The protocol of served models: how a conversation is asked, and what a server's answer to it says.

Everything that a server sends is of unknown origin: what is read here is checked here, and what is wrong with it is one line.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from vlm_probe.probes.models import Reply, Turn
from vlm_probe.probes.models.thinking import split

ABSENT = -9999.0
"""What vLLM and others write, for want of a negative infinity, as the log-probability of a token that they do not know."""
FAILED = ("error", "abort", "aborted", "cancelled", "network_error", "insufficient_system_resource")
WITHHELD = ("content_filter", "safety", "prohibited_content", "recitation", "sensitive")
CUT = ("length", "max_tokens", "model_length", "model_context_window_exceeded")
"""Values of `finish_reason`, lower case, by which servers say that they failed, withheld a reply, or met the token limit."""
_FILTER = re.compile(r"content[ _]filter|content[ _]policy|content management policy|moderation|flagged", re.IGNORECASE)


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer that has the status 200.

    Attributes:
        message: What, in the server's words if it has any.
        error: The error as the server sent it; None if it sent none.
        reply: The answer, if the server took the request and got as far as a reply.
    """

    message: str
    error: Any = None
    reply: dict[str, Any] | None = None


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """A conversation in the form of the protocol, its images as data URLs."""
    found: list[dict[str, Any]] = []
    for turn in turns:
        pictures = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in turn.images]
        # Some servers take a list only where there are images, and some templates none from an assistant.
        content = [*pictures, {"type": "text", "text": turn.text}] if pictures else turn.text
        found.append({"role": turn.role, "content": content})
    return found


def data_url(image: Image.Image) -> str:
    """An image as PNG in a data URL: every pixel as it is, and the very bytes of a set's own file."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


def fault_of(reply: Any) -> Fault | None:
    """What is wrong with an answer, so that it holds no reply; None if it holds one.

    Servers that lose a model in the middle of a request have said 200 already, and write the error into the answer.

    Args:
        reply: The JSON that a server sent with the status 200.
    """
    if not isinstance(reply, dict):
        return Fault(f"the server's reply is no JSON object: {brief(reply)}")
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        error = reply.get("error") or (reply if reply.get("object") == "error" else None)
        if error:
            return Fault(f"the server reports an error: {words_of_error(error)}", error)
        return Fault(f"the server's reply holds no message: {brief(reply)}")
    message, error = choice.get("message"), choice.get("error")
    refused = isinstance(message, dict) and bool(message.get("refusal"))
    if (error or _finish(choice) in FAILED) and not refused:
        words = words_of_error(error) if error else f"finish_reason {_finish(choice)}"
        return Fault(f"the server failed while it replied: {words}", error, reply)
    if not isinstance(message, dict):
        return Fault(f"the server's reply holds no message: message is {brief(message)}", None, reply)
    return None


def reply_of(answer: Mapping[str, Any], style: str) -> Reply:
    """What a model said and thought, and how the server says that it ended.

    Args:
        answer: The server's answer to a chat completion request, without a fault.
        style: "direct", or "think" where the question asks for reasoning in the reply, which then belongs to it.

    Raises:
        ValueError: If it is of the wrong form, or was cut off before any text.
    """
    choice = answer["choices"][0]
    message, finish = choice["message"], _finish(choice)
    content = _text(message.get("content"), "content")
    refusal = _text(message.get("refusal"), "refusal")
    # Servers that know the model's format take the thought out of the reply; others leave it there.
    thought: str | None = _text(message.get("reasoning_content") or message.get("reasoning"), "reasoning")
    thought = thought or _text(message.get("content"), "content", part="thinking") or None
    if finish in WITHHELD or (refusal and not content):
        return Reply(content or refusal, "filtered", thought)
    if thought is None and style != "think":
        thought, content, _ = split(content, None)
    if content.strip():
        return Reply(content, "unfinished" if finish in CUT else "", thought)
    if thought is None and finish in CUT:
        if not _reasoned(answer):
            raise ValueError("the reply was cut at its token limit before any text: give a larger --max-new-tokens")
        thought = ""  # where the thought itself is kept secret
    return Reply("" if thought is not None else content, "" if thought is None else "unfinished", thought)


def positions(answer: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Per token of a reply: the token, and the log-probabilities of the likeliest ones; empty if there are none.

    Args:
        answer: The server's answer to a chat completion request, without a fault.

    Raises:
        ValueError: If they are of the wrong form.
    """
    given = answer["choices"][0].get("logprobs")
    entries = given.get("content") if isinstance(given, dict) else None
    found = []
    for entry in entries if isinstance(entries, list) else []:
        token, top = _token(entry), entry.get("top_logprobs")
        listed = [one for one in [entry, *(top if isinstance(top, list) else [])] if one is not None]
        found.append((token, _values(listed)))
    return found


def log_probability(value: Any) -> float:
    """A log-probability as a server writes it: minus infinity where it says that it does not know one.

    Raises:
        ValueError: If it is none.
    """
    if value is None:
        return -math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or value > 1e-3:
        raise ValueError(f"the server's log-probabilities cannot be read: {brief(value)} is no log-probability")
    return -math.inf if value <= ABSENT or value != value else min(float(value), 0.0)


def prompt_tokens(answer: Mapping[str, Any] | None) -> int | None:
    """How many tokens the server counted in a prompt; None if it does not say."""
    usage = answer.get("usage") if answer else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def is_cut(answer: Mapping[str, Any]) -> bool:
    """Whether a reply met its token limit."""
    return _finish(answer["choices"][0]) in CUT


def is_filter(words: str) -> bool:
    """Whether an error says that a content filter has refused the request."""
    return _FILTER.search(words) is not None


def words_of_error(error: Any) -> str:
    """The words of an error in any of the forms in which servers send one, in one line; a page of HTML is its title.

    Args:
        error: What stands in the body of an error, or in its entry `error`.
    """
    if isinstance(error, str):
        title = re.search(r"<title[^>]*>(.{1,300}?)</title>", error[:20_000], re.IGNORECASE | re.DOTALL)
        page = "<html" in error[:2_000].lower()
        words = title.group(1) if title else re.sub(r"<[^<>]*>", " ", error[:4_000]) if page else error
        # Neither line breaks nor what would move a terminal's cursor.
        return " ".join("".join(letter if letter.isprintable() else " " for letter in words[:4_000]).split())
    if isinstance(error, list):
        return "; ".join(filter(None, map(words_of_error, error[:20])))
    if not isinstance(error, Mapping):
        return "" if error is None else str(error)
    names = ("message", "detail", "msg", "error", "title")
    words = next((found for name in names if (found := words_of_error(error.get(name)))), "")
    place = error.get("loc") or error.get("param")
    where = ".".join(map(str, place)) if isinstance(place, list) else str(place or "")
    return f"{where}: {words}" if where and where not in words else words or brief(dict(error))


def code_of(error: Any) -> int | None:
    """The HTTP status that an error says it is; None if it says none."""
    if not isinstance(error, Mapping):
        return None
    for name in ("code", "status", "status_code"):
        text = str(error.get(name))
        if re.fullmatch(r"[1-5]\d\d", text):
            return int(text)
    return None


def brief(value: Any) -> str:
    """The beginning of a value, as a message has room for it."""
    text = "null" if value is None else " ".join(repr(value).split())
    return text if len(text) <= 200 else text[:200] + "..."


def _finish(choice: Mapping[str, Any]) -> str:
    return str(choice.get("finish_reason") or "").lower()


def _text(value: Any, name: str, part: Literal["text", "thinking"] = "text") -> str:
    """The text of a message's field, which may be a list of parts: those of the answer, or those of the thought."""
    if value is None or isinstance(value, str):
        return (value or "") if part == "text" else ""
    if not isinstance(value, list) or not all(isinstance(one, dict | str) for one in value):
        raise ValueError(f"the server's reply cannot be read: its {name} is {brief(value)}")
    pieces = []
    for one in value:
        if isinstance(one, str):
            pieces.append(one if part == "text" else "")
            continue
        kind = "thinking" if one.get("type") in ("thinking", "reasoning") else "text"
        held = one.get("thinking") or one.get("text") if kind == "thinking" else one.get("text")
        pieces.append(_text(held, name) if kind == part else "")
    return "".join(pieces)


def _reasoned(answer: Mapping[str, Any]) -> bool:
    """Whether a server counts tokens of a reasoning that it does not show."""
    usage = answer.get("usage")
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    return isinstance(details, dict) and bool(details.get("reasoning_tokens"))


def _token(entry: Any) -> str:
    token = entry.get("token") if isinstance(entry, dict) else None
    if not isinstance(token, str):
        raise ValueError(f"the server's log-probabilities cannot be read: {brief(entry)} is no token")
    return token


def _values(listed: Sequence[Any]) -> dict[str, float]:
    """Log-probabilities by token, without those that are not there."""
    values = {_token(one): log_probability(one.get("logprob")) for one in listed}
    return {token: value for token, value in values.items() if value > -math.inf}
