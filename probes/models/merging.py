"""Merging: an adapter's change is added to the weights of its base, so that any program can load the result as a plain model."""

from __future__ import annotations

import gc
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.adapter_folder import TRAINING, check_base, read_adapter
from vlm_probe.probes.models.adapters import attach_adapter
from vlm_probe.probes.models.huggingface import HuggingFaceModel, load_network, weights_hash
from vlm_probe.probes.models.loading import find_weights
from vlm_probe.stimuli.plain_json import dumps

TOLERANCE = 1e-3
"""Nats by which log-probabilities of a model in single precision may differ after merging: rounding, and nothing else."""
NOT_COPIED = ("config.json", "model.safetensors.index.json", TRAINING)
"""Files of a base model that are written anew, or are not the merged model's."""


@dataclass(frozen=True)
class Merged:
    """A merged model.

    Attributes:
        folder: Where it is.
        base: Name of the base model.
        dtype: Number format of its weights.
        weights_sha256: Hash of its weights.
        difference: The largest difference of any next token's log-probability between it, loaded from the disk, and the
            base with the adapter; nats.
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

    The folder holds the weights, the base's processor and chat template, and the adapter's `training.json` with a note of the
    merging. It appears when it is whole.

    Args:
        adapter: Folder of the adapter.
        out: Folder to make.
        model: The base model; by default the one that the adapter names.
        revision: Of the base model on the hub.
        dtype: Number format of computation and of the weights that are written; "auto" as for a run: see
            `device.choose_dtype`.
        device: "auto" is the first GPU, if there is one.

    Raises:
        ModelError: If the folder exists, the adapter is not one of this model, or the merged model says something else.
    """
    read = read_adapter(adapter)
    name = model or read.base
    if not name:
        raise ModelError(f"the adapter {adapter} does not name its base model: give --model")
    if out.exists():
        raise ModelError(f"{out} exists already: choose another --out, or delete it first")
    base = find_weights(name, revision)
    network, processor, device = load_network(base, name, dtype=dtype, device=device)
    check_base(adapter, weights_hash(base), name)
    adapted = attach_adapter(network, adapter)
    inputs = HuggingFaceModel(adapted, processor, name).probe_inputs()
    before = _log_probabilities(adapted, inputs)
    precision = str(network.dtype).removeprefix("torch.")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        adapted.merge_and_unload(safe_merge=True).save_pretrained(partial)
        _copy_rest(base, partial)
        note = {"base": name, "adapter_sha256": read.sha256, "dtype": precision}
        (partial / TRAINING).write_text(dumps(read.training | {"merged": note}, indent=2) + "\n", encoding="utf-8")
        del network, adapted
        gc.collect()
        merged, _, _ = load_network(partial, out.name, dtype=precision, device=device)
        difference = float((_log_probabilities(merged, inputs) - before).abs().max())
        if precision == "float32" and difference > TOLERANCE:
            raise ModelError(
                f"{name} with {adapter} merged says something else than with the adapter beside it (log-probabilities differ"
                f" by up to {difference:.2g}): use the adapter as it is, with --adapter {adapter}"
            )
        digest = weights_hash(partial)
        partial.rename(out)
    except ValueError as error:  # of PEFT, where weights are not finite
        raise ModelError(f"the adapter {adapter} cannot be merged ({error}): train it anew") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Merged(out, name, precision, digest, difference)


def _log_probabilities(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(**inputs).logits.float().log_softmax(-1).cpu()
    return found


def _copy_rest(base: Path, folder: Path) -> None:
    """Copy the processor, the tokenizer and the generation settings of the base, byte for byte."""
    for file in sorted(base.iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja") and file.name not in NOT_COPIED:
            shutil.copyfile(file, folder / file.name)
