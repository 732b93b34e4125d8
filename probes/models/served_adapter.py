"""Adapters of served models: which one it is, and whether the server has it on at all, as some leave out a part of it."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.adapter_folder import CONFIG, WEIGHTS, adapter_hash
from vlm_probe.probes.models.dummy_inputs import QUESTIONS

log = logging.getLogger(__name__)

TOWER = ("vision", "visual", "image", "multi_modal_projector", "mm_projector", "merger")
"""What the tensors of an adapter are called that are not in the language model."""

Saying = tuple[str, list[tuple[str, dict[str, float]]]]
"""A reply, and per token the log-probabilities of the likeliest ones (empty where the server gives none)."""


def check_served(
    says: Callable[[int, str], Saying], name: str, adapter: str, card: Mapping[str, Any], url: str
) -> None:
    """Make sure that an adapter changes what is said about images, by more than the model differs from itself.

    Args:
        says: What a model (its id at the server) says to a made-up question (its number).
        name: Id of the model at the server.
        adapter: Id of the adapter there.
        card: What the server says about the adapter.
        url: Of the server, for messages.

    Raises:
        ModelError: If it does not.
    """
    worded = "greedy replies"
    for number in range(len(QUESTIONS)):
        # The model is asked before and after: servers compute in batches and caches, and are not quite repeatable.
        asked = [says(number, who) for who in (name, adapter, name, name)]
        worded = "log-probabilities" if asked[1][1] else worded
        effect = min(_distance(asked[1], base) for base in (asked[0], asked[2], asked[3]))
        noise = max(_distance(asked[0], asked[2]), _distance(asked[2], asked[3]), _distance(asked[0], asked[3]))
        if effect > noise:
            break
    else:
        raise ModelError(
            f"the server at {url} answers for the adapter {adapter} as it does for {name}"
            f" ({worded} to {len(QUESTIONS)} made-up questions): it leaves the adapter out, as servers do with adapters of the"
            " vision tower, or the adapter is untrained; merge it (`probe adapters merge DIR --out MODEL`) and serve MODEL"
        )
    outside = _tower_tensors(str(card.get("root") or ""))
    if outside:
        log.warning(
            "%d tensors of the adapter %s are outside the language model (such as %s), where some servers leave them"
            " out without a word: merge it (`probe adapters merge DIR --out MODEL`) and serve that, or compare with a local run",
            len(outside),
            adapter,
            outside[0],
        )


def served_hash(name: str, card: Mapping[str, Any]) -> str:
    """Hash of an adapter's files, if the server names their folder and it is on this machine; else of its names.

    Args:
        name: Id of the adapter at the server.
        card: What the server says about it.
    """
    folder = Path(str(card.get("root") or ""))
    if all((folder / file).is_file() for file in (CONFIG, WEIGHTS)):
        return adapter_hash(folder)
    return hashlib.sha256(f"served {name} {card.get('root') or ''}".encode()).hexdigest()


def _distance(one: Saying, other: Saying) -> float:
    """How far two replies to the same question are apart: in log-probabilities (nats), else 0 or infinitely."""
    if not one[1] or not other[1]:
        return 0.0 if one[0] == other[0] else math.inf
    largest = 0.0
    for (token, values), (other_token, other_values) in zip(one[1], other[1], strict=False):
        for name in values.keys() | other_values.keys():
            # A token that is not among the likeliest ones is at most as likely as the last of them.
            mine, theirs = (v.get(name, min(v.values())) for v in (values, other_values))
            largest = max(largest, abs(mine - theirs))
        if token != other_token:
            break
    return largest


def _tower_tensors(folder: str) -> list[str]:
    """The tensors of an adapter that are outside the language model, if its folder is on this machine."""
    file = Path(folder) / WEIGHTS
    if not folder or not file.is_file():
        return []
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        return [name for name in opened.keys() if any(part in name for part in TOWER)]  # noqa: SIM118
