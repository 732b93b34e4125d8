"""What lmms-eval asks of a stimulus set: the image, the question, and whether a reply is the stored answer."""

from __future__ import annotations

from typing import Any


def pictures(doc: dict[str, Any]) -> list[Any]:
    """The image of an item."""
    return [doc["image"].convert("RGB")]


def question(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The question, as probe asks it."""
    return str(doc["prompt"])


def results(doc: dict[str, Any], replies: list[str]) -> dict[str, float]:
    """1 if the reply is the stored answer, else 0."""
    return {"correct": float(replies[0].strip().lower().rstrip(".") == str(doc["answer"]).lower())}
