"""Hidden states of a model while it reads a question, by layer and place; and what it answers when they are moved.

Depth counts as in the literature: language layer 0 is what the decoder gets (embedded words, projected image), layer k is the
output of its k-th block, before the final norm. Vision layer 0 is what the first block of the vision tower gets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig

from vlm_probe.probes.models import ModelError, Trial
from vlm_probe.probes.models.device import quantisation
from vlm_probe.probes.models.option_scoring import find_cache

POSITIONS = ("last", "image", "question")
"""Places in a prompt: its last token, where the answer is about to be said; the mean over the tokens of its images; the
mean over the tokens after the last image."""

Floats32 = npt.NDArray[np.float32]
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True, order=True)
class Site:
    """A place in the network: a layer of the vision tower or of the language model, and a position in the prompt.

    Attributes:
        part: "vision" or "language".
        layer: 0 = what the first block gets; k = what the k-th block gives.
        position: One of `POSITIONS`; for the vision tower always "image" (the mean over its patches).
    """

    part: str
    layer: int
    position: str

    @property
    def name(self) -> str:
        """The site in one word, such as "language-3-last"."""
        return f"{self.part}-{self.layer}-{self.position}"


def depths(model: Any) -> dict[str, int]:
    """Number of blocks of the vision tower and of the language model: {"vision": n, "language": n}.

    Raises:
        ModelError: If the model has no weights, or no decoder blocks of a known form.
    """
    network = _network(model)
    blocks = {part: len(_blocks(network, part)) for part in ("vision", "language")}
    if not blocks["language"]:
        raise ModelError(f"{model.identity.name}: cannot find the blocks of its decoder; it cannot be decoded")
    return blocks


def choose_sites(model: Any, layers: str, positions: Sequence[str]) -> list[Site]:
    """The sites that an option names, by depth.

    Args:
        model: The model.
        layers: "all" (both parts), or a list such as "vision,0,4-8,-1": "vision" is every layer of the vision tower, numbers
            are layers of the language model, negative ones counted from the last.
        positions: Which of `POSITIONS`, for the language model.

    Raises:
        ModelError: If there is no such layer or position.
    """
    blocks = depths(model)
    unknown = [position for position in positions if position not in POSITIONS]
    if unknown or not positions:
        raise ModelError(f"unknown position {', '.join(unknown) or '(none)'}: choose from {', '.join(POSITIONS)}")
    vision, language = False, set[int]()
    for part in (part.strip() for part in layers.split(",")):
        vision = vision or part in ("all", "vision")
        if part != "vision":
            language |= set(range(blocks["language"] + 1)) if part == "all" else _range(part, blocks["language"])
    seen = range(blocks["vision"] + 1) if vision and blocks["vision"] else ()
    return [Site("vision", layer, "image") for layer in seen] + [
        Site("language", layer, position) for position in dict.fromkeys(positions) for layer in sorted(language)
    ]


class HiddenStates:
    """Reads hidden states batch by batch; what it gives does not depend on the batches.

    Only the wanted positions leave a layer, so that a batch costs rows x sites x width numbers and not every token's.

    Args:
        model: A model with weights (`vlm_probe.probes.models.huggingface.HuggingFaceModel`).
        sites: What to read.

    Raises:
        ModelError: If the model has no such layers.
    """

    def __init__(self, model: Any, sites: Sequence[Site]) -> None:
        blocks = depths(model)
        for site in sites:
            if not 0 <= site.layer <= blocks[site.part]:
                raise ModelError(f"{model.identity.name} has {blocks[site.part]} {site.part} layers: no {site.name}")
        self.sites = tuple(sites)
        self._model = model
        self._alone = False

    def read(self, trials: Sequence[Trial]) -> dict[Site, Floats32]:
        """The states of a batch of trials, as (trials, width) float32 for every site.

        Raises:
            ModelError: If a trial has no image where the position needs one.
        """
        if not self._alone:
            found = self._read(trials)
            if found is not None:
                return found
            # Some towers lay all patches of a batch end to end, or see several tiles of an image. One trial at a time, all
            # that the tower sees belongs to it.
            self._alone = True
        each = [self._read([trial]) for trial in trials]
        return {site: np.concatenate([one[site] for one in each if one is not None]) for site in self.sites}

    def _read(self, trials: Sequence[Trial]) -> dict[Site, Floats32] | None:
        """The states, or None if it cannot be told which of the tower's patches belong to which trial."""
        inputs = self._model._inputs(trials)
        weights = {position: _weights(self._model, inputs, position) for position in {s.position for s in self.sites}}
        found: dict[Site, Floats32] = {}
        mixed = False

        def take(site: Site, hidden: torch.Tensor) -> None:
            nonlocal mixed
            if site.part == "vision":
                if len(trials) == 1:
                    pooled = hidden.reshape(-1, hidden.shape[-1]).float().mean(dim=0, keepdim=True)
                elif hidden.ndim == 3 and len(hidden) == len(trials):
                    pooled = hidden.float().mean(dim=1)
                else:
                    mixed = True
                    return
            else:
                _check_whole(hidden, inputs, self._model.identity.name)
                weight = weights[site.position].to(hidden.device)
                pooled = hidden[:, -1].float() if site.position == "last" else _mean(hidden, weight)
            found[site] = pooled.cpu().numpy().astype(np.float32)

        network = _network(self._model)
        with torch.inference_mode(), _reading(network, self.sites, take):
            # By way of `generate`, which knows for every architecture how positions and images enter.
            self._model._model.generate(**inputs, generation_config=_one_token(self._model._prompter.pad_token))
        if mixed:
            return None
        absent = [site.name for site in self.sites if site not in found]
        if absent:
            raise ModelError(f"{self._model.identity.name}: nothing passed through {absent[0]} while it read a prompt")
        return found


class Mover:
    """Moves the hidden states of one batch at one site while the model reads the prompts, and scores the options.

    Args:
        model: A model with weights.
        trials: The batch.
        site: A layer of the language model; at the positions "image" and "question" every one of the tokens is moved.

    Raises:
        ModelError: If the site is in the vision tower, or a prompt has no such position.
    """

    def __init__(self, model: Any, trials: Sequence[Trial], site: Site) -> None:
        if site.part != "language":
            raise ModelError(f"only the language model's states can be moved, not {site.name}")
        self._model, self._trials, self._site = model, trials, site
        # The inputs are made once, for many moves of the same batch.
        self._inputs = model._make_inputs(trials)
        self._weights = _weights(model, self._inputs, site.position)

    def score(self, shifts: npt.NDArray[np.floating[Any]]) -> list[npt.NDArray[np.float64]]:
        """Per trial, the log-probability of every legal answer, with the states moved.

        Args:
            shifts: What is added, (trials, width).

        Raises:
            ValueError: If there is not one shift per trial.
            RuntimeError: If the shifts never reached the model, so that its answers would be the unmoved ones.
        """
        network, site = _network(self._model), self._site
        shift = torch.from_numpy(np.asarray(shifts, dtype=np.float32))
        if len(shift) != len(self._trials):
            raise ValueError(f"{len(shift)} shifts for {len(self._trials)} trials")
        at = self._weights > 0
        moved = 0
        reading = False

        def watch(_: Any, __: Any, given: dict[str, Any]) -> None:
            # The candidates are read behind the prompt, or with it in the cache: they are not to be moved themselves.
            nonlocal reading
            _, cache = find_cache(given)
            reading = cache is None or int(cache.get_seq_length()) == 0

        def move(hidden: torch.Tensor) -> torch.Tensor | None:
            nonlocal moved
            if not reading:
                return None
            behind = hidden.shape[1] - at.shape[1]
            if len(hidden) != len(at) or behind < 0 or (behind and not self._model._scorer.at_once):
                raise RuntimeError(
                    f"the prompts were read as {tuple(hidden.shape[:2])} tokens and not as {tuple(at.shape)} (did memory run"
                    " out? give a smaller --batch-size)"
                )
            moved += 1
            there = torch.nn.functional.pad(at, (0, behind))
            return hidden + there[..., None].to(hidden) * shift[:, None].to(hidden)

        self._model._ready[tuple(trial.id for trial in self._trials)] = self._inputs
        handle = _decoder(network).register_forward_pre_hook(watch, with_kwargs=True)
        try:
            with _editing(network, site.layer, move):
                scores: list[npt.NDArray[np.float64]] = self._model.score_options(self._trials)
        finally:
            handle.remove()
        if not moved:
            raise RuntimeError(f"the states at {site.name} were not moved: the prompt did not pass through that layer")
        return scores


def untrained(model: Any, seed: int) -> Any:
    """A model of the same architecture and processor with random weights, as it was before any training.

    Args:
        model: A model with weights, not quantised.
        seed: Of the weights.

    Raises:
        ModelError: If the model is quantised.
    """
    from dataclasses import replace

    from vlm_probe.probes.models.huggingface import HuggingFaceModel

    network, identity = _network(model), model.identity
    if quantisation(network) != "none":
        raise ModelError(
            "an untrained control is not made of a quantised model: leave out --load-in-4bit or --untrained"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made_as: Any = type(network)
        fresh = made_as._from_config(network.config, dtype=network.dtype)
    fresh.generation_config = network.generation_config
    prompter, name = model._prompter, f"{identity.name} (untrained)"
    made = HuggingFaceModel(fresh.to(network.device).eval(), prompter._processor, name, prompter.thinking)
    made.set_moment(model.moment)
    made._identity = replace(
        identity, name=made._identity.name, weights_sha256=f"untrained-{seed}", adapter_sha256="", revision=""
    )
    return made


def _network(model: Any) -> Any:
    """The model of transformers, without the wrapper of its adapter."""
    network: Any = getattr(model, "_model", None)
    if not hasattr(network, "named_modules"):
        raise ModelError(f"{model.identity.name} has no hidden states: decode a model whose weights are here")
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def _decoder(network: Any) -> Any:
    """The module that holds the blocks of the language model, however deep in it that is."""
    decoder = network.get_decoder() if hasattr(network, "get_decoder") else None
    for module in decoder.modules() if decoder is not None else ():
        if isinstance(getattr(module, "layers", None), torch.nn.ModuleList):
            return module
    raise ModelError(f"cannot find the decoder blocks of a {type(network).__name__}; it cannot be decoded")


def _blocks(network: Any, part: str) -> Any:
    """The blocks of a part, in order; empty if it has no vision tower of a known form."""
    decoder = _decoder(network)
    if part == "language":
        return decoder.layers
    vision = getattr(network.config, "vision_config", None)
    sizes = {getattr(vision, name, None) for name in ("num_hidden_layers", "depth")} - {None}
    inside = {id(module) for module in decoder.layers.modules()}
    lists = {
        name: m for name, m in network.named_modules() if isinstance(m, torch.nn.ModuleList) and id(m) not in inside
    }
    found = [name for name in lists if len(lists[name]) in sizes]
    # Some models have a tower of their own for films or sounds, through which no image passes.
    return next((lists[name] for name in found if not re.search("video|audio", name)), ())


def _range(text: str, blocks: int) -> set[int]:
    """ "4", "-1" or "4-8" as layers of the language model."""
    low, dash, high = text.partition("-") if not text.startswith("-") else (text, "", "")
    try:
        first = int(low)
        last = int(high) if dash else first
    except ValueError as error:
        raise ModelError(f'layers {text!r}: give all, vision, numbers and ranges, such as "vision,0,4-8,-1"') from error
    if dash and first > last:
        raise ModelError(f"layers {text!r}: the range is empty; give the lower number first")
    first, last = (layer + blocks + 1 if layer < 0 else layer for layer in (first, last))
    if not 0 <= first <= last <= blocks:
        raise ModelError(f"layers {text!r}: the language model has layers 0 (its input) to {blocks}")
    return set(range(first, last + 1))


def _weights(model: Any, inputs: Any, position: str) -> torch.Tensor:
    """(trials, tokens) 1 at the tokens of a position, 0 elsewhere."""
    words, seen = inputs["input_ids"], inputs["attention_mask"]
    place = torch.arange(words.shape[1], device=words.device)
    if position == "last":  # prompts are padded on the left, so that the last token is always in the last column
        return (place == words.shape[1] - 1).expand_as(words).float()
    config = _network(model).config
    token = getattr(config, "image_token_id", None)
    token = getattr(config, "image_token_index", None) if token is None else token
    pictures = words == token if token is not None else torch.zeros_like(words, dtype=torch.bool)
    if not bool(pictures.any(dim=1).all()):
        raise ModelError(f"the position {position} needs a picture in every prompt, with tokens of its own: use last")
    if position == "image":
        return pictures.float()
    end = torch.where(pictures, place, -1).amax(dim=1, keepdim=True)
    return ((place > end) & seen.bool()).float()


def _mean(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(rows, width) mean over the tokens of weight 1, in single precision whatever the model's own."""
    # Selected, not multiplied: what stands at padded tokens may be nan, and 0 x nan is nan.
    return torch.stack([row[at].float().mean(dim=0) for row, at in zip(hidden, weight > 0, strict=True)])


def _check_whole(hidden: torch.Tensor, inputs: Inputs, name: str) -> None:
    if hidden.shape[:2] != inputs["input_ids"].shape:
        raise ModelError(
            f"{name} reads its prompts as {tuple(hidden.shape[:2])} and not as {tuple(inputs['input_ids'].shape)} tokens:"
            " hidden states of such a model cannot be told apart by position"
        )


def _one_token(pad: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=1, min_new_tokens=1, do_sample=False, pad_token_id=pad, eos_token_id=None)


Edit = Callable[[torch.Tensor], torch.Tensor | None]


@contextmanager
def _reading(network: Any, sites: Sequence[Site], take: Callable[[Site, torch.Tensor], None]) -> Iterator[None]:
    """Hand the states of every site to `take` as they are computed."""
    handles = []
    try:
        for part, layer in {(site.part, site.layer) for site in sites}:
            here = [site for site in sites if (site.part, site.layer) == (part, layer)]

            def note(hidden: torch.Tensor, here: Sequence[Site] = here) -> None:
                for site in here:
                    take(site, hidden)

            handles.append(_hook(_blocks(network, part), layer, note))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _editing(network: Any, layer: int, edit: Edit) -> Iterator[None]:
    """Put what `edit` gives in place of the states at a layer of the language model."""
    handle = _hook(_blocks(network, "language"), layer, edit)
    try:
        yield
    finally:
        handle.remove()


def _hook(blocks: Any, layer: int, edit: Edit) -> Any:
    """Call `edit` on the states at a layer; what it returns, unless None, takes their place."""

    def before(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        hidden = given[0] if given else named["hidden_states"]
        changed = edit(hidden)
        if changed is None:
            return None
        return ((changed, *given[1:]), named) if given else (given, named | {"hidden_states": changed})

    def after(_: Any, __: Any, out: Any) -> Any:
        changed = edit(out[0] if isinstance(out, tuple) else out)
        if changed is None:
            return None
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    if layer == 0:
        return blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    return blocks[layer - 1].register_forward_hook(after)
