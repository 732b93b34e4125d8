"""Which models can be used here, told from their configuration alone: before weights are downloaded, and before they are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.model_folder import CONFIG, MEND, entries, read_json

Kind = Literal["images", "omni", "text"]
"""What a network is: one of images and text, one of more than these with an auto class of its own, or a language model."""
NEEDS_TIMM = ("timm_wrapper", "timm_backbone", "fast_vlm", "perception_lm", "gemma3n", "gemma3n_vision")
"""Types of configurations whose vision tower is one of timm's."""
TIMM = "pip install 'vlm-probe[timm]'"
STORED = {
    "bitsandbytes": ("bitsandbytes", "pip install 'vlm-probe[quantized]'"),
    "compressed-tensors": ("compressed_tensors", "pip install compressed-tensors"),
    "gptq": ("gptqmodel", "pip install gptqmodel"),
    "awq": ("gptqmodel", "pip install gptqmodel"),
}
"""Packages that unpack weights which are stored quantised: the module, and how to install it."""
OTHERS = "use a variant that transformers supports (often -hf), or another model"


def check_support(folder: Path, name: str) -> Kind:
    """What a model is, if it can be used here.

    Args:
        folder: With its config.json; nothing else of it is read.
        name: As the user gave it.

    Raises:
        ModelError: If transformers lacks it, it runs code of its own, or a package is missing; one line with the fix.
    """
    config = read_json(folder / CONFIG)
    given = config.get("model_type")
    if not isinstance(given, str):
        raise ModelError(f"{folder / CONFIG} is damaged (it names no model_type): {MEND}")
    if set(_types(config)) & set(NEEDS_TIMM) and find_spec("timm") is None:
        raise ModelError(f"cannot load {name}: its vision tower needs timm, which is not installed: {TIMM}")
    _check_quantisation(config, name)
    kind = _kind(given, config)
    if kind is None:
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if given in CONFIG_MAPPING_NAMES:
            reason = f"a {given} model does not answer questions about images, or texts, in words"
        elif "auto_map" in config:
            reason = f"it runs code of its own (model_type {given}), which probe never does"
        else:
            reason = f"transformers {transformers.__version__} does not know its model_type {given}"
        raise ModelError(f"cannot load {name}: {reason}; {OTHERS}")
    if any(path.rpartition(".")[2] == "is_encoder_decoder" and value is True for path, value in entries(config)) or set(
        _types(config)
    ) & set(_encoder_decoders()):
        raise ModelError(
            f"cannot load {name}: it is an encoder with a decoder (model_type {given}), which probe does not ask; use a"
            " model that continues its prompt"
        )
    return kind


def _kind(given: str, config: Mapping[str, Any]) -> Kind | None:
    """What transformers has for a type of model; None if it has no model that continues a text."""
    from transformers.models.auto import modeling_auto as auto

    if given in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "images"
    # Besides images these take sounds: what hears only has no vision tower.
    sees = any(path.rpartition(".")[2] in ("vision_config", "thinker_config") for path, _ in entries(config))
    if sees and given in auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
        return "omni"
    return "text" if not sees and given in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else None


def _check_quantisation(config: Mapping[str, Any], name: str) -> None:
    """Raise ModelError if weights are stored in a form that a missing package unpacks."""
    for path, value in entries(config):
        if path.endswith("quantization_config.quant_method") and value in STORED:
            module, fix = STORED[value]
            if find_spec(module) is None:
                raise ModelError(
                    f"cannot load {name}: its weights are stored by {value}, which is not installed: {fix}"
                )


def _types(config: Mapping[str, Any]) -> Iterator[str]:
    """The model types of a configuration and of all its parts."""
    for path, value in entries(config):
        if path.rpartition(".")[2] == "model_type" and isinstance(value, str):
            yield value


def _encoder_decoders() -> frozenset[str]:
    """Model types that write with a decoder of its own, which reads the prompt through an encoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as MAPPING

    return frozenset({*MAPPING, "florence2", "vision-encoder-decoder", "pix2struct", "udop"})
