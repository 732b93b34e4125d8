"""Making a stimulus set: scenes, outcomes and images for every group of a design, over as many processes as wanted."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm_probe.stimuli import design
from vlm_probe.stimuli import shifts as shifting
from vlm_probe.stimuli.baselines import CueTable, ItemCues, item_cues
from vlm_probe.stimuli.dataset import CARD, KIND, METADATA, Item, StimulusError, StimulusSet, package_version
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.output import whole_folder, write_json
from vlm_probe.stimuli.palettes import lab
from vlm_probe.stimuli.picture import DEFAULT_RENDERER, draw, find_renderer, painter
from vlm_probe.stimuli.plain_json import dumps, parse
from vlm_probe.stimuli.question import PARAPHRASES
from vlm_probe.stimuli.ranges import AMOUNT, IMAGE_SIZE, PROCESSES, REQUIRED, SEED, check_ranges, ranged
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.shifts import Shifts, is_physical
from vlm_probe.stimuli.simulators import BACKGROUND, FLOOR, Frame, body_states, get_simulator
from vlm_probe.stimuli.tasks import SamplingFailed, Task, get_task, task_names
from vlm_probe.stimuli.tasks.grounding import GroundingTask
from vlm_probe.stimuli.viewing import is_sign, things

MAX_ATTEMPTS = 30
"""Draws per group before a condition counts as impossible."""
MADE = "made.jsonl"
"""The rows in the order in which they are made, until the set is shuffled."""
SMALLEST_SIGN, SIGN_CONTRAST = 4e-4, 15.0
"""Share of the image that an arrow or ghost takes at least, and how far its mean colour is from what is around it (CIELAB)."""
RIM = 3
"""Pixels around a sign with which it is compared."""
QUEUED = 2
"""Groups that a worker has before it: one that it makes, and one so that it need not wait for the next."""

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of a set, apart from the versions of the software. Attributes as for `make_set`."""

    task: str
    n: int = ranged(REQUIRED, AMOUNT)
    seed: int = ranged(REQUIRED, SEED)
    size: int = ranged(224, IMAGE_SIZE)
    style: str = "direct"
    segmentation: bool = False
    depth: bool = False
    state: bool = False
    shifts: Shifts = ()
    renderer: str = DEFAULT_RENDERER

    @property
    def folders(self) -> list[str]:
        """Folders of a set next to its metadata."""
        return ["images", *(name for name in ("segmentation", "depth", "state") if getattr(self, name))]

    def __post_init__(self) -> None:
        check_ranges(self)


def make_set(
    task: str,
    n: int,
    seed: int,
    out: str | Path,
    *,
    size: int = 0,
    jobs: int = 1,
    style: str = "direct",
    segmentation: bool = False,
    depth: bool = False,
    state: bool = False,
    shifts: Shifts = (),
    renderer: str = "",
    progress: Progress | None = None,
) -> StimulusSet:
    """Make a designed stimulus set. The same arguments give the same bytes, however many processes make it.

    Args:
        task: Registered task name.
        n: Number of items.
        seed: Seed of the whole set.
        out: Folder to make; it appears when it is whole.
        size: Edge of the square images, pixels; 0 for that of the renderer.
        jobs: Processes that make it, this one among them.
        style: "direct" or "think" (the wording of the answer format).
        segmentation: Also write segmentation masks, int32 (size, size) as .npy.
        depth: Also write depth maps, float32 metres (size, size) as .npy.
        state: Also write the physical state of every scene's bodies, float32 (bodies, len(`STATE`)) as .npy, named after the scene's hash.
        shifts: Visual and physical shifts, from `vlm_probe.stimuli.shifts.parse_shifts`. With visual ones the scenes are those of the
            plain set of the same seed.
        renderer: "engine" for the engine's own, "raycast" (exact edges, soft shadows, materials), "photoreal" (seconds per image);
            empty for the default.
        progress: Called with (items done, n).

    Returns:
        The set.

    Raises:
        OutputError: If `out` exists or cannot be written, or another process is making it.
        StimulusError: If a worker process dies.
        UnknownTask: If there is no such task.
        Unsatisfiable: If the task has no such scenes as the shifts ask for.
        ModuleNotFoundError: If the renderer is not installed; the message says how to install it.
        OutOfRange: If n, size, jobs or seed are.
        ValueError: If there is no such style or renderer.
    """
    PROCESSES.check("jobs", jobs)
    size = size or find_renderer(renderer).size
    if style not in ("direct", "think"):
        raise InvalidInput(f'style must be "direct" or "think", got {style!r}')
    the_task = get_task(task)
    recipe = Recipe(task, n, seed, size, style, segmentation, depth, state, shifts, renderer or DEFAULT_RENDERER)
    painter(recipe.renderer)  # before any work, and before the other processes start: it may have to be compiled
    shifting.check(the_task, shifts)
    folder = Path(out)
    try:
        with whole_folder(folder, KIND) as partial:
            for sub in recipe.folders:
                (partial / sub).mkdir()
            write_json(partial / CARD, _write(recipe, the_task, partial, jobs, progress))
    except BrokenProcessPool as error:
        raise StimulusError("a worker process died (out of memory?): try --jobs 1") from error
    return StimulusSet.load(folder)


def make_matched(stimuli: StimulusSet, out: str | Path) -> StimulusSet:
    """Make the matched grounding set: the images of a set, each with a question about the quantity that decides in it.

    Items keep their ids, margins and conditions, so that the two answers to an image can be compared: is the physics wrong, or was the
    quantity not seen? Images in which nothing can be asked for it are left out.

    Args:
        stimuli: A set of a judgement with a `Task.critical`.
        out: Folder to make; it appears when it is whole.

    Raises:
        OutputError: If `out` exists or cannot be written.
        StimulusError: If the set's task has no such question, or the set has no scenes.
    """
    task = get_task(stimuli.card["task"]) if stimuli.card["task"] in task_names() else None
    asks = get_task(f"{task.family}-grounding") if task and f"{task.family}-grounding" in task_names() else None
    items = [found for item in stimuli.items for found in _matched(task, asks, item)] if task and asks else []
    if not isinstance(asks, GroundingTask) or not items:
        raise StimulusError(
            f"{stimuli.path}: nothing can be asked about what decides in a set of {stimuli.card['task']}: take one of "
            + ", ".join(name for name in task_names() if type(get_task(name)).critical is not Task.critical)
        )
    cues, rows = CueTable(), "".join(dumps(item.to_row()) + "\n" for item in items)
    with whole_folder(Path(out), KIND) as partial:
        (partial / "images").mkdir()
        for item in items:
            (partial / item.file_name).write_bytes((stimuli.path / item.file_name).read_bytes())
            cues.add(item_cues(asks, item))
        (partial / METADATA).write_text(rows, encoding="utf-8")
        own = {"task": asks.name, "task_version": asks.version, "kind": asks.kind, "held_out": asks.held_out}
        facts = {"n": len(items), "labels": cues.labels(), "balance": cues.balance(), "baselines": cues.baselines(asks)}
        facts |= {"matched": {"task": stimuli.card["task"], "content_sha256": stimuli.content_sha256}}
        kept = {name: value for name, value in stimuli.card.items() if name not in ("agreement", "checks", "responses")}
        digest = hashlib.sha256(rows.encode()).hexdigest()
        write_json(partial / CARD, kept | own | facts | {"content_sha256": digest})
    return StimulusSet.load(out)


def _matched(task: Task, asks: Task, item: Item) -> list[Item]:
    """The item that asks about what decides in the image of another; none if there is no such question."""
    about = task.critical(item.scene) if item.scene is not None else {}
    if item.scene is None or not about or not isinstance(asks, GroundingTask):
        return []
    variant = replace(item.variant, ask=str(about["ask"]))
    try:
        question = asks.ask_about(item.scene, about, variant)
    except ValueError:
        return []  # too near to call, say
    return [
        replace(
            item,
            task=asks.name,
            task_version=asks.version,
            question=question,
            answer=asks.solve(item.scene, question),
            variant=variant,
            certificate={},
        )
    ]


@dataclass(frozen=True)
class _GroupResult:
    rows: list[str]
    cues: list[ItemCues]
    rejected: int
    resampled: int


def _write(recipe: Recipe, task: Task, folder: Path, jobs: int, progress: Progress | None) -> dict[str, Any]:
    """Write images and metadata into the folder; returns the card."""
    per_group = design.group_size(task)
    groups = -(-recipe.n // per_group)
    cues, cut, ends = CueTable(), set[tuple[str, str]](), [0]
    rejected = resampled = 0
    with (folder / MADE).open("wb") as made:
        for result in _results(recipe, folder, groups, jobs):
            rejected += result.rejected
            resampled += result.resampled
            for row, cue in zip(result.rows, result.cues, strict=True):
                if len(cues) == recipe.n:
                    cut.add(_hashes(row))
                    continue
                ends.append(ends[-1] + made.write(row.encode()))
                cues.add(cue)
            if progress is not None:
                progress(len(cues), recipe.n)
    content = _shuffle(folder, ends, design.order(task, recipe.seed, recipe.n))
    if cut:
        _remove_orphans(folder, cut)
    return {
        "task": task.name,
        "task_version": task.version,
        "family": task.family,
        "kind": task.kind,
        "held_out": task.held_out,
        "n": recipe.n,
        "seed": recipe.seed,
        "image_size": recipe.size,
        "renderer": recipe.renderer,
        "style": recipe.style,
        "shifts": dict(recipe.shifts),
        "paraphrases": PARAPHRASES,
        "design": design.describe(task, recipe.shifts) | {"groups": groups, "items_per_group": per_group},
        "labels": cues.labels(),
        "balance": cues.balance(),
        "agreement": {
            "compared": "closed form against simulation, once per group",
            "groups": groups,
            "disagreements": rejected,
            "resampled": resampled,
        },
        "baselines": cues.baselines(task),
        "versions": {
            "vlm-probe": package_version(),
            "engine": get_simulator().version(),
            "renderer": painter(recipe.renderer).renderer,
            "numpy": np.__version__,
            "pillow": version("pillow"),
        },
        "content_sha256": content,
    }


def _shuffle(folder: Path, ends: list[int], order: list[int]) -> str:
    """Write the rows in their final order, one at a time since they may be many; returns the hash of the metadata."""
    digest = hashlib.sha256()
    with (folder / MADE).open("rb") as made, (folder / METADATA).open("wb") as metadata:
        for index in order:
            made.seek(ends[index])
            row = made.read(ends[index + 1] - ends[index])
            metadata.write(row)
            digest.update(row)
    (folder / MADE).unlink()
    return digest.hexdigest()


def _hashes(row: str) -> tuple[str, str]:
    """The hashes of image and scene, after which the files of an item are named."""
    item = parse(row)
    return item["image_sha256"], item["scene_sha256"]


def _remove_orphans(folder: Path, cut: set[tuple[str, str]]) -> None:
    """Delete the files of those items of the last group that did not fit into the set, unless others have them too."""
    with (folder / METADATA).open(encoding="utf-8") as metadata:
        kept = [_hashes(row) for row in metadata]
    for image in {image for image, _ in cut} - {image for image, _ in kept}:
        for name in (f"images/{image}.png", f"segmentation/{image}.npy", f"depth/{image}.npy"):
            (folder / name).unlink(missing_ok=True)
    for scene in {scene for _, scene in cut} - {scene for _, scene in kept}:
        (folder / "state" / f"{scene}.npy").unlink(missing_ok=True)


def _results(recipe: Recipe, folder: Path, groups: int, jobs: int) -> Iterator[_GroupResult]:
    """The groups in order. This process makes groups too, from the first moment on, while the workers still start."""
    plans = design.plan(get_task(recipe.task), groups, recipe.seed, recipe.style, recipe.shifts)
    workers = min(jobs, groups) - 1
    if not workers:
        yield from (_make_group(recipe, str(folder), plan) for plan in plans)
        return
    # Spawned, not forked: a forked child would inherit the locks of whatever threads (of torch, say) are running.
    context = multiprocessing.get_context("spawn")
    made: deque[Future[_GroupResult] | _GroupResult] = deque()
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            for plan in plans:
                # Near the end nothing is queued, so that all processes end at about the same time.
                queued = QUEUED if groups - plan.index > QUEUED * workers else 1
                if sum(isinstance(one, Future) and not one.done() for one in made) < queued * workers:
                    made.append(pool.submit(_make_group, recipe, str(folder), plan))
                else:
                    made.append(_make_group(recipe, str(folder), plan))
                while made and not (isinstance(made[0], Future) and not made[0].done()):
                    yield _result(made.popleft())
            yield from (_result(one) for one in made)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _result(made: Future[_GroupResult] | _GroupResult) -> _GroupResult:
    return made.result() if isinstance(made, Future) else made


def _make_group(recipe: Recipe, folder: str, plan: design.Group) -> _GroupResult:
    """Sample, solve, certify and draw one group. A pure function of the recipe and the plan, apart from its files."""
    task = get_task(recipe.task)
    rejected = resampled = 0
    for attempt in range(MAX_ATTEMPTS):
        rng = design.group_rng(task, recipe.seed, plan.index, attempt)
        try:
            shifting = design.shift_rng(task, recipe.seed, plan.index, attempt)
            group = design.members(task, plan, rng, shifting, recipe.renderer)
            items = [_item(recipe, task, plan, member, Path(folder)) for member in group]
        except _Disagreement:
            rejected += 1
            continue
        except _Unaskable:
            resampled += 1
            continue
        rows = [dumps(item.to_row()) + "\n" for item in items]
        return _GroupResult(rows, [item_cues(task, item) for item in items], rejected, resampled)
    raise SamplingFailed(
        f"{task.name}: no group on the condition {plan.condition.code} within {MAX_ATTEMPTS} attempts"
        f" ({rejected} disagreements of statics and simulation, {resampled} unaskable or unsolvable)"
    )


class _Disagreement(Exception):
    """Closed form and simulation give different answers: the label would be noise."""


class _Unaskable(Exception):
    """The question cannot be asked of this scene, no answer solves it, or a shift took it where it does not belong."""


def shifted_well(task: Task, member: design.Member, mask: npt.NDArray[np.int32]) -> bool:
    """Whether a shifted scene is still what its condition says, and its image shows everything in it.

    A physical shift may carry the margin out of its bin; and what was next to something may be behind it for another camera.

    Args:
        task: The task.
        member: The scene and its condition.
        mask: (size, size) segmentation of its image.
    """
    scene, (low, high) = member.scene, member.condition.margin_bin
    if task.kind != "grounding" and is_physical(member.condition.shifts):
        margin = task.margin(scene)
        if task.signed_side and member.condition.mirrored:
            margin = -margin
        if not low - 1e-6 <= margin <= high + 1e-6:
            return False
    if not set(range(len(scene.bodies) + len(scene.markers))) <= set(np.unique(mask).tolist()):
        return False
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool(scene.panels) or set(np.unique(border).tolist()) <= {FLOOR, BACKGROUND}


def signs_seen(scene: Scene, frame: Frame) -> bool:
    """Whether every arrow and every ghost of an earlier place stands out from what is around it, and is not mostly hidden.

    Args:
        scene: What is shown; strips show their signs in other panels, too, and pass.
        frame: Its image.
    """
    if scene.panels:
        return True
    size = len(frame.segmentation)
    for index, thing in enumerate(things(scene)):
        if not is_sign(thing):
            continue
        inside = frame.segmentation == index
        if inside.sum() < SMALLEST_SIGN * size**2:
            return False
        rows, columns = np.nonzero(inside)
        near = (
            slice(max(0, rows.min() - RIM), rows.max() + RIM + 1),
            slice(max(0, columns.min() - RIM), columns.max() + RIM + 1),
        )
        # Floor and sky alone: things that touch a sign have shapes of their own.
        around = grown(inside[near], RIM) & (frame.segmentation[near] < 0)
        if not around.any():
            continue
        sign, beyond = (lab(frame.rgb[near][mask] / 255).mean(axis=0) for mask in (inside[near], around))
        if float(np.linalg.norm(sign - beyond)) < SIGN_CONTRAST:
            return False
    return True


def grown(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    """A mask (rows, columns) and all within `by` pixels of it, along both axes."""
    found = np.pad(mask, by)
    for axis in (0, 1):
        found = np.logical_or.reduce([np.roll(found, step, axis) for step in range(-by, by + 1)])
    return found[by:-by, by:-by]


def _item(recipe: Recipe, task: Task, plan: design.Group, member: design.Member, folder: Path) -> Item:
    scene, simulator = member.scene, get_simulator()
    try:
        question = task.question(scene, plan.variant)
    except ValueError as error:
        raise _Unaskable from error
    # The engine builds the world once if it is simulated untouched: after one image of the start, or before a strip.
    answer = task.solve(scene, question, simulator) if scene.panels else None
    frame = draw(painter(recipe.renderer), scene, recipe.size)
    moved = recipe.shifts or find_renderer(recipe.renderer).raised
    if moved and not shifted_well(task, member, frame.segmentation):
        raise _Unaskable
    if not signs_seen(scene, frame):
        raise _Unaskable
    if answer is None:
        answer = task.solve(scene, question, simulator)
    expected = task.statics_answer(scene)
    if expected is not None and expected != answer:
        raise _Disagreement
    certificate = task.certify(scene, question)
    if "working" in certificate and answer not in [
        tuple(w) if isinstance(w, list) else w for w in certificate["working"]
    ]:
        raise _Unaskable
    encoded = io.BytesIO()
    # Shading takes more bytes than flat colours: there it is worth the time.
    Image.fromarray(frame.rgb).save(encoded, "PNG", compress_level=1 if recipe.renderer == "engine" else 6)
    data = encoded.getvalue()
    image_hash = hashlib.sha256(data).hexdigest()
    (folder / "images" / f"{image_hash}.png").write_bytes(data)
    if recipe.segmentation:
        np.save(folder / "segmentation" / f"{image_hash}.npy", frame.segmentation)
    if recipe.depth:
        np.save(folder / "depth" / f"{image_hash}.npy", frame.depth)
    if recipe.state:
        np.save(folder / "state" / f"{scene.content_hash}.npy", body_states(scene))
    ids = design.ids(task, recipe.seed, plan, member)
    return Item(
        item_id=ids.item,
        task=task.name,
        task_version=task.version,
        file_name=f"images/{image_hash}.png",
        image_sha256=image_hash,
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
        certificate=certificate,
    )
