"""How replies are read: a labelled corpus, frames around answers that change nothing, and what no frame makes an answer."""

from __future__ import annotations

import gc
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_probe.stimuli.question import ChoiceFormat, Grammar, IntegerFormat, Option, Question, grammar_from_dict, parse

CORPUS = Path(__file__).parent.parent / "data" / "replies.jsonl"
"""First the questions, then replies to them, each with the readings that are right, the best one first; null is invalid."""
ROWS = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").split("\n") if line]
QUESTIONS = {row["question"]: row for row in ROWS if "grammar" in row}
REPLIES = [row for row in ROWS if "reply" in row]

# What any reader passes over.
FRAMES = (
    *(
        "{}",
        " {}\n",
        "{}.",
        "{}!",
        "{}…",
        "{}。",
        "{}！",
        '"{}"',
        "'{}'",
        "“{}”",
        "‘{}’",
        "«{}»",
        "「{}」",
        "({})",
        "[{}]",
    ),
    *(
        "**{}**",
        "**{}.**",
        "__{}__",
        "*{}*",
        "_{}_",
        "`{}`",
        "```\n{}\n```",
        "# {}",
        "<b>{}</b>",
        "<p>{}</p>",
        "$\\text{{}}$",
    ),
    *(
        "Answer: {}",
        "answer = {}",
        "Answer → {}",
        "**Answer:** {}",
        "**Answer: {}**",
        "### Answer\n{}",
        "Answer:\n\n**{}**",
    ),
    *("A: {}", "Final answer: {}", "Conclusion: {}", "答案：{}", "答案是{}。", "Assistant: {}", "Sure! {}", "So: {}"),
    *(
        "The answer is {}.",
        "My answer is {}",
        "The final answer is **{}**.",
        "Therefore, the answer is {}.",
        "Therefore, {}.",
    ),
    *("I think {}", "I'd say {}.", "I believe the answer is {}.", "Based on the picture, {}."),
    *("\\boxed{{}}", "$\\boxed{{}}$", "The final answer is $\\boxed{\\text{{}}}$.", "<|begin_of_box|>{}<|end_of_box|>"),
    *("<answer>{}</answer>", "<answer>\n{}.\n</answer>", "<think>hm</think>{}", "no, so 3, left</think>{}"),
    *(
        '{"answer": "{}"}',
        '```json\n{"answer": "{}"}\n```',
        "{}</s>",
        "{}<|im_end|>",
        "<|im_start|>assistant\n{}<|im_end|>",
    ),
    *(
        "It is hard to see.\n\n{}",
        "It is hard to see.\n\n**{}**",
        "It is hard to see.\n\nAnswer: {}",
        "Question: what?\nAnswer: {}",
    ),
    *(
        "{}, because of the weight.",
        "{} because of the weight",
        "{} (because of the weight)",
        "{} – because of the weight",
    ),
    *("{}: because of the weight", "{}. The tower looks so.", "{}\n\nExplanation: the tower looks so."),
)
ANSWERS = {
    "yes_no": ("yes", "No"),
    "tilt": ("left", "Balanced", "to the left", "the left side"),
    "colour": ("red", "the red block"),
    "shift": ("5", "-5", "5 cm", "−5 cm", "5 cm to the left", "left 5 cm", "five", "minus five", "5.0"),
    "angle": ("12", "-12°", "12 degrees", "12 degrees to the left"),
    "pair": ("3, 30", "(3, 30)", "x = 3, y = 30", "3 cm right, 30 cm up", "right 3, up 30", "-3, 30"),
    "count": ("3", "three", "3 blocks"),
}
# What states no answer or several, in any frame.
NONE = {
    "yes_no": (
        *(
            "yes or no",
            "yes/no",
            "not yes",
            "yes if glued",
            "yes?",
            "yes and no",
            "yes, unless pushed",
            "maybe yes",
            "yes, no",
        ),
        *("neither yes nor no", "no idea", "no block overhangs", "yes… no", "only if no wind", "yes, or no"),
    ),
    "tilt": (
        *(
            "left or right",
            "left/right",
            "not left",
            "not balanced",
            "left and right",
            "left if free",
            "left?",
            "left, right",
        ),
        *(
            "from left to right",
            "the left side is heavier",
            "unbalanced",
            "either left or right",
            "maybe left",
            "what is left",
        ),
    ),
    "colour": ("red or blue", "red and blue", "not red", "red?", "reddish", "red/blue", "dark red"),
    "shift": (
        *(
            "5 or 6",
            "5-6",
            "5–6",
            "5 to 6",
            "5, 6",
            "5/2",
            "5 mm",
            "0.05 m",
            "2.5",
            "2,5",
            "5e-1",
            "±5",
            ">5",
            "5?",
            "5+",
            "5%",
        ),
        *(
            "at least 5",
            "5 if free",
            "between 5 and 6",
            "not 5",
            "5 blocks",
            "5 ± 1",
            "half",
            "up to 5",
            "5 cm 3 mm",
            "maybe 5",
        ),
        *(
            "5 cm left or right",
            "-5 cm to the right",
            "5 and 6",
            "5 degrees",
            "5 6",
            "99",
            "5 inches",
            "5 cm or 6 cm",
            "1/2",
        ),
    ),
    "angle": ("12 or 13", "12 cm", "12-13 degrees", "12.5", "0.2 rad", "12?", "between 12 and 13", "-12 to the right"),
    "pair": (
        "3",
        "3-30",
        "3, 30, 5",
        "3 or 4, 30",
        "(3, 30) or (4, 30)",
        "3, 99",
        "3.5, 30",
        "3 to 30",
        "3 x 30",
        "right 3",
    ),
    "count": (
        "3 or 4",
        "3-4",
        "3?",
        "at least 3",
        "third",
        "3 cm",
        "2.5",
        "no blocks",
        "1, 2, 3",
        "3/4",
        "one of them",
    ),
}
HOSTILE = (
    *(
        "<answer>",
        "</think>",
        "<think>",
        "yes, ",
        "yes. ",
        "answer is ",
        "answer: 3, ",
        "so left, ",
        "(",
        "{",
        '{"answer": 3}',
    ),
    *(
        "\\boxed{",
        "\\boxed{3}",
        "\\text{",
        "$",
        "**left** ",
        "5, ",
        "5 ",
        "- ",
        "\n- ",
        "~",
        '"',
        '5"',
        "–",
        "<",
        "答案 ",
        "x = ",
    ),
    *(
        "i think ",
        "let me re-",
        "as seen in the ",
        "no, wait ",
        "tilts to the ",
        "=",
        "-",
        "...",
        "'",
        "&amp;",
        "\nuser:",
        "assistant: ",
    ),
)


def grammar_of(name: str) -> Grammar:
    return grammar_from_dict(QUESTIONS[name]["grammar"])


def reading(name: str, reply: str) -> object:
    question = QUESTIONS[name]
    value = parse(reply, grammar_of(name), question["style"], question["prompt"]).value
    return list(value) if isinstance(value, tuple) else value


def framed(frame: str, core: str) -> str:
    return frame.replace("{}", core)


def test_the_corpus_is_read_as_labelled() -> None:
    wrong = [
        f"{row['question']} {row['reply']!r}: {found!r}, right {row['right']}"
        for row in REPLIES
        if (found := reading(row["question"], row["reply"])) not in row["right"]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_corpus_has_replies_of_every_kind() -> None:
    kinds = Counter(row["question"] for row in REPLIES)
    assert len(REPLIES) > 3000 and set(kinds) == set(QUESTIONS)
    best = [row["right"][0] for row in REPLIES]
    assert 0.3 < sum(value is None for value in best) / len(best) < 0.7
    # Not a value for the readings that are asked for only: most of those are found too.
    found = [reading(row["question"], row["reply"]) == row["right"][0] for row in REPLIES]
    assert sum(found) / len(found) > 0.93


@pytest.mark.parametrize("name", ANSWERS)
def test_frames_change_no_answer(name: str) -> None:
    for core in ANSWERS[name]:
        value = reading(name, core)
        assert value is not None, core
        assert [f for f in FRAMES if reading(name, framed(f, core)) != value] == [], core


@pytest.mark.parametrize("name", NONE)
def test_no_frame_makes_an_answer_of_what_is_none(name: str) -> None:
    for core in NONE[name]:
        assert [framed(f, core) for f in FRAMES if reading(name, framed(f, core)) is not None] == [], core


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_frames_within_frames_give_the_answer_or_nothing(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ANSWERS)))
    core = data.draw(st.sampled_from(ANSWERS[name] + NONE[name]))
    inner, outer = data.draw(st.sampled_from(FRAMES)), data.draw(st.sampled_from(FRAMES))
    expected = reading(name, core)
    assert reading(name, framed(outer, framed(inner, core))) in (
        {expected, None} if name != "pair" else [expected, None]
    )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_two_different_answers_are_none(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ANSWERS)))
    one, other = data.draw(st.lists(st.sampled_from(ANSWERS[name]), min_size=2, max_size=2))
    first, second = data.draw(st.lists(st.sampled_from(FRAMES), min_size=2, max_size=2))
    between = data.draw(st.sampled_from(["\n", "\n\n", ". ", ". Wait. ", "\nAlternatively:\n"]))
    turns = any(mark in first + second for mark in ("think", "im_", "/s>"))
    blocks = ("<answer>" in first) != ("<answer>" in second)  # these are the answer, whatever stands outside
    marker = "\n" not in between and (second.startswith("#") or one.isdigit())  # "12. It is ..." is an item of a list
    if reading(name, one) == reading(name, other) or turns or blocks or marker:
        return
    assert reading(name, framed(first, one) + between + framed(second, other)) is None


WORDS = (
    "yes no left right balanced red blue 3 5 -5 30 cm mm three five up down the answer is not or and if because so it tilts to moves there are"
    " blocks wait actually maybe , . ? : ( ) <answer> </answer> <think> </think> ** \\boxed{ } - –"
)
VOCABULARY = [*WORDS.split(), "\n"]
NUMBERS = {"3": "3|three", "5": "5|five", "30": "30"}


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY), max_size=14), st.sampled_from(sorted(ANSWERS)))
def test_only_what_is_said_outside_of_thoughts_is_read(words: list[str], name: str) -> None:
    reply = " ".join(words)
    value = reading(name, reply)
    if value is None:
        return
    spoken = re.sub(r"<think>.*?</think>", " ", reply, flags=re.DOTALL).rpartition("</think>")[2]
    grammar = grammar_of(name)
    numbers = value if isinstance(value, list) else [value]
    said = (
        [grammar.text(str(value))]
        if isinstance(grammar, ChoiceFormat)
        else [NUMBERS.get(str(abs(n)), str(abs(n))) for n in numbers]
    )
    assert all(re.search(rf"\b(?:{word})\b", spoken) for word in said)
    assert not (
        isinstance(grammar, ChoiceFormat)
        and re.search(rf"\bor {said[0]}\b|\bnot {said[0]}\b", spoken)
        and words.count(said[0]) == 1
    )


@pytest.mark.parametrize("name", ["tilt", "shift", "pair"])
def test_time_grows_with_the_length_and_no_faster(name: str) -> None:
    gc.collect()
    gc.disable()  # else a collection of all that other tests have left may fall into the shorter or the longer one
    try:
        _times_grow(name)
    finally:
        gc.enable()


def _times_grow(name: str) -> None:
    for piece in HOSTILE:
        times = []
        for size in (2_000, 20_000):
            begun = time.process_time()
            reading(name, piece * (size // len(piece)))
            times.append(time.process_time() - begun)
        # Ten times the length: a search that goes again from every place would take a hundred times as long.
        assert times[1] < 0.6 or times[1] < 40 * times[0], (piece, times)


PAGE = Path(__file__).parent.parent.parent / "docs" / "replies.md"
NAMED = {"yes/no": "yes_no", "move": "pair"}


def test_the_examples_of_the_page_are_read_as_it_says() -> None:
    rows = re.findall(r"^\|[^|]*\| ([a-z/]+) \| `(.+)` \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 45
    for name, shown, expected in rows:
        question = NAMED.get(name, name)
        parsed = parse(shown.replace("\\n", "\n"), grammar_of(question))
        said = "-" if parsed.value is None else grammar_of(question).text(parsed.value)
        assert said == expected, (name, shown, parsed)


def test_the_prompt_says_which_way_is_positive() -> None:
    grammar = IntegerFormat(((-20, 20),))
    for prompt, left in (
        ("How far? Right is positive, left is negative.", -5),
        ("How far? Left is positive, right is negative.", 5),
        ("How far? Positive degrees turn it to the right, negative to the left.", -5),
        ("How far?", None),
    ):
        assert Question(prompt, grammar).parse("5 cm to the left").value == left
    assert parse("5 cm to the left", grammar).value == -5


def test_a_question_of_its_own_is_not_the_one_that_was_asked() -> None:
    asked = Question(
        "Will this tower stay up? Answer with one word: yes or no.",
        ChoiceFormat((Option("yes", "stands"), Option("no", "falls"))),
    )
    assert asked.parse("Will this tower stay up? No.").value == "falls"
    assert asked.parse("Will this tower fall? No.").value is None
    assert asked.parse("Does the top block overhang? Yes. It falls.").value is None
