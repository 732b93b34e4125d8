"""What a model is to a probe: something that answers items, in words or in log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from stimuli.dataset import Item


@dataclass(frozen=True)
class Trial:
    """What a model is shown: an item and its picture (None if the model does not look at pictures)."""

    item: Item
    image: Image.Image | None


@dataclass(frozen=True)
class Generation:
    """How replies are generated. The default is greedy, which every published number should say it is."""

    max_new_tokens: int = 0
    """0 = as many as the longest legal answer needs, or 512 for think-then-answer questions."""
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Identity:
    """What exactly answered: enough to key a trial and to repeat it.

    Attributes:
        name: The name or path as the user gave it.
        revision: Hub revision, or "".
        weights_sha256: Hash of the weight files, or of the observer's parameters.
        adapter_sha256: Hash of the adapter, or "".
        details: Everything else worth recording (dtype, device, processor settings, chat template hash, ...).
    """

    name: str
    revision: str = ""
    weights_sha256: str = ""
    adapter_sha256: str = ""
    details: dict[str, Any] = field(default_factory=dict)


class Model(Protocol):
    """A model or an observer. Answers do not depend on how items are batched."""

    needs_images: bool

    @property
    def identity(self) -> Identity:
        """What exactly answers."""
        ...

    def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str]:
        """One reply text per trial."""
        ...

    def score_options(self, trials: Sequence[Trial]) -> list[npt.NDArray[np.float64]]:
        """Per trial, the log-probability of every candidate of its grammar (in the order of `candidates()`)."""
        ...


class ModelError(RuntimeError):
    """A model cannot be loaded or used; the message names it and the fix. Raised before any stimulus work."""
