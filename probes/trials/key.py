"""The key of a trial, by which a run that goes on knows what it has asked already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vlm_probe.probes.models import Generation, Identity
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.plain_json import dumps


def trial_key(identity: Identity, item: Item, readout: str, settings: Generation, manner: Sequence[Any] = ()) -> str:
    """The hash that identifies a trial: who answered, what was shown and asked, and how the answer was read.

    Args:
        identity: Of the model that answered, down to every file that was loaded.
        item: What was shown and asked.
        readout: "generate" or "options".
        settings: Of generation; they do not matter to options.
        manner: Everything about the presentation that is not in the item; empty for the plain one.

    Returns:
        SHA-256, in hexadecimal.
    """
    question = item.question
    asked = [question.prompt, question.grammar.to_dict(), question.style]
    parts = [
        [identity.name, identity.revision, identity.weights_sha256, identity.adapter_sha256, *identity.files.items()],
        # The item's id keeps two items with the same picture and prompt apart; observers look at the scene.
        [item.item_id, item.image_sha256, item.scene_sha256, _sha256(asked)],
        [readout, asdict(settings) if readout == "generate" else {}],
        *([list(manner)] if manner else []),
        *([identity.details["thinking"]] if identity.details.get("thinking") else []),
    ]
    return _sha256(parts)


def _sha256(data: list[Any]) -> str:
    return hashlib.sha256(dumps(data, ascii_only=True).encode()).hexdigest()
