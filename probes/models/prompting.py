"""What a model reads: the prompt in its chat template, and candidate replies in the tokens that it would say."""

from __future__ import annotations

import bisect
import copy
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vlm_probe.probes.models import ModelError, Trial, Turn
from vlm_probe.probes.models.dummy_inputs import QUESTIONS, dummy_inputs
from vlm_probe.probes.models.image_inputs import seen_size, takes_images
from vlm_probe.probes.models.limits import Limited, LimitError
from vlm_probe.probes.models.reply_tree import Tokens
from vlm_probe.probes.models.thinking import (
    AUTO,
    SWITCHES,
    Tags,
    Thinking,
    closes_thought,
    mentions_thought,
    opened,
    opened_at_end,
    split,
    tags_of,
)

log = logging.getLogger(__name__)

CLOCK = "strftime_now"
"""The function with which chat templates write the date or the time into a prompt."""

LONGEST_PROMPT = 1024**2
"""Bytes of a prompt."""
QWEN_PICTURE = ("<|vision_start|>", "<|vision_end|>")
"""Where Qwen's images begin and end; its processor, unlike others, does not write them by itself."""
WORD = "yes"
"""A made-up reply."""
_REPR = re.compile(r"""['"]type['"]\s*:\s*['"](text|image)['"]""")
"""What a template writes that prints the parts of a message as they are."""


@dataclass(frozen=True)
class Form:
    """How a model without a chat template is asked.

    Attributes:
        image: What stands for an image before the question.
        question: The question.
        reply: An earlier reply.
        opening: White space before a reply.
    """

    image: str
    question: str
    reply: str
    opening: str

    def __str__(self) -> str:
        return self.image + self.question


FALLBACK = Form("{image}\n", "{prompt}\nAnswer:", " {reply}\n", " ")
"""The prompt for models without a chat template."""
FORMS: Mapping[str, Form] = {
    # The processor ends the prompt with a line break.
    "PaliGemmaProcessor": Form("{image}", "answer en {prompt}", "\n{reply}\n", ""),
    # The processor puts the image in by itself.
    "Blip2Processor": Form("", "Question: {prompt} Answer:", " {reply}\n", " "),
}
"""The prompts that the makers of such models document, by their processors."""


class Prompter:
    """The one place that turns questions and images into a model's inputs, and candidate replies into tokens.

    Evaluation, scoring, decoding, SFT and the rollouts of RL all take their prompts from here.

    Args:
        processor: The model's processor; its tokenizer is set to pad on the left, without which the replies of a batch
            would depend on the longest prompt in it.
        end_tokens: The tokens that end a reply, the usual one first.
        name: Of the model, for messages.
        thinking: Whether the model is to think before it answers.

    Raises:
        ModelError: If the chat template fails, or has no such thinking or arguments.
    """

    def __init__(self, processor: Any, end_tokens: Sequence[int], name: str, thinking: Thinking = AUTO) -> None:
        self._processor = processor
        self._question = dummy_inputs() if takes_images(processor) else replace(dummy_inputs(), images=())
        self._name, self._end_tokens = name, tuple(end_tokens)
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = end_tokens[0]
        # Tokenizers are not to be used from two threads at once, and inputs are made ahead in another thread.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self._texts: dict[tuple[tuple[str, str, int], ...], str] = {}
        self._replies: dict[tuple[str, tuple[str, ...]], tuple[Tokens, ...]] = {}
        self._starts = self._written_by_tokenizer()
        self._forms: dict[str, bool] = {}
        self.template = chat_template(processor, name)
        self.moment = ""
        """What the model is told about date and time, if its chat template tells it: YYYY-MM-DDTHH:MM:SS, local time."""
        self.thinking = thinking
        self.thinks: bool | None = False
        """Whether the model thinks before it answers; None if nothing says so, and it may or may not."""
        self.tags: Tags | None = None
        """Of the thought that the prompt has opened; None if it opens none."""
        self._arguments: dict[str, Any] = {}
        self._switch = self._closing = ""
        if self.template is None:
            self._form = FORMS.get(type(processor).__name__, FALLBACK)
            self._mark = self._image_mark()
            log.warning("%s has no chat template: it is asked in the form %r", name, str(self._form))
            if thinking.mode == "on" or thinking.given:
                raise ModelError(f"{name} has no chat template that --thinking could switch: leave it out")
        else:
            self._template_name = template_name(tokenizer, self.template, name)
            self._limited = Limited(_Renderer(processor, self.template), longest=LONGEST_PROMPT)
            if CLOCK in self.template:
                self.moment = datetime.now().isoformat(timespec="seconds")
            for role in ("user", "assistant"):
                self._forms[role] = self._takes_parts(role)
            # A template that fails, or never ends, does so before any trial.
            self._render([self._question])
            self._set_thinking()
        self.opening, self.end = self._reply_form()
        """White space that comes before a reply, and the token that ends it: as the chat template writes a reply."""
        self.ends = tuple(dict.fromkeys((*end_tokens, self.end)))
        """The tokens that end a reply."""

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
        return hashlib.sha256(str(self.template or self._form).encode()).hexdigest()

    @property
    def thinking_used(self) -> str:
        """Whether the model thinks, and who decided that, in words; empty where neither it nor the user has to do with thinking."""
        given = f", {self.thinking.arguments}" if self.thinking.given else ""
        if self.thinking.mode == "auto" and not self.thinks and not given and not self._switch:
            return ""
        most = f", at most {self.thinking.max_tokens} tokens" if self.thinks else ""
        said = {True: "on", False: "off", None: "as the model likes"}[self.thinks]
        return f"{said} ({'default of its chat template' if self.thinking.mode == 'auto' else 'chosen'}{given}){most}"

    @property
    def thought_tokens(self) -> int:
        """Tokens that a reply may have beyond the answer's own."""
        return self.thinking.max_tokens if self.thinks else 0

    def sampling(self) -> Any:
        """Generation settings that change nothing about what the model says, except that replies end."""
        from transformers import GenerationConfig

        start = self._tokenizer.bos_token_id
        return GenerationConfig(eos_token_id=list(self.ends), pad_token_id=self.pad_token, bos_token_id=start)

    def inputs(self, conversations: Sequence[Sequence[Turn]]) -> Any:
        """The model's inputs for a batch, padded on the left, on the CPU. May be called from another thread.

        Raises:
            ModelError: If there are no images, and the processor cannot do without.
            ValueError: If some conversations have images and others none.
        """
        texts = [self.text(turns) for turns in conversations]
        images = [[image for turn in turns for image in turn.images] for turns in conversations]
        if any(images) != all(images):
            raise ValueError("a batch cannot mix conversations with and without pictures")
        return self.process(texts, images)

    def process(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Any:
        """The model's inputs for prompts that are written out, padded on the left, on the CPU.

        Args:
            texts: The prompts.
            images: The images of each.

        Raises:
            ModelError: If there are no images, and the processor cannot do without.
        """
        # A template that writes the start token itself must not get a second one from the tokenizer.
        written = any(start in texts[0][:256] for start in self._starts)
        settings = {"add_special_tokens": False} if written else {}
        pictures = {"images": [list(some) for some in images]} if all(images) else {}
        try:
            with self._lock:
                return self._processor(text=list(texts), padding=True, return_tensors="pt", **pictures, **settings)
        except (ValueError, TypeError, AttributeError) as error:
            if pictures:
                raise
            raise ModelError(
                f"{self._name} cannot be asked without a picture ({error}); leave out the conditions without one, or"
                " take another model"
            ) from error

    def check_images(self, most: int) -> None:
        """Refuse conversations with more images than the chat template or the processor has places for.

        Args:
            most: Images in the longest conversation.

        Raises:
            ModelError: If there are too many.
        """
        for count in range(1, most + 1):
            try:
                places = self._places(count)
            except Exception as error:  # templates and processors refuse in words of their own
                why = " ".join(str(error).split())[:200]
                raise ModelError(
                    f"{self._name} does not take {_count(count)} in one prompt ({why}): {_fewer(count)}"
                ) from error
            if not places:
                raise ModelError(f"{self._name} has no place for {_count(count)} in one prompt: {_fewer(count)}")

    def picture_size(self, size: tuple[int, int], *, alone: bool = True) -> str:
        """What the model gets of an image, as `seen_size` has it; empty where that cannot be told.

        Args:
            size: Width and height of the image (pixels).
            alone: Whether it is the only image of its prompt; some processors cut only such images into tiles.
        """
        copies = 1 if alone else 2
        # By way of a whole prompt: some processors hand on other settings than their image processor has.
        turn = replace(dummy_inputs(), images=(Image.new("RGB", size),) * copies)
        try:
            return seen_size(self.inputs([[turn]]), self._processor.image_processor, copies)
        except (ModelError, ValueError, TypeError, KeyError, RuntimeError):
            return ""

    def replies(self, trial: Trial, thought: str = "") -> tuple[Tokens, ...]:
        """Every legal answer of a trial as the tokens of a whole reply, in the order of the grammar's candidates.

        Args:
            trial: What is asked.
            thought: The text of a closed thought that comes before the answer.
        """
        question = trial.item.question
        texts = tuple(question.reply(value) for _, value in question.grammar.candidates())
        return self.reply_tokens(trial.turns, texts, thought)

    def reply_tokens(self, turns: Sequence[Turn], texts: tuple[str, ...], thought: str = "") -> tuple[Tokens, ...]:
        """Replies as the model would say them after a conversation: their tokens, and the one that ends each.

        Args:
            turns: The conversation.
            texts: The replies.
            thought: The text of a closed thought that comes before them.
        """
        prompt, asked = self.text(turns), turns[-1].text
        place = prompt.rfind(asked)
        # What follows the user's words is the same for all prompts, and all that the tokens of a reply can depend on.
        tail = thought[-64:] or (prompt[place + len(asked) :] if place >= 0 else prompt[-64:])
        if (tail, texts) not in self._replies:
            opening = "" if thought else self.opening
            before = self._encode([tail])[0]
            whole = self._encode([tail + opening + text for text in texts])
            alone = self._encode([opening + text for text in texts])
            self._replies[tail, texts] = tuple(
                (*(full[len(before) :] if full[: len(before)] == before else bare), self.end)
                for full, bare in zip(whole, alone, strict=True)
            )
        return self._replies[tail, texts]

    def reply_length(self, trial: Trial) -> int:
        """Tokens of the longest legal answer, with the one that ends the reply."""
        return max(len(tokens) for tokens in self.replies(trial))

    def length(self, reply: Sequence[int]) -> int:
        """Tokens of a reply up to the one that ends it."""
        return next((place for place, token in enumerate(reply, 1) if token in self.ends), len(reply))

    def is_ended(self, reply: Sequence[int]) -> bool:
        """Whether a reply holds the token that ends it, and was not cut at the limit."""
        return any(token in self.ends for token in reply)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, none added."""
        return self._encode([text])[0]

    def decode(self, tokens: Any, *, special: bool = False) -> str:
        """The text of a reply, as generated except for special tokens.

        Args:
            tokens: Of the reply.
            special: Whether to write special tokens as well.
        """
        return str(self._tokenizer.decode(tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    def tags_in(self, reply: Sequence[int]) -> Tags | None:
        """The tags of the thought with which a reply begins, opened by the prompt or by itself; None if it begins with none."""
        tag = "" if self.tags else opened(self.decode(reply, special=True))
        return self.tags or (tags_of(tag, str(self.template)) if tag else None)

    def thought_end(self, reply: Sequence[int]) -> int | None:
        """Tokens of a reply until its thought is closed; 0 if it holds no thought, None if the thought is not closed."""
        text = self.decode(reply, special=True)
        thought, _, closed = split(text, self.tags)
        if thought is None:
            return 0
        if not closed:
            return None
        return bisect.bisect_left(range(len(reply)), True, key=lambda n: self._is_closed(reply[: n + 1])) + 1

    def said(self, reply: Sequence[int], *, asked_to_think: bool = False) -> tuple[str | None, str, bool]:
        """A reply as the text of the thought, None if there is none; that of the answer; and whether the thought is closed.

        Args:
            reply: Its tokens.
            asked_to_think: Whether the question asks for reasoning in the reply, which then belongs to it.
        """
        reply = [token for token in reply[: self.length(reply)] if token not in self.ends]
        end = 0 if self.tags is None and asked_to_think else self.thought_end(reply)
        if end == 0:
            return None, self.decode(reply), True
        thought, rest, closed = split(self.decode(reply if end is None else reply[:end], special=True), self.tags)
        return thought, rest + self.decode(reply[end:]) if closed else "", closed

    def text(self, turns: Sequence[Turn]) -> str:
        """The prompt of a conversation, in which every image is one mark."""
        key = tuple((turn.role, turn.text, len(turn.images)) for turn in turns)
        if key not in self._texts:
            written = self._plain(turns) if self.template is None else self._render(turns, **self._arguments)
            self._texts[key] = written + self._closing
        return self._texts[key]

    def _is_closed(self, reply: Sequence[int]) -> bool:
        thought, _, closed = split(self.decode(reply, special=True), self.tags)
        return thought is not None and closed

    def _plain(self, turns: Sequence[Turn]) -> str:
        """A conversation for models without a chat template."""
        form, parts = self._form, []
        for turn in turns:
            image = form.image.format(image=self._mark) if self._mark else ""
            question = image * len(turn.images) + form.question.format(prompt=turn.text)
            parts.append(question if turn.role == "user" else form.reply.format(reply=turn.text))
        return "".join(parts)

    def _image_mark(self) -> str:
        """What stands for an image in a prompt without a template; empty if the processor puts images in by itself."""
        given = getattr(self._processor, "image_token", None) or "<image>"
        mark = str(getattr(given, "content", given))
        if QWEN_PICTURE[0] in self._tokenizer.get_vocab():
            mark = mark.join(QWEN_PICTURE)
        if self._form is not FALLBACK or not takes_images(self._processor):
            return mark
        picture = [dummy_inputs().images]
        try:
            alone = self.process([dummy_inputs().text], picture)["input_ids"]
            marked = self.process([mark + dummy_inputs().text], picture)["input_ids"]
        except Exception as error:  # most processors refuse an image without a mark
            log.debug("%s: images need a mark (%s)", self._name, error)
            return mark
        token = self._tokenizer.convert_tokens_to_ids(str(getattr(given, "content", given)))
        inserted = int((alone == token).sum())
        return "" if 0 < inserted < int((marked == token).sum()) else mark

    def _places(self, count: int) -> bool:
        """Whether the last of so many images has a place in a prompt."""
        shown = [dummy_inputs(number % len(QUESTIONS)) for number in range(count)]
        bare = [*shown[:-1], Turn("user", shown[-1].text)]

        def conversation(turns: Sequence[Turn]) -> list[Turn]:
            told = [part for turn in turns[:-1] for part in (turn, Turn("assistant", WORD))]
            return [*told, turns[-1]]

        whole = self.inputs([conversation(shown)])["input_ids"]
        if self.text(conversation(shown)) != self.text(conversation(bare)):
            return True
        # Some processors put images in by themselves.
        try:
            less = self.inputs([conversation(bare)])["input_ids"]
        except ModelError:
            return True
        return bool(whole.shape[1] > less.shape[1])

    def _written_by_tokenizer(self) -> tuple[str, ...]:
        """The special tokens with which the tokenizer begins every text, as text."""
        bare = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self._tokenizer("a")["input_ids"]
        place = next((n for n in range(len(full)) if full[n : n + len(bare)] == bare), 0)
        return tuple(self._tokenizer.convert_ids_to_tokens(full[:place]))

    def _takes_parts(self, role: Literal["user", "assistant"]) -> bool:
        """Whether the template wants a message as a list of parts; if not, it wants a text."""
        turn = self._question if role == "user" else Turn("assistant", WORD)
        turns = [turn] if role == "user" else [self._question, turn]
        try:
            written = self._render(turns, {role: True}, add_generation_prompt=role == "user")
        except ModelError:
            if self._limited.stopped:
                raise
            written = ""
        if turn.text in written and not _REPR.search(written):
            return True
        try:
            plain = self._render(turns, {role: False}, add_generation_prompt=role == "user")
        except ModelError:
            if self._limited.stopped:
                raise
            return True  # some know no replies, and then replies are written in another way
        return turn.text not in plain

    def _reply_form(self) -> tuple[str, int]:
        question, first = self._question, self._end_tokens[0]
        if self.template is None:
            return self._form.opening, first
        try:
            told = self._render([question, Turn("assistant", WORD)], add_generation_prompt=False, **self._arguments)
        except ModelError:
            return "", first
        asked = self.text([question])
        place = told.rfind(WORD)
        if place <= told.rfind(question.text):
            return "", first
        said = told[len(asked) :] if told.startswith(asked) else WORD
        opening = said[: len(said) - len(said.lstrip())] if said.lstrip().startswith(WORD) else ""
        after = self._encode([told[place + len(WORD) :].lstrip()])[0]
        special = set(self._tokenizer.all_special_ids)
        return opening, after[0] if after and (after[0] in self._end_tokens or after[0] in special) else first

    def _set_thinking(self) -> None:
        """Find out how the template switches thinking, and set it as wanted. Raises ModelError if that cannot be done."""
        given, mode = self.thinking.given, self.thinking.mode
        template = str(self.template)
        unknown = [key for key in given if not re.search(rf"\b{key}\b", template)]
        if unknown:
            raise ModelError(
                f"{self._template_name} has no argument {unknown[0]!r}: see its text for those that it has"
            )
        self._arguments = given
        self._switch = next((name for name in SWITCHES if name not in given and self._switches(name)), "")
        if self._switch and mode != "auto":
            self._arguments = given | {self._switch: mode == "on"}
        asked = self._render([self._question], **self._arguments)
        tail = asked[asked.rfind(self._question.text) + len(self._question.text) :]
        tag = opened_at_end(tail, extra=lambda tag: self._is_extra(asked, tag))
        self.tags = tags_of(tag, template) if tag else None
        if mode == "off":
            if self.tags is not None:
                space = asked.endswith("\n")
                self._closing = f"\n{self.tags.closing}\n\n" if space else self.tags.closing
                log.warning("%s has no switch for thinking: the thought is closed with %r", self._name, self._closing)
                self.tags = None
            return
        self.thinks = self._starts_thinking(asked, tail)
        if mode == "on":
            if self.thinks is False or (self.thinks is None and not given and not mentions_thought(template)):
                raise ModelError(
                    f"{self._template_name} has no switch for thinking: use --thinking auto, under which a thought that the"
                    " model opens is read as one, or set the template's own with --chat-template-args"
                )
            self.thinks = True

    def _starts_thinking(self, asked: str, tail: str) -> bool | None:
        """Whether a model thinks after a prompt that ends like this; None if nothing says so."""
        if self.tags is not None:
            return True
        if closes_thought(tail):
            return False
        if not self._switch:
            return None
        if self._arguments.get(self._switch):
            return True
        # The switch is left alone: a template by which the model thinks writes something else when it is switched off.
        return asked != self._render([self._question], **{**self._arguments, self._switch: False})

    def _switches(self, name: str) -> bool:
        """Whether a variable of the template changes the prompt."""
        if not re.search(rf"\b{name}\b", str(self.template)):
            return False
        try:
            one, other = (
                self._render([self._question], **{**self.thinking.given, name: value}) for value in (True, False)
            )
        except ModelError:
            return False
        return one != other

    def _is_extra(self, prompt: str, tag: str) -> bool:
        """Whether a prompt ends with a tag that is not there where the template writes a reply."""
        before = prompt[: prompt.rfind(tag)]
        try:
            told = self._render(
                [self._question, Turn("assistant", WORD)], add_generation_prompt=False, **self._arguments
            )
        except ModelError:
            return False
        after = "".join(told.removeprefix(before).split())
        empty = tag + tags_of(tag, str(self.template)).closing  # a reply may be told with a thought that holds nothing
        return told.startswith(before) and (after.startswith(WORD) or after.startswith("".join(empty.split())))

    def _render(
        self,
        turns: Sequence[Turn],
        forms: Mapping[str, bool] | None = None,
        *,
        add_generation_prompt: bool = True,
        **settings: Any,
    ) -> str:
        as_parts = {"user": True, "assistant": True} | self._forms | dict(forms or {})
        messages = [message(turn) if as_parts[turn.role] else self._as_text(turn) for turn in turns]
        try:
            return str(
                self._limited(messages, settings | {"add_generation_prompt": add_generation_prompt}, self.moment)
            )
        except LimitError as error:
            raise ModelError(f"{self._template_name} failed ({error}): mend it, or copy it again") from error

    def _as_text(self, turn: Turn) -> dict[str, Any]:
        """A turn for templates that print what a message holds."""
        given = getattr(self._processor, "image_token", None) or "<image>"
        mark = str(getattr(given, "content", given)) + "\n"
        return {"role": turn.role, "content": mark * len(turn.images) + turn.text}

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
        prompt = int(prompter.inputs([trial.turns])["input_ids"].shape[1])
        tokens = prompt + longer + limit(trial) + prompter.thought_tokens
        if tokens > room:
            raise ModelError(
                f"{name} reads {room} tokens, and {trial.attempt} attempts on {trial.item.item_id} with what is remembered of"
                f" them take up to {tokens}: give fewer --attempts, or a shorter --memory such as last-1"
            )


def message(turn: Turn) -> dict[str, Any]:
    """A turn in the form that chat templates read: places for its images, then the words."""
    pictures = [{"type": "image"} for _ in turn.images]
    return {"role": turn.role, "content": [*pictures, {"type": "text", "text": turn.text}]}


def turns_of(messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image] = ()) -> list[Turn]:
    """A conversation in the form of TRL's data sets as turns.

    Args:
        messages: With contents that are texts, or lists of parts, images among them.
        images: Those that are not in the contents, in their order; of contents that are texts, the first has them all.
    """
    turns: list[Turn] = []
    left = list(images)
    for told in messages:
        content = told["content"]
        if isinstance(content, str):
            turns.append(Turn(told["role"], content, tuple(left) if not turns else ()))
            continue
        shown = tuple(part.get("image") or left.pop(0) for part in content if part["type"] == "image")
        turns.append(Turn(told["role"], "".join(part["text"] for part in content if part["type"] == "text"), shown))
    return turns


def with_tokens(inputs: Any, added: Sequence[Sequence[int]], pad_token: int, *, side: Literal["left", "right"]) -> Any:
    """Inputs of a batch with further tokens after each prompt.

    Args:
        inputs: Of `Prompter.inputs`.
        added: The tokens, per row.
        pad_token: What fills up short rows.
        side: Where rows are filled up.

    Returns:
        The inputs, in the same kind of mapping.
    """
    import torch

    seen = inputs["attention_mask"].bool()
    shape, device = seen.shape, seen.device
    lengths = [int(row.sum()) + len(more) for row, more in zip(seen, added, strict=True)]
    width = max(lengths)

    def longer(name: str, value: torch.Tensor) -> torch.Tensor:
        filler = pad_token if name == "input_ids" else 0
        made = value.new_full((shape[0], width, *value.shape[2:]), filler)
        for row, more in enumerate(added):
            before = value[row][seen[row]]
            if name == "input_ids":
                after = torch.tensor(list(more), dtype=value.dtype, device=device)
            elif name == "attention_mask":
                after = value.new_ones(len(more))
            else:  # the kind of a token of text; what a token may see of images is the same as for the one before
                last = before[-1:] if value.ndim > 2 else value.new_zeros(1)
                after = last.expand(len(more), *value.shape[2:])
            start = width - lengths[row] if side == "left" else 0
            made[row, start : start + lengths[row]] = torch.cat([before, after])
        return made

    for name, value in list(inputs.items()):
        if isinstance(value, torch.Tensor) and value.shape[:2] == shape and not name.startswith("pixel"):
            inputs[name] = longer(name, value)
    return inputs


def _count(images: int) -> str:
    return "an image" if images == 1 else f"{images} images"


def _fewer(images: int) -> str:
    return "use another model" if images == 1 else "give fewer --examples or --attempts, or use another model"
