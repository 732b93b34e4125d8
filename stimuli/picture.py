"""The image of a scene as a viewer gets it: one view, or four moments side by side, with textures; and what draws it.

Everything that shows a scene (sets, the environment, pretraining) draws it here, so that a scene looks the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.scene import PANELS, Scene
from vlm_probe.stimuli.simulators import BACKGROUND, FRAME_INTERVAL, Frame, Poses, Simulator
from vlm_probe.stimuli.textures import textured
from vlm_probe.stimuli.viewing import raised

GAP = 2
"""Pixels between the panels of a strip."""


@dataclass(frozen=True, slots=True)
class Renderer:
    """A way to draw scenes.

    Attributes:
        load: Where the function is that gives it, as "module:function"; its argument is the name of the engine, or None.
        size: Edge of its images unless another is asked for, pixels.
        raised: Whether scenes are seen from a little higher and to the side, see `vlm_probe.stimuli.viewing.raised`.
    """

    load: str
    size: int
    raised: bool


RENDERERS = {
    "engine": Renderer("vlm_probe.stimuli.simulators:get_simulator", 224, False),
    "raycast": Renderer("vlm_probe.stimuli.raycast:get_raycast", 448, True),
    "photoreal": Renderer("vlm_probe.stimuli.photoreal:get_photoreal", 224, False),
}
DEFAULT_RENDERER = "engine"
"""What draws where nothing else is asked for."""


def find_renderer(name: str = "") -> Renderer:
    """The renderer of that name.

    Args:
        name: A key of `RENDERERS`; empty for the default.

    Raises:
        InvalidInput: If there is none.
    """
    try:
        return RENDERERS[name or DEFAULT_RENDERER]
    except KeyError:
        raise InvalidInput(
            f"there is no renderer {name!r}: leave it out, or use one of {', '.join(RENDERERS)}"
        ) from None


def painter(name: str = "", engine: str | None = None) -> Simulator:
    """An engine that draws with a renderer, loaded once per process.

    Args:
        name: A key of `RENDERERS`; empty for the default.
        engine: What simulates; by default the default engine.

    Raises:
        InvalidInput: If there is no such renderer or engine.
        NotInstalled: If it is not installed; the message says how to install it.
    """
    module, _, function = find_renderer(name).load.partition(":")
    found: Simulator = getattr(import_module(module), function)(engine)
    return found


def renderer_of(card: Mapping[str, Any]) -> str:
    """The name of the renderer that drew a set, by its card. Sets made before there was a choice were drawn by the engine."""
    return str(card.get("renderer") or "engine")


def staged(scenes: Sequence[Scene], renderer: str = "") -> tuple[Scene, ...]:
    """Scenes that belong together, as a renderer shows them: from its own point of view.

    Args:
        scenes: A scene and its foils, before shifts and mirrors.
        renderer: A key of `RENDERERS`; empty for the default.

    Raises:
        InvalidInput: If there is no such renderer.
    """
    return raised(scenes) if find_renderer(renderer).raised else tuple(scenes)


def draw(simulator: Simulator, scene: Scene, size: int, poses: Poses | None = None) -> Frame:
    """A square image of a scene: of its start, of its panels where it has some, or with the bodies at `poses`.

    Args:
        simulator: Draws, and simulates what panels later than the start show.
        size: Edge, pixels.
        poses: Where the bodies are; the panels are then left out.

    Returns:
        The frame. Its segmentation numbers the bodies, then the markers, in scene order.
    """
    if poses is not None or not scene.panels:
        return textured(simulator.render(scene, size, poses), scene, poses)
    half = (size - GAP) // 2
    moments = [textured(simulator.render(scene, half, p), scene, p) for p in panel_poses(simulator, scene)]
    return Frame(
        _tile([m.rgb for m in moments], size, 255),
        _tile([m.segmentation for m in moments], size, BACKGROUND),
        _tile([m.depth for m in moments], size, 0),
    )


def panel_poses(simulator: Simulator, scene: Scene) -> list[Poses]:
    """Where the bodies are at each moment of `scene.panels`.

    Args:
        simulator: Says where they are after the start; before it, they moved uniformly.
        scene: With panels.
    """
    start = np.array([body.position for body in scene.bodies])
    turns = np.array([body.orientation for body in scene.bodies])
    velocity = np.array([body.velocity for body in scene.bodies])
    last = max(scene.panels)
    path = simulator.simulate(scene, min_duration=last, max_duration=last) if last > 0 else None
    found = []
    for moment in scene.panels:
        if moment <= 0 or path is None:
            found.append(Poses(start + moment * velocity, turns))
        else:
            found.append(path.poses(min(len(path.times) - 1, round(moment / FRAME_INTERVAL))))
    return found


def panel_boxes(size: int) -> list[tuple[int, int, int, int]]:
    """Where the panels of a strip of `size` pixels are: (left, top, right, bottom) of each, in order."""
    half = (size - GAP) // 2
    corners = [((index % 2) * (size - half), (index // 2) * (size - half)) for index in range(PANELS)]
    return [(left, top, left + half, top + half) for left, top in corners]


def _tile(pictures: list[npt.NDArray], size: int, fill: int) -> npt.NDArray:  # type: ignore[type-arg]
    """Four images in reading order, with a gap between them."""
    whole = np.full((size, size, *pictures[0].shape[2:]), fill, dtype=pictures[0].dtype)
    for (left, top, right, bottom), picture in zip(panel_boxes(size), pictures, strict=True):
        whole[top:bottom, left:right] = picture
    return whole
