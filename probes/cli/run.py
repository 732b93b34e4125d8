"""`probe run`: ask a model the items of a stimulus set, and report the result."""

from __future__ import annotations

import copy
import io
import os
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Jobs, Json
from vlm_probe.probes.options import ESSENTIALS, OUTPUT, QUESTION, names
from vlm_probe.probes.run_config import RunConfig

if TYPE_CHECKING:
    from vlm_probe.probes.sharding import Processes
    from vlm_probe.stimuli.dataset import StimulusSet
    from vlm_probe.stimuli.output import OutputFolder


def run(
    *,
    settings: Annotated[RunConfig, Parameter(name="*")],
    shift: Annotated[str | None, Parameter(group=QUESTION)] = None,
    out: Annotated[Path | None, Parameter(group=ESSENTIALS), names("out", "output-dir")] = None,
    resume: Annotated[bool, Parameter(group=OUTPUT)] = True,
    references: Annotated[bool, Parameter(group=OUTPUT)] = True,
    jobs: Jobs = None,
    json: Json = False,
    config: Config = None,
    loaded: Annotated[Any, Parameter(parse=False)] = None,
) -> int:
    """Ask a model the items of a stimulus set; print the summary, write trials, summary and figure.

    The same command resumes an interrupted run. Exits with 3 if some trials failed.

    Args:
        settings: What is asked of whom, and how.
        shift: Ask the shifted set of a task or family: `camera:2`, `visual:2,size:1` (see `probe stimuli make --help`).
        out: Folder of the run; by default runs/MODEL_TASK. With several models or sets, the folder that holds their runs.
        resume: Resume a run that exists; `--no-resume` refuses instead.
        references: Draw the noisy-simulation observer into the figure of a judgement.
        loaded: The model, if it is loaded already.
    """
    given = dict(locals())
    from vlm_probe.probes.cli.errors import FAILED_TRIALS, INTERRUPTED, SUCCESS, UsageError, check_texts
    from vlm_probe.probes.cli.many import named_models, named_sets
    from vlm_probe.probes.cli.resources import (
        check_drawing,
        check_examples,
        check_model_name,
        check_run_folder,
        check_stimuli_name,
        cores,
        find_examples,
        find_stimuli,
        shifted_name,
    )
    from vlm_probe.probes.cli.results import (
        FIGURE,
        SUMMARY,
        ask_grounding,
        reference_runs,
        warning_of,
        write_figure,
        write_summary,
    )
    from vlm_probe.probes.conditions import PresentationError, manners
    from vlm_probe.probes.run import load
    from vlm_probe.probes.run import run as ask
    from vlm_probe.probes.sharding import join
    from vlm_probe.probes.trials import KIND
    from vlm_probe.stimuli.output import claim
    from vlm_probe.stimuli.standard import check_available

    models, sets = named_models(settings.model), named_sets(settings.stimuli)
    if len(models) * len(sets) != 1:
        options = {"shift": shift, "out": out, "resume": resume, "references": references, "jobs": jobs, "json": json}
        return _run_many(settings, options, models, sets)
    model, stimuli = models[0], shifted_name(sets[0], shift)
    run_config = replace(settings, model=model, stimuli=stimuli)
    try:
        manners(run_config.design, run_config.examples, run_config.style)
    except PresentationError as error:
        raise UsageError(str(error)) from error
    if run_config.base_url is None:
        check_model_name(model)
    task = check_stimuli_name(stimuli)
    check_drawing(stimuli, run_config.size, run_config.renderer)
    _check_attempts(task, stimuli, run_config.attempts)
    folder = out or Path("runs") / run_name(run_config, task)
    processes = join()
    if processes.first:
        check_run_folder(folder, resume)
        check_available(stimuli, run_config.size, run_config.renderer)
        if max(run_config.examples):
            check_examples(task, run_config.examples_from)
    saved = _portable(run_config, out) | {"references": references}
    check_texts({f"--{name}".replace("_", "-"): str(value) for name, value in saved.items()})
    # The model comes before any work on stimuli: what cannot be loaded should be known at once.
    loaded = loaded or load(run_config)
    items = processes.in_turn(lambda: find_stimuli(stimuli, jobs, run_config.size, run_config.renderer))
    pool = None
    if max(run_config.examples):
        pool = processes.in_turn(lambda: find_examples(items, run_config.examples_from, jobs))
    if not processes.first:
        ask(run_config, items, folder, model=loaded, examples=pool, processes=processes)
        processes.leave()
        return SUCCESS
    # Held to the end: summary and figure are of the trials that this process has written.
    with claim(folder, KIND) as output:
        if run_config.design == "controls":
            ask_grounding(run_config, items, folder, loaded, jobs)
        output.check((SUMMARY, FIGURE))
        report = _ask(run_config, items, output, loaded, saved, pool, processes)
        processes.leave()
        is_readable = write_summary(output, json)
        lines, code = {}, FAILED_TRIALS if report.n_errors else SUCCESS
        try:
            if references and is_readable:
                with warning_of("reference line"):
                    lines = reference_runs(items, model, run_config.limit, jobs or cores())
        except KeyboardInterrupt:
            code = INTERRUPTED
        if is_readable:
            write_figure(output, lines)
    return code


def _run_many(config: RunConfig, options: dict[str, Any], models: list[str], sets: list[str]) -> int:
    """Run every model on every set, and compare them. A pair that cannot be run costs only itself."""
    from vlm_probe.probes.cli.errors import FAILURE, UsageError, as_line, expected
    from vlm_probe.probes.cli.errors import report as tell_error
    from vlm_probe.probes.cli.many import compare, run_models
    from vlm_probe.probes.cli.resources import check_model_name, check_stimuli_name, shifted_name
    from vlm_probe.probes.run import load

    if not models or not sets:
        raise UsageError(
            f"--{'stimuli' if models else 'model'} names nothing: give a name, or several with commas between them"
        )
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UsageError("several models or sets cannot be shared out to several processes: give one of each")
    folders = {}
    for model in models:
        if config.base_url is None:
            check_model_name(model)
        for name in sets:
            shifted = shifted_name(name, options["shift"])
            task = check_stimuli_name(shifted)
            one = replace(config, model=model, stimuli=shifted)
            folders[model, name] = (options["out"] or Path("runs")) / run_name(one, task)
    if len(models) > 1:
        given = asdict(config) | {"examples": ",".join(map(str, config.examples))} | options
        code = run_models(models, sets, given, folders)
        compare(folders, options["json"])
        return code
    loaded, codes = load(replace(config, model=models[0])), [0]
    fresh = copy.deepcopy(dict(loaded.observed))
    for name in sets:
        loaded.observed = copy.deepcopy(fresh)
        try:
            changes = {"out": folders[models[0], name], "json": False, "loaded": loaded}
            with redirect_stdout(io.StringIO()) if options["json"] else nullcontext():
                codes.append(run(settings=replace(config, model=models[0], stimuli=name), **options | changes))
        except Exception as error:
            if not expected(error):
                raise
            tell_error(f"{name}: {as_line(error)}")
            codes.append(FAILURE)
    compare(folders, options["json"])
    return max(codes)


def _check_attempts(task: str, stimuli: str, attempts: int) -> None:
    """Refuse several attempts at what is no action. Raises UsageError."""
    from vlm_probe.probes.cli.errors import UsageError
    from vlm_probe.stimuli.tasks import get_task, task_names

    if attempts > 1 and (task not in task_names() or get_task(task).kind != "action"):
        actions = ", ".join(name for name in task_names() if get_task(name).kind == "action")
        raise UsageError(
            f"--attempts needs an action that can be tried out, and {stimuli} asks for none: use {actions}"
        )


def run_name(config: RunConfig, task: str) -> str:
    """The default folder of a run: model, stimuli, and every setting that makes it another run.

    Args:
        config: Of the run.
        task: That its set stands for.
    """
    stimuli = Path(config.stimuli)
    parts = [_short(config.model), stimuli.resolve().name if stimuli.is_dir() else task + _shifts(config.stimuli)]
    if config.adapter:
        parts.append(_short(config.adapter))
    if config.base_url:
        parts.append("served")
    codes = {"limit": "n", "temperature": "t", "max_new_tokens": "tokens", "seed": "s", "examples": "examples"}
    codes |= {
        "attempts": "attempts",
        "memory": "memory-",
        "size": "px",
        "thinking": "thinking-",
        "max_thinking_tokens": "thoughts",
    }
    names = (
        "revision",
        "dtype",
        "readout",
        "limit",
        "temperature",
        "max_new_tokens",
        "seed",
        "design",
        "style",
        "examples",
        "size",
        "renderer",
        *(("attempts", "memory") if config.attempts > 1 else ()),
        *("thinking", "chat_template_args", "max_thinking_tokens"),
    )
    defaults = {f.name: f.default for f in fields(config)}
    for name in names:
        value = getattr(config, name)
        if value != defaults[name]:
            text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"{codes.get(name, '')}{text}".replace("/", "-"))
    return "_".join([*parts, *(["4bit"] if config.load_in_4bit else [])])


def _shifts(stimuli: str) -> str:
    """The shifts after the `@` of a set's name, as part of a folder's name."""
    from vlm_probe.stimuli.shifts import parse_shifts, spell

    text = spell(parse_shifts(stimuli.partition("@")[2]))
    return "_" + text.replace(":", "").replace(",", "-") if text else ""


def _short(name: str) -> str:
    path = Path(name)
    return path.resolve().name if path.is_dir() else name.strip("/").replace("/", "-")


def _ask(
    config: RunConfig,
    items: StimulusSet,
    folder: OutputFolder,
    model: Any,
    saved: dict[str, Any],
    examples: StimulusSet | None,
    processes: Processes,
) -> Any:
    """Run, and save the resolved settings as soon as the folder is known to be this run's."""
    from vlm_probe.probes.cli.console import progress
    from vlm_probe.probes.cli.settings import save
    from vlm_probe.probes.run import run as ask

    with progress(f"asking {config.model}") as step:
        written = False

        def started(done: int, total: int) -> None:
            nonlocal written
            if not written:
                written = True
                save(folder, "run", saved)
            step(done, total)

        return ask(config, items, folder, model=model, examples=examples, progress=started, processes=processes)


def _portable(config: RunConfig, out: Path | None) -> dict[str, Any]:
    """Options that mean the same from any working directory."""
    from vlm_probe.probes.models.catalog import lookup

    options = asdict(config) | {"examples": ",".join(map(str, config.examples))}
    folders = {
        "stimuli",
        "examples_from",
        *(("adapter",) if config.base_url is None else ()),
        *(("model",) if lookup(config.model, config.base_url).kind == "local" else ()),
    }
    for name in folders:
        if options[name] is not None and Path(options[name]).is_dir():
            options[name] = str(Path(options[name]).resolve())
    return options | {"out": None if out is None else str(out.resolve())}
