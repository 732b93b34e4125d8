"""The cells of a study: independent pieces of work, each a few command lines of `probe`, known by a hash of all that decides them.

A *step* is one command line and the folder that it fills. A *cell* is what one job does: making a test set, one training run, or
all tests of one trained model, one after the other in one process, so that a model of eight billion weights is not started
for every test again. A step's hash holds its settings and the hashes of the steps that it needs; so a change of the design
reruns what it touches, and nothing else.
"""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vlm_probe.finetune.config import make_config
from vlm_probe.paper.study.design import Design, Model, Test, Training
from vlm_probe.paper.study.fields import StudyError
from vlm_probe.probes.conditions import GROUNDING_N, manners
from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.catalog import lookup
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.stimuli.errors import ProbeError, did_you_mean
from vlm_probe.stimuli.plain_json import dumps
from vlm_probe.stimuli.shifts import parse_shifts
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import get_task

FORMAT = 1
KINDS = ("sets", "adapters", "runs", "observers", "decoding")
"""Kinds of cells, which are the folders of their results as well."""
STATES = "_states"
"""After the name of a set that is made for decoding alone."""
SMALL = 64_000_000
"""Bytes up to which the weights of a local model are hashed; of larger ones, size and time of change have to do."""


@dataclass(frozen=True)
class Step:
    """One command line, and the folder that it fills.

    Attributes:
        id: The folder, inside that of the study.
        arguments: Of `probe`, with folders inside that of the study.
        needs: Steps that must be done before.
        sha256: Of everything that decides the result.
        pace: Steps with the same pace take the same time for the same amount of work.
        amount: Of work: items, samples or trials.
        unit: What the amount counts.
        least: The smallest amount of a training run that can be timed; 1 for everything else, 0 for what cannot be.
        items: (pace, amount) of the sets that a training makes for itself.
    """

    id: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    sha256: str
    pace: str
    amount: int
    unit: str
    least: int = 1
    items: tuple[tuple[str, int], ...] = ()

    @property
    def command(self) -> str:
        """The command line as one would give it in the folder of the study."""
        return shlex.join(["probe", *self.arguments])


@dataclass(frozen=True)
class Cell:
    """What one job does.

    Attributes:
        id: The folder of its results, or the one that holds the folders of its steps.
        kind: One of `KINDS`.
        group: What it is counted with in tables.
        steps: In the order in which they are done.
    """

    id: str
    kind: str
    group: str
    steps: tuple[Step, ...]

    @property
    def needs(self) -> set[str]:
        """Steps of other cells that must be done before some of its own."""
        return {need for step in self.steps for need in step.needs} - {step.id for step in self.steps}


def make_cells(design: Design) -> list[Cell]:
    """All cells of a design, those that others need first.

    Args:
        design: The design.

    Raises:
        StudyError: If a setting of a training run is not possible, or a model is not there.
    """
    return list(_Maker(design).cells())


def trained_name(model: Model, training: Training, method: str, seed: int) -> str:
    """What a trained model is called in folders.

    Args:
        model: The base.
        training: The condition.
        method: "sft", "ppo" and so on.
        seed: Of the training run.
    """
    return f"{model.short}_{method}_{training.name}_s{seed}"


def trials(cells: Sequence[Cell]) -> int:
    """Trials that cells ask for."""
    return sum(step.amount for cell in cells for step in cell.steps if step.unit == "trials")


def count_by_kind(cells: Sequence[Cell]) -> Counter[str]:
    """Number of cells of every kind."""
    return Counter(cell.kind for cell in cells)


class _Maker:
    def __init__(self, design: Design) -> None:
        self._design = design
        self._hashes: dict[str, str] = {}
        self._models = {model.name: _model_facts(model) for model in design.models}

    def cells(self) -> Iterator[Cell]:
        design = self._design
        for test in design.tests:
            yield Cell(f"sets/{test.name}", "sets", "test sets", (self._set(test.task, test.shift),))
        if design.decoding is not None and design.decoding.limit > design.sets.n:
            for task in design.decoding.tasks:
                step = self._set(task, "", design.decoding.limit, STATES)
                yield Cell(step.id, "sets", "test sets", (step,))
        if "none" in design.methods:
            for model in design.models:
                yield from self._asked(f"{model.short}_none", model, None, "tests of the base", not design.trainings)
        for observer in design.observers:
            yield Cell(f"observers/{observer}", "observers", "observers", tuple(self._observations(observer)))
        for model in design.models:
            for training, seed in self._in_order():
                for method in training.methods:
                    step = self._training(model, training, method, seed)
                    yield Cell(step.id, "adapters", f"trainings by {method}", (step,))
                    group, decoded = f"tests after {method}", self._is_decoded(training, seed)
                    yield from self._asked(Path(step.id).name, model, step, group, decoded)

    def _in_order(self) -> list[tuple[Training, int]]:
        """Conditions and seeds in the order in which they are done, so that a study that is stopped early is a balanced one.

        Conditions with the study's seeds come first, all of them with one seed before any with the next; then those with seeds
        of their own, one after the other.
        """
        ranked = []
        for place, training in enumerate(self._design.trainings):
            is_own = training.seeds != self._design.seeds
            for number, seed in enumerate(training.seeds):
                rank = (is_own, place, number) if is_own else (is_own, number, place)
                ranked.append((rank, training, seed))
        return [(training, seed) for _, training, seed in sorted(ranked, key=lambda entry: entry[0])]

    def _is_decoded(self, training: Training, seed: int) -> bool:
        """Whether a trained model is decoded. It is decoded next to its base; so the base needs no cell of its own."""
        decoding = self._design.decoding
        return decoding is not None and seed in decoding.seeds and training.name in decoding.trainings

    def _asked(self, name: str, model: Model, adapter: Step | None, group: str, decoded: bool) -> Iterator[Cell]:
        """What is asked of a base or trained model."""
        yield Cell(f"runs/{name}", "runs", group, tuple(self._runs(name, model, adapter)))
        if decoded and self._design.decoding is not None:
            yield Cell(f"decoding/{name}", "decoding", "decoding", tuple(self._decodings(name, model, adapter)))

    def _step(
        self,
        id_: str,
        arguments: Sequence[str],
        facts: dict[str, Any],
        needs: Sequence[str],
        pace: str,
        amount: int,
        unit: str,
        without: Sequence[str] = (),
    ) -> Step:
        """A step; `without`: needs that have no influence on its result."""
        decided = [FORMAT, facts, [self._hashes[need] for need in needs if need not in without]]
        digest = hashlib.sha256(dumps(decided, sort_keys=True, ascii_only=True).encode()).hexdigest()
        if id_ in self._hashes:
            raise StudyError(
                f"two steps of the study would fill the folder {id_}: give training conditions other names"
            )
        self._hashes[id_] = digest
        return Step(id_, tuple(arguments), tuple(needs), digest, pace, amount, unit)

    def _set(self, task: str, shift: str, n: int = 0, suffix: str = "") -> Step:
        """A set of so many items, by default as many as tests have."""
        sets, n = self._design.sets, n or self._design.sets.n
        folder = f"sets/{Test(task, shift).name}{suffix}"
        options = ["--n", n, "--seed", sets.seed, "--size", sets.size]
        options += ["--shift", shift] if shift else []
        facts = {
            "kind": "set",
            "task": task,
            "version": get_task(task).version,
            "shifts": parse_shifts(shift),
            "n": n,
            "seed": sets.seed,
            "size": sets.size,
            "engine": get_simulator().version(),
        }
        arguments = ["stimuli", "make", task, *map(str, options), "--out", folder]
        return self._step(folder, arguments, facts, (), f"set {task}", n, "items")

    def _training(self, model: Model, training: Training, method: str, seed: int) -> Step:
        given = self._design.training_settings(model, training, method, seed)
        tasks, folder = training.bare_tasks, f"adapters/{trained_name(model, training, method, seed)}"
        wanted = given | {"model": model.name, "tasks": tasks, "method": method}
        try:
            resolved = make_config(wanted, model.preset).to_dict()
        except ProbeError as error:
            raise StudyError(f"training {training.name} by {method}: {error}") from error
        if resolved["load_in_4bit"] and not model.loading.get("load_in_4bit"):
            raise StudyError(
                f"training {training.name} by {method}: {model.name} is trained in 4 bits, as the preset {model.preset} says, and"
                f" would be tested without: give load_in_4bit: true for it under models"
            )
        families = {get_task(task).family for task in tasks}
        # No scene of the trained families' tests may be trained on. What is kept away changes nothing of what is learned from,
        # so that a further test does not throw training runs away.
        avoided = [set_ for set_, task in self._sets_made() if get_task(task).family in families]
        arguments = ["train", "--model", model.name, "--tasks", ",".join(training.tasks), "--method", method]
        arguments += ["--preset", model.preset] if model.preset else []
        arguments += [text for name, value in given.items() for text in _option(name, value)]
        arguments += ["--avoid", ",".join(avoided)] if avoided else []
        facts = {
            "kind": "train",
            "model": self._models[model.name],
            "tasks": training.tasks,
            "versions": [get_task(task).version for task in tasks],
            "settings": {name: value for name, value in resolved.items() if name not in ("avoid", "weights", "tasks")},
        }
        kind, _, amount = str(resolved["budget"]).partition("=")
        pace = f"train {model.short} {method} {kind} rank {resolved['rank']} {resolved['where']}"
        arguments += ["--out", folder]
        step = self._step(folder, arguments, facts, avoided, pace, int(float(amount)), kind, without=avoided)
        samples = resolved["rollout"] if method != "sft" else 2 * resolved["batch"]
        least = {"samples": samples, "steps": max(2, samples // resolved["batch"])}.get(kind, 0)
        each = -(-int(resolved["items"]) // len(tasks))
        return replace(step, least=least, items=tuple((f"set {task}", each) for task in tasks))

    def _sets_made(self) -> list[tuple[str, str]]:
        """Folder and task of every set."""
        design = self._design
        found = [(f"sets/{test.name}", test.task) for test in design.tests]
        if design.decoding is not None:
            found += [(self._states(task), task) for task in design.decoding.tasks]
        return list(dict.fromkeys(found))

    def _states(self, task: str) -> str:
        """The set on which a task is decoded: that of the test, or one of its own if more items are wanted."""
        decoding = self._design.decoding
        larger = decoding is not None and decoding.limit > self._design.sets.n
        return f"sets/{task}{STATES if larger else ''}"

    def _runs(self, name: str, model: Model, adapter: Step | None) -> Iterator[Step]:
        design = self._design
        base = [*(["--adapter", adapter.id] if adapter else []), *_loading(model)]
        for readout in design.readouts:
            for test in design.tests:
                yield self._run(f"runs/{name}", model.name, self._models[model.name], test, readout, base, adapter)
        if design.controls is not None:
            for task in design.controls.tasks:
                limit = min(design.controls.limit, design.sets.n)
                options = [*base, "--design", "controls", "--limit", str(limit)]
                facts = {"design": "controls", "limit": limit}
                yield self._run(
                    *(f"runs/{name}", model.name, self._models[model.name], Test(task), design.readouts[0], options),
                    adapter,
                    facts,
                )

    def _observations(self, observer: str) -> Iterator[Step]:
        facts = [observer, make_observer(observer).identity.weights_sha256]
        for readout in self._design.readouts:
            for test in self._design.tests:
                yield self._run(f"observers/{observer}", observer, facts, test, readout, [], None)

    def _run(
        self,
        folder: str,
        model: str,
        model_facts: list[Any],
        test: Test,
        readout: str,
        options: Sequence[str],
        adapter: Step | None,
        special: dict[str, Any] | None = None,
    ) -> Step:
        """One run: of a model or observer, on one set, by one readout."""
        special = special or {}
        parts = [test.name, *([readout] if readout != "generate" else []), *([special["design"]] if special else [])]
        out = f"{folder}/{'_'.join(parts)}"
        arguments = ["run", "--model", model, "--stimuli", f"sets/{test.name}", *options]
        arguments += ["--readout", readout, "--no-references", "--out", out]
        needs = [f"sets/{test.name}", *([adapter.id] if adapter else [])]
        facts = {"kind": "run", "model": model_facts, "readout": readout, **special}
        amount, pace = self._design.sets.n, f"run {Path(model).name} {readout} {test.task}"
        if special:
            # A battery begins with grounding questions, where the family has them.
            first = GROUNDING_N if get_task(test.task).kind != "grounding" else 0
            amount, pace = special["limit"] * len(manners("controls")) + first, f"{pace} controls"
        return self._step(out, arguments, facts, needs, pace, amount, "trials")

    def _decodings(self, name: str, model: Model, adapter: Step | None) -> Iterator[Step]:
        decoding = self._design.decoding
        assert decoding is not None
        for task in decoding.tasks:
            folder, limit, states = f"decoding/{name}/{task}", decoding.limit, self._states(task)
            arguments = ["decode", "--model", model.name, *_loading(model), "--stimuli", states]
            arguments += ["--target", ",".join(decoding.targets), "--limit", str(limit)]
            arguments += ["--permutations", str(decoding.permutations), "--intervene", "none"]
            arguments += ["--compare", adapter.id] if adapter else []
            facts = {
                "kind": "decode",
                "model": self._models[model.name],
                "targets": decoding.targets,
                "limit": limit,
                "permutations": decoding.permutations,
            }
            needs = [states, *([adapter.id] if adapter else [])]
            pace = f"decode {model.short} {task} {','.join(decoding.targets)} {bool(adapter)}"
            yield self._step(folder, [*arguments, "--out", folder], facts, needs, pace, limit, "states")


def _option(name: str, value: Any) -> list[str]:
    """A setting as an option of the command line."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", str(value)]


def _loading(model: Model) -> list[str]:
    return [text for name, value in model.loading.items() for text in _option(name, value)]


def _model_facts(model: Model) -> list[Any]:
    """What tells a model from others that are called alike. Raises StudyError if it is not there."""
    try:
        entry = lookup(model.name)
    except ModelError as error:
        raise StudyError(str(error)) from error
    if entry.kind == "hub":
        return [entry.source, model.loading]
    files = sorted(Path(entry.source).glob("*.safetensors"))
    small = sum(file.stat().st_size for file in files) <= SMALL
    return [
        model.loading,
        [[f.name, _digest(f) if small else [f.stat().st_size, f.stat().st_mtime_ns]] for f in files],
    ]


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def matching(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match one of the patterns; all if there are none.

    Args:
        cells: Of the study.
        patterns: As a shell writes them: `adapters/*`, `runs/*_sft_*`.

    Raises:
        StudyError: If nothing matches a pattern.
    """
    for pattern in patterns:
        if not any(fnmatchcase(cell.id, pattern) for cell in cells):
            kinds = ", ".join(f"{kind}/* ({n})" for kind, n in count_by_kind(cells).items())
            hint = (
                did_you_mean(pattern, sorted(cell.id for cell in cells)) if "*" not in pattern else f"there are {kinds}"
            )
            raise StudyError(f"--only {pattern}: no cell of the study is called that; {hint}")
    return [cell for cell in cells if not patterns or any(fnmatchcase(cell.id, pattern) for pattern in patterns)]


def with_needs(cells: Sequence[Cell], chosen: Sequence[Cell]) -> list[Cell]:
    """Chosen cells and all that must be done before them, in the order of the study.

    Args:
        cells: Of the study, those that others need first.
        chosen: Some of them.
    """
    kept = {cell.id for cell in chosen}
    owner = {step.id: cell.id for cell in cells for step in cell.steps}
    for cell in reversed(cells):  # what is needed stands before what needs it
        if cell.id in kept:
            kept |= {owner[need] for need in cell.needs}
    return [cell for cell in cells if cell.id in kept]
