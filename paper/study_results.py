"""The results of a study: trials, training runs, decoding and what was registered, from the folder that the study left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from vlm_probe.analysis.contrasts import Contrasts, planned_contrasts
from vlm_probe.analysis.frame import load
from vlm_probe.analysis.logs import GROUNDING
from vlm_probe.analysis.material import ReportData, Settings, select
from vlm_probe.analysis.registration import REGISTRATION, Registration, read_registration, registered_contrasts
from vlm_probe.analysis.section import MissingData
from vlm_probe.paper.numbers import records
from vlm_probe.probes.trials import read_run, runs_below
from vlm_probe.probes.trials.archive import LOGS
from vlm_probe.stimuli.errors import ProbeError, reading
from vlm_probe.stimuli.plain_json import parse_object

ASKED = ("runs", "observers")
TRAININGS, DECODING = "adapters", "decoding"
TRAINING, DECODED, STATE = "training.json", "decode.json", "state.json"


OVER_ALL = "all plain"
"""What contrasts that are about no single condition of training have for one."""


class PaperError(ProbeError, ValueError):
    """A paper cannot be made; the message says why, and ends with what to do."""


@dataclass(frozen=True)
class Study:
    """The results of a study.

    Attributes:
        name: Of the study.
        material: Its trials, by what they can say.
        trainings: The record of every training run, its curves apart (they are in the trials).
        decodings: The contents of every `decode.json`.
        models: Of every model that was asked, what its runs say of it.
        registration: What was planned before anything was trained; None if nothing was.
        deviations: From it, as `probe study pack` found them.
        unfinished: Runs that are going on or were stopped, and are left out.
    """

    name: str
    material: ReportData
    trainings: tuple[Mapping[str, Any], ...]
    decodings: tuple[Mapping[str, Any], ...]
    models: Mapping[str, Mapping[str, Any]]
    registration: Registration | None
    deviations: tuple[str, ...]
    unfinished: int

    @cached_property
    def plain(self) -> pd.DataFrame:
        """Trials of models on physics tasks, asked in the plain manner."""
        return self.material.plain

    @cached_property
    def contrasts(self) -> Contrasts:
        """The registered contrasts, or else those that every study has; `training` names the condition that each is about.

        Raises Unanswerable if nothing was trained.
        """
        if self.plain["transfer"].isna().all():
            raise MissingData("no trained model was tested")
        if self.registration is None or not self.registration.method_contrasts:
            found = planned_contrasts(self.plain, self.settings.bound, self.settings.alpha)
            return replace(found, table=found.table.assign(training=OVER_ALL))
        return registered_contrasts(self.plain, self.registration, self.settings.alpha)

    @property
    def contrasts_over_all(self) -> list[dict[str, Any]]:
        """Those over all conditions of training, which the paper is about: one row each."""
        table = self.contrasts.table
        return records(table[table["training"] == OVER_ALL])

    @property
    def settings(self) -> Settings:
        """Bound, level and seed of the analysis."""
        return self.material.settings

    @property
    def methods(self) -> list[str]:
        """Methods of training, in their order."""
        return [str(m) for m in self.plain["method"].cat.categories if m != "none"]


def read_study(folder: Path, resamples: int = 200) -> Study:
    """Read a study.

    Args:
        folder: That `probe study run` filled, or `probe study pack` made.
        resamples: Bootstrap samples of psychometric functions.

    Raises:
        PaperError: If it holds no runs.
        FrameError, RunError: If its runs cannot be read.
    """
    packed = (folder / LOGS).is_file()
    if not packed and not (folder / ASKED[0]).is_dir():
        raise PaperError(
            f"{folder} holds no study: give the folder that `probe study run` filled (studies/NAME), or what `probe study pack` made"
        )
    registration = read_registration(folder) if (folder / REGISTRATION).is_file() else None
    bound = Settings().bound if registration is None else registration.bound
    settings = Settings(bound=bound, resamples=resamples)
    # Next to its results, a live study's folder has pilots, results of earlier designs, and runs that are going on.
    trained = sorted((folder / TRAININGS).glob(f"*/{TRAINING}"))
    sources = [folder] if packed else [*_finished(folder), *(path.parent for path in trained)]
    if not sources:
        raise PaperError(f"no run in {folder} is finished: let `probe study run` go on first")
    material = select(load(sources), settings, registration)
    if material.plain.empty:
        raise PaperError(f"no model was asked a physics task in {folder}: let `probe study run` go on first")
    return Study(
        name=_name(folder),
        material=material,
        trainings=tuple(map(_without_curves, trained)),
        decodings=tuple(_read(path) for path in sorted((folder / DECODING).rglob(DECODED))),
        models=_models(folder),
        registration=registration,
        unfinished=0 if packed else len(_asked(folder)) - len(_finished(folder)),
        deviations=_deviations(folder),
    )


def _asked(folder: Path) -> list[Path]:
    """The runs of a live study; grounding questions belong to the battery that they begin."""
    return [path for name in ASKED for path in runs_below(folder / name) if path.name != GROUNDING]


def _finished(folder: Path) -> list[Path]:
    """Those of them that are finished: one that is going on is neither whole nor sure to be told from others."""
    return [path for path in _asked(folder) if read_run(path).get("status") == "finished"]


def _name(folder: Path) -> str:
    """What the study calls itself, where that is known, or else its folder."""
    if (folder / REGISTRATION).is_file():
        return str(_read(folder / REGISTRATION).get("study") or folder.resolve().name)
    return folder.resolve().name


def _deviations(folder: Path) -> tuple[str, ...]:
    """What is not as it was registered, as `probe study pack` found it."""
    if not (folder / STATE).is_file():
        return ()
    with reading(folder / STATE, PaperError, "pack the study again (`probe study pack`)"):
        return tuple(map(str, _read(folder / STATE).get("deviations", ())))


def _models(folder: Path) -> dict[str, Mapping[str, Any]]:
    """What runs without an adapter say of their model: weights, parameters, and the size at which it sees images."""
    found: dict[str, Mapping[str, Any]] = {}
    packed = (folder / LOGS).is_file()
    for path in runs_below(folder if packed else folder / ASKED[0]):
        if packed and path.relative_to(folder).parts[0] != ASKED[0]:
            continue
        record = read_run(path)
        model = record.get("model") or {}
        if not model.get("adapter_sha256"):
            found.setdefault(Path(str(model.get("name"))).name, {**model, "observed": record.get("observed") or {}})
    return found


def _without_curves(path: Path) -> dict[str, Any]:
    return {name: value for name, value in _read(path).items() if name not in ("curves", "presentation")}


def _read(path: Path) -> dict[str, Any]:
    with reading(path, PaperError, "repeat the step that made it, or delete its folder"):
        return parse_object(path.read_bytes())
