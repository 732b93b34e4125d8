"""Folders that trainings leave: what they say about themselves, read without loading a model or torch."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.parts import part_of
from vlm_probe.stimuli.plain_json import parse_object

WEIGHTS, CONFIG, TRAINING = "adapter_model.safetensors", "adapter_config.json", "training.json"
IMPORTS = ("megatron_config",)
"""Entries with which PEFT imports a module whose name stands in the configuration."""
RECORD: dict[str, Any] = {
    "method": str,
    "base": dict,
    "budget": dict,
    "config": dict,
    "tasks": (list, str),
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
    files = [folder / WEIGHTS] if is_adapter else sorted(folder.glob("*.safetensors"))
    if not files or not files[0].is_file():
        raise ModelError(f"{folder} has no {WEIGHTS if is_adapter else 'weights'}: copy it again, or train it anew")
    try:
        config = parse_object((folder / CONFIG).read_bytes(), finite=False) if is_adapter else {}
        training = folder / TRAINING
        made = parse_object(training.read_bytes()) if training.is_file() else {}
        _check_config(config)
        _check_record(made)
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with safe_open(file, framework="np") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder} is damaged ({error}): copy it again, or train it anew") from error
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
    """What trainings have left in a folder, at any depth, in the order of the names; checkpoints are left out."""
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


def _check_config(config: dict[str, Any]) -> None:
    """Raise ValueError if PEFT's configuration would have it import a module by a name that the file gives."""
    for name in IMPORTS:
        if config.get(name):
            raise ValueError(f"its {CONFIG} has {name}, which names code to import; remove the entry")


def _check_record(made: dict[str, Any]) -> None:
    """Raise ValueError if an entry of `training.json` that the program reads is of another kind than it writes."""
    for name, kinds in RECORD.items():
        if name in made and not isinstance(made[name], kinds):
            raise ValueError(f"in its {TRAINING}, {name} is {str(made[name])[:40]!r}")


def adapter_hash(folder: Path) -> str:
    """SHA-256 over an adapter's configuration and weights."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()
