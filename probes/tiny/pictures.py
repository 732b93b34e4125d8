"""The images that `tiny` is pretrained on, with what covers each of their pixels. No image has a physical label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlavaProcessor

from vlm_probe.probes.tiny.architecture import PIXELS
from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.errors import InvalidInput, reading
from vlm_probe.stimuli.output import whole_file
from vlm_probe.stimuli.picture import draw, panel_boxes
from vlm_probe.stimuli.plain_json import dumps, parse
from vlm_probe.stimuli.scene import Scene, mirror
from vlm_probe.stimuli.shifts import VISUAL, Shifts, apply
from vlm_probe.stimuli.simulators import FLOOR, Frame, get_simulator
from vlm_probe.stimuli.tasks import FAMILIES, SamplingFailed, Task, get_task, task_names

RENDER_PIXELS = 224
"""Width and height at which a stimulus is rendered before the processor shrinks it."""
GROUNDING_SHARE = 0.6
"""Of the scenes, those of the grounding tasks; the samplers of the physics tasks contribute the others, so that their look
is known. What would happen in them is never computed."""
UNSHIFTED = 0.2
"""Share of the images without any shift."""
LEVELS = {1: 0.4, 2: 0.6}
"""Shares of the levels among the shifted images; level 3 is never seen."""
ALL_SHIFTS = 0.5
"""Share of the shifted images with all visual shifts at once; in the others each is there with probability one half."""
CHUNK = 1_000
"""Images per file."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A scene as the model sees it, and what is where in it.

    Attributes:
        task: Name of the task whose sampler made the scene.
        scene: The scene.
        pixels: (`PIXELS`, `PIXELS`, 3) uint8, resized by the processor that ships.
        things: (`PIXELS`, `PIXELS`) int8: what covers the pixel's centre, as in the segmentation of a frame.
        boxes: (panels or 1, things, 4) float32: middle x, middle y, width and height of what is visible of each body and
            marker in each panel, as shares of the whole image; NaN where nothing is.
    """

    task: str
    scene: Scene
    pixels: npt.NDArray[np.uint8]
    things: npt.NDArray[np.int8]
    boxes: npt.NDArray[np.float32]

    def flipped(self) -> Picture:
        """The mirror image, of the mirrored scene; the panels of a strip stay in their order."""
        parts = 2 if self.scene.panels else 1
        boxes = self.boxes.copy()
        boxes[..., 0] = (2 * np.floor(boxes[..., 0] * parts) + 1) / parts - boxes[..., 0]
        return Picture(self.task, mirror(self.scene), _flip(self.pixels, parts), _flip(self.things, parts), boxes)


def physics_tasks() -> list[Task]:
    """The tasks with physics, judgements and actions of all families."""
    return [task for task in map(get_task, task_names()) if task.family in FAMILIES and task.kind != "grounding"]


def sample_scene(rng: np.random.Generator, shifted: bool = True) -> tuple[str, Scene]:
    """A scene of any family with the name of the task that it comes from, usually shifted.

    Args:
        rng: Draws family, task, scene and shifts.
        shifted: Whether it may be shifted at all.
    """
    while True:
        family = list(FAMILIES)[rng.integers(len(FAMILIES))]
        if rng.random() < GROUNDING_SHARE:
            task = get_task(f"{family}-grounding")
        else:
            tasks = [task for task in physics_tasks() if task.family == family]
            task = tasks[rng.integers(len(tasks))]
        try:
            scene = draw_scene(rng, task, task.conditions()[rng.integers(len(task.conditions()))])
        except SamplingFailed:
            continue
        if shifted and rng.random() >= UNSHIFTED:
            level = int(rng.choice(list(LEVELS), p=list(LEVELS.values())))
            least = 1.0 if rng.random() < ALL_SHIFTS else 0.5
            scene = shift_if_possible(rng, scene, tuple((name, level) for name in VISUAL if rng.random() < least))
        return task.name, scene


def draw_scene(rng: np.random.Generator, task: Task, condition: Condition) -> Scene:
    """A scene on the condition or one of its foils, or the mirror image of one.

    Args:
        rng: Draws it.
        task: Whose sampler makes it.
        condition: One of the task's.

    Raises:
        Unsatisfiable: If this draw has none; the next one may.
    """
    scenes = task.sample_matched(rng, condition)
    scene = scenes[rng.integers(len(scenes))]
    return mirror(scene) if rng.random() < 0.5 else scene


def shift_if_possible(rng: np.random.Generator, scene: Scene, shifts: Shifts) -> Scene:
    """The shifted scene; without distractors where there is no room for them.

    Args:
        rng: Decides what the shifts are within their levels.
        scene: The scene.
        shifts: Visual ones.
    """
    try:
        return apply(scene, shifts, rng)
    except SamplingFailed:
        return apply(scene, tuple(s for s in shifts if s[0] != "distractors"), rng)


def see(task: str, scene: Scene, frame: Frame, processor: LlavaProcessor) -> Picture:
    """Shrink a rendered frame with the processor, and note what is where from its segmentation.

    Args:
        task: Name of the task whose sampler made the scene.
        scene: The scene.
        frame: Its image.
        processor: That ships with the model.
    """
    values = processor.image_processor(images=[frame.rgb], return_tensors="pt")["pixel_values"][0]
    pixels = ((values + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    size = len(frame.segmentation)
    # Nearest neighbours of the small pixels' centres in the large segmentation.
    centres = ((np.arange(PIXELS) + 0.5) * size / PIXELS).astype(int)
    things = frame.segmentation[np.ix_(centres, centres)].astype(np.int8)
    regions = panel_boxes(size) if scene.panels else [(0, 0, size, size)]
    boxes = np.full((len(regions), len(scene.bodies) + len(scene.markers), 4), np.nan, np.float32)
    for region, (left, top, right, bottom) in enumerate(regions):
        part = frame.segmentation[top:bottom, left:right]
        for thing in np.unique(part[part >= 0]):
            rows, columns = (np.flatnonzero((part == thing).any(axis=axis)) for axis in (1, 0))
            (x0, x1), (y0, y1) = (columns[0], columns[-1] + 1), (rows[0], rows[-1] + 1)
            boxes[region, thing] = (left + (x0 + x1) / 2, top + (y0 + y1) / 2, x1 - x0, y1 - y0)
    return Picture(task, scene, pixels, things, (boxes / size).astype(np.float32))


def render_pictures(rng: np.random.Generator, count: int, processor: LlavaProcessor) -> list[Picture]:
    """That many images of new scenes.

    Args:
        rng: Draws the scenes.
        count: How many.
        processor: That ships with the model.
    """
    simulator = get_simulator()
    made = (sample_scene(rng) for _ in range(count))
    return [see(task, scene, draw(simulator, scene, RENDER_PIXELS), processor) for task, scene in made]


def cached_pictures(folder: Path, seed: Sequence[int], chunk: int, processor: LlavaProcessor) -> list[Picture]:
    """`CHUNK` images from a file that an earlier call wrote, or rendered now and written there.

    Args:
        folder: Of the files; made if it is not there.
        seed: Of the images.
        chunk: Number of the file.
        processor: That ships with the model.
    """
    path = folder / f"{'-'.join(map(str, seed))}-{chunk}-{PIXELS}px.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = render_pictures(np.random.default_rng([*seed, chunk]), CHUNK, processor)
        with whole_file(path) as partial:
            np.savez(partial, **_arrays(made))  # type: ignore[arg-type]
    with reading(path, InvalidInput, "delete the file, and it is made again"), np.load(path) as stored:
        return _pictures(stored)


def _arrays(pictures: Sequence[Picture]) -> dict[str, npt.NDArray[np.generic]]:
    """Images as plain arrays; boxes, of which they have different numbers, one after the other."""
    described = dumps([[p.task, p.scene.to_dict()] for p in pictures], ascii_only=True).encode()
    return {
        "pixels": np.stack([p.pixels for p in pictures]),
        "things": np.stack([p.things for p in pictures]),
        "boxes": np.concatenate([p.boxes.reshape(-1, 4) for p in pictures]),
        "shapes": np.array([p.boxes.shape for p in pictures]),
        "scenes": np.frombuffer(described, np.uint8),
    }


def _pictures(arrays: Mapping[str, npt.NDArray[np.generic]]) -> list[Picture]:
    """Inverse of `_arrays`."""
    described = parse(arrays["scenes"].tobytes())
    shapes = [tuple(shape) for shape in arrays["shapes"].tolist()]
    ends = np.cumsum([shape[0] * shape[1] for shape in shapes])[:-1]
    boxes = np.split(arrays["boxes"], ends)
    return [
        Picture(task, Scene.from_dict(scene), pixels, things, own.reshape(shape))
        for (task, scene), pixels, things, own, shape in zip(
            described, arrays["pixels"], arrays["things"], boxes, shapes, strict=True
        )
    ]


def batches(rng: np.random.Generator, pictures: list[Picture], size: int) -> Iterator[list[Picture]]:
    """Endless batches: every image once per pass, in new order, half of them flipped.

    Args:
        rng: Draws order and flips.
        pictures: To choose from.
        size: Of a batch.
    """
    while True:
        order = rng.permutation(len(pictures))
        for start in range(0, len(order) - size + 1, size):
            chosen = [pictures[i] for i in order[start : start + size]]
            yield [p.flipped() if flip else p for p, flip in zip(chosen, rng.random(size) < 0.5, strict=True)]


def pixel_values(pictures: Sequence[Picture]) -> torch.Tensor:
    """(n, 3, `PIXELS`, `PIXELS`) float32 in [-1, 1], as the processor makes them."""
    stacked = np.stack([p.pixels for p in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def relit(rng: np.random.Generator, pixels: torch.Tensor) -> torch.Tensor:
    """The images in slightly other light: brightness, contrast and tint of each vary, and every pixel a little.

    Args:
        rng: Draws the light.
        pixels: (n, 3, `PIXELS`, `PIXELS`) in [-1, 1].
    """
    gain = rng.uniform(0.85, 1.15, (len(pixels), 1, 1, 1)) * rng.uniform(0.94, 1.06, (len(pixels), 3, 1, 1))
    shift = rng.uniform(-0.08, 0.08, (len(pixels), 1, 1, 1))
    noise = 0.015 * rng.standard_normal(pixels.shape, dtype=np.float32)
    return (pixels * torch.from_numpy(gain).float() + torch.from_numpy(shift).float() + torch.from_numpy(noise)).clamp(
        -1, 1
    )


def _flip(rows: npt.NDArray, parts: int) -> npt.NDArray:  # type: ignore[type-arg]
    """Rows turned round, each of `parts` equal parts for itself."""
    split = rows.reshape(rows.shape[0], parts, -1, *rows.shape[2:])
    return split[:, :, ::-1].reshape(rows.shape)


Floats = npt.NDArray[np.float32]
_ROWS, _COLUMNS = np.mgrid[:PIXELS, :PIXELS].astype(np.float32)


def disguised(rng: np.random.Generator, picture: Picture, other: Picture) -> Picture:
    """The same scene, looking otherwise; `other` may lend what stands about in it.

    Args:
        rng: Draws the disguise.
        picture: The scene to show.
        other: Any other image.
    """
    things = picture.things
    gain = np.ones((PIXELS, PIXELS, 3), np.float32)
    for thing in np.unique(things):
        mask = things == thing
        behind = thing < 0
        tint = rng.uniform(0.6 if behind else 0.7, 1.15) * rng.uniform(0.88, 1.12, 3)
        surface = np.ones((PIXELS, PIXELS), np.float32)
        if rng.random() < 0.5:
            surface += _stripes(rng, rng.uniform(0.03, 0.2))
        if behind and rng.random() < 0.5:
            surface += rng.uniform(-0.2, 0.2) * (2 * _ROWS / PIXELS - 1)
        gain[mask] = tint * surface[mask][:, None]
    if rng.random() < 0.5:
        down, aside = rng.integers(0, PIXELS // 13), rng.integers(-PIXELS // 5, PIXELS // 5 + 1)
        cast = np.roll(things >= 0, (int(down), int(aside)), (0, 1))
        gain[cast & (things == FLOOR)] *= rng.uniform(0.5, 0.85)
    pixels = picture.pixels * gain
    lent = other.things >= len(other.scene.bodies)
    names = [marker.name for marker in other.scene.markers]
    lent &= np.isin(
        other.things, [len(other.scene.bodies) + i for i, name in enumerate(names) if name.startswith("distractor")]
    )
    lent &= things < 0
    pixels[lent] = other.pixels[lent]
    return replace(picture, pixels=np.clip(pixels, 0, 255).astype(np.uint8))


def _stripes(rng: np.random.Generator, strength: float) -> Floats:
    """(`PIXELS`, `PIXELS`) waves across the image, or two waves that cross."""
    waves = np.zeros((PIXELS, PIXELS), np.float32)
    for _ in range(int(rng.integers(1, 3))):
        angle, pitch, start = rng.uniform(0, np.pi), rng.uniform(24, 128) / PIXELS, rng.uniform(0, 2 * np.pi)
        waves += np.sin(pitch * (np.cos(angle) * _ROWS + np.sin(angle) * _COLUMNS) + start)
    return np.asarray(strength * waves, np.float32)
