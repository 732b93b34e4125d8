"""The design of a study, as its YAML file declares it: who is trained on what, tested on what, and which contrasts are planned."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm_probe.finetune.config import TrainConfig
from vlm_probe.paper.study.fields import Fields, StudyError, one_of, read_yaml
from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.catalog import ENTRIES, lookup
from vlm_probe.stimuli.ranges import IMAGE_SIZE, PERMUTATIONS, SEED
from vlm_probe.stimuli.shifts import check as check_shifts
from vlm_probe.stimuli.shifts import parse_shifts, spell
from vlm_probe.stimuli.tasks import FAMILIES, get_task, task_names

METHODS = ("none", "sft", "ppo", "grpo", "rloo")
REINFORCEMENT = "rl"
"""In contrasts: the mean of the reinforcement methods."""
LEVELS = ("within", "shifted", "cross-task", "cross-family", "zero-shot")
READOUTS = ("generate", "options")
OBSERVERS = tuple(entry.name for entry in ENTRIES if entry.kind == "observer")
OWN = ("tasks", "method", "methods", "seed", "seeds", "model", "out", "avoid", "force", "report_to", "weights")
"""Settings of a training run that follow from the design, or change nothing of what is learned."""
LOADING = ("revision", "dtype", "load_in_4bit")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A base model, and how it is loaded and trained.

    Attributes:
        name: Alias, folder (absolute) or hub id.
        preset: Of its training runs; empty for none.
        loading: Revision, dtype and 4 bits, as far as they are given.
    """

    name: str
    preset: str = ""
    loading: dict[str, Any] = field(default_factory=dict)

    @property
    def short(self) -> str:
        """Its name as part of a folder's name."""
        return (Path(self.name).name if Path(self.name).is_absolute() else self.name).replace("/", "-")


@dataclass(frozen=True)
class Training:
    """A training condition: what is trained on. It is crossed with models, methods and seeds.

    Attributes:
        name: Of the condition.
        tasks: With weights where their shares differ, as `probe train` takes them.
        methods, seeds: That it is trained with.
        settings: Further options of `probe train`, for this condition alone.
    """

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def bare_tasks(self) -> tuple[str, ...]:
        """The tasks without weights."""
        return tuple(task.partition(":")[0] for task in self.tasks)


@dataclass(frozen=True)
class Sets:
    """The test sets: so many items, from that seed, of images with that edge (pixels)."""

    n: int = 500
    seed: int = 77
    size: int = 224


@dataclass(frozen=True)
class Test:
    """One test set: a task, and shifts as `--shift` takes them (empty: none)."""

    __test__ = False  # no test of pytest's

    task: str
    shift: str = ""

    @property
    def name(self) -> str:
        """As part of a folder's name."""
        return self.task + (f"_{self.shift.replace(':', '').replace(',', '-')}" if self.shift else "")


@dataclass(frozen=True)
class Controls:
    """The battery of control conditions: on which unshifted sets, and how many of their items."""

    tasks: tuple[str, ...]
    limit: int


@dataclass(frozen=True)
class Decoding:
    """Decoding of hidden states, before and after training.

    Attributes:
        tasks: On which unshifted scenes.
        targets: Which quantities.
        limit: How many items; a set of its own is made if that is more than tests have.
        permutations: Of the quantities, as a control.
        seeds, trainings: Of which trained models.
    """

    tasks: tuple[str, ...]
    targets: tuple[str, ...]
    limit: int
    permutations: int
    seeds: tuple[int, ...]
    trainings: tuple[str, ...]


@dataclass(frozen=True)
class Contrast:
    """A planned comparison of success rates.

    Attributes:
        positive, negative: Methods ("rl": the mean of the reinforcement methods), or two training conditions.
        level: Level of transfer.
        training: A training condition that is tested by itself; empty: over all that have nothing special.
    """

    positive: str
    negative: str
    level: str
    training: str = ""

    def __str__(self) -> str:
        return f"{self.positive} - {self.negative}, {self.level}" + (f", {self.training}" if self.training else "")


@dataclass(frozen=True)
class Design:
    """A whole study.

    Attributes:
        name: Of the study.
        models, methods, seeds, trainings: Who is trained, how, how often, on what.
        budgets: Of methods; what is not named has the preset's.
        settings: Options of `probe train` for all training runs, and by method.
        sets, tests: What is tested on.
        readouts: How answers are read.
        controls, decoding: None for none.
        observers: Models without weights that are asked the same.
        contrasts: Planned beforehand.
        bound: Difference of success rates below which two are called equivalent.
    """

    name: str
    models: tuple[Model, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    trainings: tuple[Training, ...]
    budgets: dict[str, str]
    settings: dict[str, Any]
    sets: Sets
    tests: tuple[Test, ...]
    readouts: tuple[str, ...]
    controls: Controls | None
    decoding: Decoding | None
    observers: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    bound: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return asdict(self)

    def training_settings(self, model: Model, training: Training, method: str, seed: int) -> dict[str, Any]:
        """The settings that are given for one training run: those of all, of the method, and of the condition, later ones first.

        Args:
            model: What is trained.
            training: The condition.
            method: "sft", "ppo" and so on.
            seed: Of the training run.
        """
        general = {name: value for name, value in self.settings.items() if name not in METHODS}
        budget = {"budget": self.budgets[method]} if method in self.budgets else {}
        loading = {name: value for name, value in model.loading.items() if name != "revision"}
        return {**loading, **general, **budget, **self.settings.get(method, {}), **training.settings, "seed": seed}


def read_design(path: Path) -> Design:
    """Read and check the file of a study.

    Args:
        path: The YAML file. Folders in it are relative to it.

    Raises:
        StudyError: If there is a slip in it; one line that names the key.
    """
    keys = (
        *("study", "models", "methods", "budgets", "seeds", "training", "settings", "sets", "tests", "readouts"),
        *("controls", "observers", "decoding", "contrasts", "bound"),
    )
    top = Fields(read_yaml(path), str(path), keys)
    methods = tuple(one_of(m, METHODS, top.at("methods"), "method") for m in top.texts("methods", ("none",)))
    seeds = top.wholes("seeds", (0,))
    chosen = set(TrainConfig.__dataclass_fields__) - set(OWN)
    trainings = _trainings(top, methods, seeds, chosen)
    tests = _tests(top, trainings)
    return Design(
        name=_name(top.text("study"), top.at("study")),
        models=_models(top, path.resolve().parent),
        methods=methods,
        seeds=seeds,
        trainings=trainings,
        budgets=_budgets(top, methods),
        settings=_settings(top, methods, chosen),
        sets=_sets(top),
        tests=tests,
        readouts=tuple(
            one_of(r, READOUTS, top.at("readouts"), "readout") for r in top.texts("readouts", ("generate",))
        ),
        controls=_controls(top, tests),
        decoding=_decoding(top, tests, trainings, seeds),
        observers=tuple(one_of(o, OBSERVERS, top.at("observers"), "observer") for o in top.texts("observers", ())),
        contrasts=_contrasts(top, methods, trainings),
        bound=top.number("bound", 0.1, 0, 0.5),
    )


def _models(top: Fields, home: Path) -> tuple[Model, ...]:
    given = top.get("models") if not top.has("observers") else top.data.get("models") or []
    named = given if isinstance(given, Mapping) else dict.fromkeys(top.texts("models", ()))
    found = []
    for name, options in named.items():
        where = top.at(f"models.{name}" if isinstance(given, Mapping) else "models")
        fields = Fields({} if options is None else options, where, ("preset", *LOADING))
        path = (home / Path(str(name)).expanduser()).resolve()
        name = str(path) if path.is_dir() else str(name)
        try:
            kind = lookup(name).kind
        except ModelError as error:
            raise StudyError(f"{where}: {error}") from error
        if kind == "observer":
            raise StudyError(f"{where}: {name} is an observer, which cannot be trained: name it under observers")
        loading: dict[str, Any] = {key: fields.text(key) for key in ("revision", "dtype") if fields.has(key)}
        if fields.data.get("load_in_4bit"):
            loading["load_in_4bit"] = True
        found.append(Model(name, fields.text("preset", "tiny" if kind == "embedded" else ""), loading))
    shorts = [model.short for model in found]
    if len(set(shorts)) < len(shorts):
        raise StudyError(f"{top.at('models')}: two models would have the same short name ({', '.join(shorts)})")
    return tuple(found)


def _trainings(
    top: Fields, methods: tuple[str, ...], seeds: tuple[int, ...], settings: Collection[str]
) -> tuple[Training, ...]:
    learning = tuple(method for method in methods if method != "none")
    found = []
    for name, value in top.mapping("training").items():
        where = top.at(f"training.{name}")
        data = value if isinstance(value, Mapping) else {"tasks": value}
        fields = Fields(data, where, ("tasks", "methods", "seeds", *sorted(settings)))
        tasks = tuple(_training_task(text, fields.at("tasks")) for text in fields.texts("tasks"))
        own = tuple(one_of(m, learning, fields.at("methods"), "method") for m in fields.texts("methods", learning))
        special = {key: item for key, item in fields.data.items() if key in settings}
        found.append(Training(_name(name, where), tasks, own, fields.wholes("seeds", seeds), special))
    if learning and not found:
        raise StudyError(f"{top.where}: methods names {', '.join(learning)}, and training says nothing to train on")
    return tuple(found)


def _training_task(text: str, where: str) -> str:
    name, colon, weight = text.partition(":")
    task = _task(name, where)
    if get_task(task).held_out:
        raise StudyError(f"{where}: {task} is held out, and is never trained on: name it under tests")
    return task + colon + weight


def _task(name: str, where: str) -> str:
    return FAMILIES.get(name) or one_of(name, [*FAMILIES, *task_names()], where, "task")


def _tasks(fields: Fields, key: str, groups: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Tasks of a list, in which names of groups stand for several."""
    found: list[str] = []
    for name in fields.texts(key):
        if name in groups:
            found += groups[name]
        elif name in FAMILIES or name in task_names():
            found.append(FAMILIES.get(name, name))
        else:
            one_of(name, [*groups, *FAMILIES, *task_names()], fields.at(key), "task")
    return tuple(dict.fromkeys(found))


def _budgets(top: Fields, methods: tuple[str, ...]) -> dict[str, str]:
    budgets = Fields(top.mapping("budgets"), top.at("budgets"), [m for m in methods if m != "none"] or ["sft"])
    return {name: budgets.text(name) for name in budgets.data}


def _settings(top: Fields, methods: tuple[str, ...], known: Collection[str]) -> dict[str, Any]:
    learning = [method for method in methods if method != "none"]
    fields = Fields(top.mapping("settings"), top.at("settings"), [*sorted(known), *learning])
    for method in learning:
        if fields.has(method):
            Fields(fields.data[method], fields.at(method), sorted(known))
    return {name: dict(value) if name in learning else value for name, value in fields.data.items()}


def _sets(top: Fields) -> Sets:
    fields = Fields(top.mapping("sets"), top.at("sets"), ("n", "seed", "size"))
    return Sets(fields.whole("n", 500), fields.whole("seed", 77, SEED), fields.whole("size", 224, IMAGE_SIZE))


def _tests(top: Fields, trainings: tuple[Training, ...]) -> tuple[Test, ...]:
    fields = Fields(top.get("tests"), top.at("tests"), ("tasks", "shifts"))
    trained = tuple(dict.fromkeys(task for training in trainings for task in training.bare_tasks))
    every = tuple(task_names())
    groups = {"all": every, "trained": trained}
    tests = [Test(task) for task in _tasks(fields, "tasks", groups)]
    shifts = fields.mapping("shifts")
    for text in shifts:
        where = fields.at(f"shifts.{text}")
        entry = Fields({"tasks": shifts[text]}, where, ("tasks",))
        for task in _tasks(entry, "tasks", groups | {"tests": tuple(test.task for test in tests if not test.shift)}):
            try:
                parsed = parse_shifts(text)
                check_shifts(get_task(task), parsed)
            except ValueError as error:
                raise StudyError(f"{where}: {error}") from error
            tests.append(Test(task, spell(parsed)))
    return tuple(dict.fromkeys(tests))


def _controls(top: Fields, tests: tuple[Test, ...]) -> Controls | None:
    if not top.has("controls"):
        return None
    fields = Fields(top.get("controls"), top.at("controls"), ("tasks", "limit"))
    return Controls(_tested(fields, tests), fields.whole("limit", 100))


def _decoding(
    top: Fields, tests: tuple[Test, ...], trainings: tuple[Training, ...], seeds: tuple[int, ...]
) -> Decoding | None:
    if not top.has("decoding"):
        return None
    keys = ("tasks", "targets", "limit", "permutations", "seeds", "training")
    fields = Fields(top.get("decoding"), top.at("decoding"), keys)
    names = [training.name for training in trainings]
    return Decoding(
        tasks=_tested(fields, tests),
        targets=fields.texts("targets"),
        limit=fields.whole("limit", 400),
        permutations=fields.whole("permutations", 100, PERMUTATIONS),
        seeds=fields.wholes("seeds", seeds),
        trainings=tuple(
            one_of(n, names, fields.at("training"), "training condition") for n in fields.texts("training", names)
        ),
    )


def _tested(fields: Fields, tests: tuple[Test, ...]) -> tuple[str, ...]:
    """Tasks that have an unshifted test set."""
    there = [test.task for test in tests if not test.shift]
    found = tuple(_task(name, fields.at("tasks")) for name in fields.texts("tasks"))
    for task in found:
        if task not in there:
            raise StudyError(f"{fields.at('tasks')}: {task} is not tested: name it under tests.tasks as well")
    return found


def _contrasts(top: Fields, methods: tuple[str, ...], trainings: tuple[Training, ...]) -> tuple[Contrast, ...]:
    given = top.data.get("contrasts") or []
    if not isinstance(given, list):
        raise StudyError(f"{top.at('contrasts')} must be a list, such as [{{compare: ppo - none, at: [within]}}]")
    found = []
    for number, entry in enumerate(given, 1):
        fields = Fields(entry, top.at(f"contrasts.{number}"), ("compare", "at", "training"))
        sides = _sides(fields, entry, methods, [t.name for t in trainings])
        training = fields.text("training", "")
        if training:
            one_of(training, [t.name for t in trainings], fields.at("training"), "training condition")
        positive, negative = sides
        for level in fields.texts("at"):
            found.append(
                Contrast(positive, negative, one_of(level, LEVELS, fields.at("at"), "level of transfer"), training)
            )
    return tuple(dict.fromkeys(found))


def _sides(fields: Fields, entry: Any, methods: tuple[str, ...], trainings: list[str]) -> list[str]:
    """The two sides of a contrast: two methods, or two training conditions, whose names may have hyphens (so that " - " comes first)."""
    text = fields.text("compare").replace("−", "-")
    sides = [side.strip() for side in (text.split(" - ") if " - " in text else text.split("-"))]
    if len(sides) != 2 or sides[0] == sides[1]:
        raise StudyError(
            f"{fields.at('compare')} must name two methods, as in ppo - none, or two training conditions; got {entry['compare']!r}"
        )
    if all(side in trainings for side in sides):
        if fields.text("training", ""):
            raise StudyError(
                f"{fields.at('training')}: a contrast of two training conditions is not about a third: leave it out"
            )
        return sides
    is_rl = [REINFORCEMENT] if {"ppo", "grpo", "rloo"} & set(methods) else []
    sides = [side.lower() for side in sides]
    for side in sides:
        one_of(side, [*methods, *is_rl], fields.at("compare"), "method")
    return sides


def _name(text: str, where: str) -> str:
    if not NAME.fullmatch(text):
        raise StudyError(f"{where}: {text!r} becomes the name of a folder: use letters, digits, and . _ + -")
    return text
