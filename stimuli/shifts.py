"""Shifts: the same kind of scene under other circumstances, in three levels, to test whether what was learned carries over.

Visual shifts change how a scene looks and nothing of its physics, so that its margin and its outcome stay what they are.
Physical shifts change sizes, masses, frictions, gravity or the number of objects; margins are computed and outcomes
simulated again. Whatever belongs together (a scene, its foils, its mirror images) is shifted alike.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.palettes import paint
from vlm_probe.stimuli.scene import Background, Camera, Light, Marker, Scene, Vec3
from vlm_probe.stimuli.shapes import bottom, corners
from vlm_probe.stimuli.tasks import SamplingFailed, Task
from vlm_probe.stimuli.textures import ON_BODIES, ON_FLOORS, Texture
from vlm_probe.stimuli.viewing import extent, fitted, project, shown, sides_kept, things

Floats = npt.NDArray[np.float64]
Scenes = tuple[Scene, ...]
Shifts = tuple[tuple[str, int], ...]

LEVELS = (1, 2, 3)
VISUAL = ("colour", "texture", "background", "light", "camera", "distractors")
PHYSICAL = ("count", "size", "mass", "friction", "gravity")
GROUPS = {"visual": VISUAL, "physical": PHYSICAL}
"""Names that stand for several shifts."""
ORDER = (*PHYSICAL, *VISUAL)
"""Shifts are applied in this order, in whatever order they are named: distractors find their place in the final image."""

FRAME = 0.95
"""Share of the image, from its middle, within which every body and marker stays."""
STEEPEST = -75.0
"""Degrees of pitch beyond which the camera does not go."""


@dataclass(frozen=True)
class View:
    """A level of the camera shift: ranges of added yaw to either side and of added downward pitch (degrees), and of distance."""

    yaw: tuple[float, float]
    pitch: tuple[float, float]
    distance: tuple[float, float]


CAMERAS = {
    1: View((8, 12), (5, 8), (1.05, 1.10)),
    2: View((16, 20), (12, 16), (1.15, 1.25)),
    3: View((25, 30), (20, 25), (1.30, 1.45)),
}
# Degrees to the side and above the floor from which the light comes, its coefficients, and whether it casts shadows.
LIGHTS: dict[int, tuple[tuple[float, float], tuple[float, float], Light]] = {
    1: ((35, 45), (35, 45), Light(ambient=0.48, diffuse=0.60)),
    2: ((55, 65), (35, 45), Light(ambient=0.42, diffuse=0.75, shadow=True)),
    3: ((70, 78), (30, 38), Light(ambient=0.36, diffuse=0.95, shadow=True)),
}
PALETTES_OF = {1: ("soft", "vivid"), 2: ("deep", "turned"), 3: ("pastel", "pale turned")}
# Floors and skies, by level.
FLOORS: dict[int, tuple[Vec3, ...]] = {
    1: ((0.80, 0.76, 0.64), (0.66, 0.75, 0.67), (0.68, 0.71, 0.82), (0.81, 0.70, 0.70)),
    2: ((0.64, 0.56, 0.42), (0.42, 0.58, 0.50), (0.47, 0.53, 0.68), (0.66, 0.50, 0.58)),
    3: ((0.30, 0.32, 0.37), (0.37, 0.29, 0.27), (0.22, 0.34, 0.33), (0.34, 0.30, 0.40)),
}
SKIES: dict[int, tuple[Vec3, ...]] = {
    1: ((0.82, 0.91, 1.00), (1.00, 0.95, 0.84), (0.87, 0.96, 0.88)),
    2: ((0.64, 0.80, 0.96), (0.97, 0.84, 0.66), (0.79, 0.73, 0.93)),
    3: ((0.35, 0.44, 0.58), (0.50, 0.38, 0.48), (0.28, 0.34, 0.38)),
}
CLEAR = 0.3
"""Distance in (red, green, blue) that a floor or sky keeps from the colours of what is in the scene, where there is one that does."""
DARK = 0.45
"""Brightest channel of a floor up to which arrows on it are white instead of black."""
DISTRACTORS = {1: 1, 2: 2, 3: 4}
# Growing or shrinking by these factors; chosen so that blocks of 10 cm stay whole centimetres.
SIZES = {1: (1.2, 0.8), 2: (1.5, 0.7), 3: (1.8, 0.5)}
MASSES = {1: (1.5, 1 / 1.5), 2: (2.5, 1 / 2.5), 3: (5.0, 1 / 5.0)}
FRICTIONS = {1: (1.1, 0.85), 2: (1.2, 0.7), 3: (1.3, 0.55)}
GRAVITIES = {1: (1.3, 1 / 1.3), 2: (1.8, 1 / 1.8), 3: (2.7, 1 / 2.7)}


def parse_shifts(text: str) -> Shifts:
    """The shifts that a text names, in the order in which they are applied.

    Args:
        text: Names with levels from 1 to 3, separated by commas: `camera:2`, `visual:2`, `visual:2,size:1`. Empty: none.

    Raises:
        ValueError: If a name or level does not exist, or a shift is named twice; the message says what there is.
    """
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, level = (piece.strip() for piece in part.partition(":"))
        known = (*GROUPS, *VISUAL, *PHYSICAL)
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InvalidInput(
                f"unknown shift {name!r}: {hint}There are visual ones ({', '.join(VISUAL)}), physical ones"
                f" ({', '.join(PHYSICAL)}), and `visual` and `physical` for all of a kind"
            )
        if level not in {str(number) for number in LEVELS}:
            raise InvalidInput(f"the shift {name} has the levels 1, 2 and 3, got {level or 'none'!r}: write {name}:2")
        for single in GROUPS.get(name, (name,)):
            if single in found:
                raise InvalidInput(f"the shift {single} is named twice in {text!r}")
            found[single] = int(level)
    return tuple((name, found[name]) for name in ORDER if name in found)


def spell(shifts: Shifts) -> str:
    """The shifts as `parse_shifts` reads them, `visual` and `physical` standing for all of a kind at one level."""
    parts, left = [], dict(shifts)
    for group, names in GROUPS.items():
        levels = {left.get(name) for name in names}
        if len(levels) == 1 and None not in levels:
            parts.append(f"{group}:{left[names[0]]}")
            left = {name: level for name, level in left.items() if name not in names}
    return ",".join([*parts, *(f"{name}:{level}" for name, level in left.items())])


def is_physical(shifts: Shifts) -> bool:
    """Whether any of the shifts changes the physics."""
    return any(name in PHYSICAL for name, _ in shifts)


def shifted_condition(task: Task, condition: Condition, shifts: Shifts) -> Condition:
    """The condition on which scenes are sampled, with the shifts written down in it.

    Args:
        task: That has the condition.
        condition: Without shifts.
        shifts: From `parse_shifts`.

    Raises:
        Unsatisfiable: If the task has no scenes with as many objects as the shift `count` asks for.
    """
    for name, level in shifts:
        if name == "count":
            condition = task.with_more_objects(condition, level)
    return replace(condition, shifts=shifts)


def check(task: Task, shifts: Shifts) -> None:
    """Refuse what a task cannot do, before any work starts.

    Args:
        task: The task.
        shifts: From `parse_shifts`.

    Raises:
        Unsatisfiable: If it cannot place as many objects as the shift `count` asks for; the message says how to go on.
    """
    level = dict(shifts).get("count")
    if level is None:
        return
    rest = spell(tuple(shift for shift in shifts if shift[0] != "count"))
    instead = f"leave count out (--shift {rest})" if rest else "choose another shift"
    reason = ""
    for number, condition in enumerate(dict.fromkeys(task.conditions())):
        rng = np.random.default_rng([0, number])
        try:
            plain = _objects(task.sample_matched(rng, condition)[0])
            more = _objects(task.sample_matched(rng, shifted_condition(task, condition, (("count", level),)))[0])
        except SamplingFailed as error:
            reason = str(error)
            break
        if more <= plain:
            reason = f"its scenes have {more} objects all the same"
            break
    if reason:
        raise SamplingFailed(f"{task.name} cannot be made with count:{level} ({reason}): {instead}, or a lower level")


def _objects(scene: Scene) -> int:
    """Number of bodies; a ball and its cradle are one object, and how many of them are balls is chance."""
    return sum(body.shape != "cradle" for body in scene.bodies)


def apply(scene: Scene, shifts: Shifts, rng: np.random.Generator) -> Scene:
    """A shifted copy of a scene. A pure function of its arguments (`count` has been done by the sampler already).

    Args:
        scene: The scene.
        shifts: From `parse_shifts`.
        rng: Decides the side, amount or kind of each shift within its level; a shift alone and the same among others are the same.

    Raises:
        Unsatisfiable: If there is no room for distractors.
    """
    return apply_alike((scene,), shifts, rng)[0]


def apply_alike(scenes: Sequence[Scene], shifts: Shifts, rng: np.random.Generator) -> Scenes:
    """Shifted copies of scenes that belong together: they get the same camera, light, colours, factors and distractors.

    Args:
        scenes: A scene, its foils, its mirror images.
        shifts: From `parse_shifts`.
        rng: As for `apply`.

    Raises:
        Unsatisfiable: If there is no room for distractors.
    """
    key = int(rng.integers(2**62))
    done = tuple(scenes)
    for name, level in sorted(shifts, key=lambda shift: ORDER.index(shift[0])):
        done = _SHIFTS[name](done, level, np.random.default_rng([key, zlib.crc32(name.encode())]))
    return done


def _colour(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    palette = str(rng.choice(PALETTES_OF[level]))
    return tuple(replace(scene, palette=palette) for scene in scenes)


def _texture(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    """Level 1: the floor. 2: also the bodies, all alike. 3: each body its own, and strongest."""
    floor = Texture(str(rng.choice(ON_FLOORS)), level, int(rng.integers(10_000))).name
    names = list(dict.fromkeys(body.name for scene in scenes for body in scene.bodies))
    kinds = rng.choice(ON_BODIES, len(names)) if level == 3 else [rng.choice(ON_BODIES)] * len(names)
    seeds = rng.integers(10_000, size=len(names)).tolist()
    of = {
        name: Texture(str(kind), level, seed).name if level > 1 else ""
        for name, kind, seed in zip(names, kinds, seeds, strict=True)
    }
    return tuple(
        replace(
            scene,
            bodies=tuple(replace(body, texture=of[body.name]) for body in scene.bodies),
            background=replace(scene.background, floor_texture=floor),
        )
        for scene in scenes
    )


def _background(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    """Level 1: other plain colours. 2: stronger ones, and a sky that changes with height. 3: dark, tiled, and clouded.

    On dark floors arrows are white.
    """
    seeds = rng.integers(10_000, size=2).tolist()
    floor, sky = (_distinct(colours[level], scenes, rng) for colours in (FLOORS, SKIES))
    sky_texture = {1: "", 2: Texture("gradient", 2, seeds[0]).name, 3: Texture("clouds", 3, seeds[0]).name}[level]

    dark = max(floor) < DARK

    def drawn(marker: Marker) -> Marker:
        return replace(marker, colour="white") if dark and marker.shape == "arrow" else marker

    def behind(old: Background) -> Background:
        tiles = Texture("tiles", 2, seeds[1]).name if level == 3 and not old.floor_texture else old.floor_texture
        return Background(sky, floor, sky_texture, tiles)

    return tuple(
        replace(scene, background=behind(scene.background), markers=tuple(map(drawn, scene.markers)))
        for scene in scenes
    )


def _distinct(colours: Sequence[Vec3], scenes: Scenes, rng: np.random.Generator) -> Vec3:
    """One of the colours, at random among those that nothing in the scenes resembles; else the one that differs most."""
    painted = np.array([paint(thing, scene.palette) for scene in scenes for thing in things(scene)])
    nearest = np.linalg.norm(np.array(colours)[:, None] - painted[None], axis=2).min(axis=1)
    clear = np.flatnonzero(nearest >= CLEAR)
    return colours[int(rng.choice(clear)) if len(clear) else int(nearest.argmax())]


def _light(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    sides, heights, light = LIGHTS[level]
    side, height = np.radians(rng.uniform(*sides)) * rng.choice((-1, 1)), np.radians(rng.uniform(*heights))
    aim = np.round((np.sin(side) * np.cos(height), -np.cos(side) * np.cos(height), np.sin(height)), 3).tolist()
    return tuple(replace(scene, light=replace(light, direction=(aim[0], aim[1], aim[2]))) for scene in scenes)


def _camera(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    """The camera goes round, up and back; less far round where left and right of two bodies would change places."""
    view, old = CAMERAS[level], scenes[0].camera
    side = rng.choice((-1.0, 1.0))
    yaw, tilt, back = (float(rng.uniform(*span)) for span in (view.yaw, view.pitch, view.distance))
    lower, higher = round(old.pitch - tilt, 1), round(old.pitch + tilt, 1)
    camera = replace(old, pitch=lower if lower >= STEEPEST else higher, distance=round(old.distance * back, 3))
    for turn in (1.0, -1.0, 0.75, -0.75, 0.5, -0.5, 0.25, -0.25, 0.0):
        turned = replace(camera, yaw=round(old.yaw + turn * side * yaw, 1))
        if all(sides_kept(turned, scene) for scene in scenes):
            camera = turned
            break
    return _in_view(scenes, camera)


def _in_view(scenes: Scenes, camera: Camera) -> Scenes:
    """The scenes seen by that camera, which is pulled back as far as needed to hold all of them."""
    held = fitted(camera, np.concatenate([extent(scene) for scene in scenes]), FRAME)
    return tuple(replace(scene, camera=held) for scene in scenes)


def _distractors(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    """Things on the floor behind everything else, which hide nothing and are not hidden."""
    shapes = {body.shape for scene in scenes for body in scene.bodies}
    # Of other shapes than what is asked about: nobody should count them in.
    free = [s for s in ("sphere", "cylinder", "wedge", "box", "cradle") if s not in shapes] or ["wedge", "cylinder"]
    used = {thing.colour for scene in scenes for thing in things(scene)}
    colours = [c for c in ("white", "grey", "black", "brown") if c not in used] or ["white", "grey", "black", "brown"]
    kinds = [free[i % len(free)] for i in rng.permutation(4)[: DISTRACTORS[level]]]
    tints = [colours[i % len(colours)] for i in rng.permutation(4)[: DISTRACTORS[level]]]
    unit = float(np.median([np.prod(body.size) ** (1 / 3) for body in scenes[0].bodies]))
    back = max(float(points[:, 1].max()) for scene in scenes for _, points in shown(scene))
    for _ in range(8):
        found = _places(scenes, kinds, unit, back, rng)
        if found is not None:
            markers = tuple(replace(marker, colour=tint) for marker, tint in zip(found, tints, strict=True))
            return tuple(replace(scene, markers=scene.markers + markers) for scene in scenes)
        wider = replace(scenes[0].camera, distance=round(scenes[0].camera.distance * 1.1, 3))
        scenes = tuple(replace(scene, camera=wider) for scene in scenes)
    raise SamplingFailed(f"found no room behind the scene for {DISTRACTORS[level]} distractor(s)")


def _places(
    scenes: Scenes, kinds: Sequence[str], unit: float, back: float, rng: np.random.Generator
) -> list[Marker] | None:
    """Markers of those shapes, apart from everything and from each other in the image; None if there is no room."""
    camera = scenes[0].camera
    taken = [_box(camera, points) for scene in scenes for _, points in shown(scene)]
    found: list[Marker] = []
    width = camera.distance * np.tan(np.radians(camera.fov) / 2)
    for number, kind in enumerate(kinds):
        for attempt in range(150):
            scale = unit * float(rng.uniform(0.7, 1.1)) * (1 - attempt / 400)
            size = (scale, scale, scale) if kind in ("sphere", "box") else (scale, scale, round(scale * 1.2, 3))
            extents = (round(size[0], 3), round(size[1], 3), round(size[2], 3))
            across, deep = rng.uniform(-1.6, 1.6) * width, back + scale + float(rng.uniform(0.0, 5.0)) * unit
            # Across the line of sight, whichever way the camera looks.
            yaw = np.radians(camera.yaw)
            x = camera.target[0] + across * np.cos(yaw) - deep * np.sin(yaw)
            y = max(back + scale, across * np.sin(yaw) + deep * np.cos(yaw))
            place = (round(float(x), 3), round(float(y), 3), round(bottom(kind, extents), 6))
            marker = Marker(f"distractor{number + 1}", kind, extents, place, "grey")
            low, high = _box(camera, corners(marker))
            inside = min(low) >= -FRAME and max(high) <= FRAME and min(high - low) > 0.05
            if inside and all(
                (low > other_high + 0.02).any() or (high < other_low - 0.02).any() for other_low, other_high in taken
            ):
                found.append(marker)
                taken.append((low, high))
                break
        else:
            return None
    return found


def _box(camera: Camera, points: Floats) -> tuple[Floats, Floats]:
    """Lower left and upper right corner of what points cover in the image."""
    places = project(camera, points)[:, :2]
    return places.min(axis=0), places.max(axis=0)


def _count(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    """The sampler has placed the objects; here the camera is raised to their middle and pulled back to show them."""
    points = np.concatenate([extent(scene) for scene in scenes])
    old = scenes[0].camera
    middle = round(float(points[:, 2].min() + points[:, 2].max()) / 2, 3)
    return _in_view(scenes, replace(old, target=(old.target[0], old.target[1], max(old.target[2], middle))))


def _size(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    """Everything grows or shrinks alike; forces and masses go with the volume.

    Velocities go with the lengths, so that arrows, trails and strips still show them. The camera keeps its distance, unless
    things have grown out of the image.
    """
    factor = float(rng.choice(SIZES[level]))

    def grown(v: Vec3) -> Vec3:
        return (round(v[0] * factor, 6), round(v[1] * factor, 6), round(v[2] * factor, 6))

    def larger(scene: Scene) -> Scene:
        bodies = tuple(
            replace(
                b,
                size=grown(b.size),
                position=grown(b.position),
                velocity=grown(b.velocity),
                mass=float(f"{b.mass * factor**3:.6g}"),
            )
            for b in scene.bodies
        )
        return replace(
            scene,
            bodies=bodies,
            markers=tuple(replace(m, size=grown(m.size), position=grown(m.position)) for m in scene.markers),
            pushes=tuple(replace(p, force=_times(p.force, factor**3), point=grown(p.point)) for p in scene.pushes),
            camera=replace(scene.camera, target=grown(scene.camera.target)),
        )

    done = tuple(larger(scene) for scene in scenes)
    return _in_view(done, done[0].camera)


def _mass(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    """Everything is heavier or lighter by one factor, and pushes are stronger or weaker by the same."""
    factor = float(rng.choice(MASSES[level]))
    return tuple(
        replace(
            scene,
            bodies=tuple(replace(b, mass=float(f"{b.mass * factor:.6g}")) for b in scene.bodies),
            pushes=_pushed(scene, factor),
        )
        for scene in scenes
    )


def _friction(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    factor = float(rng.choice(FRICTIONS[level]))
    return tuple(
        replace(
            scene,
            bodies=tuple(replace(b, friction=round(b.friction * factor, 4)) for b in scene.bodies),
            floor_friction=round(scene.floor_friction * factor, 4),
        )
        for scene in scenes
    )


def _gravity(scenes: Scenes, level: int, rng: np.random.Generator) -> Scenes:
    """Weights change by one factor, and pushes by the same."""
    factor = float(rng.choice(GRAVITIES[level]))
    return tuple(replace(s, gravity=round(s.gravity * factor, 3), pushes=_pushed(s, factor)) for s in scenes)


def _pushed(scene: Scene, factor: float) -> tuple[Any, ...]:
    """The pushes, as much stronger. A push that stayed as it is against other weights would be another item, not this one shifted."""
    return tuple(replace(push, force=_times(push.force, factor)) for push in scene.pushes)


def _times(force: Vec3, factor: float) -> Vec3:
    return (round(force[0] * factor, 4), round(force[1] * factor, 4), round(force[2] * factor, 4))


_SHIFTS: dict[str, Callable[[Scenes, int, np.random.Generator], Scenes]] = {
    "count": _count,
    "size": _size,
    "mass": _mass,
    "friction": _friction,
    "gravity": _gravity,
    "colour": _colour,
    "texture": _texture,
    "background": _background,
    "light": _light,
    "camera": _camera,
    "distractors": _distractors,
}
