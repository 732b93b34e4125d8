"""Asking: trials go to a model in batches, or one by one, and the outcome of each comes back: an answer, or what went wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vlm_probe.probes.episodes import TrialSpec
from vlm_probe.probes.models import Ended, Generation, Model, Reply, Scored, Trial

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelOutput:
    """The outcome of one trial: a reply, log-probabilities or an error.

    Attributes:
        ask: What was asked.
        raw: The reply; None with the options readout, or if the trial failed.
        ended: How the reply ended, if not by itself (see `vlm_probe.probes.models.Reply`).
        thought: What the model thought before it answered; None if it did not.
        logprobs: Of every legal answer, nats; None with the other readout, or if the trial failed.
        error: "Type: message" if the trial failed, else None.
        latency_s: Seconds, the batch's time shared evenly.
        ends_batch: Whether it is the last of its batch.
    """

    ask: TrialSpec
    raw: str | None = None
    ended: Ended = ""
    thought: str | None = None
    logprobs: Any = None
    error: str | None = None
    latency_s: float = 0.0
    ends_batch: bool = False


def answers(
    model: Model, pending: Sequence[TrialSpec], readout: str, settings: Generation, batch_size: int = 0
) -> Iterator[ModelOutput]:
    """Ask everything in batches of prompts of similar length; the next batch is made ready meanwhile.

    An image or a batch that fails costs its own trials only.

    Args:
        model: The model.
        pending: What is asked.
        readout: "generate" or "options".
        settings: How replies are generated.
        batch_size: Trials per call of the model; 0 = what suits it. A model that takes trials one by one (`stream`) has none.

    Yields:
        One for every trial, in any order.

    Raises:
        ModelError: If a model that takes trials one by one fails for all of them.
    """
    if model.streams:
        yield from _streamed(model, pending, readout, settings)
        return
    size = batch_size or model.batch_size
    batches = in_batches(pending, size)
    if not model.needs_images:
        for batch in batches:
            yield from _ask(model, [(ask, ask.trial(with_picture=False)) for ask in batch], readout, settings)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="pictures") as pool:
        ahead = [pool.submit(_show, model, batch) for batch in batches[:1]]
        for number in range(len(batches)):
            ready, failed = ahead.pop().result()
            ahead += [pool.submit(_show, model, batch) for batch in batches[number + 1 : number + 2]]
            yield from failed
            yield from _ask(model, ready, readout, settings)


def _streamed(model: Model, pending: Sequence[TrialSpec], readout: str, settings: Generation) -> Iterator[ModelOutput]:
    """Ask a model that takes trials one by one, and answers several at a time in any order."""
    asks = {ask.id: ask for ask in pending}
    failed: list[ModelOutput] = []

    def shown() -> Iterator[Trial]:
        for batch in in_batches(pending, 1):
            ready, bad = _show(model, batch)
            failed.extend(bad)
            yield from (trial for _, trial in ready)

    for trial, value, latency in model.stream(shown(), readout, settings):
        yield ModelOutput(asks[trial.id], **_given(value, readout), latency_s=latency, ends_batch=True)
    yield from failed


def in_batches(pending: Sequence[TrialSpec], size: int) -> list[list[TrialSpec]]:
    """Trials of one manner in batches of prompts of similar length, which need little padding.

    Args:
        pending: What is asked.
        size: Trials per batch at most.
    """
    batches: list[list[TrialSpec]] = []
    for manner in dict.fromkeys(ask.manner for ask in pending):
        of_manner = [ask for ask in pending if ask.manner == manner]
        ordered = sorted(of_manner, key=lambda ask: (ask.item.question.style, len(ask.item.question.prompt)))
        batches += [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return batches


def _show(model: Model, batch: Sequence[TrialSpec]) -> tuple[list[tuple[TrialSpec, Trial]], list[ModelOutput]]:
    """The trials of a batch, with their images, and those whose image cannot be shown."""
    ready, failed = [], []
    for ask in batch:
        try:
            ready.append((ask, ask.trial(with_picture=True)))
        except Exception as error:  # whatever is wrong with one image must not end the run
            failed.append(ModelOutput(ask, error=message_of(error)))
    if ready:
        with suppress(Exception):  # if it fails, it fails again where it is asked, and is reported there
            model.prepare([trial for _, trial in ready])
    return ready, failed


def _ask(
    model: Model, asked: Sequence[tuple[TrialSpec, Trial]], readout: str, settings: Generation
) -> Iterator[ModelOutput]:
    """Ask one batch; if that fails, each of its trials on its own, so that only what cannot be answered fails."""
    if not asked:
        return
    trials = [trial for _, trial in asked]
    start = time.perf_counter()
    try:
        given = _answers(model, trials, readout, settings)
        if len(given) != len(trials):
            raise ValueError(f"the model gave {len(given)} answers to {len(trials)} trials")
    except Exception as error:  # a trial that fails is a row in the log
        if len(trials) == 1:
            yield ModelOutput(asked[0][0], error=message_of(error), ends_batch=True)
            return
        log.warning("a batch of %d failed (%s); asking its trials one by one", len(trials), message_of(error))
        for one in asked:
            yield from _ask(model, [one], readout, settings)
        return
    latency = round((time.perf_counter() - start) / len(trials), 6)
    for number, ((ask, _), value) in enumerate(zip(asked, given, strict=True), 1):
        ends = number == len(trials)
        yield ModelOutput(ask, **_given(value, readout), latency_s=latency, ends_batch=ends)


def _answers(model: Model, trials: Sequence[Trial], readout: str, settings: Generation) -> Sequence[Any]:
    """What a model gives for some trials, with thoughts where it can tell them."""
    if readout == "generate":
        return list(model.generate(trials, settings))
    return list(model.score(trials, settings))


def _given(value: Any, readout: str) -> dict[str, Any]:
    """What a model gave for a trial, as attributes of `ModelOutput`."""
    if isinstance(value, Exception):
        return {"error": message_of(value)}
    if isinstance(value, Reply):
        return {"raw": value.text, "ended": value.ended, "thought": value.thought}
    if isinstance(value, Scored):
        return {"logprobs": value.logprobs, "ended": value.ended, "thought": value.thought}
    return {"raw" if readout == "generate" else "logprobs": value}


def message_of(error: BaseException) -> str:
    """An error as rows of the log have it: "Type: message", in one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}"
