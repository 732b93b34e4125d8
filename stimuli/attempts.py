"""One attempt at an action: an answer is carried out, and the outcome is drawn and said in words.

The environment, probing with several attempts and training in the closed loop all carry answers out here, so that the same answer
to the same scene looks, reads and pays the same everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.outcomes import OutcomeCache
from vlm_probe.stimuli.picture import draw
from vlm_probe.stimuli.question import Parsed, Question
from vlm_probe.stimuli.ranges import OutOfRange
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import Frame, Simulator, body_states
from vlm_probe.stimuli.tasks import Score, Task

Pixels = npt.NDArray[np.uint8]

UNREAD = "Your reply was not an answer that can be tried. Try again."
FAILED = "It did not work: the picture shows what happened. Try again from the same start."
IMPOSSIBLE = "It cannot be done: the picture shows where it would be. Try again from the same start."
SUCCEEDED = "It worked: the picture shows what happened."


@dataclass(frozen=True)
class Attempt:
    """The outcome of one answer.

    Attributes:
        parsed: The answer as it was read.
        score: What it is worth; nothing if it could not be read.
        frame: What happened: the bodies where the simulation ended, or the answer as it was meant where nothing could be simulated.
            None if the answer could not be read, so that nothing was carried out.
        state: (bodies, len(`STATE`)) where the bodies are in it; None likewise.
        simulated: Whether the frame shows a simulation.
    """

    parsed: Parsed
    score: Score
    frame: Frame | None
    state: npt.NDArray[np.float32] | None
    simulated: bool

    @property
    def picture(self) -> Pixels | None:
        """(size, size, 3) uint8, the image of what happened."""
        return None if self.frame is None else self.frame.rgb

    @property
    def words(self) -> str:
        """What happened, in words, as it is told to a model that may try again."""
        if self.frame is None:
            return UNREAD
        if self.score.success:
            return SUCCEEDED
        return FAILED if self.simulated else IMPOSSIBLE


def carry_out(
    task: Task,
    scene: Scene,
    question: Question,
    parsed: Parsed,
    *,
    size: int,
    simulator: Simulator,
    cache: OutcomeCache,
    scene_hash: str | None = None,
) -> Attempt:
    """Try an answer on a scene, as it was at its start.

    Args:
        task: An action task.
        scene: Before the attempt.
        question: As it was asked.
        parsed: The answer, as the question's parser read it.
        size: Edge of the image, pixels.
        simulator: Simulates and draws.
        cache: Of scores.
        scene_hash: The scene's content hash, where the caller knows it.
    """
    if parsed.value is None:
        return Attempt(parsed, Score(False, 0.0), None, None, False)
    score = cache.score(task, scene, question, parsed.value, simulator, scene_hash=scene_hash)
    # One view even where the scene is shown as a strip: a strip shows what comes before.
    shown = replace(task.apply(scene, parsed.value), panels=())
    poses = score.outcome.poses() if score.outcome is not None else None
    frame = draw(simulator, shown, size, poses)
    return Attempt(parsed, score, frame, body_states(shown, poses), score.outcome is not None)


def remembered(memory: str, attempts: int) -> int:
    """How many earlier attempts a memory holds: none of them, the last k, or all.

    Args:
        memory: "none", "last-1", "last-2", ..., or "all".
        attempts: That an episode has at most.

    Raises:
        ValueError: If there is no such memory.
    """
    if memory in ("none", "all"):
        return attempts if memory == "all" else 0
    match = re.fullmatch(r"last-([1-9]\d*)", memory)
    if not match:
        raise OutOfRange("memory", f'must be "none", "all", or "last-1", "last-2", ..., got {memory!r}')
    return min(int(match.group(1)), attempts)
