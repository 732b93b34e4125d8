"""Folders that training runs leave: what they say about themselves, read without loading a model or torch."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.model_folder import entries, read_json, read_tensors, reading, weight_files

Part = Literal["language", "vision", "projector"]

# The projector comes first, because Qwen keeps its own inside the vision tower. The pooling head that some towers carry is
# used by no vision-language model.
_PARTS: tuple[tuple[Part, re.Pattern[str]], ...] = (
    (
        "projector",
        re.compile(
            r"(?:.*\.)?(?:multi_modal_projector|connector|aligner|visual\.merger|visual\.deepstack_merger_list)\..*"
        ),
    ),
    ("vision", re.compile(r"(?:.*\.)?(?:vision_tower|vision_model|visual)\.(?!(?:.*\.)?head\.).*")),
    ("language", re.compile(r"(?:.*\.)?(?:language_model|text_model)\..*")),
)


def part_of(name: str) -> Part | None:
    """The part that a module or a parameter belongs to; None for the output layer and for heads that nothing uses."""
    return next((part for part, pattern in _PARTS if pattern.fullmatch(name)), None)


WEIGHTS, CONFIG, TRAINING = "adapter_model.safetensors", "adapter_config.json", "training.json"
IMPORTS = ("megatron_config",)
"""Entries with which PEFT imports a module whose name stands in the configuration."""
AGAIN = "copy it again, or train it again"
NUMBERS = ("r", "lora_alpha", "lora_dropout")
PATTERNS = ("rank_pattern", "alpha_pattern")
RECORD: dict[str, Any] = {
    "method": str,
    "base": dict,
    "budget": dict,
    "config": dict,
    "tasks": list,
    "weights": list,
    "curves": list,
    "seed": int,
    "versions": dict,
    "lineage": (list, type(None)),
    "capacity": (dict, type(None)),
    "merged": dict,
    "adapter_sha256": (str, type(None)),
    "data_sha256": (str, type(None)),
}
"""Kinds of the entries of `training.json` that the program reads."""


@dataclass(frozen=True)
class Trained:
    """What a folder says about what was trained.

    Attributes:
        folder: The folder.
        kind: "lora" for an adapter, "full" for a whole model whose weights were trained themselves, or into which an adapter
            was merged.
        config: PEFT's configuration; empty for a whole model.
        shapes: Tensor name -> shape.
        training: What `probe train` wrote down about its making; empty for those of other programs.
    """

    folder: Path
    kind: Literal["lora", "full"]
    config: dict[str, Any] = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    training: dict[str, Any] = field(repr=False)

    @property
    def parameters(self) -> int:
        """Numbers in the folder's weights."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def layers(self) -> dict[str, int]:
        """Part of the model -> number of its layers that an adapter is in; empty for a whole model."""
        found: dict[str, set[str]] = {}
        for name in self.shapes if self.kind == "lora" else ():
            found.setdefault(part_of(name) or "other", set()).add(name.partition(".lora_")[0])
        return {part: len(names) for part, names in sorted(found.items())}

    @property
    def base(self) -> str:
        """The name of the base model: as `probe train` was given it, else as PEFT wrote it down; empty if unknown."""
        return str(self.training.get("base", {}).get("name") or self.config.get("base_model_name_or_path") or "")

    @property
    def base_sha256(self) -> str:
        """Hash of the weights of the base model; empty if it was not written down."""
        return str(self.training.get("base", {}).get("weights_sha256") or "")

    @cached_property
    def sha256(self) -> str:
        """Of an adapter: hash of its configuration and weights, as trial logs state it; empty for a whole model."""
        return adapter_hash(self.folder) if self.kind == "lora" else ""


def read_trained(folder: Path) -> Trained:
    """What a folder says about what was trained: an adapter, or a whole model.

    Raises:
        ModelError: If it is neither, or its files are damaged.
    """
    is_adapter = (folder / CONFIG).is_file()
    if not is_adapter and not ((folder / TRAINING).is_file() and (folder / "config.json").is_file()):
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        raise ModelError(
            f"{folder} is not an adapter: it has no {' and no '.join(missing)}; give a folder made by PEFT or `probe train`"
        )
    if is_adapter and not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}: {AGAIN}")
    config = read_json(folder / CONFIG) if is_adapter else {}
    made = read_json(folder / TRAINING, wild="curves") if (folder / TRAINING).is_file() else {}
    tensors = read_tensors([folder / WEIGHTS] if is_adapter else weight_files(folder))
    if not tensors:
        raise ModelError(f"{folder / WEIGHTS} is damaged (it has no tensor): {AGAIN}")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    with reading(folder / CONFIG, AGAIN):
        _check_config(config, shapes)
    with reading(folder / TRAINING, AGAIN):
        _check_record(made)
    return Trained(folder, "lora" if is_adapter else "full", config, shapes, made)


def read_adapter(folder: Path) -> Trained:
    """What a folder says about its adapter.

    Raises:
        ModelError: If the folder is no adapter, or its files are damaged.
    """
    found = read_trained(folder)
    if found.kind == "full":
        raise ModelError(f"{folder} is a whole model, not an adapter: give it as --model")
    return found


def find_trained(folder: Path) -> list[Path]:
    """What training runs have left in a folder, at any depth, in the order of the names; checkpoints are left out."""
    places = {file.parent for file in folder.rglob(CONFIG)}
    places |= {file.parent for file in folder.rglob(TRAINING) if (file.parent / "config.json").is_file()}
    return sorted(
        place for place in places if not any(part.startswith("checkpoint-") for part in place.relative_to(folder).parts)
    )


def check_base(folder: Path, weights_sha256: str, name: str) -> None:
    """Make sure that an adapter is one of this base model, as far as it says of which.

    Without this, an adapter of another model of the same shape would load without complaint and do something arbitrary.

    Args:
        folder: Of the adapter.
        weights_sha256: Of the model's weights.
        name: Of the model, for the message.

    Raises:
        ModelError: If its `training.json` states other weights.
    """
    adapter = read_adapter(folder)
    if adapter.base_sha256 and adapter.base_sha256 != weights_sha256:
        raise ModelError(
            f"the adapter {folder} was trained on other weights ({adapter.base}, sha256 {adapter.base_sha256[:12]}) than"
            f" those of {name} ({weights_sha256[:12]}): use the base model that it was trained on, in the same version"
        )


def _check_config(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError if PEFT's configuration cannot be one, does not fit the weights, or names code."""
    for name in IMPORTS:
        if config.get(name):
            raise ValueError(f"it has {name}, which names code to import; remove the entry")
    for path, value in entries(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path} is {value}")
    for name in NUMBERS:
        if not isinstance(config.get(name), int | float | None):
            raise ValueError(f"{name} is {str(config[name])[:40]!r}, and no number")
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        given: Any = config.get(name) or []
        if not isinstance(given, str) and not (isinstance(given, list) and all(isinstance(one, str) for one in given)):
            raise ValueError(f"{name} is {str(given)[:40]!r}, and no name or list of names")
    largest = max((max(shape, default=1) for shape in shapes.values()), default=1)
    ranks = {"r": config.get("r") or 1}
    for name in PATTERNS:
        given = config.get(name) or {}
        if not isinstance(given, dict) or not all(isinstance(value, int | float) for value in given.values()):
            raise ValueError(f"{name} does not name a number for every pattern")
        ranks |= {f"{name}.{key}": value for key, value in given.items() if name == "rank_pattern"}
    for name, rank in ranks.items():
        if rank > largest:
            raise ValueError(f"{name} is {rank:,}, and the largest tensor has {largest:,} rows or columns")
    copied = config.get("layer_replication") or []
    if not all(isinstance(pair, list) and len(pair) == 2 and 0 <= pair[0] <= pair[1] <= len(shapes) for pair in copied):
        raise ValueError("layer_replication is no list of ranges of layers")


def _check_record(made: dict[str, Any]) -> None:
    """Raise ValueError if an entry of `training.json` that the program reads is of another kind than it writes."""
    for name, kinds in RECORD.items():
        if name in made and not isinstance(made[name], kinds):
            raise ValueError(f"{name} is {str(made[name])[:40]!r}")
    for name, inner in made.items():
        # Losses may well be infinite where a training went wrong.
        wild = [path for path, value in entries({name: inner}) if isinstance(value, float) and math.isinf(value)]
        if wild and name != "curves":
            raise ValueError(f"{wild[0]} is infinite")
    numbers = {f"budget.{name}": value for name, value in (made.get("budget") or {}).items()}
    numbers |= {f"weights.{place}": value for place, value in enumerate(made.get("weights") or [])}
    numbers["config.attempts"] = (made.get("config") or {}).get("attempts", 1)
    for name, value in numbers.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{name} is {str(value)[:40]!r}")
    for row in made.get("curves") or []:
        if not isinstance(row, dict) or not isinstance(row.get("success"), int | float | None):
            raise ValueError("curves is no list of rows with a success rate")
    for step in (made, *(made.get("lineage") or [])):
        if not isinstance(step, dict) or not all(isinstance(task, str) for task in step.get("tasks") or []):
            raise ValueError("tasks, or lineage, is no list of names")


def adapter_hash(folder: Path) -> str:
    """SHA-256 over an adapter's configuration and weights."""
    digest = hashlib.sha256()
    for value in adapter_hashes(folder).values():
        digest.update(bytes.fromhex(value))
    return digest.hexdigest()


def adapter_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of an adapter that decide what a model says, by "adapter/" and their names."""
    files = {f"adapter/{name}": folder / name for name in (CONFIG, WEIGHTS)}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
