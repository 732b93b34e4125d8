"""Tasks: one question about one family of scenes, with the physics that makes an answer right. And their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.errors import InvalidInput, ProbeError, UnknownName, did_you_mean, reason_of
from vlm_probe.stimuli.question import Answer, Question, Variant, wordings
from vlm_probe.stimuli.scene import Scene, mirror
from vlm_probe.stimuli.simulators import Outcome, Simulator, get_simulator

AMBIGUITY_BAND = 0.1
"""|margin| (half widths) below which engines may disagree with statics and with each other; left out of designed sets."""


@dataclass(frozen=True)
class Score:
    """What an answer is worth.

    Attributes:
        success: Whether it is right, or works.
        reward: In [0, 1]; 1 exactly on success.
        detail: The physics behind it, as plain data.
        outcome: What happened to the scene that `Task.apply` gives, where the scoring took a simulation of it.
    """

    success: bool
    reward: float
    detail: dict[str, Any] = field(default_factory=dict)
    outcome: Outcome | None = field(default=None, repr=False, compare=False)


class SamplingFailed(ProbeError, ValueError):
    """No scene of the family meets the condition."""


class Task(ABC):
    """One question about one family of scenes.

    A subclass states what a scene is (`sample_matched`), how far it is from the boundary (`margin`), what is asked
    (`question`), what is right (`solve`) and the score of an answer (`score`). `score` is the only scorer there is: the
    probe's accuracy, the reward of reinforcement learning and the analysis all come from it.

    Class attributes:
        name: `family-question`, as on the command line.
        version: Raised whenever the same seed would give another stimulus or another score.
        family: Folder under `stimuli/tasks`.
        kind: "judgement" (what will happen?), "action" (what must be done?) or "grounding" (what is there?).
        held_out: Never a training task; asked zero-shot.
        facts: The physics of the task in words, for the control condition in which it is stated; empty if none.
        signed_side: The margin's sign is a side (left or right), so that it changes in the mirror.
        known_shortcuts: Names of rules, cues and classifiers that score well on the designed set although they are not the
            physics, each with the reason why it cannot be designed away; the card and the audit print it.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    family: ClassVar[str]
    kind: ClassVar[Literal["judgement", "action", "grounding"]]
    held_out: ClassVar[bool] = False
    signed_side: ClassVar[bool] = False
    facts: ClassVar[str] = ""
    known_shortcuts: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def conditions(self) -> tuple[Condition, ...]:
        """The cells of the designed set, for the unmirrored base scenes; each is used equally often."""

    @abstractmethod
    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene, ...]:
        """Scenes that belong together: the one on the condition, then its foils, which differ in one body only.

        The condition's `mirrored` is ignored here.

        Args:
            rng: All that is drawn comes from it.
            condition: Of the first scene.

        Raises:
            Unsatisfiable: If there is no such scene, or this draw found none.
        """

    @abstractmethod
    def foil_condition(self, condition: Condition) -> Condition:
        """The condition of the foils that `sample_matched` returns next to a scene on `condition`."""

    @abstractmethod
    def margin(self, scene: Scene) -> float:
        """Signed physical margin, dimensionless; 0 is the boundary."""

    def margin_length(self, scene: Scene) -> float | None:
        """Metres from left to right that a margin of 1 is in the scene; None where the margin is no distance that can be seen.

        From it the audit tells how many pixels decide about an item.

        Args:
            scene: What is shown.
        """
        return None

    @abstractmethod
    def question(self, scene: Scene, variant: Variant) -> Question:
        """What is asked about the scene, in that wording.

        Args:
            scene: What is asked about.
            variant: The wording.

        Raises:
            ValueError: If that cannot be asked of this scene.
        """

    @abstractmethod
    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The correct answer; for actions the one in the middle of those that work.

        Args:
            scene: What was shown.
            question: What was asked.
            simulator: Engine that says what happens; by default the standard one.
        """

    def score(self, scene: Scene, question: Question, answer: Answer, simulator: Simulator | None = None) -> Score:
        """What an answer is worth. Pure and bounded: the same scene and answer always give the same score.

        A judgement is worth 1 if it is what `solve` gives and 0 otherwise, so that a stored solution can stand in for
        the simulation. An action must say for itself what works.

        Args:
            scene: What was shown.
            question: What was asked.
            answer: What was said, a legal answer.
            simulator: Engine that tries it out; by default the standard one.

        Raises:
            TypeError: If an action task has no scorer of its own.
        """
        if self.kind == "action":
            raise TypeError(f"{self.name} is an action task: it needs a `score` that tries the answer out")
        truth = self.solve(scene, question, simulator)
        return Score(answer == truth, float(answer == truth), {"truth": truth})

    def sample(self, rng: np.random.Generator, condition: Condition) -> Scene:
        """One scene on the condition, mirrored if it says so.

        Args:
            rng: All that is drawn comes from it.
            condition: Of the scene.

        Raises:
            Unsatisfiable: If there is no such scene, or this draw found none.
        """
        scene = self.sample_matched(rng, condition)[0]
        return mirror(scene) if condition.mirrored else scene

    def with_more_objects(self, condition: Condition, level: int) -> Condition:
        """The condition with more objects than any of the designed set has, for level 1 to 3 of the shift `count`.

        A family whose conditions name more than the count (how many of them fall, say) changes that here too.

        Args:
            condition: Of the designed set.
            level: 1 to 3.

        Raises:
            Unsatisfiable: If there are no such scenes; the sampler may raise it as well.
        """
        return replace(condition, count=max(c.count for c in self.conditions()) + level)

    def apply(self, scene: Scene, answer: Answer) -> Scene:
        """The scene with the answer of an action carried out, as it is simulated.

        Args:
            scene: What was shown.
            answer: A legal answer.

        Raises:
            TypeError: If the task is no action task, or the answer is of another form.
        """
        raise TypeError(f"{self.name} is a {self.kind} task: its answers change nothing in the scene")

    def mirrored(self, answer: Answer) -> Answer:
        """What an answer is in the mirror image: left and right swap, and so does the sign of a distance along x."""
        if isinstance(answer, str):
            return {"left": "right", "right": "left"}.get(answer, answer)
        if self.kind != "action":
            return answer
        return -answer if isinstance(answer, int) else (-answer[0], answer[1])

    def demonstrate(self, scene: Scene, question: Question, rng: np.random.Generator) -> Answer:
        """What an expert would answer, for supervised training. Always gets reward 1.

        Args:
            scene: What is shown.
            question: What is asked.
            rng: Chooses among several right answers.
        """
        return self.solve(scene, question)

    def variants(self) -> tuple[Variant, ...]:
        """The wordings of the designed set, each used equally often."""
        return wordings()

    def statics_answer(self, scene: Scene) -> Answer | None:
        """What the closed form says the answer is, to be compared with the simulation; None where there is none."""
        return None

    def critical(self, scene: Scene) -> Mapping[str, str | int]:
        """What decides in the scene, as the family's grounding task asks for it: its kind of question ("ask") and its blanks.

        Empty where that task has no such question. See `vlm_probe.stimuli.generate.make_matched`.

        Args:
            scene: What is shown.
        """
        return {}

    def cues(self) -> Mapping[str, Callable[[Scene], float]]:
        """Numbers that could stand in for physics, for baselines and the audit."""
        return {}

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Answers that need no physics, for baselines and the audit; the first is the heuristic observer's."""
        return {}

    def certify(self, scene: Scene, question: Question) -> dict[str, Any]:
        """Facts about an item that its card needs, found by the simulator (solvability of actions, say).

        Args:
            scene: What is shown.
            question: What is asked.

        Returns:
            Plain data; "working" lists all answers that work, where they were looked for.
        """
        return {}


def simulator_or_default(simulator: Simulator | None) -> Simulator:
    """The given engine, or the default one of this process."""
    return simulator if simulator is not None else get_simulator()


_BUILT_IN: dict[str, str] = {
    "towers-stability": "towers.stability:TowersStability",
    "towers-direction": "towers.collapse:TowersDirection",
    "towers-count": "towers.collapse:TowersCount",
    "towers-topblock": "towers.topblock:TowersTopblock",
    "towers-sideblock": "towers.sideblock:TowersSideblock",
    "towers-grounding": "towers.grounding:TowersGrounding",
    "balance-tilt": "balance.tilt:BalanceTilt",
    "balance-place": "balance.place:BalancePlace",
    "balance-heavier": "balance.heavier:BalanceHeavier",
    "balance-grounding": "balance.grounding:BalanceGrounding",
    "collision-outcome": "collision.outcome:CollisionOutcome",
    "collision-aim": "collision.aim:CollisionAim",
    "collision-launch": "collision.launch:CollisionLaunch",
    "collision-grounding": "collision.grounding:CollisionGrounding",
    "support-hold": "support.hold:SupportHold",
    "support-brace": "support.brace:SupportBrace",
    "support-remove": "support.remove:SupportRemove",
    "support-grounding": "support.grounding:SupportGrounding",
}
FAMILIES: dict[str, str] = {
    "towers": "towers-stability",
    "balance": "balance-tilt",
    "collision": "collision-outcome",
    "support": "support-hold",
}
"""Families and their headline judgement task, which is what a family name stands for on the command line."""


class UnknownTask(UnknownName):
    """No task of that name; the message lists the closest ones."""


def task_names() -> list[str]:
    """Every registered task: the built-in ones, then plug-ins (entry points in the group `probe.tasks`)."""
    return list(_locations())


@lru_cache(maxsize=64)
def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownTask: With the closest names.
        InvalidInput: If it is a plug-in that cannot be loaded.
    """
    locations = _locations()
    if name not in locations:
        raise UnknownTask(f"unknown task {name!r}: {did_you_mean(name, locations, cutoff=0.3)}")
    module, _, attribute = locations[name].partition(":")
    try:
        task = getattr(import_module(module), attribute)()
    except ProbeError:
        raise
    except Exception as error:  # of a plug-in, whose code is somebody's own
        if name in _BUILT_IN:
            raise
        raise InvalidInput(
            f"the plug-in {locations[name]} cannot be loaded ({type(error).__name__}: {reason_of(error)}): mend it, or"
            " uninstall its package"
        ) from error
    if task.name != name:
        raise UnknownTask(f"the plug-in {locations[name]} is registered as {name!r} but calls itself {task.name!r}")
    return task


def _locations() -> dict[str, str]:
    locations = {name: f"{__name__}.{place}" for name, place in _BUILT_IN.items()}
    for entry in entry_points(group="probe.tasks"):
        if entry.name in locations:
            raise UnknownTask(f"two tasks are called {entry.name!r}: {locations[entry.name]} and {entry.value}")
        locations[entry.name] = entry.value
    return locations
