"""Networks and processors, loaded from a folder: whatever is wrong with it is said in one line, before it fills the memory."""

from __future__ import annotations

import copy
import logging
import math
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, GenerationConfig

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.device import choose_device, choose_dtype, quantisation
from vlm_probe.probes.models.footprint import read_weights, stored_dtype
from vlm_probe.probes.models.made_up import made_up
from vlm_probe.probes.models.model_folder import (
    CONFIG,
    GENERATION,
    MEND,
    check_folder,
    check_text,
    entries,
    read_json,
    reading,
    reason_of,
)
from vlm_probe.stimuli.plain_json import dumps, parse

log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
TOKENIZER = "tokenizer.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
READ_BY_PROCESSORS = (
    *("tokenizer_config.json", PROCESSOR, PREPROCESSOR, "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.json", "chat_template.jinja", "video_preprocessor_config.json", TOKENIZER),
)
SPARE = 50_000_000
"""Numbers that a network may have beyond twice its weights: tables of positions, and layers that share weights."""
IMAGE_SIZES = (
    *("size", "crop_size", "pad_size", "max_image_size", "image_grid_pinpoints", "patch_size", "merge_size"),
    *("min_pixels", "max_pixels", "min_patches", "max_patches", "max_image_tiles"),
)
IMAGE_SCALES = ("rescale_factor", "image_mean", "image_std")
LONGEST_EDGE, MOST_PIXELS = 8192, 120_000_000
"""Pixels to which the edge of an image, and an image, may be enlarged."""
MOST_TOKENS = 100_000
"""Tokens that a processor may write in the place of one image."""
SEARCH = 10.0
"""Seconds for finding the entry of a settings file that is wrong."""


def load_network(
    folder: Path, name: str, *, dtype: str = "auto", device: str = "auto", load_in_4bit: bool = False
) -> tuple[Any, Any, str]:
    """Load a network and its processor from a folder, as they are: for answering, training and merging alike.

    Args:
        folder: Folder with configuration, processor and safetensors weights.
        name: The name as the user gave it.
        dtype: "auto" as `device.choose_dtype` has it.
        device: "auto" is the first GPU, if there is one.
        load_in_4bit: Quantise to 4 bits (nf4, double quantisation); what is stored quantised stays as it is.

    Returns:
        The network (not in training mode), the processor, and the device that was chosen.

    Raises:
        ModelError: If that fails; one line with the fix.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    folder, device = Path(folder), choose_device(device)
    config, weights = load_config(folder, name), read_weights(folder)
    stored = getattr(config, "quantization_config", None)
    if stored is not None and load_in_4bit:
        load_in_4bit = False
        log.warning("%s is stored quantised, and is used as it is stored: --load-in-4bit changes nothing", name)
    precision: Any = DTYPES.get(dtype, torch.float32 if device == "cpu" else "auto")
    if dtype == "auto" and device != "cpu" and not load_in_4bit and stored is None:
        precision = DTYPES[choose_dtype(dtype, device, stored_dtype(folder, weights), weights.parameters)]
    if precision == torch.float32 and device != "cpu":
        # Convolutions, which cut images into patches, would otherwise be computed with ten bits.
        torch.backends.cudnn.allow_tf32 = False
    settings: dict[str, Any] = {"dtype": precision, "use_safetensors": True, "output_loading_info": True}
    if load_in_4bit or stored is not None:
        # By its number: accelerate trains in 4 bits only where it can see that this is the device of the process.
        settings["device_map"] = {"": torch.cuda.current_device() if device == "cuda" else device}
    if load_in_4bit:
        settings["quantization_config"] = _four_bits(device)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    processor = load_processor(folder, name)
    model, info = _attempt(
        folder, name, lambda place: AutoModelForImageTextToText.from_pretrained(place, **settings, **SAFE)
    )
    _check_loaded(info, name)
    if stored is not None and quantisation(model) == "none":
        raise ModelError(f"{folder / CONFIG} names a quantisation that transformers does not know: use another model")
    if "device_map" not in settings:
        model = _attempt(folder, name, lambda _: model.to(device))
    return model.eval(), processor, device


def load_config(folder: Path, name: str) -> Any:
    """The configuration of a model, checked against its weights.

    Args:
        folder: Of the model.
        name: As the user gave it.

    Raises:
        ModelError: If the folder is not sound; one line with the fix.
    """
    check_folder(folder)
    config, size = _attempt(folder, name, _describe, CONFIG)
    weights = read_weights(folder)
    if size > 2 * weights.parameters + SPARE:
        raise ModelError(
            f"{folder / CONFIG} does not fit the weights (it describes {size:,} numbers, and they are"
            f" {weights.parameters:,}): {MEND}"
        )
    if (folder / GENERATION).is_file():
        _attempt(folder, name, lambda place: GenerationConfig.from_pretrained(place, local_files_only=True), GENERATION)
    return config


def _describe(folder: Path) -> tuple[Any, int]:
    """A configuration, and how many numbers a network has that is built after it.

    Built without memory, in a tenth of a second for the largest models: weights that are not there would be made up before
    that is noticed.
    """
    config = AutoConfig.from_pretrained(folder, **SAFE)
    with torch.device("meta"):
        network = AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    return config, sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))


def load_processor(folder: Path, name: str) -> Any:
    """The processor of a model, tried on an image.

    Args:
        folder: Of the model.
        name: As the user gave it.

    Raises:
        ModelError: If it cannot be loaded, takes no images, or makes nonsense of them; one line with the fix.
    """
    processor = _attempt(folder, name, _tried_processor, *READ_BY_PROCESSORS)
    if not _takes_images(processor):
        raise ModelError(f"cannot load {name}: its processor does not take images and text; probe needs a VLM")
    return processor


def _tried_processor(folder: Path) -> Any:
    processor = AutoProcessor.from_pretrained(folder, **SAFE)
    if _takes_images(processor):
        _check_images(processor)
    return processor


def _takes_images(processor: Any) -> bool:
    return hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: that of a GPU, or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in ("not enough memory", "can't allocate memory", "out of memory"))


def _attempt(folder: Path, name: str, load: Callable[[Path], Loaded], *files: str) -> Loaded:
    """What `load` makes of a folder.

    Args:
        folder: Of the model.
        name: Of the model, as the user gave it.
        load: Reads from a folder.
        files: Those that it reads, as far as they are settings.

    Raises:
        ModelError: If it raises anything: one line that names the file, and the entry where one is to blame.
    """
    try:
        with _quietly(), reading(folder):
            return load(folder)
    except ModelError as error:
        cause = error.__cause__
        if cause is None:
            raise
        there = [folder / file for file in files if (folder / file).is_file()]
        for file in there:
            check_text(file)
        unsupported = _unsupported(cause)
        if unsupported:
            raise ModelError(f"cannot load {name}: {unsupported}") from cause
        file, entry = _culprit(folder, load, there)
        said = ": ".join(part for part in (entry, reason_of(cause)) if part)
        raise ModelError(f"{file} is damaged ({said}): {MEND}") from cause


def _culprit(folder: Path, load: Callable[[Path], Any], files: list[Path]) -> tuple[Path, str]:
    """The file that is to blame, as far as can be told, and the entry of it without which the folder can be loaded."""
    until = time.monotonic() + (SEARCH if files else 0)

    def loads_without(file: Path, path: tuple[str, ...]) -> bool:
        if time.monotonic() > until:
            return False
        settings = read_json(file)
        inner = settings
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        with tempfile.TemporaryDirectory() as place:
            for other in folder.iterdir():
                (Path(place) / other.name).symlink_to(other.resolve())
            (Path(place) / file.name).unlink()
            (Path(place) / file.name).write_text(dumps(settings), encoding="utf-8")
            try:
                with _quietly(), reading(folder):
                    load(Path(place))
            except ModelError:
                return False
        return True

    for file in files:
        if file.suffix != ".json" or file.name == TOKENIZER:
            continue
        for key, value in read_json(file).items():
            parts = value if isinstance(value, dict) else {}
            whole = loads_without(file, (key,))
            part = next((part for part in parts if loads_without(file, (key, part))), "")
            if whole or part:
                return file, f"{key}.{part}" if part else key
    if folder / TOKENIZER in files:
        try:
            with _quietly(), reading(folder):
                AutoTokenizer.from_pretrained(folder, **SAFE)
        except ModelError:
            return folder / TOKENIZER, ""
    return files[0] if len(files) == 1 else folder, ""


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what transformers reports while it loads: what matters of it is said in one line."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def _unsupported(error: BaseException) -> str:
    """What is wrong with a model that is sound, but of a kind that cannot be used here; empty if it is not sound."""
    whole, text = str(error), reason_of(error)
    if "trust_remote_code" in whole:
        return "it runs code of its own, which probe never does; use a variant that transformers supports (often -hf)"
    if isinstance(error, ImportError):
        return f"{text}: install it"
    if out_of_memory(error):
        return f"{text}: use a smaller model, or --load-in-4bit"
    if isinstance(error, OSError) and error.errno is None:
        # The sentences that follow are about the hub.
        return f"{text.partition('. ')[0]}: copy the missing files, or use a vision-language model"
    if isinstance(error, ValueError | KeyError) and re.search(
        "recogni|not supported|unsupported", whole, re.IGNORECASE
    ):
        return f"{text} (a vision-language model that this version of transformers supports is needed)"
    return ""


def _check_loaded(info: dict[str, Any], name: str) -> None:
    """Refuse weights of which tensors are missing, and warn of those that are not used. Raises ModelError."""
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise ModelError(
            f"cannot load {name}: {len(absent)} tensors are missing from its weights (such as {absent[0]});"
            " download or save the model again"
        )
    unused = sorted(info["unexpected_keys"])
    if unused:
        log.warning("%s: %d tensors of its weights are not used, such as %s", name, len(unused), unused[0])


def _check_images(processor: Any) -> None:
    """Raise ValueError if a processor makes too many numbers of an image, or some that are not finite."""
    images = processor.image_processor
    settings = plain_settings(images)
    # Some processors give their sizes as numbers of pixels, of which only the least enlarges an image.
    counts = any(settings.get(name) is not None for name in ("merge_size", "min_pixels"))
    for path, value in entries({name: settings[name] for name in IMAGE_SIZES if name in settings}):
        if isinstance(value, int | float) and not isinstance(value, bool):
            free = counts and path.rpartition(".")[2] in ("longest_edge", "max_pixels")
            largest = math.inf if free else MOST_PIXELS if counts else LONGEST_EDGE
            if not 0 < value <= largest:
                raise ValueError(f"the image processor's {path} is {value}")
    for name, value in plain_settings(processor).items():
        if name.endswith(("tokens", "seq_length")) and isinstance(value, int) and not 0 <= value <= MOST_TOKENS:
            raise ValueError(f"{name} is {value}")
    made = images(images=[[made_up().images[0]]], return_tensors="pt")["pixel_values"]
    if not bool(made.isfinite().all()):
        given = ", ".join(f"{name} {settings[name]}" for name in IMAGE_SCALES if name in settings)
        raise ValueError(f"the image processor makes numbers that are not finite of an image, with {given}")


def plain_settings(processor: Any) -> dict[str, Any]:
    """The settings of a processor as plain data."""
    found: dict[str, Any] = parse(dumps(processor.to_dict(), default=str, sort_keys=True))
    return found


def _four_bits(device: str) -> Any:
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise ModelError(
            "--load-in-4bit needs bitsandbytes, which is not installed: pip install 'vlm-probe[quantized]'"
        )
    # A CPU computes in single precision; there, 4 bits save memory and no time.
    compute = torch.bfloat16 if device != "cpu" else torch.float32
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
