"""What was registered before a study was run, and which trials and tests are in it; everything else is exploratory.

Reads the `registration.json` that `probe study freeze` writes: the design, the planned contrasts and the hash of every set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from vlm_probe.analysis.cell_model import UNTRAINED
from vlm_probe.analysis.contrasts import REINFORCEMENT, Contrasts, planned_contrasts
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.source_target import condition_contrasts
from vlm_probe.analysis.style import name_of
from vlm_probe.analysis.training import read_facts
from vlm_probe.probes.trials import RunError
from vlm_probe.stimuli.errors import InvalidInput, reading
from vlm_probe.stimuli.plain_json import dumps, parse_object

REGISTRATION = "registration.json"
RL = "rl"
"""In registered contrasts: the mean of the reinforcement methods."""
BUDGET_SLACK = 1.1
"""A budget is rounded up to whole batches or rollouts; what has seen more than this is another training run."""


@dataclass(frozen=True)
class TrainingCondition:
    """A training condition as it was registered.

    Attributes:
        name: In the study's file.
        train_tasks, regime: As in the trial table.
        methods, seeds: That it was to be trained with.
        samples: Method -> samples that it was to see, where the budget says so.
        is_plain: Whether it is one task without settings of its own: contrasts that name no condition are about these.
    """

    name: str
    train_tasks: str
    regime: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    samples: Mapping[str, float]
    is_plain: bool


@dataclass(frozen=True)
class Registration:
    """A registration.

    Attributes:
        sha256: Of the record.
        registered: Date and time, UTC.
        conditions: Training conditions.
        contrasts: As the record has them: positive, negative, level, training.
        sets: First digits of the hashes of the sets.
        bound: Difference of success rates below which two are called equivalent.
        done_before: Steps that had results when it was registered.
    """

    sha256: str
    registered: str
    conditions: tuple[TrainingCondition, ...]
    contrasts: tuple[Mapping[str, str], ...]
    sets: frozenset[str]
    bound: float
    done_before: tuple[str, ...]

    @property
    def method_contrasts(self) -> tuple[Mapping[str, str], ...]:
        """The contrasts of methods."""
        return tuple(entry for entry in self.contrasts if not self._is_of_conditions(entry))

    @property
    def condition_contrasts(self) -> tuple[Mapping[str, str], ...]:
        """The contrasts of two training conditions."""
        return tuple(entry for entry in self.contrasts if self._is_of_conditions(entry))

    def _is_of_conditions(self, entry: Mapping[str, str]) -> bool:
        return {entry["positive"], entry["negative"]} <= {condition.name for condition in self.conditions}

    def covers(self, table: pd.DataFrame) -> pd.Series[bool]:
        """Which trials of a tidy table were planned: of a registered set, by a registered training or no training at all."""
        planned = {
            (method, c.train_tasks, c.regime, seed) for c in self.conditions for method in c.methods for seed in c.seeds
        }
        budgets = {(m, c.train_tasks, c.regime): n for c in self.conditions for m, n in c.samples.items()}
        columns = ["method", "train_tasks", "regime", "seed", "samples"]
        trainings = list(zip(*(table[name].astype(object) for name in columns), strict=True))
        covered = {
            training: training[0] == UNTRAINED
            or (training[:4] in planned and _as_budgeted(training[4], budgets.get(training[:3])))
            for training in set(trainings)
        }
        right = pd.Series([covered[training] for training in trainings], index=table.index, dtype=bool)
        return right & table["stimuli"].astype(str).isin(self.sets)


def read_registration(path: Path) -> Registration:
    """Read a registration.

    Args:
        path: The file, or the folder of the study.

    Raises:
        RunError: If it is not there, or is not what was registered.
    """
    file = path / REGISTRATION if path.is_dir() else path
    with reading(file, RunError, "give the registration that `probe study freeze` wrote"):
        record = parse_object(file.read_bytes())
        told = {name: value for name, value in record.items() if name != "sha256"}
        text = dumps(told, sort_keys=True)
        if record.get("sha256") != hashlib.sha256(text.encode()).hexdigest():
            raise RunError(f"{file} is not what was registered (its hash is another one): restore the file")
        design = record["design"]
        return Registration(
            sha256=record["sha256"],
            registered=record["registered"],
            conditions=tuple(_condition(entry, design) for entry in design["trainings"]),
            contrasts=tuple(design["contrasts"]),
            sets=frozenset(entry["content_sha256"][:12] for entry in record["sets"].values()),
            bound=float(design["bound"]),
            done_before=tuple(record["done_before"]),
        )


def registered_contrasts(plain: pd.DataFrame, registration: Registration, alpha: float = 0.05) -> Contrasts:
    """Test the registered contrasts, and no others, on the trials that were registered.

    As `vlm_probe.analysis.contrasts.planned_contrasts`, with Holm's correction over the registered contrasts of a model, level and
    training condition. Contrasts that name no condition are about all conditions of one task without settings of their
    own. What was registered and cannot be tested is named in the notes.

    Args:
        plain: Plain trials of models.
        registration: The registration.
        alpha: Level of the equivalence tests.

    Raises:
        ValueError: If nothing of it can be tested.
    """
    covered = plain[registration.covers(plain)]
    notes = []
    if len(covered) < len(plain):
        notes.append(
            f"{len(plain) - len(covered)} plain trials are not of the registered design, and enter no test here"
        )
    found: list[Contrasts] = []
    for name in dict.fromkeys(entry["training"] for entry in registration.method_contrasts):
        conditions = [c for c in registration.conditions if (c.name == name if name else c.is_plain)]
        wanted = [entry for entry in registration.method_contrasts if entry["training"] == name]
        regime = conditions[0].regime if conditions else ""
        tasks = [condition.train_tasks for condition in conditions if condition.regime == regime]
        method = covered["method"].astype(str)
        own = covered[
            (method == UNTRAINED)
            | (covered["train_tasks"].astype(str).isin(tasks) & (covered["regime"].astype(str) == regime))
        ]
        there = set(own["method"].astype(str))
        if own.empty or own["transfer"].isna().all():
            notes.append(f"{name or 'all plain conditions'}: registered, and not run")
            continue
        weights = _weights(wanted, there)
        done: set[tuple[str, str]] = set()
        if weights:  # or one side alone has been trained yet
            tested = planned_contrasts(own, registration.bound, alpha, regime, weights)
            found.append(replace(tested, table=tested.table.assign(training=name or "all plain")))
            done = set(zip(tested.table["transfer"].astype(str), tested.table["contrast"].astype(str), strict=True))
        missing = [
            f"{_name(entry)} ({entry['level']})" for entry in wanted if (entry["level"], _name(entry)) not in done
        ]
        if missing:
            notes.append(
                f"{name or 'all plain conditions'}: registered, and not answered by these runs: {', '.join(missing)}"
            )
        if lost := _never_run(conditions, own):
            notes.append(f"{name or 'all plain conditions'}: without trainings that were registered: {', '.join(lost)}")
    if not found:
        raise InvalidInput("none of the registered contrasts can be tested: run the study first (`probe study run`)")
    if registration.done_before:
        notes.append(f"{len(registration.done_before)} steps had results before the registration, which they precede")
    table = pd.concat([one.table for one in found], ignore_index=True)
    table.insert(1, "training", table.pop("training"))
    return Contrasts(
        title="Registered contrasts by level of transfer, with 95 % intervals",
        table=table,
        how="; ".join(dict.fromkeys(one.how for one in found)),
        notes=tuple(dict.fromkeys([*notes, *(note for one in found for note in one.notes)])),
        omnibus=pd.concat([one.omnibus for one in found], ignore_index=True),
        run_means=pd.concat([one.run_means for one in found], ignore_index=True),
    )


def registered_conditions(plain: pd.DataFrame, registration: Registration, alpha: float = 0.05) -> Result:
    """Test the registered contrasts of two training conditions, on the trials that were registered.

    Args:
        plain: Plain trials of models.
        registration: The registration.
        alpha: Level of the tests.
    """
    facts = {c.name: (c.train_tasks, c.regime) for c in registration.conditions}
    wanted = [
        (
            f"{entry['positive']} − {entry['negative']}",
            facts[entry["positive"]],
            facts[entry["negative"]],
            entry["level"],
        )
        for entry in registration.condition_contrasts
    ]
    return condition_contrasts(plain[registration.covers(plain)], wanted, registration.bound, alpha)


def _weights(wanted: Sequence[Mapping[str, str]], there: set[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Level -> contrast -> method -> weight, of what can be compared."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for entry in wanted:
        weights: dict[str, float] = {}
        for side, sign in ((entry["positive"], 1.0), (entry["negative"], -1.0)):
            methods = [m for m in REINFORCEMENT if m in there] if side == RL else [side]
            weights |= {method: sign / len(methods) for method in methods}
        if {1.0, -1.0} <= {1.0 if weight > 0 else -1.0 for weight in weights.values()} and set(weights) <= there:
            found.setdefault(entry["level"], {})[_name(entry)] = weights
    return found


def _never_run(conditions: Sequence[TrainingCondition], own: pd.DataFrame) -> list[str]:
    """Registered training runs of which there is no trial."""
    there = set(own[["method", "train_tasks", "seed"]].astype(str).itertuples(index=False, name=None))
    return [
        f"{method} {c.name} seed {seed}"
        for c in conditions
        for seed in c.seeds
        for method in c.methods
        if (method, c.train_tasks, str(seed)) not in there
    ]


def _name(entry: Mapping[str, str]) -> str:
    """A contrast as tables write it."""
    sides = ("RL" if side == RL else name_of(side) for side in (entry["positive"], entry["negative"]))
    return " − ".join(sides)


def _condition(entry: Mapping[str, Any], design: Mapping[str, Any]) -> TrainingCondition:
    tasks = [str(task).partition(":")[0] for task in entry["tasks"]]
    general = {name: value for name, value in design["settings"].items() if not isinstance(value, Mapping)}
    settings = {**general, **entry["settings"]}
    columns = read_facts({"method": "sft", "tasks": tasks, **settings}).columns()
    samples = {}
    for method in entry["methods"]:
        kind, _, amount = str(settings.get("budget", design["budgets"].get(method, ""))).partition("=")
        if kind == "samples":
            samples[method] = float(amount)
    return TrainingCondition(
        name=entry["name"],
        train_tasks=columns["train_tasks"],
        regime=columns["regime"],
        methods=tuple(entry["methods"]),
        seeds=tuple(entry["seeds"]),
        samples=samples,
        is_plain=len(tasks) == 1 and not entry["settings"],
    )


def _as_budgeted(seen: Any, budget: float | None) -> bool:
    """Whether a training run has seen as much as was registered; what was stopped early has not."""
    return budget is None or seen != seen or budget <= seen <= budget * BUDGET_SLACK + 256
