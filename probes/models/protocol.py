"""The protocol of served models: how a conversation is asked, and what stands in the answer to it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from vlm_probe.probes.models import Turn


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """A conversation in the form of the protocol, its pictures as data URLs."""
    found: list[dict[str, Any]] = []
    for turn in turns:
        pictures = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in turn.images]
        # Some servers take a list only where there are pictures, and some templates none from an assistant.
        content = [*pictures, {"type": "text", "text": turn.text}] if pictures else turn.text
        found.append({"role": turn.role, "content": content})
    return found


def data_url(image: Image.Image) -> str:
    """A picture as PNG in a data URL: every pixel as it is, and the very bytes of a set's own file."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


def words_of(reply: Mapping[str, Any], style: str) -> str:
    """The words of a reply.

    Args:
        reply: The server's answer to a chat completion request.
        style: "direct" or "think": whether the reasoning belongs to the reply.
    """
    message = reply["choices"][0]["message"]
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if style == "think" and reasoning and "</think>" not in content:
        # Servers that know the model's format take the reasoning out of the reply.
        return f"<think>{reasoning}</think>{content}"
    return str(content)


def positions(reply: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Per token of a reply: the token, and the log-probabilities of the likeliest ones; empty if there are none."""
    given = (reply["choices"][0].get("logprobs") or {}).get("content") or []
    return [
        (entry["token"], {top["token"]: float(top["logprob"]) for top in [entry, *(entry.get("top_logprobs") or [])]})
        for entry in given
    ]
