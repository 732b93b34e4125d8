"""What a model will need, known before it is loaded: memory and time, from its configuration and the heads of its files.

Parameters and their bytes are exact where the weights are here. Everything else is an estimate from arithmetic, and says so.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_probe.probes.models import ModelError, Turn
from vlm_probe.probes.models.catalog import ENTRIES, Entry, cached_snapshot, lookup
from vlm_probe.probes.models.device import SMALL, choose_device, choose_dtype
from vlm_probe.probes.models.model_folder import (
    BYTES,
    CONFIG,
    Weights,
    check_folder,
    read_json,
    read_weights,
    reason_of,
    stored_dtype,
)

QUESTION = "The blocks are let go. Will the tower stay up or will it fall? Answer with one word: yes or no."
PICTURE = 224
"""Width and height (pixels) of the images of the standard sets."""
QUESTION_TOKENS, NEW_TOKENS = 40, 10
"""Of a prompt's words where they cannot be counted, and of a reply: a short answer and `SPARE_TOKENS`."""
ITEMS = 500
FOUR_BITS = 4.127 / 8
"""Bytes of a quantised weight: nf4 in blocks of 64, whose scales are quantised in turn (Dettmers et al. 2023)."""
PROCESS = {"cpu": 900_000_000, "cuda": 1_000_000_000}
"""Bytes of Python with its libraries and what their allocators keep, or of a CUDA context."""
EFFICIENCY = 0.5
"""Share of the speed of a plain matrix product that a model reaches."""
MEASURED_BELOW = 20_000_000
"""Models with fewer parameters are timed: that takes less than describing them."""


@dataclass(frozen=True)
class Shape:
    """What of an architecture decides memory and time.

    Attributes:
        layers: Of the language model.
        cache_width: Numbers that a layer keeps per token, for keys and for values each.
        hidden: Width of the language model.
        inner: Width of its feed-forward layers.
        prompt_tokens: Tokens of the question and one image of `PICTURE` pixels.
        patches: Patches that the vision tower reads of it; 0 = unknown.
    """

    layers: int
    cache_width: int
    hidden: int
    inner: int
    prompt_tokens: int
    patches: int = 0


# Tokens are those of one square image of 224 pixels, with the tiles that each processor cuts it into.
PUBLISHED = {
    "llava": Shape(32, 4096, 4096, 11008, 576 + QUESTION_TOKENS),
    "llava-next": Shape(32, 1024, 4096, 14336, 1176 + QUESTION_TOKENS),
    "llava-onevision": Shape(28, 512, 3584, 18944, 1485 + QUESTION_TOKENS),
    "qwen2.5-vl": Shape(28, 512, 3584, 18944, 64 + QUESTION_TOKENS),
    "qwen3-vl": Shape(36, 1024, 4096, 12288, 64 + QUESTION_TOKENS),
    "smolvlm": Shape(24, 2048, 2048, 8192, 1440 + QUESTION_TOKENS),
    "internvl": Shape(36, 1024, 4096, 12288, 256 + QUESTION_TOKENS),
    "gemma3": Shape(34, 1024, 2560, 10240, 256 + QUESTION_TOKENS),
    "paligemma": Shape(26, 1024, 2304, 9216, 256 + QUESTION_TOKENS),
}
"""From the models' published configurations, for those that are not on this machine."""


@dataclass(frozen=True)
class Footprint:
    """What a model will need.

    Attributes:
        model: The name as given.
        source: "files" (read from the weights here) or "catalogue" (published numbers, the weights are not here).
        parameters: Number of parameters.
        stored_bytes: Size of the weights on disk; None if they are not here.
        weight_bytes: Number format -> bytes of the weights in memory, for all formats.
        dtype: The number format that a run would use.
        prompt_tokens: Tokens of a typical question with one image of `PICTURE` pixels.
        picture: What the model gets of that image; "" if unknown.
        batch_size: Trials per batch.
        cache_bytes: Keys and values of a batch (estimate).
        activation_bytes: What a forward pass holds next to (estimate).
        process_bytes: Python and its libraries (estimate).
        device: "cpu" or "cuda".
        device_name: What it is.
        available_bytes: Free memory of the device now.
        seconds: For `ITEMS` items.
        timing: "measured" or "estimate".
    """

    model: str
    source: str
    parameters: int
    stored_bytes: int | None
    weight_bytes: dict[str, int]
    dtype: str
    prompt_tokens: int
    picture: str
    batch_size: int
    cache_bytes: int
    activation_bytes: int
    process_bytes: int
    device: str
    device_name: str
    available_bytes: int
    seconds: float
    timing: str

    @property
    def needed_bytes(self) -> int:
        """Everything together, in the number format that a run would use."""
        return self.weight_bytes[self.dtype] + self.cache_bytes + self.activation_bytes + self.process_bytes

    @property
    def fits(self) -> bool:
        """Whether that is less than what is free."""
        return self.needed_bytes < self.available_bytes


def footprint(
    name: str, *, dtype: str = "auto", device: str = "auto", load_in_4bit: bool = False, batch_size: int = 0
) -> Footprint:
    """Estimate what a model needs, without loading it.

    Args:
        name: An alias, a folder, or a hub id; of the hub, nothing is downloaded.
        dtype: As for `load_model`.
        device: As for `load_model`.
        load_in_4bit: Quantise the weights to 4 bits.
        batch_size: Trials per batch; 0 = what a run would take.

    Raises:
        ModelError: If it is an observer, or its size cannot be known without a network.
    """
    import torch

    from vlm_probe.probes.models.huggingface import BATCH, SMALL_BATCH
    from vlm_probe.probes.models.network import DTYPES

    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    entry = lookup(name)
    if entry.kind == "observer":
        raise ModelError(f"{name} is an observer: it has no weights, and runs on any machine")
    device = choose_device(device)
    folder = cached_snapshot(entry.source) if entry.kind == "hub" else Path(entry.source)
    if folder is None:
        known = next((alias for alias in PUBLISHED if alias == name or lookup(alias).source == name), None)
        if known is None:
            listed = next((one for one in ENTRIES if entry.source == one.source and one.parameters), None)
            if listed is not None:
                raise ModelError(
                    f"{name} is not on this machine, and what it needs beyond its weights is in no list here"
                    f" ({listed.parameters:g} B parameters, {2 * (listed.parameters or 0):g} GB in bfloat16): download it"
                    f" with `hf download {entry.source}`, or give its folder"
                )
            raise ModelError(
                f"{name} is not on this machine, and its size is in no list here: download it with"
                f" `hf download {entry.source}`, or give its folder"
            )
        entry = lookup(known)
        weights, shape, picture, packed = _published(entry), PUBLISHED[known], "", False
    else:
        if not (folder / CONFIG).is_file():
            raise ModelError(f"{name} has no {CONFIG}: copy the missing files")
        check_folder(folder)
        weights, packed = read_weights(folder), _in_four_bits(folder)
        shape, picture = _read_shape(folder, name)
    on_cpu = not device.startswith("cuda")
    format_ = choose_dtype(dtype, device, stored_dtype(folder, weights), weights.parameters)
    chosen = "4bit" if load_in_4bit or packed else format_
    width = BYTES.get(chosen, 4 if on_cpu else 2)
    size = batch_size or (SMALL_BATCH if weights.parameters < SMALL else BATCH)
    tokens = size * (shape.prompt_tokens + NEW_TOKENS)
    # One layer at a time: its input, norms, queries, keys, values and what comes of them, and the feed-forward layer.
    activations = width * size * shape.prompt_tokens * (8 * shape.hidden + 3 * shape.inner)
    four = int(FOUR_BITS * weights.linear + (4 if on_cpu else 2) * (weights.parameters - weights.linear))
    seconds, timing = _seconds(weights, shape, size, width, device, folder, name)
    return Footprint(
        model=name,
        source="catalogue" if folder is None else "files",
        parameters=weights.parameters,
        stored_bytes=weights.stored_bytes,
        weight_bytes={kind: number * weights.parameters for kind, number in BYTES.items()}
        | {"4bit": weights.stored_bytes if packed and weights.stored_bytes else four},
        dtype=chosen,
        prompt_tokens=shape.prompt_tokens,
        picture=picture,
        batch_size=size,
        cache_bytes=2 * shape.layers * shape.cache_width * width * tokens,
        activation_bytes=activations,
        process_bytes=PROCESS["cpu" if on_cpu else "cuda"],
        device=device,
        device_name="the processor" if on_cpu else torch.cuda.get_device_name(device),
        available_bytes=free_memory() if on_cpu else torch.cuda.mem_get_info(device)[0],
        seconds=seconds,
        timing=timing,
    )


def _in_four_bits(folder: Path) -> bool:
    """Whether the weights of a folder are stored in 4 bits."""
    quantised = read_json(folder / CONFIG).get("quantization_config")
    return isinstance(quantised, dict) and (
        quantised.get("load_in_4bit") is True or 4 in (quantised.get("bits"), quantised.get("w_bit"))
    )


def free_memory() -> int:
    """Bytes of memory that a new process can take: of the machine, or of the container if that is less."""
    import os

    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        free = min(free, int((group / "memory.max").read_text(encoding="utf-8")) - used)
    return free


def _published(entry: Entry) -> Weights:
    parameters = int((entry.parameters or 0) * 1e9)
    # Embeddings and output layer are not quantised: about a tenth.
    return Weights(parameters, int(0.9 * parameters), 0, None, "bfloat16")


def _read_shape(folder: Path, name: str) -> tuple[Shape, str]:
    """The shape of a model that is here. The processor is loaded, and counts the tokens of a typical prompt itself."""
    from PIL import Image

    from vlm_probe.probes.models.image_inputs import pixel_values, takes_images
    from vlm_probe.probes.models.network import load_config, load_processor
    from vlm_probe.probes.models.prompting import Prompter

    config, processor = load_config(folder, name), load_processor(folder, name)
    try:
        text = config.get_text_config()
        end = processor.tokenizer.eos_token_id
        prompter = Prompter(processor, [0 if end is None else end], name)
        shown = (Image.new("RGB", (PICTURE, PICTURE)),) if takes_images(processor) else ()
        inputs = prompter.inputs([[Turn("user", QUESTION, shown)]])
        picture = prompter.picture_size((PICTURE, PICTURE)) if shown else ""
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        shape = Shape(
            layers=text.num_hidden_layers,
            cache_width=heads * head,
            hidden=text.hidden_size,
            inner=text.intermediate_size,
            prompt_tokens=inputs["input_ids"].shape[1],
            patches=sum(_patches(pixels, config) for tensors in pixel_values(inputs) for pixels in tensors),
        )
    except ModelError:
        raise
    except Exception as error:  # whatever a configuration of unknown origin makes of the library
        raise ModelError(f"{name} cannot be described ({reason_of(error)}): is it a vision-language model?") from error
    return shape, picture


def _patches(pixels: Any, config: Any) -> int:
    """Patches in a tensor of images: already cut (patches, numbers), or (..., 3, height, width)."""
    if pixels.ndim == 2:
        return int(pixels.shape[0])
    patch = getattr(getattr(config, "vision_config", None), "patch_size", 14)
    side = patch[0] if isinstance(patch, list | tuple) else patch
    return int(pixels[..., 0, :, :].numel() // side**2)


def _seconds(
    weights: Weights, shape: Shape, batch: int, width: int, device: str, folder: Path | None, name: str
) -> tuple[float, str]:
    """Seconds for `ITEMS` items, and whether they are measured."""
    if folder is not None and weights.parameters < MEASURED_BELOW:
        return _measure(folder, name, device, batch) * ITEMS, "measured"
    rate, bandwidth = _speed(device, width)
    prompt = 2 * (weights.linear - weights.vision) * shape.prompt_tokens + 2 * weights.vision * shape.patches
    reply = 2 * weights.linear * NEW_TOKENS
    # Every token of a reply reads all weights once for the whole batch.
    reading = width * weights.linear * NEW_TOKENS / bandwidth / batch
    return ITEMS * (prompt / rate + max(reply / rate, reading)) / EFFICIENCY, "estimate"


def _measure(folder: Path, name: str, device: str, batch: int) -> float:
    """Seconds per item of a small model: loaded, and asked two batches."""
    import torch
    from PIL import Image

    from vlm_probe.probes.models.huggingface import HuggingFaceModel

    model = HuggingFaceModel.load(folder, name, device=device)
    conversations = [[Turn("user", QUESTION, (Image.new("RGB", (PICTURE, PICTURE)),))]] * batch
    took = 0.0
    for _ in range(2):  # the first is slower, and not counted
        start = time.perf_counter()
        inputs = model._move(model._prompter.inputs(conversations))
        with torch.inference_mode():
            model._model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        took = time.perf_counter() - start
    return took / batch


def _speed(device: str, width: int) -> tuple[float, float]:
    """Operations per second of a matrix product on this device, and bytes per second of reading, measured now."""
    import torch

    dtype = torch.float32 if width == 4 else torch.bfloat16
    n = 1024 if device == "cpu" else 8192
    a, b = (torch.ones(n, n, dtype=dtype, device=device) for _ in range(2))
    large = torch.ones(64_000_000 // 4, device=device)

    def best(work: Any) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    return 2 * n**3 / best(lambda: a @ b), 64_000_000 / best(large.sum)
