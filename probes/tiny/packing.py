"""Many questions about one image in one sequence: the image is read once, and no question sees another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_probe.probes.tiny.architecture import TOKENS
from vlm_probe.probes.tiny.pictures import Picture
from vlm_probe.probes.tiny.questions import Exchange
from vlm_probe.probes.tiny.tokenizer import ASSISTANT, BOS, EOS, USER
from vlm_probe.stimuli.scene import COLOURS

PREFIX = 2 + TOKENS
"""Tokens that all questions about an image share: the start, the user's turn and the image."""
IGNORED = -100
WORD_LAYER = 2
"""Decoder layer (counted from 1) after which a colour word should have found its thing."""

TrialSpec = Callable[[Picture], Exchange]


@dataclass(frozen=True)
class Pack:
    """Questions about n images, t tokens each next to the shared prefix.

    Attributes:
        ids: (n, t) tokens.
        labels: (n, t) the token that comes next inside an answer, elsewhere `IGNORED`.
        positions: (n, t) positions, each question starting right after the prefix.
        segments: (n, t) number of the question, 0 where there is none.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor


class Encoder:
    """Encodes questions and answers, remembering the few thousand different ones.

    Raises:
        ValueError: If a colour is not one token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.user, self.assistant, self.bos, self.eos = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, BOS, EOS])
        colours = [self.text(name) for name in COLOURS]
        if any(len(ids) != 1 for ids in colours):
            raise ValueError("every colour must be one token")
        self.colours = torch.full((len(tokenizer),), -1)
        self.colours[torch.tensor(colours).flatten()] = torch.arange(len(COLOURS))

    def text(self, text: str) -> list[int]:
        """The tokens of one segment of text."""
        if text not in self._known:
            self._known[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]

    def turn(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """The tokens after the image up to the reply, and the reply's.

        Args:
            question: The prompt.
            answer: The reply.
        """
        return [*self.text(question), self.assistant], [*self.text(answer), self.eos]


def pack(pictures: Sequence[Picture], ask: TrialSpec, encoder: Encoder, length: int) -> Pack:
    """Ask about every image until the next question would not fit.

    Args:
        pictures: One per row of the result.
        ask: Gives a question about an image with its answer, another one every time.
        encoder: Makes tokens of them.
        length: Tokens per row.
    """
    shape = (len(pictures), length)
    ids, segments = np.full(shape, encoder.eos), np.zeros(shape, np.int64)
    labels, positions = np.full(shape, IGNORED), np.zeros(shape, np.int64)
    for row, picture in enumerate(pictures):
        end = number = 0
        while True:
            exchange = ask(picture)
            question, answer = encoder.turn(exchange.prompt, exchange.reply)
            start, end = end, end + len(question) + len(answer)
            if end > length:
                break
            number += 1
            ids[row, start:end] = question + answer
            labels[row, start + len(question) - 1 : end - 1] = answer
            positions[row, start:end] = PREFIX + np.arange(end - start)
            segments[row, start:end] = number
    return Pack(*(torch.from_numpy(a) for a in (ids, labels, positions, segments)))


def see(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """(n, `TOKENS`, `HIDDEN`) what LLaVA takes from the vision tower, before the projector.

    Args:
        model: The network.
        pixels: (n, 3, `PIXELS`, `PIXELS`) as the processor makes them.
    """
    tower = model.model.vision_tower
    hidden: torch.Tensor = tower.embeddings(pixels)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, attention_mask=None)
    return hidden


def read(
    model: LlavaForConditionalGeneration, features: torch.Tensor, questions: Pack, encoder: Encoder
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoder states of the text after `WORD_LAYER` layers, and at the end.

    Args:
        model: The model.
        features: Of its eye, per image (n, patches, width).
        questions: What is asked of each image.
        encoder: Knows the tokens that come before.

    Returns:
        Two tensors (n, t, `HIDDEN`).
    """
    decoder = model.model.language_model
    count = len(features)
    start = decoder.embed_tokens(torch.tensor([encoder.bos, encoder.user])).expand(count, -1, -1)
    picture = model.model.multi_modal_projector(features)
    hidden = torch.cat([start, picture, decoder.embed_tokens(questions.ids)], dim=1)
    positions = torch.cat([torch.arange(PREFIX).expand(count, -1), questions.positions], dim=1)
    mask = _mask(questions.segments)
    rotary = decoder.rotary_emb(hidden, positions)
    middle = hidden
    for number, layer in enumerate(decoder.layers, start=1):
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        if number == WORD_LAYER:
            middle = hidden
    return middle[:, PREFIX:], decoder.norm(hidden[:, PREFIX:])


def answer_loss(model: LlavaForConditionalGeneration, final: torch.Tensor, questions: Pack) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens.

    Args:
        model: The network.
        final: (n, t, `HIDDEN`) states of the decoder at its end.
        questions: What was asked.
    """
    inside = questions.labels != IGNORED
    return F.cross_entropy(model.lm_head(final[inside]).float(), questions.labels[inside])


def _mask(segments: torch.Tensor) -> torch.Tensor:
    """(n, 1, l, l) bool, true where a token may look: back, at its own question and at the prefix."""
    count, length = segments.shape
    full = torch.cat([segments.new_zeros(count, PREFIX), segments], dim=1)
    own = full[:, :, None] == full[:, None, :]
    prefix = torch.arange(PREFIX + length) < PREFIX
    causal = torch.ones(PREFIX + length, PREFIX + length, dtype=torch.bool).tril()
    return ((own | prefix) & causal)[:, None]
