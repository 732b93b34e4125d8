"""The models that have a short name. Everything else is named by a local path or a hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.tiny import WEIGHTS
from vlm_probe.stimuli.errors import did_you_mean


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


_APACHE, _GEMMA, _MIT = "Apache-2.0", "Gemma terms", "MIT"
_LIQUID, _LLAMA = "LFM Open License", "Llama community"
_THINKS = "thinks before it answers"
_EITHER = "thinks or not: see --thinking"
_HUB: tuple[tuple[str, str, float, str, str], ...] = (
    ("llava", "llava-hf/llava-1.5-7b-hf", 7.1, "Llama 2 community", "LLaVA 1.5"),
    ("llava-next", "llava-hf/llava-v1.6-mistral-7b-hf", 7.6, _APACHE, "LLaVA 1.6, picture in tiles"),
    ("llava-onevision", "llava-hf/llava-onevision-qwen2-7b-ov-hf", 8.0, _APACHE, "LLaVA-OneVision"),
    ("qwen2.5-vl", "Qwen/Qwen2.5-VL-7B-Instruct", 8.3, _APACHE, "as in the reference study"),
    ("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", 3, "Qwen research", "Qwen2.5-VL"),
    ("qwen2.5-vl-32b", "Qwen/Qwen2.5-VL-32B-Instruct", 32, _APACHE, "Qwen2.5-VL"),
    ("qwen3-vl", "Qwen/Qwen3-VL-8B-Instruct", 8.8, _APACHE, "Qwen3-VL"),
    ("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct", 2, _APACHE, "Qwen3-VL"),
    ("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct", 4, _APACHE, "Qwen3-VL"),
    ("qwen3-vl-32b", "Qwen/Qwen3-VL-32B-Instruct", 32, _APACHE, "Qwen3-VL"),
    ("qwen3-vl-30b-a3b", "Qwen/Qwen3-VL-30B-A3B-Instruct", 30, _APACHE, "Qwen3-VL, experts"),
    ("qwen3-vl-2b-thinking", "Qwen/Qwen3-VL-2B-Thinking", 2, _APACHE, _THINKS),
    ("qwen3-vl-4b-thinking", "Qwen/Qwen3-VL-4B-Thinking", 4, _APACHE, _THINKS),
    ("qwen3-vl-8b-thinking", "Qwen/Qwen3-VL-8B-Thinking", 8, _APACHE, _THINKS),
    ("qwen3.5-0.8b", "Qwen/Qwen3.5-0.8B", 0.8, _APACHE, _EITHER),
    ("qwen3.5-2b", "Qwen/Qwen3.5-2B", 2, _APACHE, _EITHER),
    ("qwen3.5-4b", "Qwen/Qwen3.5-4B", 4, _APACHE, _EITHER),
    ("qwen3.5-9b", "Qwen/Qwen3.5-9B", 9, _APACHE, _EITHER),
    ("qwen3.5-27b", "Qwen/Qwen3.5-27B", 27, _APACHE, _EITHER),
    ("qwen3.5-35b-a3b", "Qwen/Qwen3.5-35B-A3B", 35, _APACHE, f"experts; {_EITHER}"),
    ("qwen3.6-27b", "Qwen/Qwen3.6-27B", 27, _APACHE, _EITHER),
    ("qwen3.6-35b-a3b", "Qwen/Qwen3.6-35B-A3B", 35, _APACHE, f"experts; {_EITHER}"),
    ("smolvlm", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2.2, _APACHE, "small; runs on a laptop's GPU"),
    ("smolvlm-256m", "HuggingFaceTB/SmolVLM2-256M-Video-Instruct", 0.256, _APACHE, "SmolVLM2"),
    ("smolvlm-500m", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 0.5, _APACHE, "SmolVLM2"),
    ("internvl", "OpenGVLab/InternVL3_5-8B-HF", 8.5, _APACHE, "InternVL 3.5"),
    ("internvl-1b", "OpenGVLab/InternVL3_5-1B-HF", 1, _APACHE, "InternVL 3.5"),
    ("internvl-2b", "OpenGVLab/InternVL3_5-2B-HF", 2, _APACHE, "InternVL 3.5"),
    ("internvl-4b", "OpenGVLab/InternVL3_5-4B-HF", 4, _APACHE, "InternVL 3.5"),
    ("internvl-14b", "OpenGVLab/InternVL3_5-14B-HF", 14, _APACHE, "InternVL 3.5"),
    ("gemma3", "google/gemma-3-4b-it", 4.3, _GEMMA, "gated: accept the terms on the hub first"),
    ("gemma3-12b", "google/gemma-3-12b-it", 12, _GEMMA, "gated"),
    ("gemma3-27b", "google/gemma-3-27b-it", 27, _GEMMA, "gated"),
    ("gemma4-e2b", "google/gemma-4-E2B-it", 5, _APACHE, f"effectively 2 B; {_EITHER}"),
    ("gemma4-e4b", "google/gemma-4-E4B-it", 8, _APACHE, f"effectively 4 B; {_EITHER}"),
    ("gemma4-31b", "google/gemma-4-31B-it", 31, _APACHE, _EITHER),
    ("gemma4-26b-a4b", "google/gemma-4-26B-A4B-it", 26, _APACHE, f"experts; {_EITHER}"),
    ("paligemma", "google/paligemma2-3b-mix-224", 3.0, _GEMMA, "gated; no chat template"),
    ("glm-4.1v-thinking", "zai-org/GLM-4.1V-9B-Thinking", 9, _MIT, _THINKS),
    ("glm-4.6v-flash", "zai-org/GLM-4.6V-Flash", 9, _MIT, _EITHER),
    ("glm-4.6v", "zai-org/GLM-4.6V", 106, _MIT, f"experts; {_EITHER}"),
    ("ministral3-3b", "mistralai/Ministral-3-3B-Instruct-2512-BF16", 3, _APACHE, "Ministral 3"),
    ("ministral3-8b", "mistralai/Ministral-3-8B-Instruct-2512-BF16", 8, _APACHE, "Ministral 3"),
    ("ministral3-14b", "mistralai/Ministral-3-14B-Instruct-2512-BF16", 14, _APACHE, "Ministral 3"),
    ("mistral-small-3.1", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", 24, _APACHE, "Mistral Small 3.1"),
    ("pixtral", "mistral-community/pixtral-12b", 12, _APACHE, "Pixtral, any size of picture"),
    ("molmo2-4b", "allenai/Molmo2-4B", 4, _APACHE, "Molmo 2"),
    ("molmo2-8b", "allenai/Molmo2-8B", 8, _APACHE, "Molmo 2"),
    ("molmo2-o-7b", "allenai/Molmo2-O-7B", 7, _APACHE, "Molmo 2, open data throughout"),
    ("llama3.2-vision", "meta-llama/Llama-3.2-11B-Vision-Instruct", 11, _LLAMA, "gated; cross-attention"),
    ("llama4-scout", "meta-llama/Llama-4-Scout-17B-16E-Instruct", 109, _LLAMA, "gated; experts"),
    ("lfm2-vl-450m", "LiquidAI/LFM2-VL-450M", 0.45, _LIQUID, "LFM2-VL"),
    ("lfm2-vl-1.6b", "LiquidAI/LFM2-VL-1.6B", 1.6, _LIQUID, "LFM2-VL"),
    ("lfm2-vl-3b", "LiquidAI/LFM2-VL-3B", 3, _LIQUID, "LFM2-VL"),
)
"""Models of the hub: short name, id, parameters as published (units of 10^9), licence, and what is special."""
ENTRIES: tuple[Entry, ...] = (
    Entry("tiny", "embedded", str(WEIGHTS), 0.0022, "Apache-2.0", "model organism: can see, never trained on physics"),
    Entry("chance", "observer", note="answers at random, every legal answer alike"),
    Entry("heuristic", "observer", note="follows the obvious visual rule of the task"),
    Entry("ideal", "observer", note="knows the scene and simulates it"),
    Entry("noisy-simulation", "observer", note="simulates what it sees through noise (Battaglia et al. 2013)"),
    *(Entry(name, "hub", source, size, licence, f"{note}; not run here") for name, source, size, licence, note in _HUB),
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
    hint = did_you_mean(name.lower(), aliases, "see `probe models` for the short names", cutoff=0.4)
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
