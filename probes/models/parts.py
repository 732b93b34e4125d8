"""The parts of a vision-language model: which of them a layer belongs to, by its name, in every architecture that is served."""

from __future__ import annotations

import re
from typing import Literal

Part = Literal["language", "vision", "projector"]

# The projector comes first, because Qwen keeps its own inside the vision tower. The pooling head that some towers carry is
# used by no vision-language model.
_PARTS: tuple[tuple[Part, re.Pattern[str]], ...] = (
    (
        "projector",
        re.compile(
            r"(?:.*\.)?(?:multi_modal_projector|connector|aligner|visual\.merger|visual\.deepstack_merger_list)\..*"
        ),
    ),
    ("vision", re.compile(r"(?:.*\.)?(?:vision_tower|vision_model|visual)\.(?!(?:.*\.)?head\.).*")),
    ("language", re.compile(r"(?:.*\.)?(?:language_model|text_model)\..*")),
)


def part_of(name: str) -> Part | None:
    """The part that a module or a parameter belongs to; None for the output layer and for heads that nothing uses."""
    return next((part for part, pattern in _PARTS if pattern.fullmatch(name)), None)
