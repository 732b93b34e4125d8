"""A study packed for a repository: every trial, and how it was trained and registered, in a few megabytes.

TO/study.yaml                      the declaration, as it stands
TO/remarks.tex                     what is to be said of the study and no other file knows, if anybody wrote it into its folder
TO/registration.json               what was registered, if anything was (and earlier records)
TO/state.json                      cells done, failed and missing, what they took, and deviations from the registration
TO/logs.parquet, runs.parquet      all logs, byte for byte (`vlm_probe.probes.trials.archive`); read like the runs themselves
TO/adapters/<name>/training.json   how every adapter was trained, with its curves; the weights stay behind
TO/decoding/<name>/<task>/...      results of decoding
TO/sets/<name>/card.json           what every set holds; the images are made again from the declaration

The packed folder stands in the place of the study's wherever runs are read: `probe analyze TO`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_probe.paper.study.cells import Cell
from vlm_probe.paper.study.fields import StudyError
from vlm_probe.paper.study.overview import Overview
from vlm_probe.paper.study.store import MARK, Store, read_json, size_of
from vlm_probe.probes.decoding.result import RESULT
from vlm_probe.probes.models.adapter_folder import TRAINING
from vlm_probe.probes.trials import TRIALS, archive_runs
from vlm_probe.stimuli.dataset import CARD
from vlm_probe.stimuli.output import claim, write_json

STUDY, STATE, REMARKS = "study.yaml", "state.json", "remarks.tex"
SMALL = {"sets": CARD, "adapters": TRAINING, "decoding": RESULT}
"""The file that is kept of every step, by kind, next to the logs."""
KIND = "packed study"


def pack(
    study: Path, cells: Sequence[Cell], store: Store, overview: Overview, deviations: Sequence[str], to: Path
) -> dict[str, Any]:
    """Pack what is done of a study. What an earlier packing left in the folder is replaced, and nothing else.

    Args:
        study: Its YAML file.
        cells, store, overview: The study.
        deviations: From its registration.
        to: Folder.

    Returns:
        Runs, trials and bytes.

    Raises:
        OutputError: If the folder holds something else, or what was packed there was changed since.
        StudyError: If it is that of the study.
        RunError: If a log is damaged.
    """
    if to.resolve() == store.folder.resolve():
        raise StudyError(f"{to} is the folder of the study itself: choose another one with --to")
    with claim(to, KIND, "--to") as output:
        output.check()
        done = [step for cell in cells for step in cell.steps if store.done(step)]
        folders = [store.folder / step.id for step in done]
        # A battery of controls has the run of its grounding questions inside it.
        runs = [path.parent for folder in folders for path in sorted(folder.rglob(TRIALS))]
        with output.scratch() as made:
            n = archive_runs(runs, store.folder, made)
            for folder in folders:
                kind = folder.relative_to(store.folder).parts[0]
                for path in sorted(folder.rglob(SMALL[kind])) if kind in SMALL else ():
                    copy = made / path.relative_to(store.folder)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
            for path in (*sorted(store.folder.glob("registration*.json")), *store.folder.glob(REMARKS)):
                shutil.copyfile(path, made / path.name)
            shutil.copyfile(study, made / STUDY)
            write_json(made / STATE, _state(cells, store, overview, deviations))
            output.replace_all(made, last=STATE)
    return {"folder": str(to), "runs": len(runs), "trials": n, "bytes": size_of(to)}


def _state(cells: Sequence[Cell], store: Store, overview: Overview, deviations: Sequence[str]) -> dict[str, Any]:
    """How far the study is, cell by cell."""
    return {
        "deviations": list(deviations),
        "groups": overview.rows(),
        "failures": [failure.__dict__ for failure in overview.failures],
        "cells": [
            {"id": cell.id, "state": overview.looks[cell.id].state, "steps": len(cell.steps)} | _took(cell, store)
            for cell in cells
        ],
    }


def _took(cell: Cell, store: Store) -> dict[str, Any]:
    marks: list[Mapping[str, Any]] = [read_json(store.folder / step.id / MARK) for step in cell.steps]
    done = [mark for mark in marks if mark.get("done")]
    return {
        "steps_done": len(done),
        "seconds": round(sum(mark["seconds"] for mark in done), 1),
        "cpu_seconds": round(sum(mark["cpu_seconds"] for mark in done), 1),
    }
