"""The reference line of a judgement's figure: the noisy-simulation observer on the same items, run once and kept."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_probe.probes.models import Generation, Identity, Trial
    from vlm_probe.stimuli.dataset import StimulusSet

OBSERVER, LABEL = "noisy-simulation", "noisy simulation"
CHUNK = 8
"""Items that a worker process answers at a time."""


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
    from vlm_probe.probes.models.observers import make_observer
    from vlm_probe.probes.run import RunConfig, run
    from vlm_probe.probes.trials import RUN, read_run
    from vlm_probe.stimuli.question import Options
    from vlm_probe.stimuli.standard import cache_folder

    first = stimuli.items[0]
    grammar = first.question.grammar
    judgement = stimuli.card.get("kind") == "judgement" and isinstance(grammar, Options) and len(grammar.options) == 2
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
    with progress(f"reference observer ({OBSERVER})") as step, _Parallel(observer, jobs) as shared:
        run(config, stimuli, folder, model=shared, progress=step)
    return {LABEL: folder}


class _Parallel:
    """An observer that answers on several processors. Its answers are the observer's own, so it has its identity."""

    needs_images = False

    def __init__(self, observer: Any, jobs: int) -> None:
        self._observer = observer
        # Spawned, because this process may hold torch's threads, which do not survive a fork.
        self._pool = ProcessPoolExecutor(jobs, get_context("spawn"), _leave_interrupts) if jobs > 1 else None

    @property
    def identity(self) -> Identity:
        """The observer's."""
        identity: Identity = self._observer.identity
        return identity

    def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str]:
        """Replies of the observer."""
        replies: list[str] = self._observer.generate(trials, settings)
        return replies

    def score_options(self, trials: Sequence[Trial]) -> list[Any]:
        """Log-probabilities of the observer, by several processes."""
        if self._pool is None:
            return list(self._observer.score_options(trials))
        chunks = [trials[start : start + CHUNK] for start in range(0, len(trials), CHUNK)]
        return [answer for answers in self._pool.map(_score, chunks) for answer in answers]

    def __enter__(self) -> _Parallel:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; the main one ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _score(trials: Sequence[Trial]) -> list[Any]:
    from vlm_probe.probes.models.observers import make_observer

    return list(make_observer(OBSERVER).score_options(trials))
