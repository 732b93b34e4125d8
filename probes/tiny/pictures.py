"""The pictures that `tiny` is pretrained on, each with what there is to see in it. No picture has a physical label."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlavaProcessor

from probes.tiny.architecture import GRID, PATCH, PIXELS
from stimuli.picture import draw
from stimuli.scene import COLOURS, Scene, mirror
from stimuli.simulators import FLOOR, Frame, get_simulator
from stimuli.tasks import get_task
from stimuli.tasks.towers.grounding import any_tower, scattered_blocks
from stimuli.tasks.towers.tower import tower_blocks

RENDER_PIXELS = 224
"""Width and height at which a stimulus is rendered before the processor shrinks it."""
CELLS = 2 * GRID
"""A patch is labelled in 2 x 2 cells."""
MAX_BLOCKS = 5
REACH_CM = 30
"""Places further than this from the middle of the picture count as this far."""
STEP_CM = 10
NOTHING = -1

COLOUR_NAMES = tuple(COLOURS)
FLOOR_CLASS, SKY_CLASS = len(COLOURS), len(COLOURS) + 1
POSED_BY = ("towers-stability", "towers-direction", "towers-topblock", "towers-sideblock")
"""Tasks whose samplers contribute scenes, so that their look is known; what would happen there is never computed."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A scene as the model sees it, and what its patches show.

    Attributes:
        scene: The scene.
        pixels: (`PIXELS`, `PIXELS`, 3) uint8, resized by the processor that ships.
        cells: (`CELLS`, `CELLS`) int8: colour that covers the cell's centre (index in `COLOUR_NAMES`), floor or sky.
        patches: (`GRID`, `GRID`) int8: the body that covers most of the patch, or `NOTHING`.
        blocks: (`MAX_BLOCKS`, 4) int8 for each body: centimetres right of the middle of the picture; number from the
            bottom of the tower (0 beside it); 1 for the top of a tower; centimetres right of the block below, or -99.
    """

    scene: Scene
    pixels: npt.NDArray[np.uint8]
    cells: npt.NDArray[np.int8]
    patches: npt.NDArray[np.int8]
    blocks: npt.NDArray[np.int8]

    def flipped(self) -> Picture:
        """The mirror image, of the mirrored scene."""
        blocks = self.blocks.copy()
        blocks[:, 0] *= -1
        stacked = blocks[:, 3] != -99
        blocks[stacked, 3] *= -1
        return Picture(mirror(self.scene), self.pixels[:, ::-1], self.cells[:, ::-1], self.patches[:, ::-1], blocks)


def sample_scene(rng: np.random.Generator) -> Scene:
    """A tower of any kind (half of the scenes), loose blocks (a quarter), or a scene of one of the physics tasks."""
    draw = rng.random()
    if draw < 0.5:
        return any_tower(rng, int(rng.integers(1, MAX_BLOCKS + 1)))
    if draw < 0.75:
        return scattered_blocks(rng, int(rng.integers(1, MAX_BLOCKS + 1)))
    task = get_task(POSED_BY[rng.integers(len(POSED_BY))])
    conditions = task.conditions()
    scenes = task.sample_matched(rng, conditions[rng.integers(len(conditions))])
    return scenes[rng.integers(len(scenes))]


def see(scene: Scene, frame: Frame, processor: LlavaProcessor) -> Picture:
    """Shrink a rendered frame with the processor and label its patches from the segmentation."""
    values = processor.image_processor(images=[frame.rgb], return_tensors="pt")["pixel_values"][0]
    pixels = ((values + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    # Nearest neighbours of the small pixels' centres in the large segmentation.
    centres = ((np.arange(PIXELS) + 0.5) * len(frame.segmentation) / PIXELS).astype(int)
    body = frame.segmentation[np.ix_(centres, centres)]
    colour_of = {i: COLOUR_NAMES.index(b.colour) for i, b in enumerate(scene.bodies)} | {FLOOR: FLOOR_CLASS}
    step = PIXELS // CELLS
    middles = body[step // 2 :: step, step // 2 :: step]
    cells = np.array([[colour_of.get(int(b), SKY_CLASS) for b in row] for row in middles], np.int8)
    split = body.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID, GRID, -1)
    shares = np.stack([(split == i).mean(axis=2) for i in range(len(scene.bodies))])
    patches = np.where(shares.max(axis=0) > 0.08, shares.argmax(axis=0), NOTHING).astype(np.int8)
    return Picture(scene, pixels, cells, patches, _describe_blocks(scene))


def render_pictures(rng: np.random.Generator, count: int, processor: LlavaProcessor) -> list[Picture]:
    """That many pictures of new scenes."""
    simulator = get_simulator()
    scenes = (sample_scene(rng) for _ in range(count))
    return [see(scene, draw(simulator, scene, RENDER_PIXELS), processor) for scene in scenes]


def cached_pictures(path: Path, seed: Sequence[int], count: int, processor: LlavaProcessor) -> list[Picture]:
    """Pictures from a file that an earlier call wrote, or rendered now and written there."""
    if path.exists():
        with path.open("rb") as file:
            stored: list[Picture] = pickle.load(file)
        return stored
    pictures = render_pictures(np.random.default_rng(list(seed)), count, processor)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".tmp")
    with part.open("wb") as file:
        pickle.dump(pictures, file)
    part.replace(path)
    return pictures


def batches(rng: np.random.Generator, pictures: list[Picture], size: int) -> Iterator[list[Picture]]:
    """Endless batches: every picture once per pass, in new order, half of them flipped."""
    while True:
        order = rng.permutation(len(pictures))
        for start in range(0, len(order) - size + 1, size):
            chosen = [pictures[i] for i in order[start : start + size]]
            yield [p.flipped() if flip else p for p, flip in zip(chosen, rng.random(size) < 0.5, strict=True)]


def pixel_values(pictures: Sequence[Picture]) -> torch.Tensor:
    """(n, 3, `PIXELS`, `PIXELS`) float32 in [-1, 1], as the processor makes them."""
    stacked = np.stack([p.pixels for p in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def _describe_blocks(scene: Scene) -> npt.NDArray[np.int8]:
    tower = tower_blocks(scene)
    rows = np.zeros((MAX_BLOCKS, 4), np.int8)
    for row, body in zip(rows, scene.bodies, strict=False):
        level = tower.index(body) if body in tower else NOTHING
        centre = round(100 * (body.position[0] - scene.camera.target[0]))
        below = tower[level - 1].position[0] if level > 0 else None
        row[:] = (
            max(-REACH_CM, min(REACH_CM, centre)),
            level + 1,
            level + 1 == len(tower) > 0,
            -99 if below is None else max(-STEP_CM, min(STEP_CM, round(100 * (body.position[0] - below)))),
        )
    return rows
