"""Simulators: one protocol, one outcome, one frame, and the engines that implement it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.errors import InvalidInput, NotInstalled
from vlm_probe.stimuli.scene import SHAPES, Scene

log = logging.getLogger(__name__)

FLOOR = -1
"""Segmentation value of the floor."""
BACKGROUND = -2
"""Segmentation value of everything that is neither a body nor the floor."""

FRAME_INTERVAL = 1 / 30
"""Simulated seconds between two recorded poses."""
MIN_DURATION = 1.5
"""Simulated seconds before a scene that has not moved counts as at rest: slow falls show within this time."""
MAX_DURATION = 6.0
"""Simulated seconds after which a simulation ends, at rest or not."""

Stop = Callable[[npt.NDArray[np.float64]], bool]
"""Given the bodies' positions (n, 3) in metres, says whether the outcome is already decided."""


@dataclass(frozen=True)
class Outcome:
    """What happened in a scene.

    Attributes:
        names: The n bodies, in scene order.
        times: (t,) seconds; the first is 0, before anything moved.
        positions: (t, n, 3) metres.
        orientations: (t, n, 4) quaternions (x, y, z, w).
        on_floor: Names of the bodies that touch the floor at the end.
        at_rest: Whether everything had come to rest.
        decided: Whether the simulation ended because its `stop` condition was met.
    """

    names: tuple[str, ...]
    times: npt.NDArray[np.float64]
    positions: npt.NDArray[np.float64]
    orientations: npt.NDArray[np.float64]
    on_floor: frozenset[str]
    at_rest: bool
    decided: bool

    @property
    def duration(self) -> float:
        """Simulated seconds."""
        return float(self.times[-1])

    def displacement(self) -> npt.NDArray[np.float64]:
        """(n, 3) metres: where each body ended, relative to where it began."""
        return self.positions[-1] - self.positions[0]

    def poses(self, frame: int = -1) -> Poses:
        """The poses at one recorded frame, for `Simulator.render`."""
        return Poses(self.positions[frame], self.orientations[frame])


@dataclass(frozen=True)
class Poses:
    """Positions (n, 3) in metres and orientations (n, 4) of the bodies, in scene order."""

    positions: npt.NDArray[np.float64]
    orientations: npt.NDArray[np.float64]


STATE = (
    *("present", "shape", "size_x", "size_y", "size_z", "x", "y", "z", "quaternion_x", "quaternion_y", "quaternion_z"),
    *("quaternion_w", "velocity_x", "velocity_y", "velocity_z", "mass", "friction", "restitution", "fixed"),
)
"""Columns of a physical state: one row for every body, in scene order; SI units; the shape as its place in `SHAPES`."""


def body_states(scene: Scene, poses: Poses | None = None) -> npt.NDArray[np.float32]:
    """The physical state of a scene's bodies, (bodies, len(`STATE`)).

    Args:
        scene: The scene.
        poses: Where the bodies are, at rest; by default where they start, as fast as they start.
    """
    found = np.zeros((len(scene.bodies), len(STATE)), dtype=np.float32)
    for index, body in enumerate(scene.bodies):
        place, turn, velocity = body.position, body.orientation, body.velocity
        if poses is not None:
            place, turn, velocity = poses.positions[index], poses.orientations[index], (0.0, 0.0, 0.0)
        kind = (1.0, SHAPES.index(body.shape))
        matter = (body.mass, body.friction, body.restitution, body.fixed)
        found[index] = (*kind, *body.size, *place, *turn, *velocity, *matter)
    return found


@dataclass(frozen=True)
class Frame:
    """A rendered image.

    Attributes:
        rgb: (size, size, 3) uint8.
        segmentation: (size, size) int32: index of the body, `FLOOR` or `BACKGROUND`.
        depth: (size, size) float32, metres along the viewing axis.
    """

    rgb: npt.NDArray[np.uint8]
    segmentation: npt.NDArray[np.int32]
    depth: npt.NDArray[np.float32]


class Simulator(Protocol):
    """A physics engine with a renderer. Calls are independent: nothing of one scene reaches the next."""

    name: str
    renderer: str

    def version(self) -> str:
        """Engine and version, for the card of a stimulus set."""
        ...

    def simulate(
        self, scene: Scene, *, stop: Stop | None = None, min_duration: float = ..., max_duration: float = ...
    ) -> Outcome:
        """Run until `stop` is met, until everything rests, or until time is up.

        Args:
            scene: What is simulated, from its start.
            stop: Called with the positions (bodies, 3) in metres; true once what matters is decided.
            min_duration: Seconds before which nothing counts as resting.
            max_duration: Seconds after which it ends in any case.
        """
        ...

    def render(self, scene: Scene, size: int, poses: Poses | None = None) -> Frame:
        """A square image of the scene at its start, or with the bodies at `poses`.

        Args:
            scene: What is drawn.
            size: Edge of the image, pixels.
            poses: Where the bodies are; by default where they start.
        """
        ...


ENGINES = {
    "pybullet": "vlm_probe.stimuli.simulators.pybullet:PyBulletSimulator",
    "mujoco": "vlm_probe.stimuli.simulators.mujoco:MuJoCoSimulator",
}
INSTALL = {
    "pybullet": "pip install pybullet (its wheels exist up to Python 3.11)",
    "mujoco": "pip install 'vlm-probe[mujoco]'",
}


@lru_cache(maxsize=4)
def get_simulator(name: str | None = None) -> Simulator:
    """The engine of that name, started once per process.

    Args:
        name: "pybullet", "mujoco", or None for the default: pybullet, or mujoco with a warning where it is missing.

    Raises:
        ValueError: If no such engine exists.
        ModuleNotFoundError: If the engine is not installed; the message says how to install it.
    """
    if name is None:
        try:
            return get_simulator("pybullet")
        except ModuleNotFoundError as missing:
            try:
                fallback = get_simulator("mujoco")
            except ModuleNotFoundError:
                raise missing from None
            log.warning("pybullet is not installed, so MuJoCo simulates; its pictures differ from the standard ones")
            return fallback
    if name not in ENGINES:
        raise InvalidInput(f"unknown simulator {name!r}; available: {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    try:
        return getattr(import_module(module), attribute)()
    except ModuleNotFoundError as error:
        raise NotInstalled(f"{name} is not installed: {INSTALL[name]}") from error
