"""Observers: models without weights, as reference lines. They read the scene behind an image and run like any model.

chance              every legal answer alike
heuristic           the first of the task's `rules`, which need no physics; grounding is read from the scene
ideal               the simulator
noisy-simulation    the simulator on noisy positions (Battaglia, Hamrick and Tenenbaum, 2013, PNAS 110:18327-18332)

In words they draw one answer from their probabilities, with a seed that the item's id gives; so an observer's replies
do not depend on batches or on order. Probabilities are never 0, so that every log-probability is finite.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.models import Generation, Identity, Model, ModelError, Trial
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.plain_json import dumps
from vlm_probe.stimuli.question import Answer
from vlm_probe.stimuli.scene import Push, Scene
from vlm_probe.stimuli.simulators import Outcome, Simulator, Stop, get_simulator
from vlm_probe.stimuli.tasks import UnknownTask, get_task

Floats = npt.NDArray[np.float64]
Respond = Callable[[Item], Floats]

CERTAINTY = 1 - 1e-9
"""Probability that an observer with one answer gives to it; the rest is shared by the others."""
PUSH_DURATION = 0.1
"""Seconds for which the latent force acts."""
CHUNK = 8
"""Items that a worker process answers at a time."""
IMAGINED_DURATION = 0.3
"""Simulated seconds after which what rests is imagined to stay: 400 noisy towers all came out as they do with 1.5 s."""


@dataclass(frozen=True)
class Noise:
    """Parameters of `noisy-simulation`.

    Attributes:
        sigma: Standard deviation of the seen horizontal position of a body, metres.
        phi: Latent horizontal force on every body, as a share of its weight.
        samples: Simulations per item.
    """

    sigma: float = 0.01
    phi: float = 0.05
    samples: int = 10


class Observer(Model):
    """Answers items from their scenes.

    Args:
        name: Of the catalogue.
        respond: From an item to the probabilities of all legal answers, in the order of `candidates()`.
        parameters: What decides the answers next to the engine; hashed into the identity.
    """

    needs_images = False

    def __init__(self, name: str, respond: Respond, parameters: dict[str, object]) -> None:
        self._respond = respond
        engine = "" if name in ("chance", "heuristic") else get_simulator().version()
        facts = {"observer": name, "engine": engine, **parameters}
        digest = hashlib.sha256(dumps(facts, sort_keys=True, ascii_only=True).encode()).hexdigest()
        self._identity = Identity(name, weights_sha256=digest, details=facts)

    @property
    def identity(self) -> Identity:
        """Name and parameters."""
        return self._identity

    def check(self, items: Sequence[Item]) -> None:
        """Refuse items that this observer cannot answer, before any is asked.

        Raises:
            ModelError: If an item has no scene or its task does not exist.
        """
        for item in items:
            if item.scene is None and self.identity.name != "chance":
                raise ModelError(
                    f"{self.identity.name} needs the scene behind a picture, and {item.item_id} (imported) has none:"
                    " use a model that looks at pictures"
                )
        try:
            for item in {item.task: item for item in items}.values():
                self._respond(item)
        except UnknownTask as error:
            raise ModelError(str(error)) from error

    def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str]:
        """One answer per trial, drawn from the response probabilities."""
        replies = []
        for trial in trials:
            item = trial.item
            # Another attempt is another draw: observers do not learn from earlier ones.
            again = () if trial.attempt == 1 else (f"attempt {trial.attempt}",)
            rng = item_rng(item, "reply", settings.seed, *again)
            candidates = item.question.grammar.candidates()
            answer = candidates[int(rng.choice(len(candidates), p=self._respond(item)))][1]
            replies.append(item.question.reply(answer))
        return replies

    def score_options(self, trials: Sequence[Trial]) -> list[Floats]:
        """Log response probabilities."""
        return [np.log(self._respond(trial.item)) for trial in trials]


class ParallelObserver(Model):
    """An observer that scores answers on several processors. They are the observer's own, so it has its identity.

    Args:
        observer: One of the catalogue's.
        jobs: Processes.
    """

    needs_images = False

    def __init__(self, observer: Observer, jobs: int) -> None:
        self._observer = observer
        # Spawned, because this process may hold torch's threads, which do not survive a fork.
        self._pool = ProcessPoolExecutor(jobs, get_context("spawn"), _leave_interrupts) if jobs > 1 else None

    @property
    def identity(self) -> Identity:
        """The observer's."""
        return self._observer.identity

    def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str]:
        """Replies of the observer."""
        return self._observer.generate(trials, settings)

    def score_options(self, trials: Sequence[Trial]) -> list[Floats]:
        """Log-probabilities of the observer, by several processes."""
        if self._pool is None:
            return self._observer.score_options(trials)
        chunks = [trials[start : start + CHUNK] for start in range(0, len(trials), CHUNK)]
        scored = self._pool.map(_score, repeat(self.identity.name), chunks)
        return [answer for answers in scored for answer in answers]

    def __enter__(self) -> ParallelObserver:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; the main one ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _score(name: str, trials: Sequence[Trial]) -> list[Floats]:
    return make_observer(name).score_options(trials)


def make_observer(name: str) -> Observer:
    """The observer of that name (one of the catalogue's).

    Raises:
        KeyError: If there is none.
    """
    noise = Noise()
    makers: dict[str, Callable[[], Observer]] = {
        "chance": lambda: Observer("chance", _chance, {}),
        "heuristic": lambda: Observer("heuristic", _heuristic, {}),
        "ideal": lambda: Observer("ideal", _ideal, {}),
        "noisy-simulation": lambda: noisy_simulation(noise),
    }
    return makers[name]()


def noisy_simulation(noise: Noise) -> Observer:
    """Battaglia's intuitive physics engine with these parameters.

    Every sample sees the scene with Gaussian noise on the horizontal positions, imagines a brief push to the left or to
    the right, and gives the answer that would be right of what it imagines. The probability of an answer is the share
    of the samples that gave it, with one further sample spread evenly over all legal answers.
    """

    def respond(item: Item) -> Floats:
        scene, task, candidates = _scene(item), get_task(item.task), item.question.grammar.candidates()
        rng = item_rng(item, "noise")
        imagination = _Imagination(get_simulator())
        index = {value: i for i, (_, value) in enumerate(candidates)}
        counts = np.full(len(candidates), 1 / len(candidates))
        for _ in range(noise.samples):
            answer = task.solve(_as_seen(scene, noise, rng), item.question, imagination)
            if answer not in index:  # noise has carried the right answer out of the range: the sample abstains
                counts += 1 / len(candidates)
            else:
                counts[index[answer]] += 1
        return counts / counts.sum()

    return Observer("noisy-simulation", respond, asdict(noise) | {"imagined_s": IMAGINED_DURATION})


def item_rng(item: Item, *purpose: str | int) -> np.random.Generator:
    """A random generator that depends on the item's id and the purpose alone."""
    digest = hashlib.sha256("\0".join([item.item_id, *map(str, purpose)]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


class _Imagination:
    """A simulator that looks less far ahead."""

    def __init__(self, engine: Simulator) -> None:
        self._engine = engine
        self.name, self.renderer = engine.name, engine.renderer
        self.version, self.render = engine.version, engine.render

    def simulate(
        self, scene: Scene, *, stop: Stop | None = None, min_duration: float = 0.0, max_duration: float = 0.0
    ) -> Outcome:
        return self._engine.simulate(scene, stop=stop, min_duration=IMAGINED_DURATION)


def _as_seen(scene: Scene, noise: Noise, rng: np.random.Generator) -> Scene:
    """The scene with noise on the horizontal positions of its bodies, and a brief push on all of them."""
    bodies = tuple(
        replace(b, position=(b.position[0] + float(dx), *b.position[1:])) if not b.fixed else b
        for b, dx in zip(scene.bodies, rng.normal(0.0, noise.sigma, len(scene.bodies)), strict=True)
    )
    side = 1.0 if rng.random() < 0.5 else -1.0
    pushes = tuple(
        Push(b.name, (side * noise.phi * b.mass * scene.gravity, 0.0, 0.0), b.position, 0.0, PUSH_DURATION)
        for b in bodies
        if noise.phi > 0 and not b.fixed
    )
    return replace(scene, bodies=bodies, pushes=scene.pushes + pushes)


def _chance(item: Item) -> Floats:
    count = len(item.question.grammar.candidates())
    return np.full(count, 1 / count)


def _heuristic(item: Item) -> Floats:
    scene, task = _scene(item), get_task(item.task)
    if task.kind == "grounding":
        return _certain(item, task.solve(scene, item.question))
    rules = task.rules()
    if not rules:
        raise ModelError(f"{task.name} has no rule that heuristic could follow: use chance, ideal or noisy-simulation")
    return _certain(item, next(iter(rules.values()))(scene))


def _ideal(item: Item) -> Floats:
    return _certain(item, get_task(item.task).solve(_scene(item), item.question))


def _certain(item: Item, answer: Answer) -> Floats:
    """Probabilities of an observer that gives one answer, or the nearest legal one."""
    values = [value for _, value in item.question.grammar.candidates()]
    if answer not in values:
        nearest = [np.abs(np.subtract(value, answer)).sum() for value in values]
        answer = values[int(np.argmin(nearest))]
    if len(values) == 1:
        return np.ones(1)
    return np.where([v == answer for v in values], CERTAINTY, (1 - CERTAINTY) / (len(values) - 1))


def _scene(item: Item) -> Scene:
    if item.scene is None:
        raise ModelError(f"{item.item_id} has no scene, which observers need")
    return item.scene
