"""What a model reads: the prompt in its chat template, and candidate replies in the tokens that it would say."""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from vlm_probe.probes.models import ModelError, Trial, Turn
from vlm_probe.probes.models.reply_tree import Tokens

log = logging.getLogger(__name__)

FALLBACK = "{image}{prompt}\nAnswer:"
"""The prompt for models without a chat template."""

QWEN_PICTURE = ("<|vision_start|>", "<|vision_end|>")
"""Where Qwen's pictures begin and end; its processor, unlike others, does not write them by itself."""


class Prompter:
    """Turns questions and pictures into the model's inputs, and candidate replies into tokens.

    Args:
        processor: The model's processor; its tokenizer is set to pad on the left, without which the replies of a batch
            would depend on the longest prompt in it.
        end_tokens: The tokens that end a reply, the usual one first.
        name: Of the model, for messages.
    """

    def __init__(self, processor: Any, end_tokens: Sequence[int], name: str) -> None:
        self._processor = processor
        self._name = name
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = end_tokens[0]
        self._ends = tuple(end_tokens)
        # Tokenizers are not to be used from two threads at once, and inputs are made ahead in another thread.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self._texts: dict[tuple[tuple[str, str, int], ...], str] = {}
        self._replies: dict[tuple[str, tuple[str, ...]], tuple[Tokens, ...]] = {}
        self.template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        if self.template is None:
            log.warning("%s has no chat template: it is asked in the form %r", name, FALLBACK)

    @property
    def pad_token(self) -> int:
        """The token that fills up short prompts."""
        return int(self._tokenizer.pad_token_id)

    @property
    def template_sha256(self) -> str:
        """Hash of the chat template, or of the fallback."""
        return hashlib.sha256(str(self.template or FALLBACK).encode()).hexdigest()

    def inputs(self, conversations: Sequence[Sequence[Turn]]) -> Any:
        """The model's inputs for a batch, padded on the left, on the CPU. May be called from another thread.

        Raises:
            ModelError: If there are no pictures, and the processor cannot do without.
            ValueError: If some conversations have pictures and others none.
        """
        texts = [self._prompt(turns) for turns in conversations]
        images = [[image for turn in turns for image in turn.images] for turns in conversations]
        if any(images) != all(images):
            raise ValueError("a batch cannot mix conversations with and without pictures")
        # A template that writes the start token itself must not get a second one from the tokenizer.
        start = self._tokenizer.bos_token
        settings = {"add_special_tokens": False} if start and texts[0].startswith(start) else {}
        pictures = {"images": images} if all(images) else {}
        try:
            with self._lock:
                return self._processor(text=texts, padding=True, return_tensors="pt", **pictures, **settings)
        except (ValueError, TypeError, AttributeError) as error:
            if pictures:
                raise
            raise ModelError(
                f"{self._name} cannot be asked without a picture ({error}); leave out the conditions without one, or"
                " take another model"
            ) from error

    def picture_size(self, size: tuple[int, int], *, alone: bool = True) -> str:
        """What the model gets of a picture: "336 x 336" (width x height, pixels), or "5 of 384 x 384" if it is cut.

        Args:
            size: Width and height of the picture (pixels).
            alone: Whether it is the only picture of its prompt.
        """
        made = self._processor.image_processor(images=[[Image.new("RGB", size)]], return_tensors="pt")
        pixels = made["pixel_values"]
        if "image_grid_thw" in made:  # patches in one row, and how many of them there are in each direction
            patch = int(self._processor.image_processor.patch_size)
            _, rows, columns = made["image_grid_thw"][0].tolist()
            return f"{columns * patch} x {rows * patch}"
        # LLaVA-OneVision cuts a picture only where there is no other.
        tiles = 1 if "batch_num_images" in made and not alone else pixels[..., 0, 0, 0].numel()
        whole = f"{pixels.shape[-1]} x {pixels.shape[-2]}"
        return whole if tiles == 1 else f"{tiles} of {whole}"

    def replies(self, trial: Trial) -> tuple[Tokens, ...]:
        """Every legal answer of a trial as the tokens of a whole reply, in the order of the grammar's candidates."""
        question, prompt = trial.item.question, self._prompt(trial.turns)
        place = prompt.rfind(question.prompt)
        # What follows the user's words is the same for all prompts, and all that the tokens of a reply can depend on.
        tail = prompt[place + len(question.prompt) :] if place >= 0 else prompt[-64:]
        texts = tuple(question.reply(value) for _, value in question.grammar.candidates())
        if (tail, texts) not in self._replies:
            opening, closing = self._around_reply(question.prompt)
            before = self._encode([tail])[0]
            whole = self._encode([tail + opening + text for text in texts])
            alone = self._encode([opening + text for text in texts])
            self._replies[tail, texts] = tuple(
                (*(full[len(before) :] if full[: len(before)] == before else bare), closing)
                for full, bare in zip(whole, alone, strict=True)
            )
        return self._replies[tail, texts]

    def reply_length(self, trial: Trial) -> int:
        """Tokens of the longest legal answer, with the one that ends the reply."""
        return max(len(tokens) for tokens in self.replies(trial))

    def decode(self, tokens: Any) -> str:
        """The text of a reply, as generated but for special tokens."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _prompt(self, turns: Sequence[Turn]) -> str:
        key = tuple((turn.role, turn.text, len(turn.images)) for turn in turns)
        if key not in self._texts:
            if self.template is None:
                self._texts[key] = self._plain(turns)
            else:
                self._texts[key] = self._render([message(turn) for turn in turns], add_generation_prompt=True)
        return self._texts[key]

    def _plain(self, turns: Sequence[Turn]) -> str:
        """A conversation for models without a chat template."""
        image = getattr(self._processor, "image_token", "<image>")
        if QWEN_PICTURE[0] in self._tokenizer.get_vocab():
            image = image.join(QWEN_PICTURE)
        parts = [
            FALLBACK.format(image=f"{image}\n" * len(turn.images), prompt=turn.text)
            if turn.role == "user"
            else f" {turn.text}\n"
            for turn in turns
        ]
        return "".join(parts)

    def _around_reply(self, prompt: str) -> tuple[str, int]:
        """White space that comes before a reply, and the token that ends it: as the chat template writes a reply."""
        probe = "yes"
        if self.template is None:
            return " ", self._ends[0]
        question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        reply = message(Turn("assistant", probe))
        asked = self._render([question], add_generation_prompt=True)
        told = self._render([question, reply])
        said = told[len(asked) :] if told.startswith(asked) else probe
        if not said.lstrip().startswith(probe):
            return "", self._ends[0]
        opening = said[: len(said) - len(said.lstrip())]
        after = self._encode([said.lstrip()[len(probe) :].lstrip()])[0]
        return opening, after[0] if after and after[0] in self._ends else self._ends[0]

    def _render(self, turns: list[dict[str, Any]], **settings: Any) -> str:
        try:
            return str(
                self._processor.apply_chat_template(turns, tokenize=False, chat_template=self.template, **settings)
            )
        except Exception as error:  # a template is a program of the model's author and may raise anything
            raise ModelError(f"the model's chat template failed on a picture and a question: {error}") from error

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self._tokenizer(list(texts), add_special_tokens=False)["input_ids"])


def check_context(
    network: Any, prompter: Prompter, trials: Sequence[Trial], limit: Callable[[Trial], int], name: str
) -> None:
    """Refuse conversations that do not fit into a model's context, with the longest replies that there may be.

    Args:
        network: The model of transformers, whose configuration says how long its context is.
        prompter: Makes its prompts.
        trials: With the longest legal answers as earlier replies.
        limit: Tokens that a reply to a trial may have.
        name: Of the model.

    Raises:
        ModelError: If one does not fit.
    """
    room = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if room is None:
        log.warning("%s does not say how long its context is: long conversations may not fit", name)
        return
    for trial in trials:
        replies = sum(turn.role == "assistant" for turn in trial.context)
        # What a model says may be longer than the longest legal answer.
        longer = replies * max(limit(trial) - prompter.reply_length(trial), 0)
        tokens = int(prompter.inputs([trial.turns])["input_ids"].shape[1]) + longer + limit(trial)
        if tokens > room:
            raise ModelError(
                f"{name} reads {room} tokens, and {trial.attempt} attempts on {trial.item.item_id} with what is remembered of"
                f" them take up to {tokens}: give fewer --attempts, or a shorter --memory such as last-1"
            )


def message(turn: Turn) -> dict[str, Any]:
    """A turn in the form that chat templates read: places for its pictures, then the words."""
    pictures = [{"type": "image"} for _ in turn.images]
    return {"role": turn.role, "content": [*pictures, {"type": "text", "text": turn.text}]}
