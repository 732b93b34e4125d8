"""What is trained on: items of the designed conditions, the order in which they come, and the rows that TRL reads.

An item is a pure function of the task's version, the seed, the index and the settings of the images. Items come in the
groups of the designed sets (foils and mirror images together), so that the labels are balanced within them; seeds of
training lie apart from those of test sets, and no scene of a test set that is named may be trained on.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from PIL import Image

from vlm_probe.finetune.config import TrainConfig, TrainingError
from vlm_probe.finetune.diversity import parse_diversity, plan
from vlm_probe.finetune.mixture import Share, apportion
from vlm_probe.stimuli import design
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.errors import reading
from vlm_probe.stimuli.generate import Progress, shifted_well
from vlm_probe.stimuli.output import Busy, OutputError, whole_folder
from vlm_probe.stimuli.picture import draw
from vlm_probe.stimuli.plain_json import dumps, parse_object
from vlm_probe.stimuli.scene import mirror
from vlm_probe.stimuli.shifts import Shifts, check, parse_shifts
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.standard import STANDARD_N, STANDARD_SEED, cache_folder, resolve
from vlm_probe.stimuli.tasks import SamplingFailed, Task, get_task, task_names

FIRST_SEED = 1_000_000
"""Seeds of training sets are counted from here, those of test sets from 0: their scenes are drawn from other numbers."""
RANDOM_ANSWERS = 7
"""Stream of the random numbers that draw random demonstrations, apart from others of the same seed."""
MAX_ATTEMPTS = 30
"""Draws per group before a condition counts as impossible."""


@dataclass(frozen=True)
class Example:
    """One training item with its image, a PNG."""

    item: Item
    png: bytes

    @property
    def image(self) -> Image.Image:
        """The image, RGB."""
        return Image.open(io.BytesIO(self.png)).convert("RGB")

    @property
    def demonstration(self) -> str:
        """What an expert would reply."""
        return self.item.question.reply(self.item.answer)


@dataclass(frozen=True)
class TrainingSet:
    """The items of a run, task after task."""

    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def content_sha256(self) -> str:
        """Hash of all items, which hold the hashes of their images."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(_line(example.item).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Recipe:
    """What decides the items of one task."""

    task: str
    n: int
    seed: int
    size: int
    style: str
    shifts: Shifts
    diversity: str = ""


def check_tasks(config: TrainConfig) -> None:
    """Refuse tasks that cannot or must not be trained on.

    Raises:
        UnknownTask: If there is no such task.
        TrainingError: If a task is held out and that is not forced, has nothing to learn from, or cannot be shifted so.
    """
    for name in config.tasks:
        task = get_task(name)
        if task.held_out and not config.force:
            trainable = [t for t in task_names() if t.startswith(task.family) and not get_task(t).held_out]
            raise TrainingError(
                f"{name} is held out: it is asked zero-shot and never trained on; train on {', '.join(trainable)}, or give"
                " --force and say so in the paper"
            )
        if task.kind == "grounding" and not config.force:
            raise TrainingError(
                f"{name} asks what is to be seen and has no physics to learn: give --force to train on it"
            )
        if config.attempts > 1 and task.kind != "action":
            raise TrainingError(
                f"{name} is a {task.kind} task, and only actions can be tried again: leave --attempts out"
            )
        try:
            check(task, parse_shifts(config.shift))
            next(plan(task, 1, 0, diversity=parse_diversity(config.diversity)))
        except ValueError as error:
            raise TrainingError(str(error)) from error


def training_set(config: TrainConfig, *, jobs: int = 1, progress: Progress | None = None) -> TrainingSet:
    """The items of a run, from the cache or made now.

    Args:
        config: Tasks, shares, seed, number of items, images, style and shifts count.
        jobs: Worker processes.
        progress: Called with (items done, items in all).

    Raises:
        TrainingError: If an expert's answer does not get the top reward, or a scene is in a test set.
        Unsatisfiable: If a task has no such scenes.
    """
    shifts = parse_shifts(config.shift)
    examples: list[Example] = []
    mixture = [Share(name, share) for name, share in zip(config.tasks, config.shares(), strict=True)]
    for name, count in apportion(mixture, config.items).items():
        recipe = Recipe(name, count, FIRST_SEED + config.seed, config.size, config.style, shifts, config.diversity)
        base = len(examples)
        step = partial(_shifted_progress, progress, base, config.items) if progress is not None else None
        examples += _cached(recipe, jobs, step)
    made = TrainingSet(tuple(examples))
    _keep_apart(made, config)
    return made


def few_items(config: TrainConfig) -> TrainingSet:
    """A few items of a run's first task, made now and not kept, on which nothing is trained.

    Args:
        config: As for `training_set`.

    Raises:
        Unsatisfiable: If the task has no such scenes.
    """
    shifts = parse_shifts(config.shift)
    seed = FIRST_SEED + config.seed
    recipe = Recipe(config.tasks[0], config.items, seed, config.size, config.style, shifts, config.diversity)
    return TrainingSet(tuple(_make(recipe, 1, None)))


def rows(data: TrainingSet, config: TrainConfig) -> Any:
    """The items as a `datasets.Dataset` in the form that TRL reads.

    Columns: `prompt` (a conversation), `images`, `index` (of the item), `item` (JSON, from which `Item.from_row` rebuilds
    the scene and the question), and for SFT `completion`.
    """
    from datasets import Dataset, Features, List, Value
    from datasets import Image as Picture

    turn = List({"role": Value("string"), "content": Value("string")})
    features: dict[str, Any] = {
        "prompt": turn,
        "images": List(Picture()),
        "index": Value("int64"),
        "item": Value("string"),
    }
    columns: dict[str, list[Any]] = {
        "prompt": [[{"role": "user", "content": e.item.question.prompt}] for e in data.examples],
        "images": [[{"bytes": e.png, "path": None}] for e in data.examples],
        "index": list(range(len(data))),
        "item": [_line(e.item) for e in data.examples],
    }
    if not config.is_rl:
        features["completion"] = turn
        columns["completion"] = [[{"role": "assistant", "content": text}] for text in demonstrations(data, config)]
    return Dataset.from_dict(columns, features=Features(features))


def demonstrations(data: TrainingSet, config: TrainConfig) -> list[str]:
    """The replies that are learned, item by item: an expert's, or, as a control of what the form of answers does, random legal ones.

    Args:
        data: The items.
        config: `demonstrations` and `seed` count.
    """
    if config.demonstrations == "expert":
        return [example.demonstration for example in data.examples]
    rng = np.random.default_rng([config.seed, RANDOM_ANSWERS])
    replies = []
    for example in data.examples:
        question = example.item.question
        legal = question.grammar.candidates()
        replies.append(question.reply(legal[int(rng.integers(len(legal)))][1]))
    return replies


def scene_hashes(examples: Iterable[Example]) -> Iterator[tuple[str, str]]:
    """(hash, item) of every scene trained on and of its mirror image."""
    for example in examples:
        if example.item.scene is None:
            continue
        yield example.item.scene_sha256, example.item.item_id
        yield mirror(example.item.scene).content_hash, example.item.item_id


def _keep_apart(data: TrainingSet, config: TrainConfig) -> None:
    """Raise TrainingError if a training scene, its mirror image or a foil of it is in a test set.

    Foils need no search of their own: they are members of the same group, here and in the test set.
    """
    for test in _test_sets(config):
        shown = {str(row["scene_sha256"]) for row in test.rows()}
        for digest, item_id in scene_hashes(data.examples):
            if digest in shown:
                raise TrainingError(
                    f"the training item {item_id} shows a scene of the test set {test.path}: choose another --seed"
                )


def _test_sets(config: TrainConfig) -> list[StimulusSet]:
    """The sets that are named, and the standard sets of the families that are trained on, as far as they are made."""
    found = [resolve(name) for name in config.avoid]
    families = {get_task(name).family for name in config.tasks}
    for name in task_names():
        task = get_task(name)
        if task.family in families:
            start = f"{task.name}_v{task.version}_n{STANDARD_N}_s{STANDARD_SEED}_"  # of any size, by any renderer
            found += [StimulusSet.load(folder) for folder in sorted((cache_folder() / "sets").glob(f"{start}*"))]
    return found


def _cached(recipe: Recipe, jobs: int, progress: Progress | None) -> list[Example]:
    from datasets import Dataset, disable_progress_bars, load_from_disk

    disable_progress_bars()
    task = get_task(recipe.task)
    key = dumps(
        [recipe.__dict__, task.version, get_simulator().version(), np.__version__], sort_keys=True, ascii_only=True
    )
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = cache_folder() / "training" / f"{recipe.task}_n{recipe.n}_s{recipe.seed}_{digest}"
    if folder.is_dir():
        with reading(folder, TrainingError, "delete the folder, and it is made again"):
            table = load_from_disk(str(folder))
            return [
                Example(Item.from_row(parse_object(row)), png)
                for row, png in zip(table["item"], table["png"], strict=True)
            ]
    examples = _make(recipe, jobs, progress)
    table = Dataset.from_dict({"item": [_line(e.item) for e in examples], "png": [e.png for e in examples]})
    try:
        with whole_folder(folder, "training items") as made:
            table.save_to_disk(str(made))
    except Busy:
        pass  # another process is keeping the same ones
    except OutputError as error:
        if not folder.is_dir():
            raise TrainingError(f"cannot keep training items ({error}): free some space or set PROBE_CACHE") from error
    return examples


def _make(recipe: Recipe, jobs: int, progress: Progress | None) -> list[Example]:
    task = get_task(recipe.task)
    groups = -(-recipe.n // design.group_size(task))
    diversity = parse_diversity(recipe.diversity)
    plans = list(plan(task, groups, recipe.seed, recipe.style, recipe.shifts, diversity))
    made: list[Example] = []
    for group in _groups(recipe, plans, jobs):
        made += group
        if progress is not None:
            progress(min(len(made), recipe.n), recipe.n)
    return made[: recipe.n]


def _groups(recipe: Recipe, plans: Sequence[design.Group], jobs: int) -> Iterator[list[Example]]:
    make = partial(_make_group, recipe)
    if jobs == 1 or len(plans) < 2 * jobs:
        yield from map(make, plans)
        return
    # Spawned, not forked: torch's threads may hold locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(make, plans, chunksize=max(1, min(8, len(plans) // (4 * jobs))))


def _make_group(recipe: Recipe, plan: design.Group) -> list[Example]:
    task = get_task(recipe.task)
    for attempt in range(MAX_ATTEMPTS):
        rng = design.group_rng(task, recipe.seed, plan.index, attempt)
        try:
            members = design.members(task, plan, rng, design.shift_rng(task, recipe.seed, plan.index, attempt))
            made = [_example(recipe, task, plan, member) for member in members]
        except (SamplingFailed, ValueError):
            continue
        if all(example is not None for example in made):
            return [example for example in made if example is not None]
    raise SamplingFailed(
        f"{task.name}: no training items on the condition {plan.condition.code} in {MAX_ATTEMPTS} attempts: leave out the"
        " --shift, or choose another --seed"
    )


def _example(recipe: Recipe, task: Task, plan: design.Group, member: design.Member) -> Example | None:
    """The item of a scene; None if its label is uncertain, or the expert's answer does not work."""
    scene, simulator = member.scene, get_simulator()
    question = task.question(scene, plan.variant)
    # Its own numbers, so that another expert would not change the scenes.
    expert = np.random.default_rng([recipe.seed, plan.index])
    answer = task.demonstrate(scene, question, expert)
    expected = task.statics_answer(scene)
    if expected is not None and expected != answer:
        return None
    if not task.score(scene, question, answer, simulator).success:
        return None
    frame = draw(simulator, scene, recipe.size)
    if member.condition.shifts and not shifted_well(task, member, frame.segmentation):
        return None
    encoded = io.BytesIO()
    Image.fromarray(frame.rgb).save(encoded, "PNG", compress_level=1)
    png = encoded.getvalue()
    digest = hashlib.sha256(png).hexdigest()
    ids = design.ids(task, recipe.seed, plan, member)
    item = Item(
        item_id=ids.item,
        task=task.name,
        task_version=task.version,
        file_name="",
        image_sha256=digest,
        question=question,
        answer=answer,
        margin=round(task.margin(scene), 6),
        condition=member.condition,
        variant=plan.variant,
        pair_id=ids.pair,
        group_id=ids.group,
        role=member.role,
        scene=scene,
        scene_sha256=scene.content_hash,
    )
    return Example(item, png)


def _line(item: Item) -> str:
    return dumps(item.to_row(), sort_keys=True)


def _shifted_progress(progress: Progress, base: int, total: int, done: int, _: int) -> None:
    progress(base + done, total)
