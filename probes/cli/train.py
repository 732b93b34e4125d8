"""`probe train`: adapt a model to a task, by demonstrations or by reinforcement learning against the simulator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from vlm_probe.finetune.config import TrainConfig
from vlm_probe.probes.cli.settings import Config, Jobs, Json
from vlm_probe.probes.options import ESSENTIALS, names

if TYPE_CHECKING:
    from vlm_probe.stimuli.output import OutputFolder


def train(
    *,
    settings: Annotated[TrainConfig, Parameter(name="*")],
    preset: Annotated[str | None, Parameter(group=ESSENTIALS)] = None,
    out: Annotated[Path | None, Parameter(group=ESSENTIALS), names("out", "output-dir")] = None,
    jobs: Jobs = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Adapt a model to tasks; save the adapter, its settings, and its learning curves.

    The same command resumes an interrupted training run. Options that are not given come from the preset, else from the defaults.

    Args:
        settings: What is learned, and how.
        preset: `tiny` (the default for the embedded model), `24gb` or `80gb`.
        out: Folder of the run; by default adapters/MODEL_TASKS_METHOD_sSEED.
    """
    from vlm_probe.finetune.config import check_needs
    from vlm_probe.probes.cli.console import progress, show, show_json
    from vlm_probe.probes.cli.errors import SUCCESS, check_texts
    from vlm_probe.probes.cli.resources import check_model_name, cores

    check_model_name(settings.model)
    resolved = replace(settings, **with_tasks(settings.tasks))
    folder = out or Path("adapters") / run_name(resolved)
    check_texts({"--out": str(folder.resolve())})
    check_needs(resolved)  # before transformers is imported, which takes longest of all
    # Where bitsandbytes is installed, importing peft loads it, and it complains of an optional kernel on some CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from vlm_probe.finetune.train import KIND, is_first
    from vlm_probe.finetune.train import train as run
    from vlm_probe.stimuli.output import claim

    with progress(f"{resolved.method} of {resolved.model}") as step:
        result = run(resolved, folder, jobs=jobs or cores(), progress=step)
    if not is_first():
        return SUCCESS
    with claim(folder, KIND) as output:
        _save_settings(output, resolved.to_dict() | {"out": str(folder.resolve())})
    if json:
        show_json(result | {"out": str(folder)})
    else:
        show(_table(result, folder))
    return SUCCESS


def with_tasks(tasks: Sequence[str]) -> dict[str, Any]:
    """The settings `tasks` and `weights` of a training run.

    Args:
        tasks: Tasks or families, with weights if their shares differ: `towers-stability:2`, `balance-tilt`.

    Raises:
        UnknownName, InvalidInput: If there is no such task, or a weight is no number.
    """
    from vlm_probe.finetune.mixture import parse_mixture
    from vlm_probe.probes.cli.resources import task_name

    mixture = parse_mixture(",".join(tasks))
    equal = len({round(share.share, 9) for share in mixture}) == 1
    names = tuple(task_name(share.task) for share in mixture)
    return {"tasks": names, "weights": () if equal else _weights(mixture)}


def run_name(config: Any) -> str:
    """The default folder of a run."""
    model = Path(config.model).name or config.model
    return f"{model}_{'+'.join(config.tasks)}_{config.method}_s{config.seed}"


def _weights(mixture: Any) -> tuple[float, ...]:
    """The weights of the tasks, the smallest being 1."""
    least = min(share.share for share in mixture)
    return tuple(round(share.share / least, 6) for share in mixture)


def _save_settings(folder: OutputFolder, settings: dict[str, Any]) -> None:
    from vlm_probe.probes.cli.settings import save

    weights = settings.pop("weights") or [1] * len(settings["tasks"])
    settings["tasks"] = [f"{task}:{weight:g}" for task, weight in zip(settings["tasks"], weights, strict=True)]
    flat = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in settings.items()}
    save(folder, "train", {name: value for name, value in flat.items() if value != ""})


def _table(result: dict[str, Any], folder: Path) -> Any:
    """The outcome, at the beginning and at the end of the run."""
    from rich.table import Table

    rows = result["curves"]
    tenth = max(1, len(rows) // 10)
    parts = (rows[:tenth], rows[-tenth:])
    budget = result["budget"]
    title = (
        f"{result['method']} of {result['model']} on {', '.join(result['tasks'])}: {budget['samples']} samples,"
        f" {budget['steps']} steps, {budget['tokens']} tokens"
    )
    table = Table(title=title, title_justify="left", title_style="", box=None)
    for column in ("measure", "first tenth", "last tenth"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for name in dict.fromkeys(key for row in rows for key in row if key not in ("step", "samples", "tokens")):
        means = []
        for part in parts:
            values = [row[name] for row in part if name in row]
            means.append(f"{sum(values) / len(values):.4g}" if values else "")
        table.add_row(name, *means)
    table.caption = f"adapter, training.json and curves.png in {folder}"
    return table
