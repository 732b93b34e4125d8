"""What `tiny` is asked in pretraining: what is to be seen and, for the format alone, physics with random answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stimuli.question import THINK, Answer, Integers, Question, Variant
from stimuli.scene import Scene
from stimuli.tasks import get_task
from stimuli.tasks.towers import collapse, grounding, sideblock, stability, topblock
from stimuli.tasks.towers.grounding import TowersGrounding
from stimuli.tasks.towers.tower import tower_blocks

ASK_WEIGHTS = {
    "count": 0.6,
    "nth-colour": 1.2,
    "left-right": 3.0,
    "exists": 0.8,
    "shift": 2.0,
    "which-number": 0.8,
    "position": 1.5,
    "above-colour": 0.8,
    "shift-between": 2.0,
}
"""How often each kind of question is asked, before those that a picture does not allow are left out."""
SHORT = {
    "count": "How many?",
    "nth-colour": "What colour is block {n}?",
    "left-right": "Is {a} left or right of {b}?",
    "exists": "Is there {a}?",
    "shift": "How far is the top shifted?",
    "which-number": "Which number is {a}?",
    "position": "Where is {a}?",
    "above-colour": "What colour is above {a}?",
    "shift-between": "How far is {a} from {b}?",
}
"""Wordings of few tokens: pretraining is paid for by the token."""
PHYSICS = ("towers-stability", "towers-direction", "towers-count", "towers-topblock", "towers-sideblock")
CAPTION_REQUESTS = ("Describe the picture.", "What do you see?", "What is in the picture?", "Describe the blocks.")

_GROUNDING = TowersGrounding()


def draw_ask(rng: np.random.Generator, scene: Scene) -> str:
    """A kind of question that the scene allows."""
    asks = _GROUNDING.possible_asks(scene)
    weights = np.array([ASK_WEIGHTS[a] for a in asks])
    return asks[rng.choice(len(asks), p=weights / weights.sum())]


def perception(
    rng: np.random.Generator, scene: Scene, lengths: tuple[float, float, float], ask: str | None = None
) -> tuple[str, str]:
    """A question about what is to be seen, and its answer.

    Args:
        rng: Source of randomness.
        scene: What the picture shows.
        lengths: Shares of short wordings, of the task's wordings without its answer format, and of its full prompts.
        ask: The kind of question; by default drawn.
    """
    ask = ask or draw_ask(rng, scene)
    form = int(rng.choice(3, p=lengths))
    variant = Variant(
        paraphrase=int(rng.integers(4)),
        order=int(rng.integers(2)),
        style="think" if form == 2 and rng.random() < 0.06 else "direct",
        ask=ask,
        detail=int(rng.integers(5040)),  # divisible by 1 to 10, so that every object is equally likely
    )
    question = _GROUNDING.question(scene, variant)
    truth = _GROUNDING.solve(scene, question)
    if not sayable(truth, question):
        return perception(rng, scene, lengths)
    answer = question.grammar.text(truth)
    if form == 0:
        return SHORT[ask].format(**question.about), answer
    if form == 1:
        return _GROUNDING.asks[ask].texts[variant.paraphrase].format(**question.about), answer
    return question.prompt, _reply(scene, question, answer)


def sayable(answer: Answer, question: Question) -> bool:
    """Whether the question's grammar has that answer: loose blocks can be further apart than a shift can say."""
    try:
        question.grammar.text(answer)
    except ValueError:
        return False
    return True


def physics_format(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """A real prompt of a physics task with an answer drawn uniformly from its grammar, whatever the picture shows."""
    names = [n for n in PHYSICS if n != "towers-sideblock" or any(b.name == "side" for b in scene.bodies)]
    task = get_task(names[rng.integers(len(names))])
    variants = task.variants()
    variant = variants[rng.integers(len(variants))]
    question = task.question(scene, replace(variant, style="think" if rng.random() < 0.3 else "direct"))
    grammar = question.grammar
    if isinstance(grammar, Integers):
        answer = ", ".join(str(rng.integers(low, high + 1)) for low, high in grammar.ranges)
    else:
        options = grammar.candidates()
        answer = options[rng.integers(len(options))][0]
    return question.prompt, _reply(scene, question, answer)


def caption(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """A request to describe the picture, and a description from top to bottom or from left to right."""
    tower = tower_blocks(scene)
    stacked = " on ".join(f"a {b.colour} block" for b in reversed(tower))
    loose = [b for b in scene.bodies if b not in tower]
    row = ", ".join(f"a {b.colour} block" for b in sorted(loose, key=lambda b: b.position[0]))
    text = " and ".join(part for part in (stacked, row) if part)
    return CAPTION_REQUESTS[rng.integers(len(CAPTION_REQUESTS))], f"{text} ."


def prompt_texts() -> Iterator[str]:
    """Every wording that the model has to read or write, for the tokenizer."""
    for asked in _GROUNDING.asks.values():
        yield from (t.format(a="red", b="blue", n=1) for t in asked.texts)
    yield from (t.format(a="red", b="blue", n=1) for t in SHORT.values())
    yield from (*stability.STAY, *stability.FALL, *collapse.DIRECTION_TEXTS, *collapse.COUNT_TEXTS)
    yield from (*topblock.TEXTS, *sideblock.TEXTS, grounding.scale(10), topblock.ask(10), sideblock.ask(10, 4), THINK)
    yield "Answer with one word: yes or no. Answer with one word: left or right. Answer with a number from 1 to 4."
    yield "Answer with one whole number of centimetres from -30 to 30. Answer with a number."
    yield "Answer with one word: red, green, blue, yellow, purple or orange."
    yield "i see 3 blocks . a red block on a green block"
    yield from CAPTION_REQUESTS


def _reply(scene: Scene, question: Question, answer: str) -> str:
    if question.style == "direct":
        return answer
    count = len(scene.bodies)
    return f"<think>i see {count} block{'s' if count > 1 else ''} .</think><answer>{answer}</answer>"
