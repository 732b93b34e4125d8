"""The settings of a decoding study: what is decoded from whom, and with which controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from vlm_probe.probes.decoding import DecodingError
from vlm_probe.probes.options import ESSENTIALS, FLAG, LOADING, PROBING, commas, names
from vlm_probe.stimuli.ranges import AMOUNT, BATCH, PERMUTATIONS, SEED, check_settings, ranged, whole

Essential, Probed, Loaded = (Parameter(group=group) for group in (ESSENTIALS, PROBING, LOADING))


@dataclass(frozen=True)
class DecodeConfig:
    """What is decoded from whom.

    Attributes:
        model: Short name (see `probe models`), local folder or hub id.
        stimuli: Folder of a set, task name, or family.
        target: Quantity to decode: margin, label, reply, count, com-offset, top-offset, height, force, speed, answer, or a cue of
            the task (a name that does not exist lists those that do); on the command line several, separated by commas.
        layers: `all`, or a list: `vision` (every layer of the tower), numbers and ranges of language layers, such as 0,4-8,-1.
        position: One or several of last (token), image (tokens, averaged), question (tokens after the image, averaged).
        adapter: Decode the model with this LoRA adapter on it.
        compare: Decode the base model and the model with this adapter on the same items, and their difference.
        untrained: Also decode from the same architecture with random weights.
        intervene: Language layer at which states are moved along the probe's direction; `auto`: where it decodes best; or `none`.
        permutations: Permuted sets of values, for the null distribution.
        directions: Random directions that the intervention is compared with.
        limit: Decode from the first N items only.
        seed: Seed of folds, permutations and directions.
        batch_size: Items per batch; 0 = automatic. Results do not depend on it.
        revision: Revision on the hub.
        dtype: Number format of the weights.
        device: `cpu`, `cuda`, `mps` or `xpu`.
        load_in_4bit: Quantise the weights to four bits.

    Raises:
        OutOfRange: If a value is of another type, or outside its range.
        DecodingError: If the settings do not go together.
    """

    model: Annotated[str, Essential, names("model", "model-name-or-path")]
    stimuli: Annotated[str, Essential]
    target: Annotated[str, Essential]
    layers: Annotated[str, Probed] = "all"
    position: Annotated[tuple[str, ...], Probed, commas()] = ("last", "image")
    adapter: Annotated[str | None, Essential] = None
    compare: Annotated[str | None, Essential] = None
    untrained: Annotated[bool, Probed, FLAG] = False
    intervene: Annotated[str, Probed] = "auto"
    permutations: Annotated[int, Probed] = ranged(100, PERMUTATIONS)
    directions: Annotated[int, Probed] = ranged(20, whole(1, 10_000))
    limit: Annotated[int | None, Essential] = ranged(None, AMOUNT)
    seed: Annotated[int, Probed] = ranged(0, SEED)
    batch_size: Annotated[int, Loaded] = ranged(0, BATCH)
    revision: Annotated[str | None, Loaded] = None
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Loaded] = "auto"
    device: Annotated[str, Loaded] = "auto"
    load_in_4bit: Annotated[bool, Loaded, FLAG] = False

    def __post_init__(self) -> None:
        check_settings(self)
        if self.adapter and self.compare:
            raise DecodingError("give either an adapter to decode, or one to compare the bare model with")
        if self.intervene not in ("auto", "none") and not self.intervene.isdecimal():
            raise DecodingError(f"intervene {self.intervene!r}: give auto, none, or the number of a language layer")
