"""The tokenizer of the embedded model: nothing is lost, and what should be one token is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_probe.probes.tiny.questions import prompt_texts
from vlm_probe.probes.tiny.tokenizer import SPECIAL, TAGS, build_tokenizer
from vlm_probe.stimuli.scene import COLOURS

PICTURE_TURN = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many blocks?"}]}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(prompt_texts())


def tokens(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.text(max_size=20), st.sampled_from([*SPECIAL, *TAGS, " ", "\n", "-12", "7, 25"]))))
def test_any_text_comes_back_exactly(tokenizer, parts):
    text = "".join(parts).encode(errors="ignore").decode()
    assert tokenizer.decode(tokens(tokenizer, text)) == text


@pytest.mark.parametrize("text", ["-12", "7, 25", "yes", "<think>i see 3 blocks .</think><answer>yes</answer>"])
def test_replies_survive_decoding(tokenizer, text):
    ids = [*tokens(tokenizer, text), tokenizer.eos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("word", [*COLOURS, "left", "right", "yes", "no", *"0123456789", *TAGS, *SPECIAL])
def test_answers_and_marks_are_single_tokens(tokenizer, word):
    assert len(tokens(tokenizer, word)) == 1


def test_the_first_word_of_a_turn_is_the_token_it_is_in_mid_sentence(tokenizer):
    assert tokens(tokenizer, "<assistant>yes")[-1] == tokens(tokenizer, "Answer with one word: yes or no.")[-4]


def test_prompts_are_words_not_letters(tokenizer):
    for text in prompt_texts():
        assert len(tokens(tokenizer, text)) <= 2.1 * len(text.split())


def test_a_prompt_is_a_prefix_of_prompt_and_reply(tokenizer):
    reply = {"role": "assistant", "content": [{"type": "text", "text": "3"}]}
    prompt = tokenizer.apply_chat_template([PICTURE_TURN], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([PICTURE_TURN, reply], return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert whole[len(prompt) :] == [*tokens(tokenizer, "3"), tokenizer.eos_token_id]


def test_the_generation_mask_covers_the_replies(tokenizer):
    turns = [PICTURE_TURN, {"role": "assistant", "content": "-12"}]
    turns += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "yes"}]
    coded = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, m in zip(coded["input_ids"], coded["assistant_masks"], strict=True) if m]
    assert said == [
        *tokens(tokenizer, "-12"),
        tokenizer.eos_token_id,
        *tokens(tokenizer, "yes"),
        tokenizer.eos_token_id,
    ]


def test_string_and_list_contents_are_the_same_prompt(tokenizer):
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>How many blocks?"}]
    listed = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, PICTURE_TURN]
    texts = [
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in (plain, listed)
    ]
    assert texts[0] == texts[1] == "<s>Be brief.<user><image>How many blocks?<assistant>"
