"""Grounding: what is in the image? The questions that every family can ask, and the task that asks them.

A family's grounding task is a `GroundingTask` with a table of `TrialSpec`s: the ones made here (counting, colours, shapes, existence,
left and right) about its own objects, and its own (which way does the arrow point?).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.question import (
    THINK,
    Answer,
    ChoiceFormat,
    Grammar,
    IntegerFormat,
    Option,
    Question,
    Variant,
    named_options,
)
from vlm_probe.stimuli.scene import COLOURS, Body, Scene
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.tasks import SamplingFailed, Score, Task
from vlm_probe.stimuli.viewing import MIN_SEPARATION

About = dict[str, str | int]
"""What one question is about: the blanks of its wording."""
Objects = Callable[[Scene], Sequence[Body]]

LARGEST_COUNT = 6
"""The largest number that can be answered, unless there are more objects."""


@dataclass(frozen=True)
class TrialSpec:
    """One kind of question.

    Attributes:
        texts: Four wordings, with blanks named as in `About`.
        abouts: Everything in a scene that it can be asked about; empty if it cannot be asked of the scene. Listed so that
            right answers are balanced when the list is used evenly.
        answer: The right answer.
        grammar: Given the scene and the order of the options (0 or 1), the answer grammar and the sentence of the prompt
            that states it.
        tolerance: For measured numbers, how far a reply may be off in that scene; it loses a tenth of the reward for each
            such distance beyond.
    """

    texts: tuple[str, str, str, str]
    abouts: Callable[[Scene], list[About]]
    answer: Callable[[Scene, About], Answer]
    grammar: Callable[[Scene, int], tuple[Grammar, str]]
    tolerance: Callable[[Scene], float] | None = None


class GroundingTask(Task):
    """What is in the image?

    The condition's `build` names the kind of question, one of `asks`. After a colon it may name a layout, which is the
    family's affair.
    """

    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "grounding"
    asks: ClassVar[Mapping[str, TrialSpec]]

    @abstractmethod
    def sample_scene(self, rng: np.random.Generator, condition: Condition) -> Scene:
        """Any scene of the family with that count and layout, without regard to what would happen in it.

        Args:
            rng: Draws it.
            condition: Its count, and its layout.

        Raises:
            Unsatisfiable: If there is no such scene, or this draw found none.
        """

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene]:
        """One scene about which the question can be asked.

        Args:
            rng: Draws it.
            condition: Its build is the question.

        Raises:
            ValueError: If there is no such question.
            Unsatisfiable: If it cannot be asked of any of a hundred scenes.
        """
        ask = condition.build.partition(":")[0]
        if ask not in self.asks:
            raise InvalidInput(f"{self.name} knows no question {ask!r}; use one of {', '.join(self.asks)}")
        for _ in range(100):
            scene = self.sample_scene(rng, condition)
            if self.asks[ask].abouts(scene):
                return (scene,)
        raise SamplingFailed(f"{self.name}: {ask} cannot be asked with {condition.count} object(s)")

    def foil_condition(self, condition: Condition) -> Condition:
        """Grounding items have no foils but their mirror images."""
        return condition

    def with_more_objects(self, condition: Condition, level: int) -> Condition:
        """More objects, as long as each can have a colour of its own.

        Raises:
            Unsatisfiable: If there are more objects than colours.
        """
        larger = super().with_more_objects(condition, level)
        if larger.count > len(COLOURS):
            raise SamplingFailed(
                f"{larger.count} objects cannot all have colours of their own: there are {len(COLOURS)}"
            )
        return larger

    def margin(self, scene: Scene) -> float:
        """Always 0: no physics is asked about."""
        return 0.0

    def variants(self) -> tuple[Variant, ...]:
        """The usual wordings; `ask` follows from the condition and `detail` picks the object asked about."""
        return tuple(replace(v, detail=i) for i, v in enumerate(super().variants()))

    def possible_asks(self, scene: Scene) -> list[str]:
        """The kinds of question that can be asked about a scene."""
        return [name for name, ask in self.asks.items() if ask.abouts(scene)]

    def question(self, scene: Scene, variant: Variant) -> Question:
        """A question of kind `variant.ask` (by default the first); `variant.detail` picks what it is about.

        Args:
            scene: What is asked about.
            variant: The wording.

        Raises:
            ValueError: If that cannot be asked about the scene.
        """
        name = variant.ask or next(iter(self.asks))
        abouts = self.asks[name].abouts(scene)
        if not abouts:
            raise InvalidInput(
                f"{name} cannot be asked of this scene; it allows {', '.join(self.possible_asks(scene))}"
            )
        return self.ask_about(scene, {"ask": name, **abouts[variant.detail % len(abouts)]}, variant)

    def ask_about(self, scene: Scene, about: Mapping[str, str | int], variant: Variant) -> Question:
        """The question of kind about["ask"], whose blanks are the rest of `about`.

        Args:
            scene: What is asked about.
            about: Kind of question, and what it is about.
            variant: The wording.

        Raises:
            ValueError: If that cannot be asked about the scene.
        """
        name, blanks = str(about["ask"]), {key: value for key, value in about.items() if key != "ask"}
        if blanks not in self.asks[name].abouts(scene):
            raise InvalidInput(f"{name} cannot be asked about {blanks} in this scene")
        text = self.asks[name].texts[variant.paraphrase].format(**blanks)
        grammar, clause = self.asks[name].grammar(scene, variant.order)
        prompt = f"{text}{clause}" + (THINK if variant.style == "think" else "")
        return Question(prompt, grammar, variant.style, dict(about))

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The answer, read from the scene."""
        about = {key: value for key, value in question.about.items() if key != "ask"}
        return self.asks[question.about["ask"]].answer(scene, about)

    def score(self, scene: Scene, question: Question, answer: Answer, simulator: Simulator | None = None) -> Score:
        """Reward 1 if right; a measured number may be off by the tolerance, and loses a tenth for each one beyond."""
        truth, ask = self.solve(scene, question), self.asks[question.about["ask"]]
        if ask.tolerance is not None:
            error = abs(answer - truth) if isinstance(answer, int) and isinstance(truth, int) else 99
            tolerance = ask.tolerance(scene)
            # The nearest whole number is always right.
            success = error <= max(0.5, tolerance) + 1e-9
            reward = 1.0 if success else max(0.0, 0.9 - error / (10 * tolerance))
            return Score(success, reward, {"truth": truth, "error": error})
        return Score(answer == truth, float(answer == truth), {"truth": truth})


def words(*options: str) -> Callable[[Scene, int], tuple[Grammar, str]]:
    """The grammar of one word out of a few."""

    def grammar(scene: Scene, order: int) -> tuple[Grammar, str]:
        named, clause = named_options([Option(o, o) for o in options], order)
        return ChoiceFormat(named), f" Answer with one word: {clause}."

    return grammar


def number_of(objects: Objects) -> Callable[[Scene, int], tuple[Grammar, str]]:
    """The grammar of a count of objects, or of the number of one among them."""
    return lambda scene, order: (
        IntegerFormat(((1, max(LARGEST_COUNT, len(objects(scene)))),), ""),
        " Answer with a number.",
    )


def count(noun: str, objects: Objects) -> TrialSpec:
    """How many objects are there?

    Args:
        noun: What one of them is called.
        objects: What is counted.
    """
    texts = (
        f"How many {noun}s are there?",
        f"Count the {noun}s in the picture.",
        f"What is the number of {noun}s?",
        f"How many {noun}s do you see?",
    )
    return TrialSpec(texts, lambda scene: [{}], lambda scene, about: len(objects(scene)), number_of(objects))


def exists(noun: str, objects: Objects) -> TrialSpec:
    """Is there an object of that colour? Half of the colours asked about are there.

    Args:
        noun: What one of them is called.
        objects: What is looked among.
    """
    texts = (
        f"Is there a {{a}} {noun}?",
        f"Does the picture show a {{a}} {noun}?",
        f"Can you see a {{a}} {noun}?",
        f"Is any of the {noun}s {{a}}?",
    )

    def abouts(scene: Scene) -> list[About]:
        here = [b.colour for b in objects(scene)]
        absent = [c for c in COLOURS if c not in here]
        if not here or not absent:
            return []
        # Each list is repeated to a common length, so that yes and no alternate.
        return [{"a": pool[i % len(pool)]} for i in range(len(here) * len(absent)) for pool in (absent, here)]

    def answer(scene: Scene, about: About) -> Answer:
        return "yes" if any(b.colour == about["a"] for b in objects(scene)) else "no"

    return TrialSpec(texts, abouts, answer, words("yes", "no"))


def left_right(noun: str, objects: Objects) -> TrialSpec:
    """Is one object left or right of another, as seen in the image?

    Args:
        noun: What one of them is called.
        objects: What is compared.
    """
    texts = (
        f"Is the {{a}} {noun} left or right of the {{b}} {noun}?",
        f"Seen in the picture, where is the {{a}} {noun}: left or right of the {{b}} {noun}?",
        f"On which side of the {{b}} {noun} is the {{a}} {noun}?",
        f"Compared with the {{b}} {noun}, is the {{a}} {noun} further left or further right?",
    )

    def abouts(scene: Scene) -> list[About]:
        found = objects(scene)
        return [
            {"a": a.colour, "b": b.colour}
            for a in found
            for b in found
            if abs(a.position[0] - b.position[0]) >= MIN_SEPARATION
        ]

    def answer(scene: Scene, about: About) -> Answer:
        place = {b.colour: b.position[0] for b in objects(scene)}
        return "left" if place[str(about["a"])] < place[str(about["b"])] else "right"

    return TrialSpec(texts, abouts, answer, words("left", "right"))


def nth_colour(
    noun: str,
    objects: Objects,
    where: str = "from the left",
    clear: Callable[[Scene], bool] = lambda _: True,
) -> TrialSpec:
    """What colour is the n-th object? `objects` lists them in that order; asked where `clear` says that it can be told.

    An observer whose view of a scene is noisy answers from the order that it sees, however unclear.

    Args:
        noun: What one of them is called.
        objects: In the order in which they are counted.
        where: That order, in words.
        clear: Whether the order can be told in a scene.
    """
    texts = (
        f"What colour is {noun} {{n}} {where}?",
        f"Counting {where}, what is the colour of {noun} {{n}}?",
        f"Which colour does {noun} {{n}} have, counted {where}?",
        f"Name the colour of {noun} number {{n}} {where}.",
    )
    return TrialSpec(
        texts,
        lambda scene: [{"n": i + 1} for i in range(len(objects(scene)))] if clear(scene) else [],
        lambda scene, about: objects(scene)[int(about["n"]) - 1].colour,
        words(*COLOURS),
    )


def shape(noun: str, objects: Objects, shape_word: Callable[[Body], str], shape_words: Sequence[str]) -> TrialSpec:
    """What shape has the object of that colour?

    Args:
        noun: What one of them is called.
        objects: What may be asked about.
        shape_word: What the shape of a body is called.
        shape_words: All such words, in the order of the options.
    """
    texts = (
        f"What shape is the {{a}} {noun}?",
        f"Which shape does the {{a}} {noun} have?",
        f"Name the shape of the {{a}} {noun}.",
        f"Look at the {{a}} {noun}: what shape is it?",
    )

    def answer(scene: Scene, about: About) -> Answer:
        return next(shape_word(b) for b in objects(scene) if b.colour == about["a"])

    return TrialSpec(texts, lambda scene: [{"a": b.colour} for b in objects(scene)], answer, words(*shape_words))
