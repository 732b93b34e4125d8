"""What a tower is: its geometry on a millimetre grid, its look, and when it has fallen.

Geometry is sampled in units of blocks (1 = one block width) by drawing many towers at once and keeping the first that
meets every requirement; the closed form of `vlm_probe.stimuli.statics` makes that cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.look import draw_colours, draw_surroundings
from vlm_probe.stimuli.scene import Body, Camera, Scene
from vlm_probe.stimuli.simulators import Stop
from vlm_probe.stimuli.statics import stack_margin, stack_overshoot
from vlm_probe.stimuli.tasks import SamplingFailed
from vlm_probe.stimuli.viewing import extent, fitted

BLOCK = 0.10
"""Edge of a block, metres. Ten centimetres, so that whole centimetres are tenths of a block."""
MAX_STEP = 0.92
"""Largest shift between neighbours, in blocks: every block visibly rests on the one below."""
SMALL_STEP = 0.5
"""The neighbour rule: a step above half a block looks as if the upper block must fall."""
FALLEN = 0.25
"""A block that sank by this share of its height has left its place."""
HALF_PICTURE = 2.7
"""Blocks from the middle of the image within which everything stays in view from every camera of a `Look`."""
FRAME = 0.9
"""Share of the image, from its middle, within which a tower is kept whose height asks for another camera."""
MAX_EXTENT = 4.2
"""Largest distance between the outermost centres of a scene, in blocks, so that it fits the image."""
MARGIN_BINS = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.7))
"""|margin| of the designed sets, half widths: near, middle and far from the boundary."""

Floats = npt.NDArray[np.float64]
Accept = Callable[[Floats], npt.NDArray[np.bool_]]
Draw = Callable[[np.random.Generator, int, int], Floats]


def tower_blocks(scene: Scene) -> list[Body]:
    """The blocks of the tower from bottom to top (those named block1, block2, ...)."""
    return sorted((b for b in scene.bodies if b.name.startswith("block")), key=lambda body: body.position[2])


def tower_arrays(scene: Scene) -> tuple[Floats, Floats, Floats]:
    """Horizontal centres, widths (metres) and masses (kg) of the tower's blocks from bottom to top."""
    blocks = tower_blocks(scene)
    return (
        np.array([b.position[0] for b in blocks]),
        np.array([b.size[0] for b in blocks]),
        np.array([b.mass for b in blocks]),
    )


def width_cm(scene: Scene) -> float:
    """Width of a block, centimetres: 10 except for scenes that a shift has scaled."""
    return round(100 * scene.bodies[0].size[0], 4)


def tower_margin(scene: Scene) -> float:
    """Signed stability margin of the tower, half widths (see `vlm_probe.stimuli.statics.stack_margin`)."""
    return float(stack_margin(*tower_arrays(scene)))


def fall_side(scene: Scene) -> float:
    """Signed overshoot at the weakest interface of a falling tower, half widths: positive if it falls to the right."""
    left, right = stack_overshoot(*tower_arrays(scene))
    worst = int(np.maximum(left, right).argmax())
    return float(right[worst] if right[worst] >= left[worst] else -left[worst])


def weakest_step(scene: Scene) -> dict[str, str | int]:
    """The question of towers-grounding about the weakest contact; empty where colours do not name its two blocks."""
    blocks = tower_blocks(scene)
    if len(blocks) < 2:
        return {}
    left, right = stack_overshoot(*tower_arrays(scene))
    below = int(np.maximum(left, right).argmax())
    a, b = blocks[below + 1].colour, blocks[below].colour
    colours = [block.colour for block in blocks]
    return {"ask": "shift-between", "a": a, "b": b} if colours.count(a) == colours.count(b) == 1 else {}


def largest_step(scene: Scene) -> float:
    """Largest shift between two neighbours, in blocks: what the neighbour rule looks at."""
    x, width, _ = tower_arrays(scene)
    return float(np.abs(np.diff(x)).max() / width[0]) if len(x) > 1 else 0.0


def fallen(scene: Scene) -> Stop:
    """A stop condition: some block has sunk by more than `FALLEN` of its height, so the outcome is decided."""
    start = np.array([body.position[2] for body in scene.bodies])
    limit = FALLEN * np.array([body.size[2] for body in scene.bodies])
    return lambda positions: bool((start - positions[:, 2] > limit).any())


def draw_towers(rng: np.random.Generator, count: int, batch: int, largest: float | None = None) -> Floats:
    """(batch, count) block centres in blocks, on a grid of a hundredth, bottom block at 0; steps up to `largest`.

    Args:
        rng: Draws them.
        count: Blocks of each.
        batch: How many towers.
        largest: Largest shift between neighbours, in blocks; by default small ones and large ones are mixed.
    """
    # By default half the batch has small steps, because leaning towers are rare among uniform ones.
    scale = np.where(rng.random((batch, 1)) < 0.5, MAX_STEP, SMALL_STEP) if largest is None else largest
    return stacked(rng.uniform(-1, 1, (batch, count - 1)) * scale)


def stacked(steps: Floats) -> Floats:
    """(batch, n) centres in blocks, on a grid of a hundredth, from the (batch, n - 1) steps between neighbours; bottom block at 0."""
    places = np.round(np.cumsum(np.round(steps, 2), axis=1), 2)
    return np.concatenate([np.zeros((len(steps), 1)), places], axis=1)


def first_tower(
    rng: np.random.Generator, count: int, accept: Accept, what: str, batch: int = 512, draw: Draw = draw_towers
) -> Floats:
    """The first drawn tower that a test lets through.

    Args:
        rng: Draws them.
        count: Blocks of a tower.
        accept: A vectorised test on (batch, count) centres, in blocks.
        what: Which towers are sought, for the message.
        batch: Towers that are drawn at once, at first.
        draw: What draws (batch, count) centres, in blocks, from (rng, count, batch).

    Returns:
        (count,) centres, in blocks.

    Raises:
        Unsatisfiable: After about 200,000 towers (or fifty times `batch`); `what` says which were sought.
    """
    for _ in range(50):
        towers = draw(rng, count, batch)
        good = np.flatnonzero(accept(towers))
        if len(good):
            return towers[good[0]]
        batch = max(batch, min(2 * batch, 4096))
    raise SamplingFailed(f"found no tower of {count} blocks: {what}")


class Look:
    """Everything about an image that is not physics: colours, camera, light, place. Drawn once, shared by foils.

    Args:
        rng: Draws it.
        colours: How many blocks need one.
        reserved: A colour that is left out.
    """

    def __init__(self, rng: np.random.Generator, colours: int, reserved: str | None = None) -> None:
        self.colours = draw_colours(rng, colours, reserved)
        # Larger towers than there are colours use them over again, which leaves neighbours different.
        self.colours = [self.colours[i % len(self.colours)] for i in range(colours)]
        self.shades = np.round(rng.uniform(0.9, 1.05, colours + 1), 2).tolist()
        self.place = float(np.round(rng.uniform(-0.6, 0.6), 2))  # of the tower in the image, in blocks
        self.camera = Camera(
            target=(float(np.round(rng.uniform(-0.01, 0.01), 3)), 0.0, float(np.round(rng.uniform(0.225, 0.24), 3))),
            distance=float(np.round(rng.uniform(0.92, 0.96), 3)),
            yaw=float(np.round(rng.uniform(-4, 4), 1)),
            pitch=float(np.round(rng.uniform(-10, -5), 1)),
        )
        surroundings = draw_surroundings(rng)
        self.light, self.background = surroundings.light, surroundings.background

    def scene(self, x: Floats, side: tuple[str, float] | None = None) -> Scene:
        """The scene of a tower, and of a block on the floor.

        Args:
            x: Centres of the tower's blocks, in blocks, from bottom to top.
            side: Colour and centre of the block on the floor, if there is one.
        """
        blocks = [
            block(f"block{i + 1}", float(centre), i, colour, shade)
            for i, (centre, colour, shade) in enumerate(zip(x, self.colours, self.shades, strict=False))
        ]
        if side is not None:
            blocks.append(block("side", side[1], 0, side[0], self.shades[-1]))
        return Scene(tuple(blocks), camera=self.camera, light=self.light, background=self.background)

    def offset(self, left: float, right: float) -> float:
        """What to subtract from all centres (blocks) so that those from `left` to `right` stand at this look's place.

        The place gives way where the outermost blocks would otherwise leave the image.

        Args:
            left, right: Outermost centres, in blocks.
        """
        room = max(0.0, HALF_PICTURE - 0.5 - (right - left) / 2)
        # On the grid, so that moving a tower never changes the steps between its blocks.
        return round((left + right) / 2 - float(np.clip(self.place, -room, room)), 2)

    def centred(self, x: Floats) -> Floats:
        """Centres (blocks) moved to this look's place in the image."""
        return np.round(x - self.offset(x.min(), x.max()), 2)


def framed(scene: Scene) -> Scene:
    """The scene seen by a camera that is raised to its middle and pulled back until all of it is in the image."""
    points = extent(scene)
    x, y, z = scene.camera.target
    middle = round(float(points[:, 2].min() + points[:, 2].max()) / 2, 3)
    camera = fitted(replace(scene.camera, target=(x, y, max(z, middle))), points, FRAME)
    return replace(scene, camera=camera)


def block(name: str, x: float, level: int, colour: str, shade: float = 1.0) -> Body:
    """A block of the tower's size.

    Args:
        name: Of the body.
        x: Its centre, in blocks.
        level: 0 on the floor.
        colour: A key of `COLOURS`.
        shade: Brightness of the colour.
    """
    return Body(
        name=name,
        shape="box",
        size=(BLOCK, BLOCK, BLOCK),
        position=(float(round(x * BLOCK, 6)), 0.0, round((level + 0.5) * BLOCK, 6)),
        colour=colour,
        shade=shade,
    )
