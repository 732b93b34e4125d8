"""From a name to a model that answers: finds the weights, here or on the hub, and says plainly what is in the way."""

from __future__ import annotations

import logging
from pathlib import Path

from vlm_probe.probes.models import Generation, Model, ModelError
from vlm_probe.probes.models.catalog import Entry, cached_snapshot, lookup, weights_complete
from vlm_probe.probes.models.device import check_four_bits, choose_device
from vlm_probe.probes.models.model_folder import CONFIG, weight_files
from vlm_probe.probes.models.thinking import AUTO, Thinking

log = logging.getLogger(__name__)

HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub before there is no network."""
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is downloaded of a model: no pickled weights and no code."""


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    adapter: str | Path | None = None,
    load_in_4bit: bool = False,
    base_url: str | None = None,
    concurrency: int = 8,
    readout: str = "generate",
    settings: Generation | None = None,
    images: int = 1,
    thinking: Thinking = AUTO,
) -> Model:
    """Load a model or an observer, or reach a served model.

    Args:
        name: An alias of the catalogue, a folder, or a hub id; of a served model, its id at the server.
        revision: Branch, tag or commit on the hub.
        dtype: "auto" (see `device.choose_dtype`), "float32", "bfloat16" or "float16".
        device: "auto" (a GPU, if there is one), or a torch device.
        adapter: Folder of a LoRA adapter; of a served model, the adapter's id at the server.
        load_in_4bit: Quantise the weights to 4 bits; needs bitsandbytes.
        base_url: Of the server, for a served model.
        concurrency: Trials that a served model is asked at a time.
        readout: What a served model will be asked for: "generate" or "options".
        settings: How a served model will generate replies; by default greedily.
        images: Images in the longest conversation that it will be asked.
        thinking: Whether it is to think before it answers.

    Raises:
        ModelError: If that is not possible here; one line with the fix.
    """
    entry = lookup(name, base_url)
    if entry.kind == "served":
        given = {"--revision": revision is not None, "--dtype": dtype != "auto", "--device": device != "auto"}
        wrong = [option for option, used in (given | {"--load-in-4bit": load_in_4bit}).items() if used]
        if wrong:
            raise ModelError(f"{' and '.join(wrong)} cannot be chosen for a served model: its server decides that")
        from vlm_probe.probes.models.served import ServedModel

        return ServedModel.connect(
            entry.source,
            name,
            adapter=None if adapter is None else str(adapter),
            readout=readout,
            concurrency=concurrency,
            settings=settings,
            images=images,
            thinking=thinking,
        )
    if entry.kind == "observer":
        if thinking.mode == "on" or thinking.given:
            raise ModelError(f"{name} is an observer, which has no chat template to think by: leave --thinking out")
        if adapter is not None or load_in_4bit or revision is not None:
            raise ModelError(f"{name} is an observer: it has no weights to adapt, quantise or take a revision of")
        from vlm_probe.probes.models.observers import make_observer

        return make_observer(entry.name)
    adapter_folder = None if adapter is None else Path(adapter).expanduser()
    check_options(device, load_in_4bit, adapter_folder)
    folder = find_weights(name, revision)
    try:
        from vlm_probe.probes.models.huggingface import HuggingFaceModel
    except ImportError as error:
        raise ModelError(f"{name} needs {error.name}, which is not installed: pip install vlm-probe") from error
    return HuggingFaceModel.load(
        folder,
        name,
        revision=folder.name if entry.kind == "hub" else "",
        dtype=dtype,
        device=device,
        adapter=adapter_folder,
        load_in_4bit=load_in_4bit,
        thinking=thinking,
        images=images,
    )


def check_options(device: str, load_in_4bit: bool, *adapters: str | Path | None) -> None:
    """Refuse what a model cannot be loaded with on this machine, before anything is downloaded or made.

    Args:
        device: As for `load_model`.
        load_in_4bit: As for `load_model`.
        adapters: Folders of adapters, as far as there are any.

    Raises:
        ModelError: If there is no such device, or a package or a folder is missing.
    """
    choose_device(device)
    if load_in_4bit:
        check_four_bits()
    for adapter in adapters:
        if adapter is not None and not Path(adapter).expanduser().is_dir():
            raise ModelError(f"there is no adapter folder {adapter}: give a folder made by PEFT or `probe train`")


def find_weights(name: str, revision: str | None = None) -> Path:
    """The folder with the weights of a model, downloaded if need be.

    Args:
        name: An alias of the catalogue, a folder, or a hub id.
        revision: Branch, tag or commit on the hub.

    Raises:
        ModelError: If there are none; one line with the fix.
    """
    entry = lookup(name)
    if entry.kind == "hub":
        return cached_snapshot(entry.source, revision) or _download(entry, revision)
    if revision is not None:
        raise ModelError(f"{entry.name} is a folder on this machine, which has no revisions: leave --revision out")
    folder = Path(entry.source)
    if weights_complete(folder):
        return folder
    if entry.kind == "embedded":
        raise ModelError(f"the weights of {entry.name} are not in this installation: reinstall vlm-probe")
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{entry.name} is not a model: it has no {CONFIG}; give the folder that save_pretrained made")
    weight_files(folder)  # says what is missing or wrong
    return folder


def _download(entry: Entry, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    name = entry.source if entry.name == entry.source else f"{entry.name} ({entry.source})"
    try:
        # Asked first, because downloads try again for minutes where there is no network.
        info = HfApi().model_info(entry.source, revision=revision, timeout=HUB_TIMEOUT)
        if any(file.rfilename.endswith(".safetensors") for file in info.siblings or ()):
            log.info("downloading %s", name)
            return Path(snapshot_download(entry.source, revision=info.sha, allow_patterns=list(FILES)))
    except Exception as error:  # the HTTP library has errors of its own, which differ from version to version
        raise ModelError(f"{name} {_in_the_way(error, entry.source, revision)}") from error
    raise ModelError(f"{name} has no safetensors weights, and probe reads nothing else: choose another model")


def _in_the_way(error: Exception, hub_id: str, revision: str | None) -> str:
    """Why a model could not be fetched, and the fix."""
    from huggingface_hub import errors

    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    copy = "copy the model here and give its folder as --model"
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: accept its terms on https://huggingface.co/{hub_id}, then log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {revision!r}: see its branches and tags on https://huggingface.co/{hub_id}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "is not on the hub, or is private: check the id, or log in with `hf auth login`"
    if isinstance(error, errors.HfHubHTTPError):
        return f"was refused by the hub ({reason}): try again later, or {copy}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"is not on this machine, and HF_HUB_OFFLINE is set: unset it, or {copy}"
    return f"is not on this machine, and the hub cannot be reached ({reason}): connect to the network, or {copy}"
