"""Made-up questions about made-up images, with which a model is checked before any trial."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vlm_probe.probes.models import Turn

QUESTIONS = (
    "How many blocks are there?",
    "What colour is the block at the top?",
    "Will this tower fall? Answer yes or no.",
    "Describe the picture.",
)


def dummy_inputs(number: int = 0) -> Turn:
    """A question about an image, 224 x 224 pixels.

    Args:
        number: Of the question in `QUESTIONS`; each has an image of its own.
    """
    ramp = np.add.outer(np.arange(224), np.arange(224)) // 2
    shades = np.stack([ramp, ramp[::-1], ramp.T], axis=2).astype(np.uint8)
    return Turn("user", QUESTIONS[number], (Image.fromarray(np.roll(shades, number, axis=2)),))
