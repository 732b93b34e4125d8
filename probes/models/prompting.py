"""What a model reads: the prompt in its chat template, and candidate replies in the tokens that it would say."""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_probe.probes.models import ModelError, Trial, Turn
from vlm_probe.probes.models.limits import Limited, LimitError
from vlm_probe.probes.models.made_up import made_up
from vlm_probe.probes.models.reply_tree import Tokens

log = logging.getLogger(__name__)

FALLBACK = "{image}{prompt}\nAnswer:"
"""The prompt for models without a chat template."""

CLOCK = "strftime_now"
"""The function with which chat templates write the date or the time into a prompt."""

LONGEST_PROMPT = 1024**2
"""Bytes of a prompt."""
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
        self.template = chat_template(processor, name)
        self.moment = ""
        """What the model is told about date and time, if its chat template tells it: YYYY-MM-DDTHH:MM:SS, local time."""
        if self.template is None:
            log.warning("%s has no chat template: it is asked in the form %r", name, FALLBACK)
            return
        self._template_name = template_name(tokenizer, self.template, name)
        self._limited = Limited(_Renderer(processor, self.template), longest=LONGEST_PROMPT)
        if CLOCK in self.template:
            self.moment = datetime.now().isoformat(timespec="seconds")
        # A template that fails, or never ends, does so before any trial.
        self._render([message(made_up())], add_generation_prompt=True)
        with suppress(ModelError):  # some know no replies, and then replies are written in another way
            self._render([message(made_up()), message(Turn("assistant", "yes"))])
        if self._limited.stopped:
            self._render([])

    def set_moment(self, moment: str) -> None:
        """Have the chat template write this date and time into every prompt, whatever the clock says.

        Args:
            moment: YYYY-MM-DDTHH:MM:SS. Nothing happens if the template asks for none.

        Raises:
            ModelError: If it is none.
        """
        if self.moment and moment:
            try:
                datetime.fromisoformat(moment)
            except ValueError as error:
                raise ModelError(
                    f"the run began at {moment[:40]!r}, which is no date and time: restore its run.json"
                ) from error
            self.moment = moment
            self._texts.clear()
            self._replies.clear()

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

    def length(self, reply: Sequence[int]) -> int:
        """Tokens of a reply up to the one that ends it."""
        return next((place for place, token in enumerate(reply, 1) if token in self._ends), len(reply))

    def is_ended(self, reply: Sequence[int]) -> bool:
        """Whether a reply holds the token that ends it, and was not cut at the limit."""
        return any(token in self._ends for token in reply)

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
            return str(self._limited(turns, settings, self.moment))
        except LimitError as error:
            raise ModelError(f"{self._template_name} failed ({error}): mend it, or copy it again") from error

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self._tokenizer(list(texts), add_special_tokens=False)["input_ids"])


class _Renderer:
    """Renders a chat template as transformers does, at any date."""

    def __init__(self, processor: Any, template: str) -> None:
        self._processor, self._template = processor, template

    def __call__(self, turns: list[dict[str, Any]], settings: dict[str, Any], moment: str) -> str:
        if moment:
            fix_clock(self._template, moment)
        return str(self._processor.apply_chat_template(turns, tokenize=False, chat_template=self._template, **settings))


def fix_clock(template: str, moment: str) -> None:
    """Have a chat template write the same date and time for the rest of this process, wherever it is rendered.

    Args:
        template: Its text.
        moment: YYYY-MM-DDTHH:MM:SS.
    """
    # The function is a global of the compiled template, which transformers keeps; arguments of a rendering cannot replace it.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    _compile_jinja_template(template).globals[CLOCK] = datetime.fromisoformat(moment).strftime


def chat_template(processor: Any, name: str) -> str | None:
    """The chat template that a model is asked with; None if it has none.

    Args:
        processor: The model's.
        name: Of the model, for the message.

    Raises:
        ModelError: If it has several, of which none is the default, or something else in its place.
    """
    found = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default", found)
    if found is not None and not isinstance(found, str):
        raise ModelError(f"the chat template of {name} is no text: name one of its templates default")
    return found


def template_name(tokenizer: Any, template: str, name: str) -> str:
    """Where a chat template stands, for messages: its file and key.

    Args:
        tokenizer: The model's, which knows the folder that it came from.
        template: The text.
        name: Of the model.
    """
    from vlm_probe.probes.models.model_folder import entries, read_json

    folder = Path(str(getattr(tokenizer, "name_or_path", "") or "."))
    for file in (folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))):
        if file.is_file() and file.read_text(encoding="utf-8", errors="replace").strip() == template.strip():
            return f"the chat template {file}"
    for file in (folder / f"{part}.json" for part in ("chat_template", "processor_config", "tokenizer_config")):
        if file.is_file():
            where = next((path for path, value in entries(read_json(file)) if value == template), "")
            if where:
                return f"{where} in {file}"
    return f"the chat template of {name}"


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
