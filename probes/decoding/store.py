"""Activations on the disk: one array per site, written batch by batch, found again by what they are activations of.

OUT/activations/<key>/activations.json     model, adapter and set by their hashes; items; sites and their widths
OUT/activations/<key>/<site>.npy           (items, width) float32, in the order of the set
OUT/activations/<key>/done.npy             (items,) which rows are written

A reading that was stopped resumes where it was. Numbers are float32, whatever the model's type: what flows between the layers
of a bfloat16 model can be larger than float16 holds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.models import Trial
from vlm_probe.probes.models.activations import HiddenStates, Site
from vlm_probe.probes.trials import RunError
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.output import OutputFolder, whole_file, write_json
from vlm_probe.stimuli.plain_json import dumps, parse_object

FOLDER, DESCRIPTION, DONE = "activations", "activations.json", "done.npy"
SYNC_INTERVAL = 2.0
"""Seconds between two forced writes; rows count as done when they are on the disk."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Activations:
    """Activations of a set of items, on the disk.

    Attributes:
        folder: Where they are.
        items: Number of rows.
    """

    folder: Path
    items: int

    def load(self, site: Site) -> npt.NDArray[np.float64]:
        """The states at one site, (items, width). One site at a time is all that need be in memory."""
        return np.load(self.folder / f"{site.name}.npy").astype(np.float64)


def identify(model: Any, stimuli: StimulusSet, items: Sequence[Item]) -> dict[str, Any]:
    """What activations depend on: the model, its adapter and numerics, the images and the prompts.

    Args:
        model: A model with weights.
        stimuli: The set that the items are of.
        items: What is asked, in order.
    """
    identity = model.identity
    shown = [[item.item_id, item.image_sha256, item.question.prompt] for item in items]
    return {
        "model": identity.name,
        "revision": identity.revision,
        "weights": identity.weights_sha256,
        "adapter": identity.adapter_sha256,
        "files": identity.files,
        "moment": model.moment,
        "numerics": {k: v for k, v in identity.details.items() if isinstance(v, str | int | bool)},
        "stimuli": stimuli.content_sha256,
        "items": hashlib.sha256(dumps(shown, ascii_only=True).encode()).hexdigest(),
        "n": len(items),
    }


def collect(
    model: Any,
    stimuli: StimulusSet,
    items: Sequence[Item],
    sites: Sequence[Site],
    out: OutputFolder,
    *,
    batch_size: int = 0,
    progress: Progress | None = None,
) -> Activations:
    """The activations of all items at all sites: found in `out`, or read from the model and written there.

    Args:
        model: A model with weights.
        stimuli: The set that the items are of.
        items: What is asked.
        sites: Where to read.
        out: Folder; its subfolder `activations` is used.
        batch_size: Items per batch; 0 = what suits the model. The activations do not depend on it.
        progress: Told how many items are read, and how many there are.

    Raises:
        OutputError: If something else is in their place.
        RunError: If the folder cannot be written.
        StimulusError: If an image cannot be read.
        ModelError: If the model has no such sites.
    """
    described = identify(model, stimuli, items)
    home = out.path / FOLDER
    for found in sorted(home.glob(f"*/{DESCRIPTION}")):
        if _holds(found.parent, described, sites):
            return Activations(found.parent, len(items))
    names = sorted(site.name for site in sites)
    key = hashlib.sha256(dumps([described, names], sort_keys=True, ascii_only=True).encode()).hexdigest()[:16]
    folder = home / key
    try:
        out.track(*(f"{FOLDER}/{key}/{name}" for name in (DESCRIPTION, DONE, *(f"{name}.npy" for name in names))))
        folder.mkdir(parents=True, exist_ok=True)
        _fill(folder, described, model, stimuli, items, sites, batch_size, progress)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}; choose another folder with --out") from error
    return Activations(folder, len(items))


def _holds(folder: Path, described: Mapping[str, Any], sites: Sequence[Site]) -> bool:
    """Whether a folder has all of these activations."""
    try:
        stored = parse_object((folder / DESCRIPTION).read_bytes())
        if stored["of"] != described or not {site.name for site in sites} <= set(stored["widths"]):
            return False
        arrays = [np.load(folder / f"{site.name}.npy", mmap_mode="r") for site in sites]
        shapes = [(described["n"], stored["widths"][site.name]) for site in sites]
        return bool(np.load(folder / DONE).all()) and [a.shape for a in arrays] == shapes
    except Exception:
        return False  # half written or damaged: made again


def _fill(
    folder: Path,
    described: Mapping[str, Any],
    model: Any,
    stimuli: StimulusSet,
    items: Sequence[Item],
    sites: Sequence[Site],
    batch_size: int,
    progress: Progress | None,
) -> None:
    """Read what is not there yet."""
    reader = HiddenStates(model, sites)
    arrays: dict[Site, npt.NDArray[np.float32]] = {}
    done = np.zeros(len(items), dtype=bool)
    if (folder / DESCRIPTION).is_file():
        try:
            arrays = {site: np.load(folder / f"{site.name}.npy", mmap_mode="r+") for site in sites}
            done = np.load(folder / DONE)
            if any(len(array) != len(items) for array in (done, *arrays.values())):
                raise ValueError("another length")
        except Exception:  # numpy has errors of many kinds for files that are no arrays
            arrays, done = {}, np.zeros(len(items), dtype=bool)
    # Prompts of similar length in one batch need little padding.
    pending = sorted(np.flatnonzero(~done).tolist(), key=lambda i: len(items[i].question.prompt))
    size = batch_size or model.batch_size
    batches = [pending[start : start + size] for start in range(0, len(pending), size)]
    written: list[int] = []
    synced = time.monotonic()
    if progress is not None:
        progress(int(done.sum()), len(items))
    for batch, trials in zip(batches, _shown(model, stimuli, items, batches), strict=True):
        states = reader.read(trials)
        if not arrays:
            arrays = {
                site: np.lib.format.open_memmap(
                    folder / f"{site.name}.npy", mode="w+", dtype=np.float32, shape=(len(items), states[site].shape[1])
                )
                for site in sites
            }
            _save(folder / DONE, done)
            widths = {site.name: int(array.shape[1]) for site, array in arrays.items()}
            write_json(folder / DESCRIPTION, {"format": 1, "of": dict(described), "dtype": "float32", "widths": widths})
        for site, array in arrays.items():
            if not np.isfinite(states[site]).all():
                raise RunError(
                    f"the states at {site.name} are not finite for some of the items {items[batch[0]].item_id}, ...: the model"
                    " overflows in its number format; try --dtype float32"
                )
            array[batch] = states[site]
        written += batch
        if time.monotonic() - synced > SYNC_INTERVAL or batch is batches[-1]:
            _sync(arrays)
            done[written] = True
            _save(folder / DONE, done)
            written, synced = [], time.monotonic()
        if progress is not None:
            progress(int(done.sum()) + len(written), len(items))


def _shown(
    model: Any, stimuli: StimulusSet, items: Sequence[Item], batches: Sequence[Sequence[int]]
) -> Iterator[list[Trial]]:
    """The trials of every batch; images and inputs of the next are made ready while the model reads."""

    def show(batch: Sequence[int]) -> list[Trial]:
        trials = [Trial(items[i], stimuli.image(items[i])) for i in batch]
        model.prepare(trials)
        return trials

    with ThreadPoolExecutor(1, thread_name_prefix="pictures") as pool:
        ahead = [pool.submit(show, batch) for batch in batches[:1]]
        for number in range(len(batches)):
            trials = ahead.pop().result()
            ahead += [pool.submit(show, batch) for batch in batches[number + 1 : number + 2]]
            yield trials


def _sync(arrays: Mapping[Site, npt.NDArray[np.float32]]) -> None:
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]  # of np.memmap


def _save(path: Path, array: npt.NDArray[np.bool_]) -> None:
    with whole_file(path) as partial:
        np.save(partial, array)
