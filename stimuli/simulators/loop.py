"""The run loop that all engines share: how often poses are recorded, when a simulation ends, how fine its steps are."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import FRAME_INTERVAL, Outcome, Stop

REST_SPEED = 2e-3
"""Metres per second (and radians per second / 10) below which a body counts as at rest."""
RESOLUTION = 1e-3
"""Metres that the fastest body may travel in one step, so that the place of an impact is known that well."""

Floats = npt.NDArray[np.float64]


class World(Protocol):
    """A scene inside an engine, in motion."""

    def advance(self, frame: int, steps: int) -> None:
        """Take the steps that lead from recorded pose number `frame` to the next, with the pushes that act meanwhile.

        Args:
            frame: Number of the pose that was recorded last, from 0.
            steps: Of the engine, per `FRAME_INTERVAL`.
        """
        ...

    def state(self) -> tuple[Floats, Floats]:
        """Positions (n, 3) in metres and orientations (n, 4; x, y, z, w) of the bodies."""
        ...

    def resting(self) -> bool:
        """Whether every body is slower than `REST_SPEED`."""
        ...

    def on_floor(self) -> frozenset[str]:
        """Names of the bodies that touch the floor."""
        ...


def steps_per_frame(scene: Scene, coarsest: float) -> int:
    """Engine steps between two recorded poses, for an engine whose coarsest step is that many seconds.

    Args:
        scene: Whose fastest body says how fine they are.
        coarsest: Seconds.
    """
    fastest = max((math.hypot(*body.velocity) for body in scene.bodies), default=0.0)
    finer = max(1, math.ceil(fastest * coarsest / RESOLUTION - 1e-9))
    return round(FRAME_INTERVAL / coarsest) * finer


def run(
    world: World, scene: Scene, per_frame: int, stop: Stop | None, min_duration: float, max_duration: float
) -> Outcome:
    """Run until `stop` is met, until everything rests, or until time is up.

    Args:
        world: The engine's world, with the bodies in their places.
        scene: What is in it.
        per_frame: Steps of the engine per `FRAME_INTERVAL`, after each of which `stop` and rest are looked at.
        stop: When what matters is decided; None if it is not known beforehand.
        min_duration: Seconds before which nothing counts as resting.
        max_duration: Seconds after which it ends in any case.
    """
    positions, orientations = world.state()
    path, turns = [positions], [orientations]
    decided, at_rest = False, False
    while len(path) - 1 < max_duration / FRAME_INTERVAL - 1e-6:
        world.advance(len(path) - 1, per_frame)
        positions, orientations = world.state()
        path.append(positions)
        turns.append(orientations)
        if stop is not None and stop(positions):
            decided = True
            break
        if len(path) - 1 >= min_duration / FRAME_INTERVAL - 1e-6 and world.resting():
            at_rest = True
            break
    return Outcome(
        names=tuple(body.name for body in scene.bodies),
        times=np.arange(len(path), dtype=np.float64) * FRAME_INTERVAL,
        positions=np.stack(path),
        orientations=np.stack(turns),
        on_floor=world.on_floor(),
        at_rest=at_rest,
        decided=decided,
    )
