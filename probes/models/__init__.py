"""What a model is to a probe: something that answers items, in words or in log-probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.errors import ProbeError
from vlm_probe.stimuli.ranges import REPLY_LENGTH, SEED, TEMPERATURE, check_ranges, ranged

THINKING_TOKENS = 512
"""Of a reply that reasons first."""
SPARE_TOKENS = 8
"""Beyond the longest legal answer: a full stop, a unit, or the beginning of a sentence that gives it away."""


Ended = Literal["", "unfinished", "filtered"]
"""How a reply ended that did not end by itself, as a status of `vlm_probe.stimuli.question.Status`."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: who speaks, the images that come first, and the words."""

    role: Literal["user", "assistant"]
    text: str
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Trial:
    """What a model is shown and asked.

    Attributes:
        item: The item, with the question as it is asked here.
        image: The image that comes with the question; None if there is none, or the model does not look at images.
        context: Turns before the question: worked examples, earlier attempts.
        preamble: Words before the question, in the same turn.
        manner: Code of the manner in which the item is asked (`vlm_probe.probes.conditions`); empty for the plain one.
        attempt: Number of the attempt, from 1, where an item may be tried several times (`vlm_probe.probes.episodes`).
    """

    item: Item
    image: Image.Image | None
    context: tuple[Turn, ...] = ()
    preamble: str = ""
    manner: str = ""
    attempt: int = 1

    @property
    def prompt(self) -> str:
        """The words of the last turn."""
        return self.preamble + self.item.question.prompt

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The whole conversation; the last turn asks."""
        return (*self.context, Turn("user", self.prompt, () if self.image is None else (self.image,)))

    @property
    def id(self) -> tuple[str, str]:
        """What tells the trials of one run apart."""
        return trial_id(self.item.item_id, self.manner, self.attempt)


def trial_id(item_id: str, manner: str, attempt: int) -> tuple[str, str]:
    """What tells the trials of one run apart. A first attempt is what the same trial without further ones is.

    Args:
        item_id: Of the item.
        manner: Code of the manner; empty for the plain one.
        attempt: Number of the attempt, from 1.
    """
    return item_id, manner if attempt == 1 else f"{manner}_attempt{attempt}".lstrip("_")


@dataclass(frozen=True)
class Reply:
    """What a model said, and how that ended.

    Attributes:
        text: The reply, without the thought that came before it.
        ended: "unfinished" if it was cut off, which counts where no answer can be read in it; "filtered" if it was withheld or
            refused, and then nothing is read in it; empty if it ended by itself.
        thought: What the model thought before it; None if it did not, or does not tell.
    """

    text: str
    ended: Ended = ""
    thought: str | None = None


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of a trial's legal answers, from a model that may have thought first.

    Attributes:
        logprobs: In the order of the grammar's candidates, nats; None if the thought was cut off.
        thought: What the model thought first; None if it did not.
        ended: "unfinished" if the thought was cut off.
    """

    logprobs: npt.NDArray[np.float64] | None
    thought: str | None = None
    ended: Ended = ""


@dataclass(frozen=True)
class Generation:
    """How replies are generated. The default is greedy, which every published number should say it is."""

    max_new_tokens: int = ranged(0, REPLY_LENGTH)
    """0 = as many as the longest legal answer needs, or 512 for think-then-answer questions."""
    temperature: float = ranged(0.0, TEMPERATURE)
    seed: int = ranged(0, SEED)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Identity:
    """What exactly answered: enough to key a trial and to repeat it.

    Attributes:
        name: The name or path as the user gave it.
        revision: Hub revision, or "".
        weights_sha256: Hash of the weight files, or of the observer's parameters.
        adapter_sha256: Hash of the adapter, or "".
        details: Everything else worth recording (dtype, device, processor settings, chat template hash, ...).
        files: SHA-256 of every file that decides the answers, by its name in the model's folder; those of an adapter begin
            with "adapter/".
    """

    name: str
    revision: str = ""
    weights_sha256: str = ""
    adapter_sha256: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


class Model(ABC):
    """A model or an observer. Answers do not depend on how items are batched.

    Attributes:
        needs_images: Whether it looks at images; one that does not is given none.
        batch_size: Trials per call that suit it.
        streams: Whether it takes trials one by one, and answers several at a time in any order (`stream`).
        text_only: Whether it is a language model, which is asked nothing but descriptions.
        observed: What it has seen so far, as plain data for `run.json`.
    """

    needs_images = True
    batch_size = 16
    streams = False
    text_only = False
    observed: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """What exactly answers."""

    @abstractmethod
    def generate(self, trials: Sequence[Trial], settings: Generation) -> Sequence[str | Reply]:
        """One reply per trial: its text, or a `Reply` where it did not end by itself or has a thought before it.

        Args:
            trials: What is asked.
            settings: How replies are generated.
        """

    @abstractmethod
    def score_options(self, trials: Sequence[Trial]) -> list[npt.NDArray[np.float64]]:
        """Per trial, the log-probability of every candidate of its grammar (in the order of `candidates()`)."""

    def score(self, trials: Sequence[Trial], settings: Generation) -> Sequence[Scored]:
        """What `score_options` gives, with the thoughts of a model that may think first."""
        return [Scored(values) for values in self.score_options(trials)]

    @property
    def moment(self) -> str:
        """Date and time that its prompts state; empty if they state none."""
        return ""

    def set_moment(self, moment: str) -> None:
        """Have prompts state this date and time."""

    def check(self, items: Sequence[Item]) -> None:
        """Refuse items that it cannot answer, before any is asked. Raises ModelError."""

    def check_without_images(self) -> None:
        """Refuse a run in which it is asked in words alone, if it cannot be. Raises ModelError."""

    def check_context(self, trials: Sequence[Trial], settings: Generation) -> None:
        """Refuse conversations that are too long for it. Raises ModelError."""

    def check_request(self, trials: Sequence[Trial], readout: str, settings: Generation) -> None:
        """Refuse the longest requests of a run, if it does not take them. Raises ModelError."""

    def prepare(self, trials: Sequence[Trial]) -> None:
        """Make the inputs of a batch that will be asked next; called from another thread."""

    def stream(self, trials: Iterable[Trial], readout: str, settings: Generation) -> Iterator[tuple[Trial, Any, float]]:
        """Answer trials one by one, in any order: (trial, answer, seconds); a reply is a text, or a `Reply`."""
        raise NotImplementedError(f"{self.identity.name} takes trials in batches")


class ModelError(ProbeError, RuntimeError):
    """A model cannot be loaded or used; the message names it and the fix. Raised before any stimulus work."""


class NonFiniteLogits(RuntimeError):
    """A model's logits are NaN or infinite, so that nothing it says means anything; the message names model and scoring."""
