"""The Hugging Face backend: any image-text-to-text model, with its processor and its chat template."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from vlm_probe.probes.models import (
    SPARE_TOKENS,
    THINKING_TOKENS,
    Generation,
    Identity,
    Model,
    ModelError,
    NonFiniteLogits,
    Reply,
    Scored,
    Trial,
    Turn,
)
from vlm_probe.probes.models.adapter_folder import adapter_hash, adapter_hashes, check_base
from vlm_probe.probes.models.adapters import attach_adapter, check_effect
from vlm_probe.probes.models.device import SMALL, parameter_count, quantisation
from vlm_probe.probes.models.dummy_inputs import dummy_inputs
from vlm_probe.probes.models.image_inputs import plain_settings, takes_images
from vlm_probe.probes.models.model_folder import file_hashes, reading, reason_of, weights_hash
from vlm_probe.probes.models.network import load_network, out_of_memory
from vlm_probe.probes.models.option_scoring import OptionScorer, last_words_only
from vlm_probe.probes.models.prompting import Prompter, check_context, with_tokens
from vlm_probe.probes.models.thinking import AUTO, Thinking
from vlm_probe.stimuli.plain_json import dumps

log = logging.getLogger(__name__)

Given = TypeVar("Given")
SPACE = 4
"""Tokens of white space at most between a thought and the answers that are scored after it."""
CLOSING = 24
"""Tokens among the last of a reply in which the tag is looked for that closes a thought."""
BATCH, SMALL_BATCH = 16, 32
"""Trials per batch; more for models of less than `SMALL` parameters, for which a call costs as much as its arithmetic."""


class HuggingFaceModel(Model):
    """A vision-language model and its processor.

    Args:
        model: The network, with an adapter on it or without, in evaluation mode.
        processor: Its processor.
        name: As the user gave it.
        thinking: Whether it is to think before it answers.

    Raises:
        ModelError: If nothing says which token ends a reply, or its chat template has no such thinking.
    """

    def __init__(self, model: Any, processor: Any, name: str, thinking: Thinking = AUTO) -> None:
        self._model = model
        self._prompter = Prompter(processor, end_tokens(model, processor.tokenizer, name), name, thinking)
        # A model's own settings may sample or penalise repetition; published replies are greedy and nothing else.
        plain = self._prompter.sampling()
        for part in {model, model.get_base_model() if hasattr(model, "get_base_model") else model}:
            part.generation_config = plain
        self._scorer = OptionScorer(model, self._prompter.pad_token)
        self._ready: dict[tuple[tuple[str, str], ...], Any] = {}
        self._identity = Identity(name)
        self.text_only = not takes_images(processor)
        """Whether it is a language model, which is asked in words alone."""
        self._small = parameter_count(model) < SMALL
        self.batch_size = SMALL_BATCH if self._small else BATCH
        self._trimmed: bool | None = None
        self._most: int | None = None
        """Trials that fit in memory at once, where it turned out that not all do."""
        self._sizes: dict[tuple[int, int, bool], str] = {}
        self.adapter_change = 0.0
        """Largest change that the adapter makes to a log-probability on a made-up question, nats."""
        self.observed: dict[str, Any] = {}
        """What the run has seen: "images": width x height (pixels) of the images given, and of what the model got of
        them; "prompt_tokens": of the longest prompt; "batch_size": what it came down to, if memory ran out."""

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        *,
        revision: str = "",
        dtype: str = "auto",
        device: str = "auto",
        adapter: Path | None = None,
        load_in_4bit: bool = False,
        thinking: Thinking = AUTO,
        images: int = 1,
    ) -> HuggingFaceModel:
        """Load a model from a folder with configuration, processor and safetensors weights.

        Args:
            folder: The folder.
            name: The name as the user gave it.
            revision: Commit, if the folder is a snapshot of the hub.
            dtype: "auto" as `device.choose_dtype` has it.
            device: "auto" is the first GPU, if there is one.
            adapter: Folder of a LoRA adapter.
            load_in_4bit: Quantise to 4 bits (nf4, double quantisation).
            thinking: Whether it is to think before it answers.
            images: Images in the longest conversation.

        Raises:
            ModelError: If that fails; one line with the fix.
        """
        model, processor, device = load_network(folder, name, dtype=dtype, device=device, load_in_4bit=load_in_4bit)
        files = file_hashes(folder)
        weights = weights_hash(folder, files)
        if adapter is not None:
            check_base(adapter, weights, name)
            model = attach_adapter(model, adapter)
        loaded = cls(model, processor, name, thinking)
        if not loaded.text_only:
            loaded._prompter.check_images(images)
        with reading(folder):
            inputs = loaded.probe_inputs()
        loaded._check_generates(inputs)
        if adapter is not None:
            loaded.adapter_change = check_effect(model, inputs, adapter)
        loaded._identity = Identity(
            # A folder goes by its own name, so that a run can be resumed from another working directory. A short name
            # goes by itself, even where there happens to be a folder of that name.
            name=folder.resolve().name if Path(name).expanduser().resolve() == folder.resolve() else name,
            revision=revision,
            weights_sha256=weights,
            adapter_sha256=adapter_hash(adapter) if adapter is not None else "",
            details=_details(model, processor, device) | loaded._asked(),
            files=files | (adapter_hashes(adapter) if adapter is not None else {}),
        )
        return loaded

    @property
    def identity(self) -> Identity:
        """What exactly answers."""
        return self._identity

    def _asked(self) -> dict[str, Any]:
        """How the model is asked, for its identity."""
        used = self._prompter.thinking_used
        return {"chat_template_sha256": self._prompter.template_sha256} | ({"thinking": used} if used else {})

    @property
    def moment(self) -> str:
        """Date and time that the chat template writes into every prompt, as YYYY-MM-DDTHH:MM:SS; empty if it writes none."""
        return self._prompter.moment

    def set_moment(self, moment: str) -> None:
        """Have the chat template write this date and time, so that a run that is resumed asks what it asked before."""
        self._prompter.set_moment(moment)

    def check_context(self, trials: Sequence[Trial], settings: Generation) -> None:
        """Refuse conversations that do not fit into the model's context, with the longest replies that there may be.

        Args:
            trials: The longest ones.
            settings: How replies are generated.

        Raises:
            ModelError: If one does not fit.
        """
        check_context(
            self._model, self._prompter, trials, lambda trial: self._limit(trial, settings), self.identity.name
        )

    def prepare(self, trials: Sequence[Trial]) -> None:
        """Make the inputs of a batch that will be asked next. May be called from another thread."""
        self._ready[tuple(trial.id for trial in trials)] = self._make_inputs(trials)

    def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str | Reply]:
        """One reply per trial, greedy unless `settings` has a temperature; a `Reply` where it has a thought, or was cut.

        Args:
            trials: What is asked.
            settings: How replies are generated.

        Raises:
            ModelError: If a trial has no image, and the model's processor cannot do without.
        """
        return self._in_parts(trials, lambda part: self._generate(part, settings))

    def score_options(self, trials: Sequence[Trial]) -> list[npt.NDArray[np.float64]]:
        """The exact log-probability of every legal reply and its end, given the image and the prompt.

        Where the model thinks, they come after a thought that it generates first, greedily.

        Raises:
            ModelError: If a trial has no image, and the model's processor cannot do without; or a thought does not end.
        """
        scored = self.score(trials, Generation())
        cut = [one for one in scored if one.logprobs is None]
        if cut:
            raise ModelError(
                f"{len(cut)} of {len(trials)} thoughts were cut: give a larger --max-thinking-tokens, or --thinking off"
            )
        return [np.asarray(one.logprobs) for one in scored]

    def score(self, trials: Sequence[Trial], settings: Generation) -> list[Scored]:
        """The log-probabilities of every legal reply, with the thought that came before them.

        Args:
            trials: What is asked.
            settings: How thoughts are generated, where the model thinks.

        Raises:
            ModelError: If a trial has no image, and the model's processor cannot do without.
        """
        return self._in_parts(trials, lambda part: self._score(part, settings))

    def _generate(self, trials: Sequence[Trial], settings: Generation) -> list[str | Reply]:
        limits, given = [self._limit(trial, settings) for trial in trials], list[str | Reply]()
        for trial, tokens in zip(trials, self._sampled(self._inputs(trials), trials, settings, limits), strict=True):
            asked = trial.item.question.style == "think"
            thought, text, closed = self._prompter.said(tokens, asked_to_think=asked)
            ended = closed and self._prompter.is_ended(tokens)
            given.append(text if ended and thought is None else Reply(text, "" if ended else "unfinished", thought))
        return given

    def _sampled(
        self, inputs: dict[str, torch.Tensor], trials: Sequence[Trial], settings: Generation, limits: Sequence[int]
    ) -> list[list[int]]:
        """The tokens of a reply to every prompt, with its thought."""
        seen = _Seen()
        steps = LogitsProcessorList([seen])
        if settings.temperature > 0:
            ids = [" ".join(part for part in trial.id if part) for trial in trials]
            steps.append(_Sample(ids, settings))
        if self._trimmed is None:
            self._trimmed = self._small and self._can_be_trimmed()
        start = inputs["input_ids"].shape[1]
        may_think = [self._may_think(trial) for trial in trials]
        stop = _Stop(self._prompter, start, limits, may_think)
        longest = max(limits) + (self._prompter.thinking.max_tokens if any(may_think) else 0)
        with torch.inference_mode(), last_words_only(self._model) if self._trimmed else nullcontext():
            tokens = self._model.generate(
                **inputs,
                generation_config=GenerationConfig(max_new_tokens=longest, do_sample=False, num_beams=1),
                logits_processor=steps,
                stopping_criteria=StoppingCriteriaList([stop] if any(may_think) else []),
            )[:, start:]
        # Cut at the item's own limit, so that a reply does not depend on what else was in the batch.
        replies = [row[:until] for row, until in zip(tokens.tolist(), stop.until, strict=True)]
        self._check_finite("generation", seen.finite([self._prompter.length(reply) for reply in replies]))
        return replies

    def _may_think(self, trial: Trial) -> bool:
        """Whether a reply may begin with a thought that is not part of it."""
        if self._prompter.thinks is None:
            return trial.item.question.style != "think"
        return self._prompter.thinks

    def _check_finite(self, scoring: str, finite: Sequence[bool]) -> None:
        """Raise NonFiniteLogits if some trials of a batch had logits that are not finite."""
        if not all(finite):
            which = f" on {list(finite).count(False)} of {len(finite)} trials" if len(finite) > 1 else ""
            raise NonFiniteLogits(
                f"{self.identity.name} gave logits that are not finite{which} (scoring: {scoring}): use --dtype float32, or"
                " weights and image settings that are sound"
            )

    def _can_be_trimmed(self) -> bool:
        """Whether `last_words_only` leaves the first token of a reply as it is. Large models gain nothing by it."""
        settings = GenerationConfig(max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
        inputs = self.probe_inputs()
        with torch.inference_mode():
            whole = self._model.generate(**inputs, generation_config=settings).logits[0]
            try:
                with last_words_only(self._model):
                    trimmed = self._model.generate(**inputs, generation_config=settings).logits[0]
            except (RuntimeError, AttributeError, TypeError, IndexError):  # its layers are made in another way
                return False
        return torch.allclose(whole, trimmed, rtol=0, atol=1e-4)

    def _score(self, trials: Sequence[Trial], settings: Generation) -> list[Scored]:
        if not self._prompter.thinks:
            return [Scored(scores) for scores in self._scores(self._inputs(trials), trials, [""] * len(trials))]
        thoughts = self._thoughts(trials, settings)
        given = [Scored(None, thought or "", "unfinished") for thought, _ in thoughts]
        ended = [number for number, (_, tokens) in enumerate(thoughts) if tokens is not None]
        if ended:
            chosen = [trials[number] for number in ended]
            added = [thoughts[number][1] or [] for number in ended]
            inputs = with_tokens(self._make_inputs(chosen), added, self._prompter.pad_token, side="left")
            texts = [self._prompter.decode(tokens, special=True) for tokens in added]
            for number, scores in zip(ended, self._scores(self._move(inputs), chosen, texts), strict=True):
                given[number] = Scored(scores, thoughts[number][0])
        return given

    def _thoughts(self, trials: Sequence[Trial], settings: Generation) -> list[tuple[str | None, list[int] | None]]:
        """Per trial, the text of a thought (None if the model has none) and its tokens, with the space after it; None if it is cut."""
        found: list[tuple[str | None, list[int] | None]] = []
        for reply in self._sampled(self._inputs(trials), trials, settings, [SPACE] * len(trials)):
            end = self._prompter.thought_end(reply)
            thought = self._prompter.said(reply)[0]
            while end and end < len(reply) and self._prompter.decode([reply[end]], special=True).isspace():
                end += 1  # as the model parts its thought from its answer
            found.append((thought, None if end is None else reply[:end]))
        return found

    def _scores(
        self, inputs: dict[str, torch.Tensor], trials: Sequence[Trial], thoughts: Sequence[str]
    ) -> list[npt.NDArray[np.float64]]:
        candidates = [self._prompter.replies(trial, text) for trial, text in zip(trials, thoughts, strict=True)]
        scores = self._scorer.score(inputs, candidates)
        self._check_finite("loglikelihood", [bool(np.isfinite(row).all()) for row in scores])
        return scores

    def _in_parts(self, trials: Sequence[Trial], work: Callable[[Sequence[Trial]], list[Given]]) -> list[Given]:
        """What `work` gives for every trial, in parts that fit in memory; trials with different numbers of images apart.

        Where images are padded to the most of a batch, some models (mllama) look at the padding too.
        """
        counts = [sum(len(turn.images) for turn in trial.turns) for trial in trials]
        given: dict[int, Given] = {}
        for count in dict.fromkeys(counts):
            places = [place for place, other in enumerate(counts) if other == count]
            given |= dict(zip(places, self._part(trials, places, work), strict=True))
        return [given[place] for place in range(len(trials))]

    def _part(
        self, trials: Sequence[Trial], places: Sequence[int], work: Callable[[Sequence[Trial]], list[Given]]
    ) -> list[Given]:
        size = min(len(places), self._most or len(places))
        if size == len(places):
            chosen = trials if len(places) == len(trials) else [trials[place] for place in places]
            try:
                return work(chosen)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not out_of_memory(error):
                    raise
            # Only here, because the error holds on to what filled the memory.
            size = (size + 1) // 2
            if self._most is None:
                log.warning("a batch of %d does not fit in memory: going on with at most %d", len(places), size)
            self._most = size
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        starts = range(0, len(places), size)
        return [one for start in starts for one in self._part(trials, places[start : start + size], work)]

    def reply_length(self, trial: Trial) -> int:
        """Tokens of the longest legal answer of a trial, with the one that ends a reply."""
        return self._prompter.reply_length(trial)

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, each as the text that it stands for."""
        return [self._prompter.decode([token], special=True) for token in self._prompter.encode(text)]

    def probe_inputs(self) -> dict[str, torch.Tensor]:
        """The inputs of a made-up question, for checks of the model itself."""
        return self._move(self._prompter.inputs([[self._made_up()]]))

    def _made_up(self, *, pictured: bool = True) -> Turn:
        """A made-up question, without an image if there is to be none or the model takes none."""
        return dummy_inputs() if pictured and not self.text_only else replace(dummy_inputs(), images=())

    def check_without_images(self) -> None:
        """Refuse a model that cannot be asked in words alone, before any trial.

        Raises:
            ModelError: If it is one.
        """
        try:
            self._scorer.check(
                self._move(self._prompter.inputs([[self._made_up(pictured=False)]])),
                tuple(self._prompter.encode("yes")),
            )
        except ModelError:
            raise
        except Exception as error:  # of any architecture
            raise ModelError(
                f"{self._identity.name} cannot be asked without a picture ({reason_of(error)}); leave out the conditions"
                " without one, or take another model"
            ) from error

    def _check_generates(self, inputs: dict[str, torch.Tensor]) -> None:
        """Refuse a network that fails on a made-up question, before any trial. Raises ModelError."""
        try:
            self._scorer.check(inputs, tuple(self._prompter.encode("yes")))
        except ModelError:
            raise
        except Exception as error:  # of any architecture
            fix = "use a smaller model, or --load-in-4bit" if out_of_memory(error) else "use another model"
            raise ModelError(
                f"cannot use {self._identity.name}: its network fails on a made-up question ({reason_of(error)}): {fix}"
            ) from error

    def _limit(self, trial: Trial, settings: Generation) -> int:
        if settings.max_new_tokens:
            return settings.max_new_tokens
        if trial.item.question.style == "think":
            return THINKING_TOKENS
        return self.reply_length(trial) + SPARE_TOKENS

    def _inputs(self, trials: Sequence[Trial]) -> dict[str, torch.Tensor]:
        key = tuple(trial.id for trial in trials)
        inputs = self._ready.pop(key) if key in self._ready else self._make_inputs(trials)
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(room, int) and inputs["input_ids"].shape[1] > room:
            raise ModelError(
                f"{self.identity.name} reads {room:,} tokens, and a prompt has {inputs['input_ids'].shape[1]:,}: give fewer"
                " --examples, or another model"
            )
        seen = {self._seen(trial, image) for trial in trials for turn in trial.turns for image in turn.images}
        self.observed |= {
            "pictures": sorted({*self.observed.get("pictures", []), *seen}),
            "prompt_tokens": max(self.observed.get("prompt_tokens", 0), inputs["input_ids"].shape[1]),
        } | ({"batch_size": self._most} if self._most else {})
        return self._move(inputs)

    def _make_inputs(self, trials: Sequence[Trial]) -> Any:
        return self._prompter.inputs([trial.turns for trial in trials])

    def _seen(self, trial: Trial, image: Image.Image) -> str:
        """The size of an image, and of what the model gets of it, which depends on nothing else."""
        alone = sum(len(turn.images) for turn in trial.turns) == 1
        key = (*image.size, alone)
        if key not in self._sizes:
            seen = self._prompter.picture_size(image.size, alone=alone)
            self._sizes[key] = f"{image.width} x {image.height}" + (f" seen as {seen}" if seen else "")
        return self._sizes[key]

    def _move(self, inputs: Any) -> dict[str, torch.Tensor]:
        return dict(inputs.to(self._model.device, self._model.dtype))


class _Seen(LogitsProcessor):
    """Notes, step by step, which rows of a batch have logits that say something."""

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # The largest is NaN if any is, and infinite if one is or all are masked; single tokens may well be masked. Looked at
        # only at the end, because every look waits for the GPU.
        self._steps.append(scores.amax(dim=-1).isfinite())
        return scores

    def finite(self, lengths: Sequence[int]) -> list[bool]:
        """Whether all logits were finite until each row's own end.

        Args:
            lengths: Tokens of each row's reply.
        """
        steps = torch.stack(self._steps, dim=1).tolist()
        return [all(row[:length]) for row, length in zip(steps, lengths, strict=True)]


class _Stop(StoppingCriteria):
    """Ends every row of a batch where its own thought, or its own answer, has had its tokens.

    Args:
        prompter: Knows where a thought ends.
        start: Tokens of the prompts.
        limits: Tokens of each row's answer.
        may_think: Whether each row may begin with a thought.
    """

    def __init__(self, prompter: Prompter, start: int, limits: Sequence[int], may_think: Sequence[bool]) -> None:
        self._prompter, self._start, self._limits = prompter, start, limits
        self._budget = prompter.thinking.max_tokens
        # Of thoughts that are open. Where the prompt has opened none, the answer's limit shows whether the model has.
        self._tags = {row: prompter.tags for row, may in enumerate(may_think) if may}
        self.until = [self._budget if self._tags.get(row) else limit for row, limit in enumerate(limits)]
        """Tokens that each row may have."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        steps = input_ids.shape[1] - self._start
        recent = input_ids[:, -min(steps, CLOSING) :].tolist() if self._tags else []
        for row, tags in list(self._tags.items()):
            if tags is None and steps == self.until[row]:
                self._look(row, input_ids[row, self._start :].tolist())
            elif tags is not None and tags.closing in self._prompter.decode(recent[row], special=True):
                self.until[row] = steps + self._limits[row]
                del self._tags[row]
        return torch.tensor([steps >= until for until in self.until], device=input_ids.device)

    def _look(self, row: int, reply: list[int]) -> None:
        """See whether a reply begins with a thought that the prompt has not opened."""
        tags, end = self._prompter.tags_in(reply), self._prompter.thought_end(reply)
        if tags is None or end is not None:
            del self._tags[row]
            self.until[row] += end or 0
        else:
            self._tags[row] = tags
            self.until[row] = max(self._budget, self.until[row])


class _Sample(LogitsProcessor):
    """Turns greedy search into sampling: the largest of logits / T + Gumbel noise is a draw from the softmax.

    Every trial has its own generator, so that its reply is the same in any batch, and when it is asked again.
    """

    def __init__(self, trial_ids: Sequence[str], settings: Generation) -> None:
        seeds = [zlib.crc32(f"{trial_id} {settings.seed}".encode()) for trial_id in trial_ids]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = settings.temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack([torch.rand(scores.shape[1], generator=g, dtype=torch.float64) for g in self._generators])
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
        return scores.double() / self._temperature + gumbel.to(scores.device)


def end_tokens(model: Any, tokenizer: Any, name: str) -> list[int]:
    """The tokens that end a reply: those of the model's generation settings, then the tokenizer's.

    Args:
        model: The network, for its generation settings.
        tokenizer: Its tokenizer.
        name: Of the model, for the message.

    Raises:
        ModelError: If neither names one, so that no reply would ever end.
    """
    configured = model.generation_config.eos_token_id
    ends = list(configured) if isinstance(configured, list | tuple) else [configured]
    known = [int(token) for token in dict.fromkeys([*ends, tokenizer.eos_token_id]) if token is not None]
    if not known:
        raise ModelError(f"cannot use {name}: neither its generation settings nor its tokenizer name an end token")
    return known


def _details(model: Any, processor: Any, device: str) -> dict[str, Any]:
    """What else decides the answers. Nested entries are information; the others must be equal for a run to go on."""
    settings = plain_settings(processor.image_processor) if takes_images(processor) else {}
    return {
        "architecture": str(model.config.model_type),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device,
        "quantisation": quantisation(model),
        "load_in_4bit": bool(getattr(model, "is_loaded_in_4bit", False)),
        "attention": str(model.config._attn_implementation),
        "processor_sha256": hashlib.sha256(dumps(settings, sort_keys=True, ascii_only=True).encode()).hexdigest(),
        "processor": settings,
        "parameters": {"total": parameter_count(model)},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
