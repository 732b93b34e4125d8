"""A decoding study: one target, all layers and places of a model, its controls, and what goes into `decode.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from probes.decoding import DecodingError
from probes.decoding.crossval import ALPHAS, INNER, OUTER, STRENGTHS
from probes.decoding.readings import ARBITRARY, BOOTSTRAP, Problem, Reading, difference, familywise, make_problem, read
from probes.decoding.targets import cue_values, find_target
from probes.provenance import git_state, hardware, versions
from probes.trials import RunError, write_json
from stimuli.audit import PIXELS, pixel_features
from stimuli.dataset import Item, StimulusSet
from stimuli.plain_json import parse_object

RESULT, PREDICTIONS = "decode.json", "predictions.npz"
SAME_CUE = 0.9999
"""|r| with the target from which on a cue is the target itself, and no shortcut to it."""

Step = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class DecodeConfig:
    """What is decoded from whom.

    Attributes:
        model: Alias, folder or hub id.
        stimuli: The set as the user named it.
        target: Name of a target (`probes.decoding.targets`).
        layers: As `probes.models.activations.choose_sites` reads them.
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
        DecodingError: If the settings do not go together, or one is out of its range.
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
    permutations: int = 100
    directions: int = 20
    limit: int | None = None
    seed: int = 0
    batch_size: int = 0
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        if self.adapter and self.compare:
            raise DecodingError("give either an adapter to decode, or one to compare the bare model with")
        if self.intervene not in ("auto", "none") and not self.intervene.isdigit():
            raise DecodingError(f"intervene {self.intervene!r}: give auto, none, or the number of a language layer")
        if self.permutations < 0 or self.directions < 1:
            raise DecodingError("permutations cannot be negative, and there must be at least one random direction")


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


def check_folder(config: DecodeConfig, stimuli: StimulusSet, out: Path) -> Path:
    """The folder of the results.

    Args:
        config: What is decoded.
        stimuli: From what.
        out: The folder that holds those of all targets.

    Raises:
        RunError: If it holds results of other settings, which would be lost.
    """
    folder = out / result_name(config)
    if (folder / RESULT).is_file():
        try:
            found = parse_object((folder / RESULT).read_bytes(), finite=False)["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder / RESULT} is damaged ({error}); delete it, or choose another --out") from error
        now = _fingerprint(config, stimuli)
        differ = [f"{name} ({found.get(name)}, now {now[name]})" for name in now if found.get(name) != now[name]]
        if differ:
            raise RunError(
                f"{folder} holds results of other settings: {', '.join(differ)}; choose another --out, or delete that folder"
            )
    return folder


def result_name(config: DecodeConfig) -> str:
    """Name of the folder of one target's results: the target, with the adapter if there is one."""
    adapter = f"_{Path(config.adapter).resolve().name}" if config.adapter else ""
    return config.target + adapter + (f"_vs_{Path(config.compare).resolve().name}" if config.compare else "")


def decode(
    config: DecodeConfig, stimuli: StimulusSet, out: Path, *, model: Any = None, step: Step | None = None
) -> dict[str, Any]:
    """Decode a target from every layer and place of a model, with all controls, and write it down.

    Activations go to OUT/activations, from where a study of another target takes them; the results to OUT/TARGET/.

    Args:
        config: What is decoded from whom.
        stimuli: The items.
        out: The folder.
        model: The model, if it is loaded already, with `config.adapter` on it. Of a comparison, the bare one; leave it out where
            memory has no room for two.
        step: Told what is being done.

    Returns:
        The contents of `decode.json`.

    Raises:
        DecodingError: If the target cannot be decoded from these items.
        ModelError: If the model cannot be loaded, or has no such layers.
        RunError: If the folder cannot be used.
    """
    started = datetime.now(UTC)
    items, problem = prepare(config, stimuli)
    folder = check_folder(config, stimuli, out)
    tell = step or (lambda what, done, total: None)

    from probes.decoding.intervention import outcomes
    from probes.decoding.store import Activations, collect
    from probes.models.activations import Site, choose_sites, untrained

    if config.intervene != "none":
        outcomes(items)
    # The adapted model comes first, so that an adapter that does not fit costs no work; and the two are not in memory together.
    first = load(config, config.compare) if config.compare else model or load(config, config.adapter)
    sites = choose_sites(first, config.layers, config.positions)
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
        model = model or load(config, None)
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
    result: dict[str, Any] = {
        "format": 1,
        "fingerprint": _fingerprint(config, stimuli),
        "config": asdict(config),
        "model": asdict(model.identity),
        "stimuli": {
            "path": str(stimuli.path),
            "content_sha256": stimuli.content_sha256,
            "task": stimuli.card.get("task"),
            "items": len(items),
            "groups": problem.folds.n_groups,
        },
        "target": _about(problem),
        "metric": problem.metric,
        "chance": problem.chance,
        "settings": {
            "outer_folds": OUTER,
            "inner_folds": INNER,
            "penalties": list(STRENGTHS if problem.classes else ALPHAS),
            "permutations": config.permutations,
            "control_tasks": ARBITRARY,
            "bootstrap_draws": BOOTSTRAP,
            "intervals": "95 % percentile bootstrap over groups, out-of-fold predictions fixed",
            "pixels": PIXELS,
            "cues": cue_names,
            "scene_types_shared": problem.shared_types,
        },
        "sites": _rows(sites, readings),
        "references": {name: reading.to_dict() for name, reading in references.items()},
        "warnings": _warnings(problem, readings),
    }
    if config.untrained:
        fresh = untrained(model, config.seed)
        found = from_sites(activations(fresh, "reading an untrained model"), "decoding the untrained model", False)
        result["untrained"] = [
            {"site": site.name, **_brief(found[site]), **difference(found[site], readings[site])} for site in sites
        ]
        del fresh
    if config.intervene != "none":
        result["intervention"] = _intervene(config, model, stimuli, items, problem, store, readings, steered, tell)
    if config.compare:
        found = from_sites(adapted, "decoding the adapted model", False)
        result["compare"] = {
            "model": adapted_identity,
            "sites": [
                {"site": site.name, **_brief(found[site]), **difference(readings[site], found[site])} for site in sites
            ],
        }
        predictions |= {f"{site.name}-adapted": found[site].predictions for site in sites}
    result |= {"versions": versions("scikit-learn", "scipy"), "git": git_state(), "hardware": hardware()}
    result["started"], result["finished"] = started.isoformat(), datetime.now(UTC).isoformat()
    result = json.loads(json.dumps(result))  # as it will be read again: no tuples
    _write(folder, result, predictions, items, problem)
    return result


def load(config: DecodeConfig, adapter: str | None) -> Any:
    """The model that is decoded.

    Args:
        config: What is decoded from whom.
        adapter: Folder of the adapter that goes on it; None for the bare model.

    Raises:
        ModelError: If it cannot be loaded.
    """
    from probes.models.loading import load_model

    names = ("revision", "dtype", "device", "load_in_4bit")
    return load_model(config.model, adapter=adapter, **{name: getattr(config, name) for name in names})


def _steered_layer(config: DecodeConfig, sites: Sequence[Any]) -> Any:
    """The site that the user chose to move; None for "auto" and "none". Raises DecodingError if it is not read."""
    if not config.intervene.isdigit():
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


def _rows(sites: Sequence[Any], readings: Mapping[Any, Reading]) -> list[dict[str, Any]]:
    corrected = familywise([readings[site] for site in sites])
    return [
        {"site": site.name, "part": site.part, "layer": site.layer, "position": site.position}
        | readings[site].to_dict()
        | {"p_familywise": p}
        for site, p in zip(sites, corrected, strict=True)
    ]


def _brief(reading: Reading) -> dict[str, Any]:
    return {"score": reading.score, "score_ci": list(reading.interval), "secondary": reading.secondary}


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
    from probes.decoding.intervention import intervene

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


def _about(problem: Problem) -> dict[str, Any]:
    target = {"name": problem.target.name, "about": problem.target.about, "kind": problem.target.kind}
    if problem.classes:
        counts = np.bincount(problem.y, minlength=len(problem.classes)).tolist()
        return target | {"classes": dict(zip(problem.classes, counts, strict=True))}
    spread = {"mean": problem.y.mean(), "sd": problem.y.std(), "min": problem.y.min(), "max": problem.y.max()}
    return target | {name: float(value) for name, value in spread.items()}


def _warnings(problem: Problem, readings: Mapping[Any, Reading]) -> list[str]:
    """What a reader of the numbers should know."""
    found = []
    widest, groups = max(reading.features for reading in readings.values()), problem.folds.n_groups
    if groups < widest:
        found.append(
            f"{groups} groups of items for up to {widest} features: the penalty decides much, and what is not found may still"
            " be there; a larger set decodes better"
        )
    edge = [site.name for site, reading in readings.items() if reading.at_edge and reading.score > problem.chance]
    if edge:
        found.append(f"the strongest or weakest penalty on offer was chosen at {', '.join(edge)}")
    if problem.arbitrary.shape[1] and problem.shared_types < 0.8:
        found.append(
            f"only {problem.shared_types:.0%} of the items have a type of scene that comes in several groups, so that the"
            " control task is hardly learnable and selectivity means little"
        )
    return found


def _fingerprint(config: DecodeConfig, stimuli: StimulusSet) -> dict[str, Any]:
    """The settings on which results depend."""
    found = asdict(config)
    for name in ("stimuli", "batch_size", "device"):  # that do not matter, or are known by their hash
        del found[name]
    for name in ("adapter", "compare"):
        folder = getattr(config, name)
        found[name] = None if folder is None else Path(folder).resolve().name
    return found | {"positions": list(config.positions), "stimuli": stimuli.content_sha256}


def _write(
    folder: Path, result: dict[str, Any], predictions: Mapping[str, Any], items: Sequence[Item], problem: Problem
) -> None:
    """Write the numbers, then the JSON that says that they are all there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{PREDICTIONS}.{os.getpid()}.tmp"
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                item_id=np.array([item.item_id for item in items]),
                group=problem.folds.groups,
                fold=problem.folds.fold_of(),
                y=problem.y,
                **{name: values.astype(np.float32) for name, values in predictions.items()},
            )
        partial.replace(folder / PREDICTIONS)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}; choose another folder with --out") from error
    write_json(folder / RESULT, result)
