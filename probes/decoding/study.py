"""A decoding study: one target, all layers and places of a model, and its controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vlm_probe.probes.decoding import DecodingError
from vlm_probe.probes.decoding.config import DecodeConfig
from vlm_probe.probes.decoding.readings import Problem, Reading, difference, make_problem, read
from vlm_probe.probes.decoding.result import check_folder, compared, describe, site_rows, warnings, write
from vlm_probe.probes.decoding.targets import cue_values, find_target
from vlm_probe.probes.provenance import origin
from vlm_probe.stimuli.audit import pixel_features
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.output import OutputFolder, claim
from vlm_probe.stimuli.plain_json import dumps, parse

KIND = "decoding"
SAME_CUE = 0.9999
"""|r| with the target from which on a cue is the target itself, and no shortcut to it."""

Step = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def prepare(config: DecodeConfig, stimuli: StimulusSet) -> tuple[list[Item], Problem]:
    """The items and the problem: everything that can be wrong before a model is loaded.

    Args:
        config: What is decoded.
        stimuli: From which the items are.

    Raises:
        DecodingError: If the target cannot be decoded from these items.
    """
    items = stimuli.items[: config.limit]
    return items, make_problem(find_target(config.target, items), items, config.permutations, config.seed)


def decode(
    config: DecodeConfig, stimuli: StimulusSet, out: Path | OutputFolder, *, model: Any = None, step: Step | None = None
) -> dict[str, Any]:
    """Decode a target from every layer and place of a model, with all controls, and write it down.

    Activations go to OUT/activations, from where a study of another target takes them; the results to OUT/TARGET/.

    Args:
        config: What is decoded from whom.
        stimuli: The items.
        out: The folder, or that which is claimed already.
        model: The model, if it is loaded already, with `config.adapter` on it. Of a comparison, the bare one; leave it out where
            memory has no room for two.
        step: Told what is being done.

    Returns:
        The contents of `decode.json`.

    Raises:
        DecodingError: If the target cannot be decoded from these items.
        ModelError: If the model cannot be loaded, or has no such layers.
        OutputError: If `out` holds something else, cannot be written, or another process is writing to it.
        RunError: If it holds results of other settings.
    """
    if not isinstance(out, OutputFolder):
        with claim(out, KIND) as folder:
            return decode(config, stimuli, folder, model=model, step=step)
    started = datetime.now(UTC)
    items, problem = prepare(config, stimuli)
    name = check_folder(config, stimuli, out.path)
    tell = step or (lambda what, done, total: None)

    from vlm_probe.probes.decoding.intervention import outcomes
    from vlm_probe.probes.decoding.store import Activations, collect
    from vlm_probe.probes.models.activations import Site, choose_sites, untrained

    if config.intervene != "none":
        outcomes(items)
    # The adapted model comes first, so that an adapter that does not fit costs no work; and the two are not in memory together.
    moment = getattr(model, "moment", "")
    first = load(config, config.compare, moment) if config.compare else model or load(config, config.adapter)
    moment = getattr(first, "moment", "")
    sites = choose_sites(first, config.layers, config.position)
    steered = _steered_layer(config, sites)

    def activations(of: Any, what: str) -> Activations:
        return collect(
            of, stimuli, items, sites, out, batch_size=config.batch_size, progress=lambda d, n: tell(what, d, n)
        )

    def from_sites(store: Activations, what: str, controls: bool) -> dict[Site, Reading]:
        readings = {}
        for number, site in enumerate(sites):
            tell(what, number, len(sites))
            readings[site] = read(store.load(site), problem, controls=controls)
        tell(what, len(sites), len(sites))
        return readings

    if config.compare:
        adapted_identity, adapted = asdict(first.identity), activations(first, "reading the adapted model")
        del first
        model = model or load(config, None, moment)
    else:
        model = first
    store = activations(model, "reading hidden states")
    readings = from_sites(store, f"decoding {config.target}", True)
    references = {"pixels": read(pixel_features(stimuli, items), problem)}
    cue_names, cues = _shortcuts(items, problem)
    if cue_names:
        references["cues"] = read(cues, problem)
    predictions = {site.name: reading.predictions for site, reading in readings.items()}
    predictions |= {name: reading.predictions for name, reading in references.items()}
    result: dict[str, Any] = describe(config, stimuli, items, problem, model.identity, cue_names) | {
        "sites": site_rows(sites, readings),
        "references": {name: reading.to_dict() for name, reading in references.items()},
        "warnings": warnings(problem, readings),
    }
    if config.untrained:
        fresh = untrained(model, config.seed)
        found = from_sites(activations(fresh, "reading an untrained model"), "decoding the untrained model", False)
        result["untrained"] = [compared(site, found[site], difference(found[site], readings[site])) for site in sites]
        del fresh
    if config.intervene != "none":
        result["intervention"] = _intervene(config, model, stimuli, items, problem, store, readings, steered, tell)
    if config.compare:
        found = from_sites(adapted, "decoding the adapted model", False)
        result["compare"] = {
            "model": adapted_identity,
            "sites": [compared(site, found[site], difference(readings[site], found[site])) for site in sites],
        }
        predictions |= {f"{site.name}-adapted": found[site].predictions for site in sites}
    result |= origin("scikit-learn", "scipy")
    result["started"], result["finished"] = started.isoformat(), datetime.now(UTC).isoformat()
    result = parse(dumps(_finite(result)))  # as it will be read again: no tuples
    write(out, name, result, predictions, items, problem)
    return result


def _finite(value: Any) -> Any:
    """A result with None in place of what cannot be computed, which JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load(config: DecodeConfig, adapter: str | None, moment: str = "") -> Any:
    """The model that is decoded.

    Args:
        config: What is decoded from whom.
        adapter: Folder of the adapter that goes on it; None for the bare model.
        moment: Date and time that prompts state, where a chat template states them: the same for both models of a
            comparison; empty for those of now.

    Raises:
        ModelError: If it cannot be loaded.
    """
    from vlm_probe.probes.models.loading import load_model

    names = ("revision", "dtype", "device", "load_in_4bit")
    model: Any = load_model(config.model, adapter=adapter, **{name: getattr(config, name) for name in names})
    if hasattr(model, "set_moment"):
        model.set_moment(moment)
    return model


def _steered_layer(config: DecodeConfig, sites: Sequence[Any]) -> Any:
    """The site that the user chose to move; None for "auto" and "none". Raises DecodingError if it is not read."""
    if not config.intervene.isdecimal():
        return None
    language = [site for site in sites if site.part == "language" and site.layer == int(config.intervene)]
    if not language:
        raise DecodingError(
            f"--intervene {config.intervene}: that layer of the language model is not among --layers {config.layers}"
        )
    return next((site for site in language if site.position == "last"), language[0])


def _shortcuts(items: Sequence[Item], problem: Problem) -> tuple[list[str], Any]:
    """The task's cues (see `Task.cues`) that vary and are not the target itself."""
    names, values = cue_values(items)
    keep = [c for c in range(len(names)) if values[:, c].std() > 0]
    if not problem.classes:
        keep = [c for c in keep if abs(np.corrcoef(values[:, c], problem.y)[0, 1]) < SAME_CUE]
    return [names[c] for c in keep], values[:, keep]


def _intervene(
    config: DecodeConfig,
    model: Any,
    stimuli: StimulusSet,
    items: Sequence[Item],
    problem: Problem,
    store: Any,
    readings: Mapping[Any, Reading],
    site: Any,
    tell: Step,
) -> dict[str, Any]:
    from vlm_probe.probes.decoding.intervention import intervene

    if site is None:
        # The input has seen nothing at the last token; what the last block gives, only the output layer still reads.
        last = max((s.layer for s in readings if s.part == "language"), default=0)
        inner = [s for s in readings if s.part == "language" and 0 < s.layer < last]
        candidates = (
            [s for s in inner if s.position == "last"] or inner or [s for s in readings if s.part == "language"]
        )
        site = max(candidates, key=lambda s: readings[s].score)
    return intervene(
        model,
        stimuli,
        items,
        store.load(site),
        site,
        problem,
        readings[site],
        draws=config.directions,
        seed=config.seed,
        batch_size=config.batch_size,
        progress=lambda d, n: tell("moving hidden states", d, n),
    )
