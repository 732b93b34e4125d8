"""LoRA adapters: attached through PEFT, and checked to be all there and to do something."""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.adapter_folder import AGAIN, CONFIG, WEIGHTS, Trained, read_adapter
from vlm_probe.probes.models.limits import Limited, LimitError
from vlm_probe.probes.models.model_folder import reading, reason_of
from vlm_probe.probes.models.parts import part_of
from vlm_probe.stimuli.plain_json import dumps

log = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]
PREFIX = "base_model.model."
KEEP_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Ways to initialise an adapter that leave the weights of its base as they are."""
KEY = re.compile(r"(?P<path>.+?)\.(?P<kind>lora_\w+)(?:\.(?!weight$|bias$)[^.]+)?(?P<end>\.weight|\.bias)?")
"""The name of a tensor: its layer, which matrix it is, and often the name that the adapter had when it was saved."""
OLDER: dict[str, tuple[str, ...]] = {
    "language": ("language_model.model.", "model.language_model.model.", "language_model.", "model.", ""),
    "vision": (
        *("vision_tower.vision_model.", "model.vision_tower.vision_model.", "vision_tower.", "visual."),
        *("vision_model.", "model.vision_model."),
    ),
    "projector": ("multi_modal_projector.", "connector.", "model.connector.", "visual.merger."),
}
"""Where the layers of a part were in earlier versions of transformers, or in the language model alone."""


def attach_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """The model with the adapter of that folder on it.

    Args:
        model: The base model.
        folder: Of the adapter.
        trainable: Whether training goes on with it; else it is frozen and in evaluation mode.

    Raises:
        ModelError: If the folder is no adapter, or one for another architecture, or a tensor of it found no place.
    """
    adapter = read_adapter(folder)
    init = adapter.config.get("init_lora_weights", True)
    if init not in KEEP_THE_BASE:
        raise ModelError(
            f"{folder / CONFIG} has init_lora_weights {init!r}, which changes the weights of the base as well: save the adapter"
            " again with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    # Where bitsandbytes is installed, importing peft loads it, and it complains of an optional kernel on some CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from peft import PeftModel, get_peft_model_state_dict

    with reading(folder / WEIGHTS, AGAIN):
        stored = load_file(folder / WEIGHTS)
    names = _Names.of(model, stored)
    twice = [name for name, count in Counter(names.keys.values()).items() if count > 1]
    if twice:
        raise ModelError(f"{folder / WEIGHTS} is damaged (it has {twice[0]} twice, by several names): {AGAIN}")
    _check_patterns(adapter, [*names.modules, *names.older.values()])
    try:
        with _told(folder), names.folder(adapter, stored, model) as place:
            adapted = PeftModel.from_pretrained(model, str(place), is_trainable=trainable)
            placed = get_peft_model_state_dict(adapted)
    except ModelError:
        raise
    except Exception as error:  # PEFT checks little of what it reads
        raise ModelError(
            f"the adapter {folder} does not fit this model ({reason_of(error)}); use the base model that it was trained on"
        ) from error
    lost = _lost({names.keys[name]: tensor for name, tensor in stored.items()}, placed)
    if lost:
        raise ModelError(
            f"the adapter {folder} does not fit this model: {len(lost)} of its tensors found no place, such as"
            f" {lost[0]}; use the base model that it was trained on, and the version of peft that wrote it"
        )
    return adapted if trainable else adapted.eval()


def check_effect(model: Any, inputs: Any, folder: Path) -> float:
    """Make sure that an adapter changes what the model says about some input.

    Args:
        model: With the adapter.
        inputs: Of the model.
        folder: Of the adapter, for the message.

    Returns:
        The largest change of any next token's log-probability, in nats.

    Raises:
        ModelError: If nothing changes, or the model says nothing any more.
    """
    with torch.inference_mode():
        with_adapter = model(**inputs).logits[:, -1]
        with model.disable_adapter():
            without = model(**inputs).logits[:, -1]
    if torch.equal(with_adapter, without):
        raise ModelError(f"the adapter {folder} changes nothing: it is untrained, or was saved without its weights")
    change = float((with_adapter.float().log_softmax(-1) - without.float().log_softmax(-1)).abs().max())
    if not torch.isfinite(with_adapter).all() and torch.isfinite(without).all():
        raise ModelError(
            f"with the adapter {folder}, the logits are not finite: train it again, with a lower learning rate"
        )
    return change


@dataclass(frozen=True)
class _Names:
    """How the tensors of an adapter are called, and which layers of the model they are for.

    Attributes:
        modules: Names of all modules of the model.
        keys: Name in the file -> name as PEFT would write it for this model.
        older: Layer of the model -> what it is called in the file, where that is something else.
        prefixes: Part of the model -> (where its layers are, where the file has them).
    """

    modules: frozenset[str]
    keys: dict[str, str]
    older: dict[str, str]
    prefixes: dict[str, tuple[str, str]]

    @classmethod
    def of(cls, model: Any, stored: Iterable[str]) -> _Names:
        """The names of the tensors in a file, for a model."""
        modules = frozenset(name for name, _ in model.named_modules())
        roots = _roots(model, modules)
        keys: dict[str, str] = {}
        older: dict[str, str] = {}
        prefixes: dict[str, tuple[str, str]] = {}
        for key in stored:
            found = KEY.fullmatch(key)
            if not found and not key.startswith(PREFIX):
                keys[key] = key  # of the whole adapter, and not of a layer
                continue
            path = found["path"] if found else key.rpartition(".")[0]
            end = f"{found['kind']}{found['end'] or ''}" if found else key.rpartition(".")[2]
            said = _bare(path)
            part: str = part_of(f"{said}.") or "language"
            place = said
            for prefix in () if said in modules else OLDER[part]:
                there = f"{roots.get(part)}.{said.removeprefix(prefix)}"
                if said.startswith(prefix) and there in modules:
                    place, prefixes[part] = there, (f"{roots[part]}.", prefix)
                    break
            if said.endswith("lm_head") and said not in modules and "lm_head" in modules:
                place = "lm_head"
            keys[key] = f"{PREFIX}{place}.{end}"
            if place != said and found:
                older[place] = said
        return cls(modules, keys, older, prefixes)

    @contextmanager
    def folder(self, adapter: Trained, stored: Tensors, model: Any) -> Iterator[Path]:
        """A folder of the adapter in which everything has today's names: its own, if it has them already."""
        if not self.older and all(key == name for key, name in self.keys.items()):
            yield adapter.folder
            return
        with tempfile.TemporaryDirectory() as place:
            config = adapter.config | (self._settings(adapter, stored, model) if self.older else {})
            (Path(place) / CONFIG).write_text(dumps(config), encoding="utf-8")
            save_file({self.keys[key]: tensor for key, tensor in stored.items()}, Path(place) / WEIGHTS)
            yield Path(place)

    def _settings(self, adapter: Trained, stored: Tensors, model: Any) -> dict[str, Any]:
        """PEFT's settings for the layers that there are tensors for. Raises ModelError if one is missing."""
        from peft import PeftConfig
        from peft.tuners.tuners_utils import check_target_module_exists
        from peft.utils.other import get_pattern_key

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told when the adapter is attached
            config = PeftConfig.from_pretrained(str(adapter.folder))
        everything = config.target_modules == "all-linear"

        def wanted(name: str, older: str) -> bool:
            """Whether the settings mean a layer, by its name of today or the one in the file."""
            return everything or any(check_target_module_exists(config, one) for one in (name, older))

        layers = {self.keys[key].removeprefix(PREFIX).partition(".lora_")[0] for key in stored if KEY.fullmatch(key)}
        wrong = [name for name in sorted(layers) if not wanted(name, self.older.get(name, name))]
        for here, there in self.prefixes.values():
            inside = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
            inside = (name for name in inside if name.startswith(here) and name not in layers)
            wrong += [name for name in inside if wanted(name, there + name.removeprefix(here))]
        if wrong:
            raise ModelError(
                f"the adapter {adapter.folder} does not fit this model: its settings and its tensors are not for the same"
                f" layers, such as {wrong[0]}; {AGAIN}"
            )
        patterns: dict[str, dict[str, Any]] = {}
        for setting in ("rank_pattern", "alpha_pattern"):
            given = adapter.config.get(setting) or {}
            which = {place: get_pattern_key(given.keys(), self.older.get(place, place)) for place in layers}
            patterns[setting] = {re.escape(place): given[key] for place, key in which.items() if key in given}
        everywhere = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
        return {"target_modules": sorted(layers)} | everywhere | patterns


def _bare(path: str) -> str:
    """The name of a layer without what wrappers put before and into it: PEFT, torch.compile, several GPUs, saved modules."""
    path = ".".join(part for part in path.split(".") if part != "_orig_mod")
    path = re.sub(r"\.modules_to_save\.[^.]+$", "", path).removeprefix("module.")
    while path.startswith(PREFIX):
        path = path.removeprefix(PREFIX)
    return path


def _roots(model: Any, modules: Iterable[str]) -> dict[str, str]:
    """Part of the model -> the module that has its layers."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    roots = {"language": next((name for name, module in model.named_modules() if module is decoder), "")}
    for name in sorted(modules, key=len):
        part = part_of(f"{name}.")
        if part in ("vision", "projector"):
            roots.setdefault(part, name)
    return roots


def _check_patterns(adapter: Trained, names: list[str]) -> None:
    """Refuse regular expressions that are none, or that take for ever on these names. Raises ModelError."""
    config = adapter.config
    layers, saved = config.get("layers_pattern") or (), config.get("modules_to_save") or ()
    patterns = {
        name: config[name] for name in ("target_modules", "exclude_modules") if isinstance(config.get(name), str)
    }
    # As PEFT puts them together.
    for name in ("rank_pattern", "alpha_pattern"):
        patterns |= {f"{name}.{key}": rf"(.*\.)?({key})$" for key in config.get(name) or ()}
    for one in [layers] if isinstance(layers, str) else layers:
        patterns[f"layers_pattern.{one}"] = rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\."
    patterns |= {f"modules_to_save.{one}": rf"(^|.*\.){one}($|\..*)" for one in saved}
    if not patterns:
        return
    matched = Limited(lambda pattern: sum(re.match(pattern, name) is not None for name in names))
    for name, pattern in patterns.items():
        try:
            matched(pattern)
        except LimitError as error:
            raise ModelError(
                f"{adapter.folder / CONFIG} is damaged ({name[:80]} is no pattern that names can be matched with: {error}):"
                f" {AGAIN}"
            ) from error
    matched.close()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Pass on what PEFT warns of, such as settings that it does not know; missing keys are an error later."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    texts = {" ".join(str(one.message).split()) for one in said if one.category is UserWarning}
    for text in sorted(text for text in texts if "missing adapter keys" not in text):
        log.warning("%s: %s", folder, text.partition(". ")[0][:300])


def _lost(stored: Tensors, placed: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are in the file or in the model and not in both, whatever PEFT calls them."""
    alike = {name for name in stored.keys() & placed.keys() if _same(stored[name], placed[name])}
    left, found = stored.keys() - alike, placed.keys() - alike
    # PEFT knows new names of many layers itself. Then the same numbers are there, under another name.
    if Counter(_digest(stored[name]) for name in left) == Counter(_digest(placed[name]) for name in found):
        return []
    return sorted(left | found)


def _digest(tensor: torch.Tensor) -> tuple[tuple[int, ...], bytes]:
    return tuple(tensor.shape), hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().tobytes()).digest()


def _same(stored: torch.Tensor, placed: torch.Tensor) -> bool:
    return stored.shape == placed.shape and torch.equal(stored.to(placed), placed)
