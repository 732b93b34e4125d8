"""What can be decoded from the hidden states before and after training: over depth, and where the answer is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from vlm_probe.analysis.section import MissingData
from vlm_probe.analysis.style import COLUMN_MM, GREY, LIGHT, drawing, legend_above, look, name_of
from vlm_probe.analysis.training import read_facts
from vlm_probe.paper.names import key_of, task_name, training_name
from vlm_probe.paper.numbers import Numbers, records
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study

POSITION = "last"
"""Where the answer is read: the last token. The last layer there is the site of record, chosen before looking."""
NAMES = {"label": "right answer", "com-offset": "centre of mass", "count": "number of bodies"}


def decodable(study: Study) -> list[bool] | None:
    """Of every quantity and training, whether it was decoded above chance after the training run; None if nothing was decoded."""
    rows = [row for result in _compared(study) for row in _rows(result, study.trainings)]
    after = [row for row in rows if row["is_record"] and row["method"] != "none"]
    return [bool(row["low"] > row["chance"]) for row in after] or None


def _compared(study: Study) -> list[Mapping[str, Any]]:
    return [result for result in study.decodings if result.get("compare")]


def part(study: Study) -> Part:
    """Decoding before and after training. Raises Unanswerable if none was done."""
    compared = _compared(study)
    if not compared:
        raise MissingData(
            "no decoding before and after training was done: name tasks under `decoding` in the study's file"
        )
    rows = [row for result in compared for row in _rows(result, study.trainings)]
    table = pd.DataFrame(rows)
    numbers = Numbers()
    first = compared[0]
    numbers.count("decoding.items", int(first["stimuli"]["items"]))
    numbers.count("decoding.groups", int(first["stimuli"]["groups"]))
    numbers.count("decoding.permutations", int(first["settings"]["permutations"]))
    record = table[table["is_record"]]
    for row in records(record):
        name = f"decoding.{key_of(row['task'])}.{row['target']}"
        if row["method"] != "none":
            name = f"{name}.{key_of(row['training'])}.{row['method']}"
            numbers.rate(f"{name}.difference", row["difference"], row["difference_low"], row["difference_high"])
        elif name not in numbers:
            numbers.number(f"{name}.p", row["p"], 3)
        if name not in numbers:
            numbers.rate(name, row["score"], row["low"], row["high"])
    for result in compared:
        name = f"decoding.{key_of(result['stimuli']['task'])}.{result['target']['name']}"
        for reference, score in result.get("references", {}).items():
            if f"{name}.{reference}" not in numbers:
                low, high = score["ci"]
                numbers.rate(f"{name}.{reference}", float(score["score"]), float(low), float(high))
    base, trained = record[record["method"] == "none"], record[record["method"] != "none"]
    told = base["low"] > base["chance"]
    numbers.verdict("decoding.base", _how_many(told), ("all", "some", "none"))
    numbers.count("decoding.changes", len(trained))
    changes = trained.dropna(subset=["difference_low"])
    up, down = int((changes["difference_low"] > 0).sum()), int((changes["difference_high"] < 0).sum())
    numbers.count("decoding.changes.up", up)
    numbers.count("decoding.changes.down", down)
    numbers.verdict(
        "decoding.change",
        "both" if up and down else "up" if up else "down" if down else "none",
        ("up", "down", "both", "none"),
    )
    beyond = [_beyond_cues(row, compared) for row in records(base)]
    numbers.verdict(
        "decoding.beyond-cues",
        "all" if beyond and all(beyond) else "some" if any(beyond) else "none",
        ("all", "some", "none"),
    )
    return Part(numbers, {"decoding": partial(decoding, _shown(table))})


def _rows(result: Mapping[str, Any], trainings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per site, of the bare model and of the trained one."""
    method, condition = _training(result, trainings)
    last = max(
        (s["layer"] for s in result["sites"] if s["part"] == "language" and s["position"] == POSITION), default=None
    )
    after = {site["site"]: site for site in result["compare"]["sites"]}
    rows: list[dict[str, Any]] = []
    for site in result["sites"]:
        shared = {
            "task": result["stimuli"]["task"],
            "target": result["target"]["name"],
            "metric": result["metric"],
            "chance": float(result["chance"]),
            "part": site["part"],
            "position": site["position"],
            "layer": site["layer"],
            "training": condition,
            "is_record": site["part"] == "language" and site["position"] == POSITION and site["layer"] == last,
        }
        low, high = site["ci"]
        rows.append(
            shared
            | {
                "method": "none",
                "score": site["score"],
                "low": low,
                "high": high,
                "p": _float(site.get("p_familywise")),
            }
        )
        found = after.get(site["site"])
        if found is not None:
            low, high = found["score_ci"]
            change = found["ci"]
            rows.append(
                shared
                | {"method": method, "score": found["score"], "low": low, "high": high, "p": math.nan}
                | {
                    "difference": _float(found.get("difference")),
                    "difference_low": change[0],
                    "difference_high": change[1],
                }
            )
    return rows


def _training(result: Mapping[str, Any], trainings: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Method and condition of the adapter that was decoded, by its hash; its folder's name if nothing is known of it."""
    sha256 = (result["compare"].get("model") or {}).get("adapter_sha256")
    for facts in trainings:
        if sha256 and facts.get("adapter_sha256") == sha256:
            training = read_facts(facts)
            return training.method, training_name("+".join(training.tasks), training.regime)
    name = Path(str(result["config"]["compare"])).name
    return "unknown", name


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the figure: the bare model once per panel, and every training run on it."""
    panels = [
        f"{task_name(task)}: {NAMES.get(target, target)}"
        for task, target in zip(table["task"], table["target"], strict=True)
    ]
    shown = table.assign(panel=panels)
    base = shown["method"] == "none"
    once = ["panel", "part", "position", "layer"]
    return pd.concat([shown[base].drop_duplicates(once), shown[~base]], ignore_index=True)


def _beyond_cues(row: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether more can be decoded than from the task's own cues."""
    for result in results:
        if result["stimuli"]["task"] == row["task"] and result["target"]["name"] == row["target"]:
            cues = result.get("references", {}).get("cues")
            return cues is not None and bool(row["low"] > float(cues["score"]))
    return False


def _how_many(told: pd.Series) -> str:
    return "all" if len(told) and bool(told.all()) else "some" if bool(told.any()) else "none"


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


DASHES: tuple[Any, ...] = ("-", (0, (3, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
METRICS = {"R2": "R²", "balanced accuracy": "Balanced accuracy"}


def decoding(sites: pd.DataFrame, stem: Path) -> None:
    """Grey with its 95 % band: the untrained model; colours: after training, one line per training.

    Args:
        sites: `panel`, `metric`, `chance`, `part`, `position`, `layer`, `method`, `training`, `score`, `low`, `high`.
        stem: Where to write, without suffix.
    """
    own = sites[(sites["part"] == "language") & (sites["position"] == "last")]
    panels = list(dict.fromkeys(own["panel"]))
    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    trainings = list(dict.fromkeys(own.loc[own["method"] != "none", "training"]))
    dashes = {name: DASHES[i % len(DASHES)] for i, name in enumerate(trainings)}
    with drawing(stem, 20 + 33 * rows, COLUMN_MM, nrows=rows, ncols=columns, squeeze=False, sharex=True) as (
        figure,
        grid,
    ):
        named: set[str] = set()
        for axes, panel in zip(grid.flat, panels, strict=False):
            of_panel = own[own["panel"] == panel]
            axes.axhline(float(of_panel["chance"].iloc[0]), color=LIGHT, lw=0.7, ls=(0, (1, 1.5)), zorder=0)
            base = of_panel[of_panel["method"] == "none"].sort_values("layer")
            axes.fill_between(base["layer"], base["low"], base["high"], color=GREY, alpha=0.2, lw=0, zorder=1)
            axes.plot(
                base["layer"],
                base["score"],
                color=GREY,
                marker="o",
                ms=2.4,
                lw=1.1,
                zorder=2,
                label=_once("base", named),
            )
            trained = of_panel[of_panel["method"] != "none"]
            for (method, training), line in trained.groupby(["method", "training"], sort=False):
                colour, marker = look(str(method))
                line = line.sort_values("layer")
                axes.plot(
                    line["layer"],
                    line["score"],
                    color=colour,
                    marker=marker,
                    ms=2.2,
                    lw=0.9,
                    ls=dashes[training],
                    zorder=3,
                    label=_once(name_of(str(method)), named),
                )
            axes.set_title(panel, loc="left")
            axes.set_ylabel(METRICS.get(str(of_panel["metric"].iloc[0]), str(of_panel["metric"].iloc[0])), fontsize=7)
            axes.set_xticks(sorted(set(of_panel["layer"])))
        if len(trainings) > 1:  # lines by training, colours by method
            for training in trainings:
                grid[0, 0].plot([], [], color="black", lw=0.9, ls=dashes[training], label=f"on {training}")
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("Layer")
        legend_above(figure, grid[0, 0], ncols=3)


def _once(name: str, named: set[str]) -> str:
    """A label for the legend, the first time that it comes."""
    if name in named:
        return "_"
    named.add(name)
    return name
