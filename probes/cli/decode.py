"""`probe decode`: which physical quantities can be read off a model's hidden states, and does it use them?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Jobs, Json, listed
from vlm_probe.probes.decoding.config import DecodeConfig
from vlm_probe.probes.options import ESSENTIALS, names

if TYPE_CHECKING:
    from vlm_probe.stimuli.output import OutputFolder


def decode(
    *,
    settings: Annotated[DecodeConfig, Parameter(name="*")],
    out: Annotated[Path | None, Parameter(group=ESSENTIALS), names("out", "output-dir")] = None,
    jobs: Jobs = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Decode physical quantities from a model's hidden states, layer by layer, with controls and an intervention.

    Linear probes, cross-validated by scene group. Writes OUT/TARGET/decode.json and figures; the hidden states stay in
    OUT/activations, so that another target costs no second pass through the model.

    Args:
        settings: What is decoded from whom.
        out: Folder; by default decode/MODEL_SET.
    """
    from vlm_probe.probes.cli.console import progress, show, show_json
    from vlm_probe.probes.cli.resources import check_model_name, check_stimuli_name, find_stimuli
    from vlm_probe.probes.decoding.result import check_folder
    from vlm_probe.probes.decoding.study import KIND, load, prepare
    from vlm_probe.probes.decoding.study import decode as study
    from vlm_probe.probes.models.loading import check_options
    from vlm_probe.stimuli.output import check_claim, claim
    from vlm_probe.stimuli.standard import check_available

    wanted = [replace(settings, target=name) for name in listed(settings.target)]
    check_available(settings.stimuli)
    check_model_name(settings.model)
    task = check_stimuli_name(settings.stimuli)
    folder = out or Path("decode") / _name(settings.model, settings.stimuli, task)
    check_claim(folder, KIND)
    check_options(settings.device, settings.load_in_4bit, settings.adapter, settings.compare)
    items = find_stimuli(settings.stimuli, jobs)
    for one in wanted:  # every target, before the first one is decoded
        prepare(one, items)
        check_folder(one, items, folder)
    loaded = None if settings.compare else load(settings, settings.adapter)
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
