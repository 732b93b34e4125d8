"""The parser reads what is plainly stated, refuses the rest, and never raises."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlm_probe.stimuli.question import ChoiceFormat, IntegerFormat, Option, Question, grammar_from_dict, parse

YES_NO = ChoiceFormat((Option("yes", "stands"), Option("no", "falls")))
COLOURS = ChoiceFormat(tuple(Option(c, c) for c in ("red", "green", "blue")))
ONE = IntegerFormat(((-20, 20),))
TWO = IntegerFormat(((-30, 30), (0, 50)))


@pytest.mark.parametrize(
    ("reply", "value", "status"),
    [
        ("yes", "stands", "ok"),
        ("  Yes.\n", "stands", "ok"),
        ("**No**", "falls", "ok"),
        ('"no"', "falls", "ok"),
        ("Yes, because every block is supported.", "stands", "ok"),
        ("No. The top block overhangs.", "falls", "ok"),
        ("The answer is yes.", "stands", "ok"),
        ("I look at the tower.\nAnswer: no", "falls", "ok"),
        (r"so \boxed{yes}", "stands", "ok"),
        ("<answer>no</answer>", "falls", "ok"),
        ("<think>yes yes</think><answer> no </answer>", "falls", "ok"),
        ("", None, "empty"),
        ("   \n", None, "empty"),
        ("I have no idea", None, "no_answer"),
        ("It will not fall", None, "no_answer"),
        ("There is no way that this stands, yes?", None, "no_answer"),
        ("yes or no", None, "no_answer"),
        ("Yes, or rather no", None, "ambiguous"),
        ("The answer is yes. No, the answer is no.", None, "ambiguous"),
        ("<answer>yes</answer><answer>no</answer>", None, "ambiguous"),
        ("<answer>yes", None, "unfinished"),
        ("maybe", None, "no_answer"),
        ("yesterday", None, "no_answer"),
    ],
)
def test_options(reply, value, status):
    parsed = parse(reply, YES_NO)
    assert (parsed.raw, parsed.value, parsed.status) == (reply, value, status)


@pytest.mark.parametrize(
    ("reply", "value", "status"),
    [
        ("7", 7, "ok"),
        ("+7", 7, "ok"),
        ("-12 cm", -12, "ok"),
        ("\u22125", -5, "ok"),
        ("12.0", 12, "ok"),
        ("The answer is -3 centimetres.", -3, "ok"),
        ("Answer: 4", 4, "ok"),
        ("21", None, "out_of_range"),
        ("1" * 5000, None, "out_of_range"),
        ("2.5", None, "not_whole"),
        ("5 cm to the left", -5, "ok"),
        ("between 3 and 5", None, "no_answer"),
        ("seven", 7, "ok"),
        ("5 cm to the right or left", None, "no_answer"),
        ("answer: 3 mm", None, "no_answer"),
        ("answer: 3, answer: 4", None, "ambiguous"),
    ],
)
def test_one_integer(reply, value, status):
    parsed = parse(reply, ONE)
    assert (parsed.value, parsed.status) == (value, status)


@pytest.mark.parametrize(
    ("reply", "value", "status"),
    [
        ("7, 25", (7, 25), "ok"),
        ("(-7, 25)", (-7, 25), "ok"),
        ("-7 25", (-7, 25), "ok"),
        ("x = 3, y = 30", (3, 30), "ok"),
        ("7 cm, 25 cm", (7, 25), "ok"),
        ("7", None, "no_answer"),
        ("7, 25, 3", None, "no_answer"),
        ("7, 99", None, "out_of_range"),
    ],
)
def test_two_integers(reply, value, status):
    parsed = parse(reply, TWO)
    assert (parsed.value, parsed.status) == (value, status)


def test_only_what_follows_a_thought_is_read():
    assert parse("<think>hm</think>yes", YES_NO, "think").value == "stands"
    assert parse("so yes, or no</think>no", YES_NO).value == "falls"
    for reply in ("<think>hm</think>", "<think>yes", "yes<think>no", "<think>hm</think><answer>yes"):
        for style in ("direct", "think"):
            assert parse(reply, YES_NO, style).status == "unfinished"
    assert parse("<think>hm</think><answer>yes</answer>", YES_NO, "think").value == "stands"


@settings(max_examples=1000, deadline=None)
@given(st.text(max_size=200), st.sampled_from([YES_NO, COLOURS, ONE, TWO]), st.sampled_from(["direct", "think"]))
@example("<answer></answer>", ONE, "direct")
@example("\u0660", ONE, "direct")
@example("²", ONE, "direct")
@example("answer is " * 2000, YES_NO, "direct")
def test_no_text_breaks_the_parser_and_only_legal_values_come_out(text, grammar, style):
    parsed = parse(text, grammar, style)
    assert parsed.raw == text
    assert (parsed.value is not None) == (parsed.status == "ok")
    if parsed.value is not None:
        assert parsed.value in [value for _, value in grammar.candidates()]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["yes", "no", "answer", "is", ":", "<answer>", "</answer>", "7", "-", ",", ".", "cm"])))
def test_answer_like_texts_never_break_the_parser(words):
    for grammar in (YES_NO, ONE, TWO):
        parse(" ".join(words), grammar)


@pytest.mark.parametrize("grammar", [YES_NO, COLOURS, ONE, TWO, IntegerFormat(((1, 6),), "")])
def test_every_candidate_is_read_back_and_the_grammar_survives_json(grammar):
    assert grammar_from_dict(grammar.to_dict()) == grammar
    for style in ("direct", "think"):
        question = Question("?", grammar, style)
        for text, value in grammar.candidates():
            assert grammar.text(value) == text
            assert question.parse(question.reply(value)).value == value


def test_lists_make_the_same_grammars_as_tuples():
    assert parse("yes.", ChoiceFormat([Option("yes", "stands"), Option("no", "falls")])).value == "stands"
    assert parse("7 cm", IntegerFormat([[-20, 20]])).value == 7


def test_illegal_answers_and_grammars_are_refused():
    with pytest.raises(ValueError, match="outside -20 to 20"):
        ONE.text(21)
    with pytest.raises(ValueError, match="not an answer here"):
        YES_NO.text("maybe")
    with pytest.raises(ValueError, match="2 whole number"):
        TWO.text(3)
    for bad in ({}, {"kind": "essay"}, {"kind": "integers", "ranges": "x"}, {"kind": "options"}):
        with pytest.raises(ValueError, match="not an answer grammar"):
            grammar_from_dict(bad)
