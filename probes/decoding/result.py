"""What a decoding study leaves: `decode.json` with every number, and the predictions behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table

from vlm_probe.probes.decoding.config import DecodeConfig
from vlm_probe.probes.decoding.crossval import ALPHAS, INNER, OUTER, STRENGTHS
from vlm_probe.probes.decoding.readings import ARBITRARY, BOOTSTRAP, Problem, Reading, familywise
from vlm_probe.probes.models import Identity
from vlm_probe.probes.trials import RunError
from vlm_probe.stimuli.audit import PIXELS
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.errors import reading
from vlm_probe.stimuli.output import OutputFolder
from vlm_probe.stimuli.plain_json import parse_object

if TYPE_CHECKING:
    from vlm_probe.probes.models.activations import Site


RESULT, PREDICTIONS = "decode.json", "predictions.npz"


def check_folder(config: DecodeConfig, stimuli: StimulusSet, out: Path) -> str:
    """The name of the folder of the results, in the one that holds those of all targets.

    Args:
        config: What is decoded.
        stimuli: From what.
        out: The folder that holds those of all targets.

    Raises:
        RunError: If it holds results of other settings, which would be lost.
    """
    name = result_name(config)
    folder = out / name
    if (folder / RESULT).is_file():
        now = _fingerprint(config, stimuli)
        with reading(folder / RESULT, RunError, "delete it, or choose another --out"):
            found = parse_object((folder / RESULT).read_bytes(), finite=False)["fingerprint"]
            differ = [f"{name} ({found.get(name)}, now {now[name]})" for name in now if found.get(name) != now[name]]
        if differ:
            raise RunError(
                f"{folder} holds results of other settings: {', '.join(differ)}; choose another --out, or delete that folder"
            )
    return name


def result_name(config: DecodeConfig) -> str:
    """Name of the folder of one target's results: the target, with the adapter if there is one."""
    adapter = f"_{Path(config.adapter).resolve().name}" if config.adapter else ""
    return config.target + adapter + (f"_vs_{Path(config.compare).resolve().name}" if config.compare else "")


def describe(
    config: DecodeConfig,
    stimuli: StimulusSet,
    items: Sequence[Item],
    problem: Problem,
    identity: Identity,
    cues: Sequence[str],
) -> dict[str, Any]:
    """What `decode.json` says next to the readings: of whom, on what, and how.

    Args:
        config: What was decoded from whom.
        stimuli: The set.
        items: Of it, those that were asked.
        problem: What was decoded.
        identity: Of the model.
        cues: Names of those that the probe of the cues saw.
    """
    return {
        "format": 1,
        "fingerprint": _fingerprint(config, stimuli),
        "config": asdict(config),
        "model": asdict(identity),
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
            "cues": list(cues),
            "scene_types_shared": problem.shared_types,
        },
    }


def site_rows(sites: Sequence[Site], readings: Mapping[Site, Reading]) -> list[dict[str, Any]]:
    """The readings at all sites, with p-values corrected for looking at all of them.

    Args:
        sites: In the order of the rows.
        readings: By site.
    """
    corrected = familywise([readings[site] for site in sites])
    return [
        {"site": site.name, "part": site.part, "layer": site.layer, "position": site.position}
        | readings[site].to_dict()
        | {"p_familywise": p}
        for site, p in zip(sites, corrected, strict=True)
    ]


def compared(site: Site, reading: Reading, change: Mapping[str, Any]) -> dict[str, Any]:
    """The reading of another model at a site.

    Args:
        site: The site.
        reading: Of the other model.
        change: How much better one of the two is (`vlm_probe.probes.decoding.readings.difference`).
    """
    brief = {"score": reading.score, "score_ci": list(reading.interval), "secondary": reading.secondary}
    return {"site": site.name, **brief, **change}


def _about(problem: Problem) -> dict[str, Any]:
    target = {"name": problem.target.name, "about": problem.target.about, "kind": problem.target.kind}
    if problem.classes:
        counts = np.bincount(problem.y, minlength=len(problem.classes)).tolist()
        return target | {"classes": dict(zip(problem.classes, counts, strict=True))}
    spread = {"mean": problem.y.mean(), "sd": problem.y.std(), "min": problem.y.min(), "max": problem.y.max()}
    return target | {name: float(value) for name, value in spread.items()}


def warnings(problem: Problem, readings: Mapping[Site, Reading]) -> list[str]:
    """What a reader of the numbers should know, in sentences.

    Args:
        problem: What was decoded.
        readings: By site.
    """
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
    return found | {"position": list(config.position), "stimuli": stimuli.content_sha256}


def write(
    folder: OutputFolder,
    name: str,
    result: dict[str, Any],
    predictions: Mapping[str, Any],
    items: Sequence[Item],
    problem: Problem,
) -> None:
    """Write the numbers, then the JSON that says that they are all there.

    Args:
        folder: Of the results of all targets.
        name: Of the folder in it for this one.
        result: The contents of `decode.json`.
        predictions: By site, out of fold: (n,) or (n, classes).
        items: The n items.
        problem: What was decoded.

    Raises:
        OutputError: If the folder cannot be written.
    """
    with folder.file(f"{name}/{PREDICTIONS}") as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            item_id=np.array([item.item_id for item in items]),
            group=problem.folds.groups,
            fold=problem.folds.fold_of(),
            y=problem.y,
            **{site: values.astype(np.float32) for site, values in predictions.items()},
        )
    folder.write_json(f"{name}/{RESULT}", result)


Result = Mapping[str, Any]


class Report:
    """Tables of one result (the contents of `decode.json`); print it with rich."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Group(*self._parts())

    def _parts(self) -> list[Any]:
        result = self._result
        target, stimuli = result["target"], result["stimuli"]
        parts: list[Any] = [
            f"{target['name']} ({target['about']}), decoded from {result['model']['name']}: {stimuli['items']} items of"
            f" {stimuli['task']} in {stimuli['groups']} groups; {result['metric']}, chance {result['chance']:.2f}",
            "",
            self._sites(),
            "",
        ]
        if "compare" in result:
            parts += [f"with the adapter {result['config']['compare']}, on the same items and folds:"]
            parts += [_differences(result["compare"]["sites"], "adapted", "adapted - base"), ""]
        if "untrained" in result:
            parts += ["the same architecture with random weights:"]
            parts += [_differences(result["untrained"], "untrained", "trained - untrained"), ""]
        if "intervention" in result:
            parts += [*_intervention(result["intervention"]), ""]
        return [*parts, *(f"note: {text}" for text in result["warnings"])]

    def _sites(self) -> Table:
        result = self._result
        names = ["where", result["metric"], "95 % CI", "r" if result["metric"] == "R2" else "AUC"]
        names += ["permuted", "its 95 %", "p", "p, layers", "control task", "selectivity"]
        table = Table(box=None, pad_edge=False)
        for number, name in enumerate(names):
            table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
        for name, one in result["references"].items():
            table.add_row(*_cells(name, one, None))
        for row in result["sites"]:
            table.add_row(*_cells(row["site"], row, row["p_familywise"]))
        return table


def _cells(name: str, reading: Result, familywise: float | None) -> list[str]:
    permuted, control = reading["permuted"] or {}, reading["control_task"] or {}
    numbers = [reading["secondary"], permuted.get("mean"), permuted.get("q95"), reading["p"], familywise]
    numbers += [control.get("mean"), reading["selectivity"]]
    places = [2, 2, 2, 3, 3, 2, 2]
    return [name, _number(reading["score"], 3), _interval(reading["ci"])] + [
        _number(value, digits) for value, digits in zip(numbers, places, strict=True)
    ]


def _differences(rows: Sequence[Result], name: str, change: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("where", name, "95 % CI", change, "95 % CI, paired"):
        table.add_column(column, justify="left" if column == "where" else "right", no_wrap=True)
    for row in rows:
        numbers = (_number(row["score"], 3), _interval(row["score_ci"]), f"{row['difference']:+.3f}")
        table.add_row(row["site"], *numbers, _interval(row["ci"]))
    return table


def _intervention(found: Result) -> list[Any]:
    parts: list[Any] = [
        f"states at {found['site']} moved towards {found['towards']}: {found['items']} items; 1 sd of the decoded value is a step of"
        f" {found['step_norm']:.3g}, where the states' own sd is {found['state_sd']:.3g}"
    ]
    for outcome in found["outcomes"]:
        table = Table(box=None, pad_edge=False)
        for column in ("direction", "slope per sd", "95 % CI", "single draws", "p of the probe among them"):
            table.add_column(column, justify="left" if column == "direction" else "right", no_wrap=True)
        p = {"random": outcome["p_random"], "permuted": outcome["p_permuted"]}
        for kind, summary in outcome["directions"].items():
            draws, (low, high) = summary["slope_by_draw"], summary["slope"]["ci"]
            several = f"{min(draws):+.4f} to {max(draws):+.4f}" if len(draws) > 1 else ""
            interval = f"[{low:+.4f}, {high:+.4f}]"
            table.add_row(kind, f"{summary['slope']['mean']:+.4f}", interval, several, _number(p.get(kind), 3))
        before = outcome["before"]
        parts += [
            "",
            f"change of the {outcome['name']} (before: mean {before['mean']:.2f}, sd {before['sd']:.2f})",
            table,
        ]
        if outcome["directions"]["readout"]["slope"]["ci"][0] <= 0:
            parts.append(
                "inconclusive: this outcome does not rise even along its own direction (readout), so that nothing follows from"
                " its not following the probe's"
            )
    return parts


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(ci: Sequence[float]) -> str:
    return f"[{ci[0]:.2f}, {ci[1]:.2f}]"
