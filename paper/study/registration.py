"""Registration: what was planned, written down with the hash of every item before anything is trained, and what has changed since.

STUDY/registration.json holds the design, the planned contrasts, the content and item ids of every set, and the hash of every
step, under one hash of all of it. That hash can be published where its date can be checked; a record that was edited does not
have it any more. `vlm_probe.analysis.registration` reads the file, and calls exploratory what is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vlm_probe.paper.study.cells import Cell
from vlm_probe.paper.study.design import Design
from vlm_probe.paper.study.fields import StudyError
from vlm_probe.paper.study.store import Store
from vlm_probe.probes.provenance import git_state, versions
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.errors import reading
from vlm_probe.stimuli.output import OutputFolder
from vlm_probe.stimuli.plain_json import dumps, parse, parse_object

REGISTRATION = "registration.json"
FORMAT = 1


def register(
    design: Design, cells: Sequence[Cell], store: Store, output: OutputFolder, again: bool = False
) -> dict[str, Any]:
    """Write the registration of a study, whose sets must be there.

    Args:
        design, cells, store: The study.
        output: Its folder, as `Store.held` gives it.
        again: Register a changed design again; the earlier record stays next to the new one, and is named in it.

    Returns:
        The record: the one that is there already, if it says the same.

    Raises:
        StudyError: If another design was registered, or a set is not there.
    """
    found = read_registration(store)
    planned = _planned(design, cells) | {"sets": _sets(cells, store)}
    if found and all(found.get(name) == value for name, value in planned.items()):
        return found
    earlier: list[str] = list(found.get("earlier", []))
    if found:
        changes = deviations(found, design, cells)
        if not again:
            raise StudyError(
                f"{store.folder / REGISTRATION} was registered on {found['registered']}, and the study has changed since:"
                f" {'; '.join(changes)}; go back to it, or register anew with --again, which keeps the earlier record"
            )
        earlier.append(str(found["sha256"]))
        output.write_json(f"registration-{len(earlier)}.json", found)
    record = {
        "format": FORMAT,
        "registered": datetime.now(UTC).isoformat(timespec="seconds"),
        **planned,
        "done_before": _done_before(cells, store),
        "earlier": earlier,
        "versions": versions(),
        "git": git_state(),
    }
    record = {"sha256": record_hash(record), **record}
    output.write_json(REGISTRATION, record)
    return record


def read_registration(store: Store) -> dict[str, Any]:
    """The registration of a study; empty if there is none.

    Raises:
        StudyError: If it was edited, or is damaged.
    """
    path = store.folder / REGISTRATION
    if not path.exists():
        return {}
    with reading(path, StudyError, "restore the file"):
        found = parse_object(path.read_bytes())
        if found.get("sha256") != record_hash(found):
            raise StudyError(f"{path} is not what was registered (its hash is another one): restore the file")
        kinds = {"registered": str, "design": dict, "steps": dict, "sets": dict, "done_before": list, "earlier": list}
        for name, kind in kinds.items():
            if not isinstance(found[name], kind):
                raise TypeError(f"{name} is {str(found[name])[:40]!r}")
    return found


def record_hash(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without its own hash."""
    told = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(dumps(told, sort_keys=True).encode()).hexdigest()


def deviations(record: Mapping[str, Any], design: Design, cells: Sequence[Cell]) -> list[str]:
    """What of a study is not as it was registered, one line each: of the design, and of what it rests on.

    Args:
        record: What was registered.
        design: As it is now.
        cells: Of that design.
    """
    now, then = _planned(design, cells), record
    lines = []
    for key in sorted(now["design"].keys() | then["design"].keys()):
        new, old = now["design"].get(key), then["design"].get(key)
        if new != old:
            lines.append(f"{key} is {_brief(new)}, registered was {_brief(old)}")
    if not lines:
        # The same design with other hashes: weights, a preset, a task or the engine have changed beneath it.
        changed = [id_ for id_, digest in then["steps"].items() if now["steps"].get(id_, digest) != digest]
        if changed:
            lines.append(
                f"{len(changed)} steps rest on other weights, presets, tasks or engines than registered, such as {changed[0]}"
            )
    return lines


def _planned(design: Design, cells: Sequence[Cell]) -> dict[str, Any]:
    """What is registered, apart from the contents of the sets."""
    return {
        "study": design.name,
        "design": parse(dumps(design.to_dict())),
        "steps": {step.id: step.sha256 for cell in cells for step in cell.steps},
    }


def _sets(cells: Sequence[Cell], store: Store) -> dict[str, dict[str, Any]]:
    """What is in every set."""
    found = {}
    for step in (step for cell in cells if cell.kind == "sets" for step in cell.steps):
        if not store.done(step):
            raise StudyError(f"the set {step.id} is not there: see why in `probe study status`")
        opened = StimulusSet.load(store.folder / step.id)
        ids = [str(row["item_id"]) for row in opened.rows()]
        found[step.id] = {
            "n": len(ids),
            "items_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
            "content_sha256": opened.content_sha256,
        }
    return found


def _done_before(cells: Sequence[Cell], store: Store) -> list[str]:
    """Steps that had results at the time of the registration, which cannot count as planned beforehand."""
    return [step.id for cell in cells if cell.kind != "sets" for step in cell.steps if store.mark(step)]


def _brief(value: Any) -> str:
    text = dumps(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
