"""The configuration of a run: what is asked of whom, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from vlm_probe.probes.options import (
    ESSENTIALS,
    FLAG,
    LOADING,
    QUESTION,
    REPLIES,
    THOUGHT_LENGTH,
    THOUGHT_TOKENS,
    commas,
    names,
)
from vlm_probe.stimuli.ranges import (
    AMOUNT,
    ATTEMPTS,
    BATCH,
    IMAGE_SIZE,
    PROCESSES,
    REPLY_LENGTH,
    SEED,
    TEMPERATURE,
    check_settings,
    ranged,
    whole,
)

if TYPE_CHECKING:
    from vlm_probe.probes.episodes import Memory
    from vlm_probe.probes.models.thinking import Thinking

EXAMPLES = whole(0, 100)
"""Worked examples before a question."""

Essential, Asked, Replied, Loaded = (Parameter(group=group) for group in (ESSENTIALS, QUESTION, REPLIES, LOADING))


@dataclass(frozen=True)
class RunConfig:
    """What is asked of whom, and how.

    Attributes:
        model: Short name (see `probe models`), local folder or hub id; with --base-url, the model's id at the server.
            Several, separated by commas, are run one after the other and compared in a table.
        stimuli: Folder of a set, task name, or family (`towers`: its headline task); several, separated by commas; or `all`.
        adapter: Folder of a LoRA adapter; with --base-url, the adapter's id at the server.
        limit: Ask only the first N items.
        readout: `generate`: read the reply. `options`: the log-probability of every legal answer.
        design: `plain`; `controls`: the standard battery (blank, mirrored, shuffled and other images, a description in
            place of the image, stated physics); `variants`: every item in every wording; or controls by name, separated
            by commas.
        examples: Worked examples before the question; several numbers (`0,1,3`) ask every item with each.
        examples_from: Set that the worked examples come from; by default a further set of the same task.
        style: Ask for the bare answer (`direct`) or for reasoning first (`think`); by default as the set was made.
        attempts: Attempts per item of an action task; after each one the model is shown the outcome.
        memory: Earlier attempts that the model is reminded of: `none`, `last-1`, `last-2`, ..., or `all`.
        size: Edge of the images of a task's or family's standard set, pixels; 0 = 224, or 448 with `raycast`.
        renderer: What draws that set: `engine` (the default), `raycast` (exact edges, soft shadows, materials), or `photoreal`
            (path tracing, seconds per image).
        thinking: Whether a model that can think does so before it answers; `auto`: as its makers recommend. Thoughts are kept in a
            column of their own, and never read as the answer.
        chat_template_args: Further arguments of the model's chat template: `key=value`, separated by commas.
        max_thinking_tokens: Longest thought, tokens; a longer one is cut, and its reply counts as unfinished.
        temperature: Sampling temperature; 0 = greedy.
        max_new_tokens: Longest reply, tokens; 0 = as many as the answers need.
        seed: Seed of sampled replies, and of random control conditions.
        batch_size: Items per batch; 0 = automatic. Answers do not depend on it.
        revision: Revision on the hub.
        dtype: Number format of the weights.
        device: `cpu`, `cuda`, `mps` or `xpu`.
        load_in_4bit: Quantise the weights to four bits.
        base_url: Address of an OpenAI-compatible server, such as http://localhost:8000/v1. Its key, if it needs one, is read from
            PROBE_API_KEY or OPENAI_API_KEY.
        concurrency: Requests sent to a server at the same time.

    Raises:
        OutOfRange: If a value is of another type, or outside its range.
        ModelError: If the arguments of the chat template cannot be read.
    """

    model: Annotated[str, Essential, names("model", "model-name-or-path")]
    stimuli: Annotated[str, Essential]
    readout: Annotated[Literal["generate", "options"], Essential] = "generate"
    batch_size: Annotated[int, Loaded] = ranged(0, BATCH)
    limit: Annotated[int | None, Essential] = ranged(None, AMOUNT)
    temperature: Annotated[float, Replied] = ranged(0.0, TEMPERATURE)
    max_new_tokens: Annotated[int, Replied] = ranged(0, REPLY_LENGTH)
    seed: Annotated[int, Replied] = ranged(0, SEED)
    revision: Annotated[str | None, Loaded] = None
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Loaded] = "auto"
    device: Annotated[str, Loaded] = "auto"
    adapter: Annotated[str | None, Essential] = None
    load_in_4bit: Annotated[bool, Loaded, FLAG] = False
    base_url: Annotated[str | None, Loaded] = None
    concurrency: Annotated[int, Loaded] = ranged(8, PROCESSES)
    design: Annotated[str, Asked] = "plain"
    examples: Annotated[tuple[int, ...], Asked, commas(int), names("examples", "num-fewshot")] = ranged((0,), EXAMPLES)
    examples_from: Annotated[str | None, Asked] = None
    style: Annotated[Literal["", "direct", "think"], Asked] = ""
    attempts: Annotated[int, Asked] = ranged(1, ATTEMPTS)
    memory: Annotated[str, Asked] = "all"
    size: Annotated[int, Asked] = ranged(0, whole(0, int(IMAGE_SIZE.most)))
    renderer: Annotated[Literal["", "engine", "raycast", "photoreal"], Asked] = ""
    thinking: Annotated[Literal["auto", "off", "on"], Replied] = "auto"
    chat_template_args: Annotated[str, Replied] = ""
    max_thinking_tokens: Annotated[int, Replied] = ranged(THOUGHT_TOKENS, THOUGHT_LENGTH)

    def __post_init__(self) -> None:
        check_settings(self)
        self.recall, self.thoughts  # noqa: B018

    @property
    def recall(self) -> Memory:
        """How often, and with what memory, a scene is tried."""
        # Imported here: help pages need the fields alone.
        from vlm_probe.probes.episodes import Memory

        return Memory(self.attempts, self.memory)

    @property
    def thoughts(self) -> Thinking:
        """Whether the model is to think before it answers."""
        from vlm_probe.probes.models.thinking import Thinking

        return Thinking(self.thinking, self.chat_template_args, self.max_thinking_tokens)

    @property
    def images(self) -> int:
        """Images in the longest conversation: of the question, of worked examples, and of the outcomes of earlier attempts."""
        from vlm_probe.stimuli.attempts import remembered

        return 1 + max(self.examples, default=0) + min(remembered(self.memory, self.attempts), self.attempts - 1)
