"""Folders of models: which files are loaded, what they hash to, and whether they are sound. Read without loading torch.

Model folders come from anybody. Whatever is wrong with one is a `ModelError` that names the file.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_probe.probes.models import ModelError
from vlm_probe.stimuli.plain_json import parse_object

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
ADAPTER = "adapter_config.json"
MEND = "copy or download it again"
LOADED = (".json", ".jinja", ".txt", ".model", ".spm", ".bpe", ".codes", ".tiktoken", ".tokenizer")
"""Kinds of files, besides weights, among which transformers finds what it loads."""
TEMPLATES = "additional_chat_templates"
NOT_LOADED = re.compile(
    r"(training|evaluation|trainer_state|\w+_results)\.json|.*\.index\.json|(readme|licen[cs]e|notice|requirements)\.txt",
    re.IGNORECASE,
)
"""Files of those kinds that no program loads as part of a model."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STORED = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
VISION = re.compile(r"(^|\.)(vision|visual|vpm|image_tower)")
PACKED = re.compile(r"(\.qweight|\.weight_packed|_blocks)$")
"""Quantised weights of GPTQ, AWQ, compressed-tensors and MXFP4; those of bitsandbytes are told by what lies with them."""
SCALES = re.compile(
    r"\.(quant_state\.\w+|(nested_)?(absmax|quant_map)|SCB|weight_format|qzeros|scales|g_idx)$"
    r"|(weight|input|output|activation)_(scale(_inv|_2)?|zero_point|shape|global_scale)$|_scales$"
)
EMBEDDING = re.compile(r"embed_tokens|lm_head|wte|position_embedding|pos_embed")
LARGEST_JSON = 64 * 1024**2
LONGEST_HEAD = 100_000_000
"""Bytes of the head of a safetensors file; the format allows no more."""
REPEATED = re.compile(r".*layers|n_layer|depth|.*experts")
"""Settings that say how many copies of a block a model has. Each has tensors of its own."""
FEW = 1024
"""Blocks that are built in no time, even if the weights have fewer tensors."""
TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file: its number format, as the file spells it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Its numbers."""
        return math.prod(self.shape)


@contextmanager
def reading(what: Path | str, fix: str = MEND) -> Iterator[None]:
    """Turn whatever goes wrong at reading a file into a ModelError that names it.

    Args:
        what: The file or folder.
        fix: What to do about it.

    Raises:
        ModelError: If anything else is raised inside.
    """
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        # Libraries in Rust panic, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{what} is damaged ({reason_of(error)}): {fix}") from error


def reason_of(error: BaseException) -> str:
    """What an error says, in one line of bounded length that can be printed anywhere."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch and huggingface_hub put a heading above what they have to say.
    text = "".join(lines[1:2] if lines and lines[0].endswith(":") and len(lines) > 1 else lines[:1])
    if isinstance(error, KeyError):
        text = f"no {text}"
    text = text or type(error).__name__
    return text.encode("utf-8", "replace").decode()[:300].rstrip(". ")


def read_json(file: Path, *, wild: str = "") -> dict[str, Any]:
    """The object in a JSON file of a model or an adapter.

    Args:
        file: The file.
        wild: Name of an entry in which NaN may stand, such as losses of a training run that went wrong.

    Raises:
        ModelError: If it is none, or has a NaN or a text in it that is no Unicode.
    """
    with reading(file):
        if file.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{file.stat().st_size:,} bytes")
        found = parse_object(file.read_bytes(), finite=False)
        for path, value in entries(found):
            if isinstance(value, float) and math.isnan(value) and not (wild and path.startswith(wild)):
                raise ValueError(f"{path} is NaN")
            if isinstance(value, str):
                value.encode()
        return found


def entries(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a JSON value, with its path, such as ("text_config.num_hidden_layers", 4)."""
    if path:
        yield path, value
    if isinstance(value, Mapping):
        for name, inner in value.items():
            name.encode()
            yield from entries(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from entries(inner, f"{path}[{place}]")


def check_folder(folder: Path) -> dict[str, Tensor]:
    """Make sure that a model folder holds one model, whose settings have the right kinds and fit its weights.

    Returns:
        The tensors of its weights.

    Raises:
        ModelError: If it does not.
    """
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder} is a model with an adapter inside ({ADAPTER}), which would be put on unseen: move the adapter to a"
            " folder of its own, and give that as --adapter"
        )
    config = read_json(folder / CONFIG)
    tensors = read_tensors(weight_files(folder))
    if not tensors:
        raise ModelError(f"{folder} has weights without a tensor: {MEND}")
    most = max(len(tensors), FEW)
    for path, value in entries(config):
        named = REPEATED.fullmatch(path.rpartition(".")[2])
        if named and isinstance(value, int) and not 0 <= value <= most:
            raise ModelError(
                f"{folder / CONFIG} does not fit the weights ({path} is {value:,}, and they have {len(tensors):,} tensors):"
                f" {MEND}"
            )
        if path.endswith("_implementation") and isinstance(value, str) and "/" in value:
            raise ModelError(
                f"{folder / CONFIG} names code of the hub to run ({path} is {value[:60]!r}): remove the entry"
            )
    text = config.get("text_config")
    vocabulary = text.get("vocab_size") if isinstance(text, dict) else config.get("vocab_size")
    _check_tokens(folder / CONFIG, config, vocabulary)
    if (folder / GENERATION).is_file():
        settings = read_json(folder / GENERATION)
        for path, value in entries(settings):
            if isinstance(value, float) and math.isinf(value):
                raise ModelError(f"{folder / GENERATION} is damaged ({path} is {value}): {MEND}")
        _check_tokens(folder / GENERATION, settings, vocabulary)
    return tensors


def _check_tokens(file: Path, settings: Mapping[str, Any], vocabulary: Any) -> None:
    """Raise ModelError if the settings name a special token in another way than by a number of the vocabulary."""
    for name in TOKENS:
        value = settings.get(name)
        tokens = value if isinstance(value, list) else [value]
        if not all(token is None or (isinstance(token, int) and not isinstance(token, bool)) for token in tokens):
            raise ModelError(f"{file} is damaged ({name} is {str(value)[:60]}, and not the number of a token): {MEND}")
        largest = vocabulary if isinstance(vocabulary, int) else 2**31
        if name == "eos_token_id" and not all(token is None or 0 <= token < largest for token in tokens):
            raise ModelError(
                f"{file} is damaged ({name} is {str(value)[:60]}, and the vocabulary has {largest:,} tokens): {MEND}"
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are loaded: those that the index names, or the only one.

    Raises:
        ModelError: If one is missing or outside the folder, or the index is damaged.
    """
    return _weights(folder)[1]


def _weights(folder: Path) -> tuple[Path | None, list[Path]]:
    """The index, if it is used, and the weights. In the order in which transformers looks for them."""
    given = read_json(folder / CONFIG).get("transformers_weights") if (folder / CONFIG).is_file() else None
    if given is not None and not isinstance(given, str):
        raise ModelError(f"{folder / CONFIG} is damaged (transformers_weights is no name of a file): {MEND}")
    single = given or (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX)
    if single == INDEX and not (folder / INDEX).is_file():
        raise ModelError(
            f"{folder} has no (complete) safetensors weights: copy the missing files, or save the model again with"
            " save_pretrained"
        )
    file = _inside(folder, single, folder / CONFIG)
    if not single.endswith(".index.json"):
        if (folder / INDEX).is_file():  # not used, but what is damaged was hardly meant to be there
            _named(folder / INDEX)
        return None, [file]
    return file, [_inside(folder, name, file) for name in _named(file)]


def _named(index: Path) -> list[str]:
    """The files that an index names. Raises ModelError if it is damaged."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index} is damaged (weight_map does not name a file for every tensor): {MEND}")
    return sorted(set(names.values()))


def _inside(folder: Path, name: str, said_by: Path) -> Path:
    """A file of the folder, which may be a link into the cache of the hub. Raises ModelError if it is elsewhere."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ModelError(f"{said_by} names weights outside its folder ({name[:200]!r}): copy them into {folder}")
    file = folder / path
    with reading(file):
        there, target, home = file.is_file(), file.resolve(), folder.resolve()
    if not there:
        raise ModelError(f"{folder} has no {name}, which {said_by.name} names: copy the missing files, or {MEND}")
    if not target.is_relative_to(home) and not any(target.is_relative_to(cache) for cache in _caches(folder)):
        raise ModelError(f"{file} is a link out of its folder, to {target}: copy the weights into {folder}")
    return file


def _caches(folder: Path) -> list[Path]:
    """The cache of the hub, and the one that the folder is a snapshot in."""
    from huggingface_hub import constants

    home = folder.resolve()
    own = [home.parents[2]] if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--") else []
    return [Path(constants.HF_HUB_CACHE).expanduser().resolve(), *own]


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that decides what a model says, by its name in the folder.

    Raises:
        ModelError: If a file cannot be read, or the weights are elsewhere.
    """
    index, weights = _weights(folder)
    found = (*weights, *([index] if index else []), *settings_files(folder))
    files = {file.relative_to(folder).as_posix(): file for file in found}
    return {name: _sha256(files[name]) for name in sorted(files)}


def settings_files(folder: Path) -> list[Path]:
    """Everything besides weights that transformers may load from a folder: settings, tokenizer, processors, templates.

    Raises:
        ModelError: If the folder cannot be read.
    """
    with reading(folder):
        return [
            file
            for file in sorted((*folder.iterdir(), *folder.glob(f"{TEMPLATES}/*.jinja")))
            if file.suffix in LOADED and not NOT_LOADED.fullmatch(file.name) and file.is_file()
        ]


def check_text(file: Path) -> None:
    """Raise ModelError if a file of `settings_files` is no JSON or no text, as its name says."""
    with reading(file):
        if file.suffix == ".json":
            parse_object(file.read_bytes(), finite=False)
        elif file.suffix == ".jinja":
            file.read_text(encoding="utf-8")


def weights_hash(folder: Path, hashes: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the names and contents of the weights that are loaded.

    Args:
        folder: Of the model.
        hashes: Those of `file_hashes`, if they are known.

    Raises:
        ModelError: If a file cannot be read, or lies elsewhere.
    """
    digest = hashlib.sha256()
    for file in weight_files(folder):
        name = file.relative_to(folder).as_posix()
        digest.update(f"{name} {hashes[name] if hashes else _sha256(file)}\n".encode())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    """The hash of a file; of one in the cache of the hub its name there, because 16 GB take a minute to read."""
    from huggingface_hub import constants

    with reading(file):
        if file.is_symlink():
            blob = file.parent / file.readlink()
            store, cache = blob.parent.resolve(), Path(constants.HF_HUB_CACHE).expanduser().resolve()
            known = store.name == "blobs" and store.parent.name.startswith("models--") and store.parent.parent == cache
            # Files that are no weights are named by another hash, which has 40 digits.
            if known and re.fullmatch("[0-9a-f]{64}", blob.name):
                return blob.name
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files, from their heads, of which nothing else is read.

    Raises:
        ModelError: If a file is damaged.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        with reading(file), file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > LONGEST_HEAD:
                raise ValueError(f"a head of {length:,} bytes")
            head = parse_object(opened.read(length))
            head.pop("__metadata__", None)
            end = 0
            for name, entry in head.items():
                try:
                    found[name] = Tensor(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
                    end = max(end, int(entry["data_offsets"][1]))
                except (KeyError, TypeError, ValueError, IndexError) as error:
                    raise ValueError(f"its tensor {name[:60]}") from error
                if min(found[name].shape, default=0) < 0:
                    raise ValueError(f"its tensor {name[:60]}")
            if file.stat().st_size < 8 + length + end:
                raise ValueError("it is cut off")
    return found


@dataclass(frozen=True)
class Weights:
    """What the weights are.

    Attributes:
        parameters: All of them.
        linear: Those of matrices that can be quantised: without embeddings, norms and the output layer.
        vision: Those of the vision tower's matrices.
        stored_bytes: On disk; None if they are not here.
        dtype: Number format of most of them.
    """

    parameters: int
    linear: int
    vision: int
    stored_bytes: int | None
    dtype: str


def read_weights(folder: Path) -> Weights:
    """Count the weights of a folder from the heads of its safetensors files, of which nothing else is read.

    Quantised weights are packed, several to a number; they are counted one by one.

    Raises:
        ModelError: If a file is damaged.
    """
    tensors = read_tensors(weight_files(folder))
    if not tensors:
        raise ModelError(f"{folder} has weights without a tensor: {MEND}")
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    counts = _unpacked(tensors, config.get("quantization_config"))
    stored = sum(tensor.count * STORED.get(tensor.dtype, 2) for tensor in tensors.values())
    formats: dict[str, int] = {}
    for name, count in counts.items():
        formats[tensors[name].dtype] = formats.get(tensors[name].dtype, 0) + count
    linear = {n: count for n, count in counts.items() if len(tensors[n].shape) >= 2 and not EMBEDDING.search(n)}
    return Weights(
        sum(counts.values()),
        sum(linear.values()),
        sum(count for name, count in linear.items() if VISION.search(name)),
        stored,
        {"BF16": "bfloat16", "F16": "float16"}.get(max(formats, key=lambda kind: formats[kind]), "float32"),
    )


def _unpacked(tensors: Mapping[str, Tensor], quantised: Any) -> dict[str, int]:
    """The number of weights that every tensor stands for; without scales and the like, which stand for none."""
    if not isinstance(quantised, dict):
        return {name: tensor.count for name, tensor in tensors.items()}
    bits = quantised.get("bits") or quantised.get("w_bit") or 4
    found = {}
    for name, tensor in tensors.items():
        if SCALES.search(name):
            continue
        width = 8 * STORED.get(tensor.dtype, 2)
        if any(f"{name}.quant_state.bitsandbytes__{kind}" in tensors for kind in ("nf4", "fp4")):
            found[name] = tensor.count * width // 4
        elif PACKED.search(name) and isinstance(bits, int) and 0 < bits <= width:
            found[name] = tensor.count * width // bits
        else:
            found[name] = tensor.count
    return found


def stored_dtype(folder: Path | None, weights: Weights) -> str:
    """The format that transformers loads with `dtype="auto"`: that of the configuration, else of the weights."""
    if folder is not None:
        config = read_json(folder / CONFIG)
        given = config.get("dtype") or config.get("torch_dtype")
        if isinstance(given, str) and given in BYTES:
            return given
    return weights.dtype
