"""Asking: trials go to a model in batches, or one by one, and what came of each comes back: an answer, or what went wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vlm_probe.probes.episodes import Ask
from vlm_probe.probes.models import Ended, Generation, Model, Reply, Scored, Trial

log = logging.getLogger(__name__)

AUTO_BATCH = 16
"""Trials per call of a model that does not say what suits it."""


@dataclass(frozen=True)
class Answered:
    """What came of one trial: a reply, log-probabilities or an error.

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

    ask: Ask
    raw: str | None = None
    ended: Ended = ""
    thought: str | None = None
    logprobs: Any = None
    error: str | None = None
    latency_s: float = 0.0
    ends_batch: bool = False


def answers(
    model: Model, pending: Sequence[Ask], readout: str, settings: Generation, batch_size: int = 0
) -> Iterator[Answered]:
    """Ask everything in batches of prompts of similar length; the next batch is made ready meanwhile.

    A picture or a batch that fails costs its own trials only.

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
    if hasattr(model, "stream"):
        yield from _streamed(model, pending, readout, settings)
        return
    size = batch_size or int(getattr(model, "batch_size", AUTO_BATCH))
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


def _streamed(model: Any, pending: Sequence[Ask], readout: str, settings: Generation) -> Iterator[Answered]:
    """Ask a model that takes trials one by one, and answers several at a time in any order."""
    asks = {ask.id: ask for ask in pending}
    failed: list[Answered] = []

    def shown() -> Iterator[Trial]:
        for batch in in_batches(pending, 1):
            ready, bad = _show(model, batch)
            failed.extend(bad)
            yield from (trial for _, trial in ready)

    for trial, value, latency in model.stream(shown(), readout, settings):
        yield Answered(asks[trial.id], **_given(value, readout), latency_s=latency, ends_batch=True)
    yield from failed


def in_batches(pending: Sequence[Ask], size: int) -> list[list[Ask]]:
    """Trials of one manner in batches of prompts of similar length, which need little padding.

    Args:
        pending: What is asked.
        size: Trials per batch at most.
    """
    batches: list[list[Ask]] = []
    for manner in dict.fromkeys(ask.manner for ask in pending):
        of_manner = [ask for ask in pending if ask.manner == manner]
        ordered = sorted(of_manner, key=lambda ask: (ask.item.question.style, len(ask.item.question.prompt)))
        batches += [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return batches


def _show(model: Model, batch: Sequence[Ask]) -> tuple[list[tuple[Ask, Trial]], list[Answered]]:
    """The trials of a batch, with their pictures, and those whose picture cannot be shown."""
    ready, failed = [], []
    for ask in batch:
        try:
            ready.append((ask, ask.trial(with_picture=True)))
        except Exception as error:  # whatever is wrong with one picture must not end the run
            failed.append(Answered(ask, error=message_of(error)))
    prepare = getattr(model, "prepare", None)
    if prepare is not None and ready:
        with suppress(Exception):  # if it fails, it fails once more where it is asked, and is reported there
            prepare([trial for _, trial in ready])
    return ready, failed


def _ask(model: Model, asked: Sequence[tuple[Ask, Trial]], readout: str, settings: Generation) -> Iterator[Answered]:
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
            yield Answered(asked[0][0], error=message_of(error), ends_batch=True)
            return
        log.warning("a batch of %d failed (%s); asking its trials one by one", len(trials), message_of(error))
        for one in asked:
            yield from _ask(model, [one], readout, settings)
        return
    latency = round((time.perf_counter() - start) / len(trials), 6)
    for number, ((ask, _), value) in enumerate(zip(asked, given, strict=True), 1):
        ends = number == len(trials)
        yield Answered(ask, **_given(value, readout), latency_s=latency, ends_batch=ends)


def _answers(model: Any, trials: Sequence[Trial], readout: str, settings: Generation) -> Sequence[Any]:
    """What a model gives for some trials, with thoughts where it can tell them."""
    if readout == "generate":
        return list(model.generate(trials, settings))
    score = getattr(model, "score", None)
    return list(model.score_options(trials) if score is None else score(trials, settings))


def _given(value: Any, readout: str) -> dict[str, Any]:
    """What a model gave for a trial, as attributes of `Answered`."""
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
