"""`probe decode`: which physical quantities can be read off a model's hidden states, and does it use them?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Jobs, Json, listed

if TYPE_CHECKING:
    from vlm_probe.stimuli.output import OutputFolder


def decode(
    *,
    model: str,
    stimuli: str,
    target: str,
    layers: str = "all",
    position: str = "last,image",
    adapter: str | None = None,
    compare: str | None = None,
    untrained: Annotated[bool, Parameter(negative=())] = False,
    intervene: str = "auto",
    permutations: int = 100,
    directions: int = 20,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 0,
    revision: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    load_in_4bit: Annotated[bool, Parameter(name="--load-in-4bit", negative=())] = False,
    out: Path | None = None,
    jobs: Jobs = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Decode physical quantities from a model's hidden states, layer by layer, with controls and an intervention.

    Linear probes, cross-validated by scene group. Writes OUT/TARGET/decode.json and figures; the hidden states stay in
    OUT/activations, so that another target costs no second pass through the model.

    Args:
        model: Short name (see `probe models`), local folder or hub id.
        stimuli: Folder of a set, task name, or family.
        target: One or several, separated by commas: margin, label, reply, count, com-offset, top-offset, height, force, speed,
            answer, or a cue of the task (a name that does not exist lists those that do).
        layers: `all`, or a list: `vision` (every layer of the tower), numbers and ranges of language layers, such as 0,4-8,-1.
        position: One or several of last (token), image (tokens, averaged), question (tokens after the picture, averaged).
        adapter: Decode the model with this LoRA adapter on it.
        compare: Decode the bare model and the model with this adapter, on the same items, and their difference.
        untrained: Also decode from the same architecture with random weights.
        intervene: Language layer at which states are moved along the probe's direction; `auto`: where it decodes best.
            `none`: nowhere.
        permutations: Permuted sets of values, for chance levels and p-values.
        directions: Random directions beside the probe's.
        limit: Only the first so many items.
        seed: Of folds, permutations and directions.
        batch_size: Items per batch; 0: what suits the model. Results do not depend on it.
        revision: Revision on the hub.
        dtype: Number format of the weights.
        device: `cpu`, `cuda`, ...
        load_in_4bit: Quantise the weights to four bits.
        out: Folder; by default decode/MODEL_SET.
    """
    from vlm_probe.probes.cli.console import progress, show, show_json
    from vlm_probe.probes.cli.resources import check_model_name, check_stimuli_name, find_stimuli
    from vlm_probe.probes.decoding.config import DecodeConfig
    from vlm_probe.probes.decoding.result import check_folder
    from vlm_probe.probes.decoding.study import KIND, load, prepare
    from vlm_probe.probes.decoding.study import decode as study
    from vlm_probe.probes.models.loading import check_options
    from vlm_probe.stimuli.output import check_claim, claim
    from vlm_probe.stimuli.standard import check_available

    common: dict[str, Any] = {
        "model": model,
        "stimuli": stimuli,
        "layers": layers,
        "positions": tuple(listed(position)),
        "adapter": adapter,
        "compare": compare,
        "untrained": untrained,
        "intervene": intervene,
        "permutations": permutations,
        "directions": directions,
        "limit": limit,
        "seed": seed,
        "batch_size": batch_size,
        "revision": revision,
        "dtype": dtype,
        "device": device,
        "load_in_4bit": load_in_4bit,
    }
    wanted = [DecodeConfig(target=name, **common) for name in listed(target)]
    check_available(stimuli)
    check_model_name(model)
    task = check_stimuli_name(stimuli)
    folder = out or Path("decode") / _name(model, stimuli, task)
    check_claim(folder, KIND)
    check_options(device, load_in_4bit, adapter, compare)
    items = find_stimuli(stimuli, jobs)
    for one in wanted:  # every target, before the first one is decoded
        prepare(one, items)
        check_folder(one, items, folder)
    loaded = None if compare else load(wanted[0], adapter)
    results = []
    with claim(folder, KIND) as output:
        for one in wanted:
            with _Steps(progress) as step:
                result = study(one, items, output, model=loaded, step=step)
            results.append(result)
            if not json:
                show(_report(result))
            _draw([result], output, f"{check_folder(one, items, folder)}/")
        if len(results) > 1:
            _draw(results, output)
    if json:
        show_json(results[0] if len(results) == 1 else results)


def _name(model: str, stimuli: str, task: str) -> str:
    """The default folder: model and set."""
    parts = [Path(model).resolve().name if Path(model).is_dir() else model.strip("/").replace("/", "-")]
    return "_".join([*parts, Path(stimuli).resolve().name if Path(stimuli).is_dir() else task])


def _report(result: dict[str, Any]) -> Any:
    from vlm_probe.probes.decoding.report import Report

    return Report(result)


def _draw(results: list[dict[str, Any]], folder: OutputFolder, below: str = "") -> None:
    """Write the figures of one result, or the overview of several, and say where they are."""
    from vlm_probe.probes.cli.console import tell
    from vlm_probe.probes.cli.results import warning_of

    with warning_of("figure"):
        import matplotlib.pyplot as plt

        from vlm_probe.analysis.style import STYLE
        from vlm_probe.probes.decoding.figures import depth, intervention

        with plt.rc_context(STYLE):
            with folder.file(f"{below}decode.png") as partial:
                depth(results, partial)
            tell(f"figure: {folder.path / below}/decode.png")
            if len(results) == 1 and "intervention" in results[0]:
                with folder.file(f"{below}intervention.png") as partial:
                    intervention(results[0], partial)
                tell(f"figure: {folder.path / below}/intervention.png")


class _Steps:
    """Progress of one thing after another: a new bar whenever something else is being done."""

    def __init__(self, progress: Any) -> None:
        self._progress, self._what = progress, ""
        self._open: Any = None

    def __enter__(self) -> Any:
        return self._step

    def __exit__(self, *_: object) -> None:
        self._close()

    def _step(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._close()
            self._what, self._open = what, self._progress(what)
            self._show = self._open.__enter__()
        self._show(done, total)

    def _close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
