"""Merging: an adapter's change is added to the weights of its base, so that any program can load the result as a plain model."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.adapter_folder import TRAINING, Trained, check_base, read_adapter
from vlm_probe.probes.models.adapters import attach_adapter, check_effect
from vlm_probe.probes.models.device import choose_dtype, quantisation
from vlm_probe.probes.models.footprint import read_weights, stored_dtype
from vlm_probe.probes.models.huggingface import HuggingFaceModel
from vlm_probe.probes.models.loading import find_weights
from vlm_probe.probes.models.model_folder import CONFIG, settings_files, weights_hash
from vlm_probe.probes.models.network import DTYPES, load_network
from vlm_probe.stimuli.output import check_absent, whole_folder, write_json

TOLERANCE = 1e-3
"""Nats by which log-probabilities of a model in single precision may differ after merging: rounding, and nothing else."""
TIED = ("lm_head", "embed_tokens")


@dataclass(frozen=True)
class Merged:
    """A merged model.

    Attributes:
        folder: Where it is.
        base: Name of the base model.
        dtype: Number format of its weights.
        weights_sha256: Hash of its weights.
        difference: The largest difference of any next token's log-probability between it, loaded from the disk, and the
            base with the adapter in single precision; nats.
    """

    folder: Path
    base: str
    dtype: str
    weights_sha256: str
    difference: float


def merge_adapter(
    adapter: Path, out: Path, *, model: str = "", revision: str | None = None, dtype: str = "auto", device: str = "auto"
) -> Merged:
    """Merge an adapter into its base, and make sure that the result says what base and adapter said.

    Base and adapter are merged in single precision, where the result must say the same. Then every weight is rounded once to
    the number format that is written, and what was written must be these numbers. The folder holds the weights, the base's
    processor and chat template, and the adapter's `training.json` with a note of the merging. It appears when it is whole.

    Args:
        adapter: Folder of the adapter.
        out: Folder to make.
        model: The base model; by default the one that the adapter names.
        revision: Of the base model on the hub.
        dtype: Number format of the weights that are written; "auto" as for a run: see `device.choose_dtype`.
        device: "auto" is the first GPU, if there is one.

    Raises:
        OutputError: If the folder exists, or cannot be written.
        ModelError: If the base is quantised, the adapter is not one of this model, or the merged model says something else.
    """
    read = read_adapter(adapter)
    name = model or read.base
    if not name:
        raise ModelError(f"the adapter {adapter} does not name its base model: give --model")
    check_absent(out)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    base = find_weights(name, revision)
    network, processor, device = load_network(base, name, dtype="float32", device=device)
    if quantisation(network) != "none":
        raise ModelError(
            f"{name} is stored quantised ({quantisation(network)}), and an adapter cannot be merged into such weights: give the"
            " model that it was quantised from as --model"
        )
    check_base(adapter, weights_hash(base), name)
    weights = read_weights(base)
    chosen = choose_dtype(dtype, device, stored_dtype(base, weights), weights.parameters)
    adapted = attach_adapter(network, adapter)
    inputs = HuggingFaceModel(adapted, processor, name).probe_inputs()
    check_effect(adapted, inputs, adapter)
    before = _log_probabilities(adapted, inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tied weights, which are compared below
            merged = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # of PEFT, where weights are not finite
        raise ModelError(f"the adapter {adapter} cannot be merged ({error}): train it again") from error
    _check_same(merged, inputs, before, read, name)
    with whole_folder(out, "merged model") as partial:
        merged.to(DTYPES[chosen]).save_pretrained(partial)
        _copy_rest(base, partial)
        note = {"base": name, "adapter_sha256": read.sha256, "dtype": chosen}
        write_json(partial / TRAINING, read.training | {"merged": note})
        written, _, _ = load_network(partial, out.name, dtype=chosen, device=device)
        _check_written(merged, written, name)
        difference = float((_log_probabilities(written, inputs) - before).abs().max())
        digest = weights_hash(partial)
    return Merged(out, name, chosen, digest, difference)


def _check_same(merged: Any, inputs: dict[str, torch.Tensor], before: torch.Tensor, read: Trained, name: str) -> None:
    """Refuse a merged model that says something else than base and adapter. Raises ModelError."""
    difference = float((_log_probabilities(merged, inputs) - before).abs().max())
    if difference <= TOLERANCE:
        return
    layers = sorted({part for key in read.shapes for part in key.split(".") if part in TIED})
    output = merged.get_output_embeddings()
    if layers and output is not None and output.weight is merged.get_input_embeddings().weight:
        raise ModelError(
            f"the adapter {read.folder} changes {' and '.join(layers)} alone, and {name} has the same weights for {TIED[0]} and"
            f" {TIED[1]} (log-probabilities would differ by up to {difference:.2g}): run it with --adapter instead"
        )
    raise ModelError(
        f"{name} with {read.folder} merged says something else than with the adapter alongside (log-probabilities differ by up"
        f" to {difference:.2g}): run it with --adapter instead"
    )


def _check_written(merged: Any, written: Any, name: str) -> None:
    """Refuse a folder whose weights are not, number by number, the merged ones as they were rounded. Raises ModelError."""
    expected, found = dict(merged.named_parameters()), dict(written.named_parameters())
    wrong = [key for key, value in expected.items() if key not in found or not torch.equal(found[key], value)]
    wrong += sorted(found.keys() - expected.keys())
    if wrong:
        raise ModelError(
            f"{name} with the adapter merged cannot be saved as one model ({wrong[0]} would be lost): run it with --adapter"
            " instead"
        )
    wild = [key for key, value in expected.items() if not torch.isfinite(value).all()]
    if wild:
        raise ModelError(f"{wild[0]} is too large for {written.dtype}: merge with --dtype float32 or bfloat16")


def _log_probabilities(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.inference_mode():
        found: torch.Tensor = model(**inputs).logits.float().log_softmax(-1).cpu()
    return found


def _copy_rest(base: Path, folder: Path) -> None:
    """Copy the processor, the tokenizer and the generation settings of the base, byte for byte."""
    for file in settings_files(base):
        if file.name != CONFIG:
            copy = folder / file.relative_to(base)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
