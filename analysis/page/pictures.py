"""Images inside a page: each once, whatever number of trials it was shown in, small and as text."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping

from PIL import Image

from vlm_probe.analysis.page.trials import Shown
from vlm_probe.stimuli.dataset import Item, StimulusError, StimulusSet
from vlm_probe.stimuli.ranges import PAGE_SIZE

QUALITY = 75
"""Of WebP. An image of a set takes about 0.7 kB at 224 pixels, a sixth of its PNG."""

KEY = 16
"""Digits of an image's hash that name it in the page."""


class Pictures:
    """Small images by hash; asked again, as a page that is served is, each is read once.

    Args:
        size: Longest edge in pixels; 0 for no images.

    Raises:
        OutOfRange: If the size is.
    """

    def __init__(self, size: int) -> None:
        PAGE_SIZE.check("size", size)
        self.size = size
        self._found: dict[str, str] = {}

    def collect(
        self, trials: Iterable[Shown], sets: Mapping[str, StimulusSet], items: Mapping[tuple[str, str], Item]
    ) -> dict[str, str]:
        """The images of trials whose sets are there, as base64 of WebP, by the first digits of their hash.

        One that cannot be read, or is not the one that was shown, is left out.

        Args:
            trials: Those of the page.
            sets: Hash -> set, of those that are there.
            items: (hash of the set, item) -> item of these.
        """
        found: dict[str, str] = {}
        for trial in trials:
            item = items.get((trial.stimuli, trial.item))
            if not self.size or trial.image is None or item is None or item.image_sha256 != trial.image:
                continue
            key = trial.image[:KEY]
            if key in found:
                continue
            if key not in self._found:
                try:
                    self._found[key] = encoded(sets[trial.stimuli].image(item), self.size)
                except StimulusError:
                    continue
            found[key] = self._found[key]
        return found


def encoded(picture: Image.Image, size: int) -> str:
    """An image as base64 of WebP, made smaller where its longest edge is above `size` pixels."""
    if max(picture.size) > size:
        picture = picture.copy()
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
