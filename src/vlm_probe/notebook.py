"""The five things a notebook needs: make stimuli, run a model, train it, analyse runs, and their trials as a data frame."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from vlm_probe.analysis.report import Report
    from vlm_probe.probes.run import RunReport
    from vlm_probe.stimuli.dataset import StimulusSet

    Place = str | PathLike[str]


def make(
    task: str,
    n: int = 500,
    seed: int = 0,
    *,
    out: Place | None = None,
    size: int = 224,
    shift: str = "",
    jobs: int | None = None,
) -> StimulusSet:
    """Make a stimulus set, as `probe stimuli make` does.

        >>> import vlm_probe as vp
        >>> towers = vp.make("towers-stability", n=24, size=96)
        >>> len(towers), towers.card["kind"]
        (24, 'judgement')
        >>> towers.image(towers.items[0]).size
        (96, 96)

    Args:
        task: Name of a task, or of a family for its headline task.
        n: Number of items.
        seed: Of the whole set.
        out: Folder to make; None keeps the set in the cache, where the same call finds it again.
        size: Edge of the square images, pixels.
        shift: Visual and physical shifts with their levels, such as "camera:2,size:1".
        jobs: Processes that make it; None takes all cores.

    Returns:
        The set.

    Raises:
        OutputError: If `out` exists, or cannot be written.
        UnknownTask, ValueError: If there is no such task or shift, or a number is out of range.
    """
    from vlm_probe.probes.cli.console import progress
    from vlm_probe.probes.cli.resources import cores
    from vlm_probe.stimuli.generate import make_set
    from vlm_probe.stimuli.shifts import parse_shifts
    from vlm_probe.stimuli.standard import further_set
    from vlm_probe.stimuli.tasks import FAMILIES

    name, shifts, processes = FAMILIES.get(task, task), parse_shifts(shift), jobs or cores()
    with progress("making stimuli") as step:
        if out is None:
            return further_set(name, n, seed, size=size, shifts=shifts, jobs=processes, progress=step)
        return make_set(name, n, seed, Path(out), size=size, shifts=shifts, jobs=processes, progress=step)


def run(model: str, stimuli: StimulusSet | Place, *, out: Place | None = None, **settings: Any) -> RunReport:
    """Ask a model all items of a stimulus set, as `probe run` does. The same call again resumes a run that was stopped.

        >>> import vlm_probe as vp
        >>> towers = vp.make("towers-stability", n=24, size=96)
        >>> done = vp.run("heuristic", towers, out="runs/heuristic")
        >>> done.n, done.n_errors
        (24, 0)

    Args:
        model: Short name (see `probe models`), folder or hub id.
        stimuli: A set, its folder, or the name of a task or family, perhaps with shifts ("towers@camera:2").
        out: Folder of the run; None for runs/MODEL_TASK.
        **settings: Fields of `vlm_probe.probes.run_config.RunConfig`, such as adapter, limit or temperature.

    Returns:
        Where the run is, its number of trials, and of those that failed.

    Raises:
        OutputError, RunError: If `out` holds something else, or another run.
        ModelError: If the model cannot be loaded, or cannot answer such items.
    """
    from vlm_probe.probes.cli.console import progress
    from vlm_probe.probes.cli.resources import find_examples, find_stimuli
    from vlm_probe.probes.cli.run import run_name
    from vlm_probe.probes.run import run as ask
    from vlm_probe.probes.run_config import RunConfig
    from vlm_probe.stimuli.dataset import StimulusSet

    found = stimuli if isinstance(stimuli, StimulusSet) else find_stimuli(str(stimuli), None)
    config = RunConfig(model, str(found.path if isinstance(stimuli, StimulusSet) else stimuli), **settings)
    folder = Path(out) if out is not None else Path("runs") / run_name(config, str(found.card["task"]))
    examples = find_examples(found, config.examples_from, None) if max(config.examples) else None
    with progress(f"running {model}") as step:
        return ask(config, found, folder, examples=examples, progress=step)


def train(model: str, tasks: str, method: str, *, out: Place | None = None, preset: str = "", **settings: Any) -> Path:
    """Train a model on tasks, as `probe train` does. The same call again resumes a training run that was stopped.

        >>> import vlm_probe as vp
        >>> adapter = vp.train("tiny", "towers-topblock", "sft", out="adapters/sft", budget="samples=64", batch=16, items=32)
        >>> towers = vp.make("towers-topblock", n=8, size=96)
        >>> vp.run("tiny", towers, out="runs/sft", adapter=str(adapter)).n
        8

    Args:
        model: Short name, folder or hub id of the base model.
        tasks: Tasks to train on, separated by commas, with weights where their shares differ.
        method: "sft", "ppo", "grpo" or "rloo".
        out: Folder of the adapter; None for adapters/MODEL_TASKS_METHOD_sSEED.
        preset: "tiny" (the default for the embedded model), "24gb" or "80gb".
        **settings: Fields of `vlm_probe.finetune.config.TrainConfig`, such as budget, learning_rate or rank.

    Returns:
        Folder of the adapter, with training.json and the training curves.

    Raises:
        OutputError, TrainingError, ModelError: If it cannot start or has to be stopped.
    """
    from vlm_probe.finetune.config import make_config
    from vlm_probe.probes.cli.console import progress
    from vlm_probe.probes.cli.resources import cores
    from vlm_probe.probes.cli.train import run_name, with_tasks
    from vlm_probe.probes.models.catalog import lookup

    preset = preset or ("tiny" if lookup(model).kind == "embedded" else "")
    config = make_config(settings | {"model": model, "method": method} | with_tasks([tasks]), preset)
    folder = Path(out) if out is not None else Path("adapters") / run_name(config)
    from vlm_probe.finetune.train import train as learn

    with progress(f"{method} of {model}") as step:
        learn(config, folder, jobs=cores(), progress=step)
    return folder


def analyze(*runs: RunReport | Place, out: Place = "analysis", bound: float = 0.1, seed: int = 0) -> Report:
    """Analyse runs, as `probe analyze` does: report.md with figures and tables, and every number in analysis.json.

        >>> import vlm_probe as vp
        >>> done = vp.run("heuristic", vp.make("towers-stability", n=24, size=96), out="runs/heuristic")
        >>> report = vp.analyze(done, out="analysis")
        >>> report.failed
        ()

    Args:
        *runs: Runs, their folders, folders that hold runs, or trial tables (.csv, .parquet).
        out: Folder of the report.
        bound: Difference between rates below which two are called equivalent.
        seed: Of bootstrap samples.

    Returns:
        The report; printing it gives the headlines.

    Raises:
        OutputError: If `out` holds something else than a report, or cannot be written.
        RunError, FrameError: If the runs cannot be read, or cannot be made into one table.
    """
    from vlm_probe.analysis.material import Settings
    from vlm_probe.analysis.report import analyse
    from vlm_probe.probes.cli.console import progress

    with progress("analysing") as step:
        return analyse(_folders(runs), Path(out), Settings(seed=seed, bound=bound), step)


def trials(*runs: RunReport | Place) -> pd.DataFrame:
    """The trials of any runs as one data frame: a row per trial, with its run, model, item, condition, answer and score.

        >>> import vlm_probe as vp
        >>> done = vp.run("heuristic", vp.make("towers-stability", n=24, size=96), out="runs/heuristic")
        >>> table = vp.trials(done)
        >>> len(table), set(table["success"]) <= {True, False}
        (24, True)

    Args:
        *runs: Runs, their folders, or folders that hold runs (archives of `probe study pack` too).

    Raises:
        RunError: If a folder holds no run, or a damaged one.
    """
    from vlm_probe.probes.trials import RunError, is_run, load_frame, runs_below

    found: list[Path] = []
    for folder in _folders(runs):
        below = [folder] if is_run(folder) else runs_below(folder)
        if not below:
            raise RunError(f"{folder} holds no run: make one with vp.run, or name another folder")
        found += below
    return load_frame(dict.fromkeys(found))


def _folders(runs: tuple[RunReport | Place, ...]) -> list[Path]:
    from vlm_probe.probes.run import RunReport

    return [run.path if isinstance(run, RunReport) else Path(run) for run in runs]
