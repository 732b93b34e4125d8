"""`probe run`: ask a model the items of a stimulus set, and say what came of it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, ImageSize, Jobs, Json, RendererName

if TYPE_CHECKING:
    from vlm_probe.probes.run import RunConfig
    from vlm_probe.probes.sharding import Processes
    from vlm_probe.stimuli.dataset import StimulusSet
    from vlm_probe.stimuli.output import OutputFolder


def run(
    *,
    model: str,
    stimuli: str,
    shift: str | None = None,
    adapter: str | None = None,
    limit: int | None = None,
    readout: Literal["generate", "options"] = "generate",
    batch_size: int = 0,
    temperature: float = 0.0,
    max_new_tokens: int = 0,
    seed: int = 0,
    design: str = "plain",
    examples: str = "0",
    examples_from: str | None = None,
    style: Literal["", "direct", "think"] = "",
    attempts: int = 1,
    memory: str = "all",
    size: ImageSize = 0,
    renderer: RendererName = "",
    revision: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    load_in_4bit: Annotated[bool, Parameter(name="--load-in-4bit", negative=())] = False,
    base_url: str | None = None,
    concurrency: int = 8,
    out: Path | None = None,
    resume: bool = True,
    references: bool = True,
    jobs: Jobs = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Ask a model the items of a stimulus set; print the summary, write trials, summary and figure.

    The same command again goes on where it was stopped. Exits with 3 if some trials failed.

    Args:
        model: Short name (see `probe models`), local folder or hub id; with --base-url, the model's id at the server.
        stimuli: Folder of a set, task name, or family (`towers`: its headline task).
        shift: Ask the shifted set of a task or family: `camera:2`, `visual:2,size:1` (see `probe stimuli make --help`).
        adapter: Folder of a LoRA adapter; with --base-url, the adapter's id at the server.
        limit: Only the first so many items.
        readout: `generate`: read the reply. `options`: the log-probability of every legal answer.
        batch_size: Items per batch; 0: what suits the model. Answers do not depend on it.
        temperature: 0: greedy.
        max_new_tokens: 0: as many as the answers need.
        seed: Of sampled replies, and of what a design draws at random.
        design: `plain`; `controls`: the standard battery (blank, mirrored, shuffled and other pictures, a description in
            place of the picture, stated physics); `variants`: every item in every wording; or controls by name, separated
            by commas.
        examples: Worked examples before the question; several numbers (`0,1,3`) ask every item with each.
        examples_from: Set that they come from; by default a further set of the same task.
        style: Whether to ask for the bare answer or for reasoning first; by default as the set was made.
        attempts: How often an item of an action task may be tried; after each attempt the model is shown what happened.
        memory: What of earlier attempts it is told: `none`, `last-1`, `last-2`, ..., or `all`.
        revision: Revision on the hub.
        dtype: Number format of the weights.
        device: `cpu`, `cuda`, ...
        load_in_4bit: Quantise the weights to four bits.
        base_url: Ask the OpenAI-compatible server at this address, such as http://localhost:8000/v1. Its key, if it wants
            one, is read from PROBE_API_KEY or OPENAI_API_KEY.
        concurrency: Trials that a served model is asked at a time.
        out: Folder of the run; by default runs/MODEL_TASK.
        resume: Go on with a run that is there already; `--no-resume` refuses instead.
        references: Draw the noisy-simulation observer into the figure of a judgement.
    """
    from vlm_probe.probes.cli.errors import FAILED_TRIALS, INTERRUPTED, SUCCESS, UsageError, check_texts
    from vlm_probe.probes.cli.grounding import ask_grounding
    from vlm_probe.probes.cli.references import reference_runs
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
    from vlm_probe.probes.cli.results import FIGURE, SUMMARY, warning_of, write_figure, write_summary
    from vlm_probe.probes.presentation import PresentationError, manners
    from vlm_probe.probes.run import RunConfig, load
    from vlm_probe.probes.run import run as ask
    from vlm_probe.probes.sharding import join
    from vlm_probe.probes.trials import KIND, RunError
    from vlm_probe.stimuli.output import claim
    from vlm_probe.stimuli.standard import check_available

    stimuli = shifted_name(stimuli, shift)
    settings: dict[str, Any] = {
        "model": model,
        "stimuli": stimuli,
        "readout": readout,
        "batch_size": batch_size,
        "limit": limit,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "design": design,
        "examples": _numbers(examples),
        "examples_from": examples_from,
        "style": style,
        "attempts": attempts,
        "memory": memory,
        "size": size,
        "renderer": renderer,
        "revision": revision,
        "dtype": dtype,
        "device": device,
        "adapter": adapter,
        "load_in_4bit": load_in_4bit,
        "base_url": base_url,
        "concurrency": concurrency,
    }
    try:
        run_config = RunConfig(**settings)
        manners(design, run_config.examples, style)
    except PresentationError as error:
        raise UsageError(str(error)) from error
    except RunError as error:
        raise UsageError(f"--{error}") from error
    if base_url is None:
        check_model_name(model)
    task = check_stimuli_name(stimuli)
    check_drawing(stimuli, size, renderer)
    _check_attempts(task, stimuli, attempts)
    folder = out or Path("runs") / run_name(run_config, task)
    processes = join()
    if processes.first:
        check_run_folder(folder, resume)
        check_available(stimuli, size, renderer)
        if max(run_config.examples):
            check_examples(task, examples_from)
    saved = _portable(settings | {"examples": examples, "out": out, "references": references})
    check_texts({f"--{name}".replace("_", "-"): str(value) for name, value in saved.items()})
    # The model comes before any work on stimuli: what cannot be loaded should be known at once.
    loaded = load(run_config)
    items = processes.in_turn(lambda: find_stimuli(stimuli, jobs, size, renderer))
    pool = None
    if max(run_config.examples):
        pool = processes.in_turn(lambda: find_examples(items, examples_from, jobs))
    if not processes.first:
        ask(run_config, items, folder, model=loaded, examples=pool, processes=processes)
        processes.leave()
        return SUCCESS
    # Held to the end: summary and figure are of the trials that this process has written.
    with claim(folder, KIND) as output:
        if design == "controls":
            ask_grounding(run_config, items, folder, loaded, jobs)
        output.check((SUMMARY, FIGURE))
        report = _ask(run_config, items, output, loaded, saved, pool, processes)
        processes.leave()
        is_readable = write_summary(output, json)
        lines, code = {}, FAILED_TRIALS if report.n_errors else SUCCESS
        try:
            if references and is_readable:
                with warning_of("reference line"):
                    lines = reference_runs(items, model, limit, jobs or cores())
        except KeyboardInterrupt:
            code = INTERRUPTED
        if is_readable:
            write_figure(output, lines)
    return code


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
    codes |= {"attempts": "attempts", "memory": "memory-", "size": "px"}
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


def _numbers(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas. Raises UsageError if they are not."""
    from vlm_probe.probes.cli.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--examples takes whole numbers separated by commas, such as 0,1,3; got {text!r}") from None


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


def _portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that mean the same from any working directory."""
    from vlm_probe.probes.models.catalog import lookup

    fixed = dict(settings)
    folders = {
        "stimuli",
        "examples_from",
        *(("adapter",) if settings["base_url"] is None else ()),
        *(("model",) if lookup(settings["model"], settings["base_url"]).kind == "local" else ()),
    }
    for name in folders:
        if settings[name] is not None and Path(settings[name]).is_dir():
            fixed[name] = str(Path(settings[name]).resolve())
    return fixed | {"out": None if settings["out"] is None else str(settings["out"].resolve())}
