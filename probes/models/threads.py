"""Trials in several threads: as many under way at a time as a server is asked, answered in any order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any

from vlm_probe.probes.models import Trial


def in_threads(
    answer: Callable[[Trial], Any], trials: Iterable[Trial], width: int, cancelled: threading.Event
) -> Iterator[tuple[Trial, Any, float]]:
    """Apply a function to trials in several threads; an exception is a value like any other.

    Args:
        answer: The function.
        trials: Taken one by one, as threads have room for them.
        width: Number of threads.
        cancelled: Set when nobody wants further answers.

    Yields:
        In the order in which they are answered: trial, the outcome, and the seconds that it took.
    """
    asked: SimpleQueue[Trial | None] = SimpleQueue()
    answered: SimpleQueue[tuple[Trial, Any, float]] = SimpleQueue()

    def work() -> None:
        while (trial := asked.get()) is not None and not cancelled.is_set():
            start = time.perf_counter()
            try:
                value = answer(trial)
            except Exception as error:  # the main thread decides what it costs
                value = error
            answered.put((trial, value, round(time.perf_counter() - start, 6)))

    # Daemons: a request that hangs must not keep an interrupted run from ending.
    for number in range(width):
        threading.Thread(target=work, name=f"request-{number}", daemon=True).start()
    source, under_way = iter(trials), 0
    try:
        while True:
            # One more for each thread, so that none waits for its next image.
            while under_way < 2 * width and (trial := next(source, None)) is not None:
                asked.put(trial)
                under_way += 1
            if not under_way:
                return
            yield answered.get()
            under_way -= 1
    finally:
        cancelled.set()
        for _ in range(width):
            asked.put(None)
