"""The results of a decoding study as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table

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
        for name, reading in result["references"].items():
            table.add_row(*_cells(name, reading, None))
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
