"""What a run leaves besides its trials: the grounding questions before it, the reference line, the summary and the figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_probe.probes.run import RunConfig
    from vlm_probe.stimuli.dataset import StimulusSet
    from vlm_probe.stimuli.output import OutputFolder


def ask_grounding(config: RunConfig, stimuli: StimulusSet, folder: Path, model: Any, jobs: int | None) -> None:
    """Ask the family's grounding questions, and say how many of each kind are right; the battery's summary begins with them, too.

    A model that cannot count the blocks is not failing at physics. Nothing is asked for a family without such a task,
    for a grounding set itself, or of an observer, which does not look at images.

    Args:
        config: Of the run; the grounding questions are asked of the same model with the same settings, in the plain
            manner.
        stimuli: What the battery is about.
        folder: Of the run; the grounding run goes into a folder inside it.
        model: The loaded model.
        jobs: Processes that make the questions' images; None takes all cores.
    """
    from vlm_probe.analysis.logs import GROUNDING
    from vlm_probe.analysis.summary import seen
    from vlm_probe.probes.cli.console import progress, tell
    from vlm_probe.probes.cli.resources import cores, drawn_alike
    from vlm_probe.probes.conditions import GROUNDING_N, GROUNDING_SEED
    from vlm_probe.probes.run import run
    from vlm_probe.stimuli.standard import further_set
    from vlm_probe.stimuli.tasks import get_task, task_names

    name = str(stimuli.card.get("task"))
    task = f"{get_task(name).family}-grounding" if name in task_names() else ""
    if task not in task_names() or task == name or not model.needs_images or model.text_only:
        return
    with progress("making grounding items") as step:
        items = further_set(
            task, GROUNDING_N, GROUNDING_SEED, **drawn_alike(stimuli), jobs=jobs or cores(), progress=step
        )
    plain = replace(config, stimuli=task, design="plain", examples=(0,), examples_from=None, limit=None, style="")
    with progress("grounding first") as step:
        run(plain, items, folder / GROUNDING, model=model, progress=step)
    right = ", ".join(f"{cell.label} {cell.accuracy.value:.2f}" for cell in seen(folder / GROUNDING))
    tell(f"grounding ({task}, {len(items)} items, share right): {right}")


OBSERVER, LABEL = "noisy-simulation", "noisy simulation"


def reference_runs(stimuli: StimulusSet, model: str, limit: int | None, jobs: int) -> dict[str, Path]:
    """Runs of observers to compare a judgement with, from the cache or made now.

    Args:
        stimuli: The set that the model was asked.
        model: The model that was asked; the observer is no reference for itself.
        limit: Only the first so many items.
        jobs: Processes.

    Returns:
        Label -> folder of the run; empty if the set is no two-option judgement with scenes.

    Raises:
        RunError, OSError: If the cache cannot be written, or another process is at the same run.
    """
    from vlm_probe.probes.cli.console import progress
    from vlm_probe.probes.models.observers import CHUNK, ParallelObserver, make_observer
    from vlm_probe.probes.run import RunConfig, run
    from vlm_probe.probes.trials import RUN, read_run
    from vlm_probe.stimuli.question import ChoiceFormat
    from vlm_probe.stimuli.standard import cache_folder

    first = stimuli.items[0]
    grammar = first.question.grammar
    judgement = (
        stimuli.card.get("kind") == "judgement" and isinstance(grammar, ChoiceFormat) and len(grammar.options) == 2
    )
    if not judgement or model == OBSERVER or first.scene is None:
        return {}
    observer = make_observer(OBSERVER)
    # By the hashes of the set and of the observer's parameters, so that neither can go stale.
    home = cache_folder() / "references" / stimuli.content_sha256[:16]
    whole = home / f"{OBSERVER}-{observer.identity.weights_sha256[:8]}"
    folder = whole if limit is None or limit >= len(stimuli) else whole.with_name(f"{whole.name}_n{limit}")
    for made in (whole, folder):
        if (made / RUN).is_file() and read_run(made).get("status") == "finished":
            return {LABEL: made}
    config = RunConfig(
        OBSERVER,
        str(stimuli.path),
        readout="options",
        limit=limit if folder != whole else None,
        batch_size=jobs * CHUNK,
    )
    with progress(f"reference observer ({OBSERVER})") as step, ParallelObserver(observer, jobs) as shared:
        run(config, stimuli, folder, model=shared, progress=step)
    return {LABEL: folder}


FIGURE, SUMMARY = "psychometric.png", "summary.json"


def write_summary(run: OutputFolder, as_json: bool) -> bool:
    """Summarise a run, to stdout and to summary.json. Where that fails there is a warning: the trials are what counts.

    Args:
        run: Folder of the run.
        as_json: Print the JSON object instead of the tables.

    Returns:
        Whether there is anything to draw: replies that could be read.
    """
    from vlm_probe.probes.cli.console import show, show_json

    is_readable = False
    with warning_of("summary"):
        from vlm_probe.analysis.summary import summarise

        summary = summarise(run.path)
        data = summary.to_dict()
        with warning_of(SUMMARY):
            run.write_json(SUMMARY, data)
        if as_json:
            show_json(data)
        else:
            show(summary)
        is_readable = not summary.problem
    return is_readable


def write_figure(run: OutputFolder, references: Mapping[str, Path]) -> None:
    """Draw a run's psychometric.png. Where that fails there is a warning.

    Args:
        run: Folder of the run.
        references: Label -> folder of an observer's run on the same set, to be drawn as a line.

    Raises:
        OutputError: If it cannot be written.
    """
    from vlm_probe.probes.cli.console import tell
    from vlm_probe.probes.trials import read_trials

    with warning_of("figure"):
        from vlm_probe.analysis.figures.single import draw
        from vlm_probe.analysis.summary import summarise

        lines = {name: read_trials(folder) for name, folder in references.items()}
        with run.file(FIGURE) as partial:
            is_drawn = draw({summarise(run.path).name: read_trials(run.path)}, partial, lines) is not None
        if is_drawn:
            tell(f"figure: {run.path / FIGURE}")


@contextmanager
def warning_of(what: str) -> Iterator[None]:
    """Go on without a figure or a summary that could not be made, with one line that says why: it must not cost the results."""
    from vlm_probe.probes.cli.console import tell
    from vlm_probe.stimuli.errors import reason_of

    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        tell(f"no {what}: {reason_of(error)}; the trials are not affected")
