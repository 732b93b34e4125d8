"""Photoreal images: a scene drawn by Mitsuba, a path tracer, on the processor, with soft shadows and light that bounces.

Segmentation and depth come from the ray-casting renderer, whose camera is the same. Needs the extra `photoreal` (Mitsuba 3); an image
takes seconds, and its bytes may differ between machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.errors import NotInstalled
from vlm_probe.stimuli.palettes import paint
from vlm_probe.stimuli.raycast import RayCast, get_raycast
from vlm_probe.stimuli.scene import Body, Marker, Scene
from vlm_probe.stimuli.shapes import cradle_boards, mesh
from vlm_probe.stimuli.simulators import MAX_DURATION, MIN_DURATION, Frame, Outcome, Poses, Stop
from vlm_probe.stimuli.viewing import axes, things

SAMPLES = 144
"""Light paths per pixel."""
BOUNCES = 4
"""Surfaces that a path of light meets at most, the camera and the light included."""
FLOOR_HALF = 100.0
"""Half the width of the floor, metres: so far away that its edge looks level."""
SUN_DISTANCE, SUN_RADIUS, SUN_POWER = 500.0, 0.10, 3.0
"""Of the disc that gives light: metres, a tangent as seen from the scene, and what the diffuse coefficient is multiplied by."""
SKY_POWER = 0.3
"""What is added to the ambient coefficient."""


class Photoreal:
    """An engine whose images are drawn by Mitsuba. Implements `vlm_probe.stimuli.simulators.Simulator`.

    Args:
        rays: Simulates, and sees where things are.
        mitsuba: The module, with its variant set.
    """

    renderer = "Mitsuba path tracer"

    def __init__(self, rays: RayCast, mitsuba: Any) -> None:
        self._rays, self._mitsuba, self.name = rays, mitsuba, rays.name

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """A copy, here or in another process, is the renderer that is there."""
        return get_photoreal, (self.name,)

    def version(self) -> str:
        """Engine and version, and Mitsuba's."""
        return f"{self._rays.version()}, mitsuba {self._mitsuba.__version__}"

    def simulate(
        self,
        scene: Scene,
        *,
        stop: Stop | None = None,
        min_duration: float = MIN_DURATION,
        max_duration: float = MAX_DURATION,
    ) -> Outcome:
        """The engine's outcome."""
        return self._rays.simulate(scene, stop=stop, min_duration=min_duration, max_duration=max_duration)

    def render(self, scene: Scene, size: int, poses: Poses | None = None) -> Frame:
        """Mitsuba's colours with the segmentation and depth of the ray-casting renderer."""
        return replace(self._rays.render(scene, size, poses), rgb=self._draw(scene, size, poses))

    def _draw(self, scene: Scene, size: int, poses: Poses | None) -> npt.NDArray[np.uint8]:
        stage: dict[str, Any] = {"type": "scene", "integrator": {"type": "path", "max_depth": BOUNCES}}
        stage |= {"camera": self._camera(scene, size), "sky": self._sky(scene), "sun": self._sun(scene)}
        floor = {"type": "diffuse", "reflectance": _rgb(scene.background.floor)}
        stage["floor"] = {"type": "rectangle", "to_world": self._at().scale(FLOOR_HALF), "bsdf": floor}
        for index, thing in enumerate(things(scene)):
            place, turn = np.array(thing.position), thing.orientation
            if poses is not None and index < len(scene.bodies):
                x, y, z, w = poses.orientations[index].tolist()
                place, turn = poses.positions[index], (x, y, z, w)
            surface = {"type": "roughplastic", "alpha": 0.3, "diffuse_reflectance": _rgb(paint(thing, scene.palette))}
            for number, shape in enumerate(self._shapes(thing, self._placed(place, turn), surface)):
                # Mitsuba takes a dot in a name for a path.
                stage[f"thing{index}-{number}"] = shape
        light = np.array(self._mitsuba.render(self._mitsuba.load_dict(stage)), dtype=float)[..., :3]
        return np.round(255 * _encoded(np.clip(light, 0, 1))).astype(np.uint8)

    def _at(self) -> Any:
        return self._mitsuba.ScalarTransform4f()

    def _placed(self, place: Any, turn: Any) -> Any:
        """The transform from a thing's own coordinates to the world's."""
        x, y, z, w = (float(v) for v in turn)
        sine = math.sqrt(x * x + y * y + z * z)
        moved = self._at().translate([float(v) for v in place])
        if sine == 0:
            return moved
        # Mitsuba takes the axis as it is, and would shear what is turned about one of another length.
        return moved @ self._at().rotate([x / sine, y / sine, z / sine], 2 * math.degrees(math.atan2(sine, w)))

    def _shapes(self, thing: Body | Marker, at: Any, surface: dict[str, Any]) -> Iterator[Any]:
        """The shapes of a body or marker."""
        half = [extent / 2 for extent in thing.size]
        if thing.shape == "sphere":
            yield {"type": "sphere", "to_world": at @ self._at().scale(half[0]), "bsdf": surface}
        elif thing.shape == "cylinder":
            ends = {"p0": [0, 0, -half[2]], "p1": [0, 0, half[2]], "radius": half[0]}
            yield {"type": "cylinder", **ends, "to_world": at, "bsdf": surface}
            for end, over in ((half[2], 0), (-half[2], 180)):
                lid = at @ self._at().translate([0, 0, end]) @ self._at().rotate([1, 0, 0], over)
                yield {"type": "disk", "to_world": lid @ self._at().scale(half[0]), "bsdf": surface}
        elif thing.shape in ("wedge", "arrow"):
            yield self._mesh(thing, at, surface)
        else:
            boards = cradle_boards(thing.size) if thing.shape == "cradle" else [((0.0, 0.0, 0.0), thing.size)]
            for centre, extents in boards:
                box = at @ self._at().translate(list(centre)) @ self._at().scale([extent / 2 for extent in extents])
                yield {"type": "cube", "to_world": box, "bsdf": surface}

    def _mesh(self, thing: Body | Marker, at: Any, surface: dict[str, Any]) -> Any:
        mi = self._mitsuba
        points, triangles = mesh(thing.shape, thing.size)
        corners = points[np.array(triangles)].reshape(-1, 3)  # no corner is shared, so that edges stay sharp
        placed = np.array([np.array(at @ mi.ScalarPoint3f(*corner)) for corner in corners.tolist()])
        material = mi.Properties()
        material["mesh_bsdf"] = mi.load_dict(surface)
        made = mi.Mesh("mesh", len(corners), len(triangles), props=material)
        values = mi.traverse(made)
        values["vertex_positions"] = placed.astype(np.float32).ravel()
        values["faces"] = np.arange(len(corners), dtype=np.uint32)
        values.update()
        return made

    def _camera(self, scene: Scene, size: int) -> dict[str, Any]:
        eye, _, up, into = axes(scene.camera)
        view = self._at().look_at(origin=eye.tolist(), target=(eye + into).tolist(), up=up.tolist())
        film = {"type": "hdrfilm", "width": size, "height": size, "rfilter": {"type": "box"}, "pixel_format": "rgb"}
        sampler = {"type": "multijitter", "sample_count": SAMPLES, "seed": 0}
        lens = {"fov": scene.camera.fov, "near_clip": 0.01, "far_clip": 1000.0}
        return {"type": "perspective", **lens, "to_world": view, "film": film, "sampler": sampler}

    def _sky(self, scene: Scene) -> dict[str, Any]:
        return {"type": "constant", "radiance": _rgb(scene.background.sky, scene.light.ambient + SKY_POWER)}

    def _sun(self, scene: Scene) -> dict[str, Any]:
        toward = np.array(scene.light.direction)
        toward = SUN_DISTANCE * toward / np.linalg.norm(toward)
        aside = [0.0, 0.0, 1.0] if abs(toward[2]) < 0.9 * SUN_DISTANCE else [0.0, 1.0, 0.0]
        at = self._at().look_at(origin=toward.tolist(), target=[0, 0, 0], up=aside)
        radiance = SUN_POWER * scene.light.diffuse / (math.pi * SUN_RADIUS**2)
        emitter = {"type": "area", "radiance": {"type": "rgb", "value": [radiance] * 3}}
        return {"type": "disk", "to_world": at @ self._at().scale(SUN_DISTANCE * SUN_RADIUS), "emitter": emitter}


@lru_cache(maxsize=1)
def get_photoreal(engine: str | None = None) -> Photoreal:
    """Mitsuba's renderer on top of an engine, started once per process.

    Args:
        engine: Name of the engine; by default the default one.

    Raises:
        NotInstalled: If Mitsuba is not installed; the message says how to install it.
    """
    try:
        import mitsuba
    except ModuleNotFoundError as error:
        raise NotInstalled(
            "photoreal images are drawn by Mitsuba, which is not installed: pip install 'vlm-probe[photoreal]'"
        ) from error
    mitsuba.set_variant("scalar_rgb")  # the one that needs nothing else
    return Photoreal(get_raycast(engine), mitsuba)


def _rgb(colour: Any, power: float = 1.0) -> dict[str, Any]:
    """A colour in sRGB as Mitsuba takes it, in linear light."""
    c = np.asarray(colour, dtype=float)
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return {"type": "rgb", "value": (power * linear).tolist()}


def _encoded(light: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Linear light in [0, 1] as sRGB."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
