"""`probe ask`: one question about an image of your own, and what a model says to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Json, listed
from vlm_probe.probes.options import THOUGHT_LENGTH, THOUGHT_TOKENS

if TYPE_CHECKING:
    from PIL import Image

    from vlm_probe.probes.models import Generation, Reply, Trial

TOKENS = 512
"""Of a reply at most, where nothing else is asked for."""


def ask(
    question: Annotated[str, Parameter(name="QUESTION", help="What is asked, in any words.")],
    /,
    *,
    model: str,
    image: str = "",
    adapter: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    max_new_tokens: int = TOKENS,
    thinking: Literal["auto", "off", "on"] = "auto",
    chat_template_args: str = "",
    max_thinking_tokens: Annotated[int, Parameter(validator=THOUGHT_LENGTH)] = THOUGHT_TOKENS,
    revision: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    load_in_4bit: Annotated[bool, Parameter(name="--load-in-4bit", negative=())] = False,
    base_url: str | None = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Ask a model one question; print its reply as it comes, its tokens, and the size of the image that the model saw.

    Args:
        model: Short name (see `probe models`), local folder or hub id; with --base-url, the model's id at the server.
        image: File of an image; several, separated by commas, are shown in this order; none asks without an image.
        adapter: Folder of a LoRA adapter; with --base-url, the adapter's id at the server.
        temperature: Sampling temperature; 0 = greedy.
        seed: Seed of a sampled reply.
        max_new_tokens: Longest reply, tokens, without the thought before it.
        thinking: Whether a model that can thinks before it answers; `auto`: as its makers have it.
        chat_template_args: Other arguments of the model's chat template: `key=value`, separated by commas.
        max_thinking_tokens: Longest thought, tokens.
        revision: Revision on the hub.
        dtype: Number format of the weights.
        device: `cpu`, `cuda`, ...
        load_in_4bit: Quantise the weights to four bits.
        base_url: Ask the OpenAI-compatible server at this address.
    """
    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.cli.errors import UsageError
    from vlm_probe.probes.cli.resources import check_model_name
    from vlm_probe.probes.models import Generation
    from vlm_probe.probes.models.catalog import lookup
    from vlm_probe.probes.models.loading import load_model
    from vlm_probe.probes.models.thinking import Thinking

    settings = Generation(max_new_tokens or TOKENS, temperature, seed)
    thoughts = Thinking(thinking, chat_template_args, max_thinking_tokens)
    if base_url is None:
        check_model_name(model)
    if lookup(model, base_url).kind == "observer":
        raise UsageError(f"{model} reads scenes and not questions: ask a vision-language model, such as tiny")
    images = [_opened(Path(name)) for name in listed(image)]
    loaded: Any = load_model(
        model,
        revision=revision,
        dtype=dtype,
        device=device,
        adapter=adapter,
        load_in_4bit=load_in_4bit,
        base_url=base_url,
        settings=settings,
        images=len(images),
        thinking=thoughts,
    )
    reply = _reply(loaded, _trial(question, images), settings)
    tokens = loaded.tokens(reply.text) if hasattr(loaded, "tokens") else None
    seen = loaded.observed.get("pictures", [])
    if json:
        facts = {"prompt_tokens": loaded.observed.get("prompt_tokens"), "images": seen, "tokens": tokens}
        show_json({"reply": reply.text, "thought": reply.thought, "ended": reply.ended or "by itself"} | facts)
        return 0
    if reply.thought is not None:
        show(f"thought:\n{reply.thought}\n\nreply:")
    show(reply.text)
    notes = [f"cut at {settings.max_new_tokens} tokens"] if reply.ended == "unfinished" else []
    if tokens is not None:
        notes.append(f"{len(tokens)} tokens after a prompt of {loaded.observed['prompt_tokens']}: {' | '.join(tokens)}")
    show("\n" + "\n".join([*notes, *(f"image: {size}" for size in seen)]))
    return 0


def _opened(file: Path) -> Image.Image:
    """An image. Raises UsageError if it cannot be read."""
    from vlm_probe.probes.cli.errors import UsageError
    from vlm_probe.stimuli.opening import open_picture

    try:
        return open_picture(file)[0].convert("RGB")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{file} cannot be shown ({reason}): give the file of an image") from error


def _trial(question: str, images: list[Image.Image]) -> Trial:
    """A question of your own as a trial; only its words and images matter."""
    from vlm_probe.probes.models import Trial, Turn
    from vlm_probe.stimuli.condition import Condition
    from vlm_probe.stimuli.dataset import Item
    from vlm_probe.stimuli.question import ChoiceFormat, Option, Question, Variant

    asked = Question(question, ChoiceFormat((Option("yes", "yes"), Option("no", "no"))))
    item = Item("question", "", 0, "", "", asked, "yes", 0.0, Condition(1), Variant(), "", "", "base", None, "")

    class Shown(Trial):
        @property
        def turns(self) -> tuple[Turn, ...]:
            return (Turn("user", question, tuple(images)),)

    return Shown(item, images[0] if images else None)


def _reply(model: Any, trial: Trial, settings: Generation) -> Reply:
    """What a model says. Raises CommandError if a server fails."""
    from vlm_probe.probes.cli.errors import CommandError
    from vlm_probe.probes.models import Reply

    if model.streams:
        value = next(iter(model.stream([trial], "generate", settings)))[1]
        if isinstance(value, Exception):
            raise CommandError(f"the server gave no reply ({value}): see to the server, then ask again")
    else:
        value = model.generate([trial], settings)[0]
    return value if isinstance(value, Reply) else Reply(value)
