"""What `tiny` is asked in pretraining: what is to be seen and, for the format alone, physics with every answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from vlm_probe.probes.tiny.pictures import Picture, draw_scene, physics_tasks
from vlm_probe.stimuli.question import PARAPHRASES, THINK, Answer, IntegerFormat, Question, Variant
from vlm_probe.stimuli.scene import COLOURS, Body, Scene
from vlm_probe.stimuli.tasks import FAMILIES, Task, get_task
from vlm_probe.stimuli.tasks.grounding import GroundingTask

ASK_WEIGHTS = {
    "count": 3.0,
    "posts": 0.5,
    "nth-colour": 3.2,
    "left-right": 0.8,
    "exists": 0.8,
    "shift": 2.5,
    "which-number": 0.4,
    "position": 2.0,
    "above-colour": 1.2,
    "shift-between": 4.0,
    "shape": 9.0,
    "side": 0.6,
    "arm": 0.6,
    "pose": 1.2,
    "distance": 2.0,
    "mover": 1.5,
    "heading": 1.2,
    "up-down": 2.5,
    "above": 0.4,
    "arrow-side": 1.0,
    "arrow-target": 1.0,
}
"""How often each kind of question is asked, before those that an image does not allow are left out."""
SHORT = {
    "count": "How many?",
    "posts": "How many posts?",
    "nth-colour": "What colour is number {n}?",
    "left-right": "Is {a} left or right of {b}?",
    "exists": "Is there {a}?",
    "shift": "How far is the top shifted?",
    "which-number": "Which number is {a}?",
    "position": "Where is {a}?",
    "above-colour": "What colour is above {a}?",
    "shift-between": "How far is {a} from {b}?",
    "shape": "What shape is {a}?",
    "side": "On which side is {a}?",
    "arm": "Which arm is longer?",
    "pose": "Which end is down?",
    "distance": "How far is {a}?",
    "mover": "Which moves?",
    "heading": "Does it move left or right?",
    "up-down": "Does it move up or down?",
    "above": "Is {a} above or below?",
    "arrow-side": "Where does the arrow point?",
    "arrow-target": "What does the arrow touch?",
}
"""Wordings of few tokens: pretraining is paid for by the token."""
PLACE = "Place of {a}?"
"""A stepping stone for every family: the middle of the thing of that colour, in hundredths of the image from its upper left."""
CAPTION_REQUESTS = ("Describe the picture.", "What do you see?", "What is in the picture?", "Describe the objects.")
SHAPE_NAMES = {"box": "box", "cylinder": "cylinder", "sphere": "ball", "wedge": "wedge", "cradle": "stand"}
LEFT_OUT = {"balance-place": ("count", "exists"), "collision-launch": tuple(SHORT)}
"""Questions that scenes of these tasks leave unclear: whether what is not yet on the plank counts, and which moment is meant."""
THINKING, FORMAT_THINKING = 0.06, 0.35
"""Shares of the full prompts that ask for thinking first, of perception and of the physics tasks."""

Lengths = tuple[float, float, float]
"""Shares of short wordings, of a task's wordings without its answer format, and of its full prompts."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and the reply that is taught.

    Attributes:
        prompt: The text next to the image.
        reply: What is to be said.
        kind: "family/ask" for questions of a grounding task in their full wording, else empty.
        question: The question, where it is one of a task.
    """

    prompt: str
    reply: str
    kind: str = ""
    question: Question | None = None


def grounding(family: str) -> GroundingTask:
    """The grounding task of a family."""
    return cast(GroundingTask, get_task(f"{family}-grounding"))


def seen_by(task: str) -> GroundingTask:
    """The grounding task of the family of another task."""
    return grounding(get_task(task).family)


def named(scene: Scene) -> dict[str, Body]:
    """What can be named by its colour, by colour; nothing if two things have the same."""
    coloured = [body for body in scene.bodies if body.colour in COLOURS]
    found = {body.colour: body for body in coloured}
    return found if len(found) == len(coloured) else {}


def possible_asks(task: str, scene: Scene) -> list[str]:
    """The kinds of question of the family's grounding task that can be asked about a scene of a task.

    Args:
        task: Name of the task whose sampler made the scene.
        scene: The scene.
    """
    if not named(scene):
        return []
    return [ask for ask in seen_by(task).possible_asks(scene) if ask not in LEFT_OUT.get(task, ())]


def draw_ask(rng: np.random.Generator, asks: list[str]) -> str:
    """One of the kinds of question.

    Args:
        rng: Draws it.
        asks: To choose from, as often as `ASK_WEIGHTS` says.
    """
    weights = np.array([ASK_WEIGHTS[a] for a in asks])
    return asks[rng.choice(len(asks), p=weights / weights.sum())]


def perception(
    rng: np.random.Generator, picture: Picture, asks: list[str], lengths: Lengths, ask: str | None = None
) -> Exchange:
    """A question about what is to be seen, and its answer.

    Args:
        rng: Source of randomness.
        picture: What is asked about.
        asks: Its `possible_asks`.
        lengths: Shares of the wordings.
        ask: The kind of question; by default drawn.
    """
    task, scene = seen_by(picture.task), picture.scene
    while True:
        kind = ask or draw_ask(rng, asks)
        form = int(rng.choice(3, p=lengths))
        variant = Variant(
            paraphrase=int(rng.integers(PARAPHRASES)),
            order=int(rng.integers(2)),
            style="think" if form == 2 and rng.random() < THINKING else "direct",
            ask=kind,
            detail=int(rng.integers(5040)),  # divisible by 1 to 10, so that every object is equally likely
        )
        question = task.question(scene, variant)
        truth = task.solve(scene, question)
        if sayable(truth, question):
            break
        ask = None
    answer = question.grammar.text(truth)
    if form == 0:
        return Exchange(SHORT[kind].format(**question.about), answer)
    if form == 1:
        return Exchange(task.asks[kind].texts[variant.paraphrase].format(**question.about), answer)
    return Exchange(question.prompt, _reply(scene, question, answer), f"{task.family}/{kind}", question)


def place(rng: np.random.Generator, picture: Picture) -> Exchange | None:
    """Where in the image the thing of some colour is; in a strip, in its last moment. None if nothing can be named.

    Args:
        rng: Draws the thing.
        picture: What is asked about.
    """
    things = named(picture.scene)
    visible = [c for c, body in things.items() if not np.isnan(picture.boxes[-1, picture.scene.bodies.index(body), 0])]
    if not visible:
        return None
    colour = visible[rng.integers(len(visible))]
    x, y = picture.boxes[-1, picture.scene.bodies.index(things[colour]), :2]
    return Exchange(PLACE.format(a=colour), f"{int(100 * x)}, {int(100 * y)}")


def sayable(answer: Answer, question: Question) -> bool:
    """Whether the question's grammar has that answer: loose blocks can be further apart than a shift can say."""
    try:
        question.grammar.text(answer)
    except ValueError:
        return False
    return True


def physics_format(rng: np.random.Generator, task: Task, scene: Scene) -> list[Exchange]:
    """A prompt of the physics task that the scene is from, with all answers in random order; with a random one if they are numbers.

    With every answer to the same image there is nothing about the image that could be taken for a hint.

    Args:
        rng: Draws wording and answer.
        task: With physics.
        scene: Made by its sampler.
    """
    variants = task.variants()
    variant = variants[rng.integers(len(variants))]
    if rng.random() < FORMAT_THINKING:
        variant = replace(variant, style="think")
    question = task.question(scene, variant)
    grammar = question.grammar
    if isinstance(grammar, IntegerFormat):
        answers = [", ".join(str(rng.integers(low, high + 1)) for low, high in grammar.ranges)]
    else:
        options = [text for text, _ in grammar.candidates()]
        answers = [options[i] for i in rng.permutation(len(options))]
    return [Exchange(question.prompt, _reply(scene, question, answer), question=question) for answer in answers]


def caption(rng: np.random.Generator, scene: Scene) -> Exchange:
    """A request to describe the image, and a list of what has a colour, from left to right.

    Args:
        rng: Draws the request.
        scene: What is described.
    """
    things = sorted(named(scene).values(), key=lambda body: body.position[0])
    text = ", ".join(f"a {body.colour} {SHAPE_NAMES[body.shape]}" for body in things)
    return Exchange(CAPTION_REQUESTS[rng.integers(len(CAPTION_REQUESTS))], f"{text} .")


def prompt_texts() -> Iterator[str]:
    """Every sentence that the model has to read or write, for the tokenizer; numbers and colours are examples."""
    rng = np.random.default_rng(0)
    sentences: dict[str, None] = {}
    for family in FAMILIES:
        for asked in grounding(family).asks.values():
            sentences |= dict.fromkeys(text.format(a="red", b="blue", n=1) for text in asked.texts)
    for task in [*map(grounding, FAMILIES), *physics_tasks()]:
        shown = {condition.shown: condition for condition in task.conditions()}
        for condition in shown.values():
            scene = draw_scene(rng, task, condition)
            asks = task.possible_asks(scene) if isinstance(task, GroundingTask) else [""]
            for variant in task.variants():
                for ask in asks:
                    prompt = task.question(scene, replace(variant, ask=ask)).prompt
                    sentences |= dict.fromkeys(part.strip() for part in prompt.split(". "))
    yield from sentences
    yield THINK
    yield from (text.format(a="red", b="blue", n=1) for text in (*SHORT.values(), PLACE))
    yield f"i see 3 objects . {', '.join(f'a red {name}' for name in SHAPE_NAMES.values())}"
    yield ", ".join(COLOURS)
    yield from CAPTION_REQUESTS


def _reply(scene: Scene, question: Question, answer: str) -> str:
    if question.style == "direct":
        return answer
    count = sum(body.colour in COLOURS for body in scene.bodies)
    return f"<think>i see {count} object{'s' if count > 1 else ''} .</think><answer>{answer}</answer>"
