"""Ten thousand replies that a model might give, and some that only an attacker would: read and scored, never an exception."""

from __future__ import annotations

import json
import math
import time
from functools import cache
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_probe.probes.readout import Scorer
from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.question import IntegerFormat, Status, Variant, parse
from vlm_probe.stimuli.tasks import get_task, task_names

TASKS = [name for name in task_names() if get_task(name).family in ("towers", "balance", "collision", "support")]
SCORED = 8
"""Of an action's answers, so many are carried out: each takes a simulation."""
WRAPPED = (
    *(
        "{}",
        " {} ",
        "{}.",
        "**{}**",
        '"{}"',
        "{}, because",
        "The answer is {}",
        "answer: {}",
        "Answer = {} cm",
        "\\boxed{{{}}}",
    ),
    *(
        "<answer>{}</answer>",
        "<ANSWER> {}\n</ANSWER>",
        "<think>{}</think>",
        "<answer>{}",
        "{}</answer>",
        "no {}",
        "not {}",
    ),
    *(
        "{} or {}",
        "x = {}",
        "({})",
        "[{}]",
        "{} degrees",
        "−{}",
        "+{}",
        "{}e3",
        "{}.5",
        "0{}",
        "1{}",
        "{}\u2028",
        "<script>{}</script>",
    ),
)
ODD = st.sampled_from(
    [
        "",
        " ",
        "\n",
        "\0",
        "\ud800",
        "٣",
        "²",
        "½",
        "Ⅻ",
        "İ",
        "ß",
        "ﬁ",
        "９",
        "NaN",
        "inf",
        "1e309",
        "-0",
        "--1",
        "None",
        "🟥",
    ]
)


@cache
def item_of(name: str) -> Item:
    """An item of a task, as a set would have it, without its picture."""
    task, rng = get_task(name), np.random.default_rng(3)
    condition = task.conditions()[0]
    scene = task.sample(rng, condition)
    ask = condition.build.partition(":")[0] if task.kind == "grounding" else ""
    variant = Variant(ask=ask)
    question = task.question(scene, variant)
    return Item(
        item_id=name,
        task=name,
        task_version=task.version,
        file_name="",
        image_sha256="",
        question=question,
        answer=question.grammar.candidates()[0][1],
        margin=0.5,
        condition=Condition(3),
        variant=variant,
        pair_id="",
        group_id="",
        role="base",
        scene=scene,
        scene_sha256=scene.content_hash,
    )


def replies(item: Item) -> st.SearchStrategy[str]:
    """Legal answers in all kinds of wrapping, numbers near and far, and anything at all."""
    texts = [text for text, _ in item.question.grammar.candidates()]
    legal = st.sampled_from(texts[:: max(1, len(texts) // SCORED)][:SCORED])
    numbers = st.integers(-(10**30), 10**30).map(str) | st.floats(allow_nan=True).map(str)
    core = legal | numbers | ODD | st.text(max_size=30)
    wrapped = st.builds(lambda frame, one: frame.replace("{}", one), st.sampled_from(WRAPPED), core)
    return wrapped | st.lists(wrapped, max_size=4).map(" ".join) | st.text(max_size=200)


def check(item: Item, scorer: Scorer, worth: set[object], reply: str) -> None:
    """What must hold for any reply."""
    grammar = item.question.grammar
    for style in ("direct", "think"):
        parsed = parse(reply, grammar, style)
        assert parsed.raw == reply and parsed.status in get_args(Status)
        assert (parsed.value is None) == (parsed.status != "ok")
        if parsed.value is not None:
            assert grammar.text(parsed.value) in {text for text, _ in grammar.candidates()}
    parsed = item.question.parse(reply)
    simulated = isinstance(grammar, IntegerFormat)
    if simulated and parsed.value is not None and parsed.value not in worth and len(worth) >= SCORED:
        return  # carried out are some answers only
    worth.add(parsed.value)
    row = scorer.reply(item, reply)
    assert row["raw"] == reply and isinstance(row["success"], bool)
    assert 0 <= row["reward"] <= 1 and math.isfinite(row["reward"])
    assert row["reward"] == 0 or row["status"] == "ok"
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def put_through(name: str, n: int) -> None:
    item, scorer = item_of(name), Scorer()
    worth: set[object] = {None}

    @settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(replies(item))
    def any_reply(reply: str) -> None:
        check(item, scorer, worth, reply)

    any_reply()


@pytest.mark.parametrize("name", TASKS)
def test_any_reply_is_read_and_scored(name: str) -> None:
    put_through(name, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_ten_thousand_replies_are_read_and_scored(name: str) -> None:
    put_through(name, 10_000 // len(TASKS))


@pytest.mark.parametrize(
    "reply",
    [
        "a" + " " * 100_000 + "a",
        "<answer>" * 20_000,
        "<answer>3</answer>" * 2 + "<answer>" * 20_000,
        "1" + " " * 100_000 + "x",
        "1" * 100_000,
        "answer:" + " " * 100_000,
        "*" * 100_000,
        "yes, " * 20_000,
    ],
    ids=["white", "open", "opened-again", "number-white", "digits", "answer-white", "stars", "words"],
)
def test_no_reply_takes_long(reply: str) -> None:
    for name in ("towers-stability", "towers-topblock", "towers-sideblock"):
        begun = time.process_time()
        item_of(name).question.parse(reply)
        assert (
            time.process_time() - begun < 5
        )  # a search that backtracks takes minutes; a collection of garbage, a second
