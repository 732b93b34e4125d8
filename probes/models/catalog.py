"""The models that have a short name. Everything else is named by a local path or a hub id."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.tiny import WEIGHTS


@dataclass(frozen=True)
class Entry:
    """A model that can be named.

    Attributes:
        name: Alias, or the path or hub id as given.
        kind: "hub", "embedded" (ships with this package), "observer" (no weights), "local" (a folder) or "served".
        source: Hub id or folder; "" for observers; base URL of the server of a served model.
        parameters: Number of parameters in units of 10^9, None if unknown or none.
        licence: Of the weights.
        note: One line for the list of models.
    """

    name: str
    kind: Literal["hub", "embedded", "observer", "local", "served"]
    source: str = ""
    parameters: float | None = None
    licence: str = ""
    note: str = ""


_GEMMA = "Gemma terms"
ENTRIES: tuple[Entry, ...] = (
    Entry("tiny", "embedded", str(WEIGHTS), 0.0022, "Apache-2.0", "model organism: can see, never trained on physics"),
    Entry("chance", "observer", note="answers at random, every legal answer alike"),
    Entry("heuristic", "observer", note="follows the obvious visual rule of the task"),
    Entry("ideal", "observer", note="knows the scene and simulates it"),
    Entry("noisy-simulation", "observer", note="simulates what it sees through noise (Battaglia et al. 2013)"),
    Entry("llava", "hub", "llava-hf/llava-1.5-7b-hf", 7.1, "Llama 2 community", "LLaVA 1.5"),
    Entry("llava-next", "hub", "llava-hf/llava-v1.6-mistral-7b-hf", 7.6, "Apache-2.0", "LLaVA 1.6, picture in tiles"),
    Entry("llava-onevision", "hub", "llava-hf/llava-onevision-qwen2-7b-ov-hf", 8.0, "Apache-2.0", "LLaVA-OneVision"),
    Entry("qwen2.5-vl", "hub", "Qwen/Qwen2.5-VL-7B-Instruct", 8.3, "Apache-2.0", "as in the reference study"),
    Entry("qwen3-vl", "hub", "Qwen/Qwen3-VL-8B-Instruct", 8.8, "Apache-2.0", "Qwen3-VL"),
    Entry("smolvlm", "hub", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2.2, "Apache-2.0", "small; runs on a laptop's GPU"),
    Entry("internvl", "hub", "OpenGVLab/InternVL3_5-8B-HF", 8.5, "Apache-2.0", "InternVL 3.5"),
    Entry("gemma3", "hub", "google/gemma-3-4b-it", 4.3, _GEMMA, "gated: accept the terms on the hub first"),
    Entry("paligemma", "hub", "google/paligemma2-3b-mix-224", 3.0, _GEMMA, "gated; no chat template"),
)


def lookup(name: str, base_url: str | None = None) -> Entry:
    """What a name stands for: an alias, a folder, or a hub id, in this order; with a server, whatever that calls so.

    Args:
        name: As on the command line.
        base_url: Address of a server, which then decides what names mean.

    Raises:
        ModelError: If it is none of these; the message lists the closest aliases.
    """
    if base_url is not None:
        return Entry(name, "served", base_url)
    aliases = {entry.name: entry for entry in ENTRIES}
    if name in aliases:
        return aliases[name]
    if name and Path(name).expanduser().is_dir():
        return Entry(name, "local", str(Path(name).expanduser()))
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and not name.startswith((".", "~")):
        return Entry(name, "hub", name)
    if len(parts) > 1:
        raise ModelError(f"there is no model folder {name}: give a folder with config.json and *.safetensors in it")
    close = difflib.get_close_matches(name.lower(), aliases, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(close)}?" if close else f"the short names are {', '.join(aliases)}"
    raise ModelError(f"unknown model {name!r}: {hint} (a local folder or a hub id like owner/name works as well)")


def is_available(entry: Entry) -> bool:
    """Whether a model can be loaded here without a network."""
    if entry.kind == "observer":
        return True
    if entry.kind == "hub":
        return cached_snapshot(entry.source) is not None
    return weights_complete(Path(entry.source))


def cached_snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """The folder of the local Hugging Face cache with all weights of a model, if there is one. Asks no network.

    Args:
        hub_id: The model.
        revision: Branch, tag or commit; None for the default.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if weights_complete(folder) else None


def weights_complete(folder: Path) -> bool:
    """Whether a folder has a configuration and all its safetensors weights."""
    from vlm_probe.probes.models.model_folder import CONFIG, weight_files

    try:
        return (folder / CONFIG).is_file() and bool(weight_files(folder))
    except ModelError:
        return False
