"""The run: a model is asked every item of a stimulus set, and every trial is written down as it happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_probe.probes.asking import ModelOutput, answers, in_batches, message_of
from vlm_probe.probes.columns import check_row
from vlm_probe.probes.conditions import CONTROLS, PresentationError, Presenter, manners
from vlm_probe.probes.episodes import Episodes, TrialSpec, check, groups
from vlm_probe.probes.models import THINKING_TOKENS, Generation, Model, ModelError, Trial
from vlm_probe.probes.models.catalog import ENTRIES
from vlm_probe.probes.provenance import origin, training_facts
from vlm_probe.probes.readout import UNANSWERED, Columns, Scorer
from vlm_probe.probes.run_config import RunConfig as RunConfig
from vlm_probe.probes.sharding import ALONE, Processes
from vlm_probe.probes.trials import RUN, RunError, is_run, read_run, trials_hash
from vlm_probe.stimuli.baselines import guesses, item_cues
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.errors import whole_text
from vlm_probe.stimuli.output import OutputError, OutputFolder
from vlm_probe.stimuli.picture import renderer_of
from vlm_probe.stimuli.tasks import UnknownTask, get_task

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told how many trials are done, and how many there are."""
TRIED = 2
"""Of the longest requests, so many are tried at a server that refuses: one may be refused for what its image shows."""
LONGEST = 8
"""Of the longest prompts, so many different ones are tried for whether a whole episode fits into the model's context."""


@dataclass(frozen=True)
class RunReport:
    """Where a run is, how many trials it has, and how many of them failed."""

    path: Path
    n: int
    n_errors: int


@dataclass(frozen=True)
class PreparedRun:
    """A run that can begin: all that could be refused has been checked.

    Attributes:
        config: What is asked of whom, and how.
        model: That is asked.
        settings: Of generation.
        wanted: First attempts at every item, in every manner.
        keys: Of these, by their ids.
        record: The contents of `run.json` at the start.
        image_size: Of the set, pixels.
        scorer: Of the answers, which draws outcomes as the set is drawn.
    """

    config: RunConfig
    model: Model
    settings: Generation
    wanted: Sequence[TrialSpec]
    keys: Mapping[tuple[str, str], str]
    record: dict[str, Any]
    image_size: int
    scorer: Scorer

    def key(self, ask: TrialSpec) -> str:
        """The key of a trial in the log."""
        return self.keys[ask.id] if ask.attempt == 1 else ask.key(self.model, self.config.readout, self.settings)


def run(
    config: RunConfig,
    stimuli: StimulusSet,
    out: Path | OutputFolder,
    *,
    model: Model | None = None,
    examples: StimulusSet | None = None,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> RunReport:
    """Ask a model all items, in every manner of the design, that the run in `out` does not have yet.

    An image or a batch that fails costs its own trials only: they become rows with an error, and are asked again
    when the run is started again. Ctrl-C and kill leave a run that can be resumed.

    Args:
        config: What is asked of whom, and how.
        stimuli: The items.
        out: Folder of the run: new, or of the same run, begun earlier; or one that the caller has claimed.
        model: The model, if it is loaded already; by default `config` says which one is loaded.
        examples: The set that worked examples come from, if the design has any.
        progress: Told how many trials are done, and how many there are.
        processes: Those that share the run; the report of the first one is that of the run.

    Raises:
        ModelError: If the model cannot be loaded, or cannot answer such items.
        PresentationError: If the design cannot be had with these items.
        OutputError: If `out` holds something else, is in use, or cannot be written.
        RunError: If `out` holds another run.
    """
    folder = out.path if isinstance(out, OutputFolder) else out
    prepared = prepare(config, stimuli, folder, model, examples, processes)
    return execute(prepared, out, progress, processes)


def prepare(
    config: RunConfig,
    stimuli: StimulusSet,
    folder: Path,
    model: Model | None = None,
    examples: StimulusSet | None = None,
    processes: Processes = ALONE,
) -> PreparedRun:
    """Check all that a run needs, and load its model. The arguments and errors are those of `run`."""
    items = stimuli.items[: config.limit]
    if not items:
        raise RunError(f"{stimuli.path} has no items")
    _check_scorable(items)
    presenter, memory = make_presenter(config, stimuli, examples), config.recall
    check(memory, stimuli, items, presenter.manners)
    if model is None:
        model = load(config)
    _set_moment(model, folder, processes)
    _check_model(model, items, presenter)
    settings = Generation(config.max_new_tokens, config.temperature, config.seed)
    wanted = [TrialSpec(presenter, item, manner, memory) for manner in presenter.manners for item in items]
    keys = {ask.id: ask.key(model, config.readout, settings) for ask in wanted}
    if len(keys) != len(wanted):
        raise RunError(f"{stimuli.path}: item ids are not unique; make the set anew")
    if not is_run(folder):  # what is left of a run that was begun is as long at most
        _check_request(model, wanted, config.readout, settings)
    record = _describe(config, stimuli, model, len(wanted), presenter)
    if memory.attempts > 1:
        _check_context(model, wanted, settings)
        if memory.kept == "none" and not config.temperature and model.needs_images:
            log.warning("greedy and without memory, every attempt is like the first: give a --temperature, such as 1")
        cues = [item_cues(get_task(item.task), item) for item in items]
        record["stimuli"]["guesses"] = guesses(cues, memory.attempts)
    size, scorer = int(stimuli.card.get("image_size", 0)), Scorer(renderer_of(stimuli.card))
    return PreparedRun(config, model, settings, wanted, keys, record, size, scorer)


def execute(
    prepared: PreparedRun, out: Path | OutputFolder, progress: Progress | None = None, processes: Processes = ALONE
) -> RunReport:
    """Ask what the run in `out` does not have yet, and log it. The arguments and errors are those of `run`."""
    config, model, wanted = prepared.config, prepared.model, prepared.wanted
    attempts = config.attempts
    total = len(wanted) * attempts
    with processes.open_log(out, prepared.record) as trials:
        status = "failed"
        episodes = Episodes(
            prepared.scorer, prepared.key, trials.done, trials.folder, model.needs_images, prepared.image_size
        )
        # Episodes are shared before it is known which are over, since the log grows while the others read it.
        pending = [ask for ask in wanted if attempts > 1 or prepared.key(ask) not in trials.done]
        trials.update(
            status="running", resumed=trials.run["resumed"] + bool(trials.done), processes=processes.count, n_errors=0
        )
        if processes.count > 1:
            pending = processes.share([ask for batch in in_batches(pending, 1) for ask in batch])
        left = sum(episodes.left(ask) for ask in pending) * processes.count  # the others are about as far
        n_errors, observed = 0, dict[str, Any]()
        if progress is not None:
            progress(max(total - left, 0), total)
        try:
            for answer, row, spent in _played(model, pending, episodes, config, prepared.settings):
                trials.append(row)
                n_errors += answer.error is not None
                left -= spent * processes.count
                if progress is not None and answer.ends_batch:
                    progress(min(max(total - left, 0), total), total)
            n_errors, observed = processes.finish(trials, n_errors, model.observed)
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            # What went wrong is already on its way up; a full disk must not hide it.
            with suppress(*(() if status == "finished" else (RunError, OutputError))):
                trials.update(
                    status=status,
                    finished=_now(),
                    n_errors=n_errors,
                    observed=observed or dict(model.observed),
                    trials_sha256=trials_hash(trials.folder),
                )
    return RunReport(trials.folder, len(wanted), n_errors)


def load(config: RunConfig) -> Model:
    """The model that a run asks.

    Raises:
        ModelError: If it cannot be loaded.
    """
    from vlm_probe.probes.models.loading import load_model

    names = ("revision", "dtype", "device", "adapter", "load_in_4bit", "base_url", "concurrency", "readout", "images")
    limit = config.max_new_tokens or (THINKING_TOKENS if config.style == "think" else 0)
    settings = Generation(limit, config.temperature, config.seed)
    given = {name: getattr(config, name) for name in names}
    return load_model(config.model, settings=settings, thinking=config.thoughts, **given)


def _set_moment(model: Model, out: Path, processes: Processes) -> None:
    """Have prompts state the date and time at which the run began, in all processes and when it is resumed."""
    begun = read_run(out) if (out / RUN).is_file() and processes.first else {}
    moment = processes.broadcast(str(begun.get("moment") or model.moment))
    if moment:
        model.set_moment(moment)


def _check_model(model: Model, items: Sequence[Item], presenter: Presenter) -> None:
    """Refuse a model that cannot answer such items, or to which a control means nothing. Raises ModelError or RunError."""
    model.check(items)
    _check_words(model, presenter)
    hidden = [manner.control for manner in presenter.manners if CONTROLS[manner.control].hides_scene]
    if hidden and not model.needs_images:
        raise RunError(
            f"{model.identity.name} looks at the scene and not at the picture, so that the control {hidden[0]} means nothing"
            " to it: leave the controls out, or ask a model that looks"
        )


def _check_words(model: Model, presenter: Presenter) -> None:
    """Ask a language model nothing but descriptions, and refuse what it or another model cannot answer in words alone.

    Raises:
        ModelError: If it cannot.
    """
    described = tuple(manner for manner in presenter.manners if manner.control == "description")
    if model.text_only:
        others = [m.control for m in presenter.manners if m.control not in ("intact", "description")]
        if others or not described:
            raise ModelError(
                f"{model.identity.name} is a language model, which takes no images: give --design description"
            )
        presenter.manners = described
    if described:
        model.check_without_images()


def _check_context(model: Model, wanted: Sequence[TrialSpec], settings: Generation) -> None:
    """Refuse a model whose context is too short for the longest episode. Raises ModelError."""
    if wanted[0].memory.kept == "none":
        return
    # Tokens cannot be counted without making the inputs; the longest prompt in characters is among the longest ones.
    longest = {ask.asked.question.prompt: ask for ask in wanted}
    chosen = sorted(longest.values(), key=lambda ask: len(ask.asked.question.prompt))[-LONGEST:]
    model.check_context([ask.memory.longest(ask.trial(with_picture=True)) for ask in chosen], settings)


def _check_request(model: Model, wanted: Sequence[TrialSpec], readout: str, settings: Generation) -> None:
    """Refuse a server that does not take the longest requests of the run. Raises ModelError."""

    def length(ask: TrialSpec) -> tuple[bool, int, bool, int]:
        question = ask.asked.question
        return ask.manner.control != "description", ask.manner.examples, question.style == "think", len(question.prompt)

    trials: list[Trial] = []
    for ask in sorted(wanted, key=length, reverse=True)[:LONGEST]:
        with suppress(Exception):  # what cannot be shown is a failed trial when it is asked
            trials.append(ask.memory.longest(ask.trial(with_picture=True)))
        if len(trials) == TRIED:
            break
    model.check_request(trials, readout, settings)


def make_presenter(config: RunConfig, stimuli: StimulusSet, examples: StimulusSet | None) -> Presenter:
    """The manners of a run's design, over its set.

    Args:
        config: Of the run.
        stimuli: Its set.
        examples: The set that worked examples come from, if the design has any.

    Raises:
        PresentationError: If they cannot be had with this set.
    """
    tasks = list(dict.fromkeys(item.task for item in stimuli.items)) if config.design == "variants" else []
    if len(tasks) > 1:
        raise PresentationError(
            f"{stimuli.path} has items of several tasks, whose wordings cannot be crossed in one run"
        )
    variants = [variant for name in tasks for variant in get_task(name).variants()]
    asked = manners(config.design, config.examples, config.style, variants)
    return Presenter(stimuli, asked, examples, config.seed)


def _played(
    model: Model, pending: Sequence[TrialSpec], episodes: Episodes, config: RunConfig, settings: Generation
) -> Iterator[tuple[ModelOutput, Columns, int]]:
    """Play episodes to their end, many at a time: all first attempts of a group, then the second ones, and so on.

    Yields:
        The outcome of a trial, its row, and how many attempts have been used up or are not needed any more.
    """
    name = {"model": model.identity.name, "readout": config.readout}
    for group in groups(pending):
        under_way = [ask for ask in map(episodes.resumed, group) if ask is not None]
        while under_way:
            again: list[TrialSpec] = []
            for answer in answers(model, under_way, config.readout, settings, config.batch_size):
                ask = answer.ask
                row = {"key": episodes.key(ask)} | name | _columns(episodes.scorer, answer)
                following = episodes.following(ask, row)
                again += [following] if following is not None else []
                yield answer, row, 1 if following is not None else ask.memory.attempts - ask.attempt + 1
            under_way = again


def _columns(scorer: Scorer, answer: ModelOutput) -> Columns:
    """The columns of a row that do not name the run."""
    item = answer.ask.asked
    columns = scorer.describe(item) | UNANSWERED
    error = answer.error
    if error is None:
        try:
            raw = None if answer.raw is None else whole_text(answer.raw)
            scored = scorer.scored(item, raw, answer.logprobs, answer.ended)
            check_row(scored)
            columns |= scored
        except Exception as failure:  # a reply that cannot be scored is an error row too
            error = message_of(failure)
    told = None if error is None else whole_text(error)
    thought = None if answer.thought is None else whole_text(answer.thought)
    times = {"latency_s": answer.latency_s, "error": told, "time": _now()}
    return columns | answer.ask.columns() | {"thought": thought} | times


def _check_scorable(items: Sequence[Item]) -> None:
    try:
        for item in {item.task: item for item in items if item.scene is not None}.values():
            current = get_task(item.task).version
            if current != item.task_version:
                log.warning("%s: made by version %d, scored by version %d", item.task, item.task_version, current)
    except UnknownTask as error:
        raise RunError(f"the stimulus set cannot be scored: {error}") from error


def _describe(config: RunConfig, stimuli: StimulusSet, model: Model, n: int, presenter: Presenter) -> dict[str, Any]:
    """The contents of run.json at the start. "fingerprint" is what must be equal for a run to be resumed."""
    identity = asdict(model.identity)
    # Who answers and what is shown are known by their hashes; batches do not matter.
    names = ("readout", "limit", "temperature", "max_new_tokens", "seed", "design", "style")
    fingerprint = {name: getattr(config, name) for name in names} | {
        "model": identity["name"],
        "revision": identity["revision"],
        "weights": identity["weights_sha256"],
        "adapter": identity["adapter_sha256"],
        "stimuli": stimuli.content_sha256,
        "examples": " ".join(map(str, config.examples)),
        "examples_from": presenter.examples_sha256,
    }
    if config.attempts > 1:  # left out otherwise, so that runs of earlier versions can be resumed
        fingerprint |= {"attempts": config.attempts, "memory": config.memory}
    fingerprint |= {k: v for k, v in identity["details"].items() if isinstance(v, str | int | float)}
    fingerprint |= {f"file {name}": value for name, value in identity["files"].items()}
    return {
        "format": 1,
        "status": "running",
        "config": asdict(config),
        "seed": config.seed,
        "n": n,
        "n_errors": 0,
        "model": identity,
        "moment": model.moment,
        "training": _training(config, identity),
        "observed": {},
        "manners": [manner.to_dict() for manner in presenter.manners],
        "stimuli": {
            "path": str(stimuli.path),
            "content_sha256": stimuli.content_sha256,
            "task": stimuli.card.get("task"),
            "n": len(stimuli),
            "baselines": stimuli.card.get("baselines"),
        },
        **origin(*_quantiser(identity["details"])),
        "started": _now(),
        "finished": None,
        "resumed": 0,
        "fingerprint": fingerprint,
    }


def _training(config: RunConfig, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the model was trained; warns where it was trained without the thoughts that it is asked for now."""
    facts = training_facts(_trained_folder(config), identity["adapter_sha256"])
    trained, used = (str(known.get("thinking") or "") for known in (facts or {}, identity["details"]))
    if trained.startswith("off") and used.startswith("on"):
        log.warning(
            "%s was trained without thinking, and thinks now: give --thinking off to ask as it was trained",
            identity["name"],
        )
    return facts


def _quantiser(details: Mapping[str, Any]) -> tuple[str, ...]:
    """The package that computes with the weights as they are quantised."""
    return ("bitsandbytes",) if str(details.get("quantisation", "")).startswith("bitsandbytes") else ()


def _trained_folder(config: RunConfig) -> Path | None:
    """Where a training run may have left its record: the folder of the adapter, or of a whole model."""
    if config.base_url is not None:
        return None
    # A short name does not mean a folder, even if there is one of that name.
    named = any(entry.name == config.model for entry in ENTRIES)
    return Path(config.adapter or config.model).expanduser() if config.adapter or not named else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
