"""The tokenizer of `tiny`: byte-level BPE that knows our words whole, reads any text and gives it back exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vlm_probe.probes.tiny.words import CONTENT_WORDS, FUNCTION_WORDS

PAD, BOS, EOS, IMAGE, USER, ASSISTANT = SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<user>", "<assistant>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""One token each, but ordinary text: decoding keeps them."""
VOCABULARY = 2048
CONTEXT = 1024
"""Longest sequence, tokens."""

# A turn is one segment of text between tags and special tokens. One space goes before each segment, so that its first
# word is the token that the same word is in mid-sentence, and comes off again in decoding.
_WORDS = r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+(?!\S)|\s+"
"""Digits one by one, words, punctuation, white space; each of the first three with the space before it."""

CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<assistant>' }}{% generation %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '</s>' }}{% endgeneration %}"
    "{% else %}{% if message['role'] != 'system' %}{{ '<user>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] | replace('<image>\\n', '<image>') }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
"""<s>system<user>image and text<assistant>reply</s><user>..."""


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer. `texts` are prompts whose words must become whole tokens; common English fills the rest."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.ByteLevel(),
            *(decoders.Replace(f"{token} ", token) for token in (*SPECIAL, *TAGS)),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(texts), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE},
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _training_text(texts: Iterable[str]) -> Iterator[str]:
    # Repetition is weight: merges go to digits and the words of the prompts first, then to English.
    yield from ["0 1 2 3 4 5 6 7 8 9 - -1"] * 1000
    for text in texts:
        for token in (*SPECIAL, *TAGS):
            text = text.replace(token, " ")
        yield from [text] * 50
        yield from ["\n" + text] * 5  # plain LLaVA prompts put a line break between the picture and the text
    for word in sorted({*FUNCTION_WORDS, *CONTENT_WORDS}):
        yield from [word] * 10
        yield word.capitalize()
