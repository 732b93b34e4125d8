"""Several models, several stimulus sets: every pair is a run of its own, and a table compares them at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from vlm_probe.analysis.summary import Summary

ALL = "all"
"""Every task that asks about physics."""
BEST = "best non-physical baseline"
SWITCHES = ("resume", "references")
"""Options that can be given as --no-..."""


def named_models(text: str) -> list[str]:
    """The models that `--model` names, separated by commas; a folder may have a comma in its name."""
    return [text] if Path(text).is_dir() else _parts(text)


def named_sets(text: str) -> list[str]:
    """The sets that `--stimuli` names, separated by commas: tasks, families, folders, or `all`; shifts stay with their task."""
    if Path(text).is_dir():
        return [text]
    if text == ALL:
        from vlm_probe.stimuli.tasks import get_task, task_names

        return [name for name in task_names() if get_task(name).kind != "grounding"]
    # "towers@visual:2,size:1,balance" is two sets: what has a level is a further shift of the one before.
    found: list[str] = []
    for part in _parts(text):
        if found and "@" in found[-1] and re.fullmatch(r"[a-z-]+:\d+", part):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def run_models(
    models: Sequence[str], sets: Sequence[str], given: Mapping[str, Any], folders: Mapping[Any, Path]
) -> int:
    """Run every model on every set, each model in a process of its own, so that it is loaded once and leaves all memory behind.

    Args:
        models: Their names.
        sets: Names of the sets.
        given: Arguments of `probe run`.
        folders: Of the run of each (model, set).

    Returns:
        The highest exit code of all.
    """
    from vlm_probe.probes.cli.console import tell
    from vlm_probe.probes.cli.errors import INTERRUPTED

    codes = []
    for model in models:
        tell(f"== {model}")
        # With one set, the child's --out is the folder of the run; with several, the folder that holds them.
        place = folders[model, sets[0]] if len(sets) == 1 else folders[model, sets[0]].parent
        options = dict(given) | {"model": model, "stimuli": ",".join(sets), "out": place}
        command = [sys.executable, "-P", "-m", "vlm_probe", "run", *_arguments(options)]
        codes.append(
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL if given["json"] else None).returncode
        )
        if codes[-1] == INTERRUPTED:
            break
    return max(codes, key=abs)


def compare(folders: Mapping[Any, Path], as_json: bool) -> None:
    """Print a table of models by sets: the proportion that is right, its interval, and the best that needs no physics.

    Args:
        folders: Of the run of each (model, set); those that are not there are left out.
        as_json: Print the summaries of all runs as one JSON list instead.
    """
    from vlm_probe.analysis.summary import summarise
    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.trials import is_run

    found = {pair: summarise(folder) for pair, folder in folders.items() if is_run(folder)}
    if as_json:
        show_json([summary.to_dict() for summary in found.values()])
    elif found:
        show(_table(found))


def _table(found: Mapping[Any, Summary]) -> Table:
    from rich.table import Table

    models, sets = (list(dict.fromkeys(pair[place] for pair in found)) for place in (0, 1))
    table = Table(title="95 % Wilson intervals", title_justify="left", title_style="", box=None)
    table.add_column("model")
    for name in sets:
        table.add_column(Path(name).name, justify="right")
    for model in models:
        cells = [found.get((model, name)) for name in sets]
        table.add_row(Path(model).name or model, *("" if one is None else str(one.accuracy) for one in cells))
    best = [
        max((_best(one) for pair, one in found.items() if pair[1] == name), key=lambda pair: pair[0]) for name in sets
    ]
    table.add_row(BEST, *(f"{score:.3f} ({who})" if who else "" for score, who in best), style="dim")
    return table


def _best(summary: Summary) -> tuple[float, str]:
    """The best score that needs no physics, and how it is made; 0 and "" if none is known."""
    known = summary.baselines
    scores = {"chance": known.get("chance")} | dict(known.get("shortcuts") or {})
    constant = known.get("constant") or {}
    if constant:
        scores[f"always {constant.get('answer')}"] = constant.get("score")
    numbers = [(float(score), str(name)) for name, score in scores.items() if isinstance(score, int | float)]
    return max(numbers, default=(0.0, ""))


def _parts(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """The arguments of a command line that gives these options."""
    found = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found += [f"--{flag}"] if value else [f"--no-{flag}"] if name in SWITCHES else []
        elif value is not None and value != "":
            found.append(f"--{flag}={os.fspath(value) if isinstance(value, Path) else value}")
    return found
