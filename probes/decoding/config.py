"""The settings of a decoding study: what is decoded from whom, and with which controls."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_probe.probes.decoding import DecodingError
from vlm_probe.stimuli.ranges import AMOUNT, BATCH, PERMUTATIONS, SEED, check_ranges, ranged, whole


@dataclass(frozen=True)
class DecodeConfig:
    """What is decoded from whom.

    Attributes:
        model: Alias, folder or hub id.
        stimuli: The set as the user named it.
        target: Name of a target (`vlm_probe.probes.decoding.targets`).
        layers: As `vlm_probe.probes.models.activations.choose_sites` reads them.
        positions: Of the language model.
        adapter: Folder of an adapter on the model.
        compare: Folder of an adapter with which the model is compared.
        untrained: Also decode from the same architecture with random weights.
        intervene: "auto" (the language layer that decodes best), "none", or a layer of the language model.
        permutations: Number of permuted sets of values.
        directions: Random directions of the intervention.
        limit: Only the first so many items; None = all.
        seed: Of everything that is drawn.
        batch_size: Items per batch; 0 = what suits the model. Results do not depend on it.
        revision, dtype, device, load_in_4bit: Of the model.

    Raises:
        OutOfRange: If a number is outside its range.
        DecodingError: If the settings do not go together.
    """

    model: str
    stimuli: str
    target: str
    layers: str = "all"
    positions: tuple[str, ...] = ("last", "image")
    adapter: str | None = None
    compare: str | None = None
    untrained: bool = False
    intervene: str = "auto"
    permutations: int = ranged(100, PERMUTATIONS)
    directions: int = ranged(20, whole(1, 10_000))
    limit: int | None = ranged(None, AMOUNT)
    seed: int = ranged(0, SEED)
    batch_size: int = ranged(0, BATCH)
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.adapter and self.compare:
            raise DecodingError("give either an adapter to decode, or one to compare the bare model with")
        if self.intervene not in ("auto", "none") and not self.intervene.isdecimal():
            raise DecodingError(f"intervene {self.intervene!r}: give auto, none, or the number of a language layer")
