"""The scene: everything a simulator and a renderer need to know, as plain frozen data.

SI units throughout (metres, kilograms, seconds, newtons; angles of cameras in degrees). The world is right-handed with
z up. Motion happens in the x-z plane unless a task says otherwise, and at camera yaw 0 the x axis points to the right of
the image, so that "left" in a question is image left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vlm_probe.stimuli.plain_json import dumps

Vec3 = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]

SHAPES = ("box", "cylinder", "sphere", "wedge", "cradle")
"""Shapes of bodies; `vlm_probe.stimuli.shapes` has their geometry."""
MARKER_SHAPES = (*SHAPES, "arrow")

# Named colours as (red, green, blue) in [0, 1]: far apart from each other, and nameable by every VLM.
COLOURS: dict[str, Vec3] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.12, 0.20, 0.85),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.55, 0.10, 0.65),
    "orange": (1.00, 0.50, 0.05),
}
# Colours of what is never asked about by its colour: planks, posts, arrows, distractors.
NEUTRALS: dict[str, Vec3] = {
    "white": (0.96, 0.96, 0.96),
    "grey": (0.52, 0.53, 0.55),
    "black": (0.10, 0.10, 0.11),
    "brown": (0.50, 0.33, 0.20),
}
MIRRORED = ":mirror"
"""Ends the name of a texture in a mirror image."""
LARGEST = 1e12
"""Magnitude below which every number of a scene must lie; NaN does not."""
_LENGTHS = {"Vec3": 3, "Quaternion": 4}
PANELS = 4
"""A strip of frames has this many images, in reading order: upper left, upper right, lower left, lower right."""


@dataclass(frozen=True, slots=True)
class Body:
    """A rigid body.

    Attributes:
        name: Unique within the scene.
        shape: One of `SHAPES`.
        size: Full extents along the body's own axes, metres (a sphere has three equal diameters).
        position: Centre of mass, metres.
        colour: A key of `COLOURS` or `NEUTRALS`.
        mass: Kilograms; ignored when `fixed`.
        friction: Coulomb coefficient, dimensionless.
        restitution: 0 (no bounce) to 1.
        orientation: Quaternion (x, y, z, w).
        velocity: Metres per second at the start.
        shade: Brightness multiplier of the colour, dimensionless.
        fixed: Never moves.
        texture: Name of a procedural texture (`vlm_probe.stimuli.textures`), or empty for a plain surface.

    Raises:
        ValueError: If the shape or colour does not exist, or size or mass is not positive.
    """

    name: str
    shape: str
    size: Vec3
    position: Vec3
    colour: str
    mass: float = 0.5
    friction: float = 0.8
    restitution: float = 0.0
    orientation: Quaternion = (0.0, 0.0, 0.0, 1.0)
    velocity: Vec3 = (0.0, 0.0, 0.0)
    shade: float = 1.0
    fixed: bool = False
    texture: str = ""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"body {self.name!r}: shape {self.shape!r} is not one of {', '.join(SHAPES)}")
        _check_colour("body", self.name, self.colour)
        if min(self.size) <= 0 or (self.mass <= 0 and not self.fixed):
            raise ValueError(f"body {self.name!r}: size and mass must be positive, got {self.size} m, {self.mass} kg")


@dataclass(frozen=True, slots=True)
class Marker:
    """Something to be seen that takes no part in the physics: an arrow, a ghost of an earlier place, a distractor.

    Attributes:
        name: Unique within the scene, bodies included.
        shape: One of `MARKER_SHAPES`. An arrow points along its own +x axis and is flat along its own y axis.
        size: Full extents along its own axes, metres.
        position: Centre, metres (of mass, for the shapes of bodies).
        colour: A key of `COLOURS` or `NEUTRALS`.
        orientation: Quaternion (x, y, z, w).
        fade: How far the colour is mixed with white, 0 to 1: ghosts are paler than what they are ghosts of.
        texture: As for a body.

    Raises:
        ValueError: If the shape or colour does not exist, or size or fade is out of its range.
    """

    name: str
    shape: str
    size: Vec3
    position: Vec3
    colour: str
    orientation: Quaternion = (0.0, 0.0, 0.0, 1.0)
    fade: float = 0.0
    texture: str = ""

    def __post_init__(self) -> None:
        if self.shape not in MARKER_SHAPES:
            raise ValueError(f"marker {self.name!r}: shape {self.shape!r} is not one of {', '.join(MARKER_SHAPES)}")
        _check_colour("marker", self.name, self.colour)
        if min(self.size) <= 0 or not 0 <= self.fade <= 1:
            raise ValueError(f"marker {self.name!r}: size must be positive and fade in [0, 1]")


@dataclass(frozen=True, slots=True)
class Push:
    """A constant force (newtons) on one body at a world point (metres), from `start` for `duration` seconds."""

    body: str
    force: Vec3
    point: Vec3
    start: float = 0.0
    duration: float = 0.1

    def acts_at(self, time: float) -> bool:
        """Whether it acts at `time` seconds."""
        return self.start - 1e-9 <= time < self.start + self.duration - 1e-9


@dataclass(frozen=True, slots=True)
class Camera:
    """An orbit camera: looks at `target` (m) from `distance` (m); yaw, pitch and vertical field of view in degrees."""

    target: Vec3 = (0.0, 0.0, 0.23)
    distance: float = 0.93
    yaw: float = 0.0
    pitch: float = -8.0
    fov: float = 36.0


@dataclass(frozen=True, slots=True)
class Light:
    """A directional light: `direction` points from the scene to the light; the coefficients are Phong's."""

    direction: Vec3 = (-0.4, -0.8, 0.9)
    ambient: float = 0.55
    diffuse: float = 0.5
    specular: float = 0.05
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Background:
    """Colours of the sky and the floor as (red, green, blue) in [0, 1], and their procedural textures (or empty)."""

    sky: Vec3 = (0.93, 0.95, 0.97)
    floor: Vec3 = (0.75, 0.72, 0.68)
    sky_texture: str = ""
    floor_texture: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """Bodies on an infinite floor at z = 0, with the camera and light that show them.

    Two surfaces in contact have the product of their friction coefficients, and of their restitutions, in every engine.

    Attributes:
        bodies: Everything that takes part in the physics.
        pushes: Forces on bodies.
        markers: Everything else that is to be seen.
        gravity: Metres per second squared, downwards.
        floor_friction: Coulomb coefficient of the floor.
        camera, light, background: How it is shown.
        palette: Which colours the colour names stand for (`vlm_probe.stimuli.palettes`).
        panels: Empty for one image of the start; else `PANELS` moments (seconds; negative ones come before the start,
            when every body moved uniformly) shown side by side.
        shown: How a quantity that a plain image does not show is given ("arrow", "text", ...; each family defines its
            own), so that the question can say so.

    Raises:
        ValueError: If two things share a name, a push names no body, or the number of panels is wrong.
    """

    bodies: tuple[Body, ...]
    pushes: tuple[Push, ...] = ()
    markers: tuple[Marker, ...] = ()
    gravity: float = 9.81
    floor_friction: float = 0.8
    camera: Camera = field(default_factory=Camera)
    light: Light = field(default_factory=Light)
    background: Background = field(default_factory=Background)
    palette: str = "standard"
    panels: tuple[float, ...] = ()
    shown: str = ""

    def __post_init__(self) -> None:
        names = [body.name for body in self.bodies]
        everything = names + [marker.name for marker in self.markers]
        if len(set(everything)) != len(everything):
            raise ValueError(f"the names of bodies and markers must be unique, got {everything}")
        if len(self.panels) not in (0, PANELS):
            raise ValueError(f"a scene has no panels or {PANELS}, got {len(self.panels)}")
        for push in self.pushes:
            if push.body not in names:
                raise ValueError(f"a push names the body {push.body!r}, which is not in the scene ({', '.join(names)})")

    def body(self, name: str) -> Body:
        """The body of that name.

        Raises:
            KeyError: If there is none.
        """
        for body in self.bodies:
            if body.name == name:
                return body
        raise KeyError(f"no body {name!r} in the scene; there are {', '.join(b.name for b in self.bodies)}")

    def moved(self, name: str, dx: float = 0.0, dz: float = 0.0) -> Scene:
        """A copy in which one body is displaced by (dx, dz) metres in the image plane.

        Args:
            name: Of the body.
            dx, dz: Metres to the right and up.

        Raises:
            KeyError: If there is no such body.
        """
        target = self.body(name)
        x, y, z = target.position
        # Rounded to a micrometre so that a displaced scene hashes alike however the sum was formed.
        shifted = replace(target, position=(round(x + dx, 6), y, round(z + dz, 6)))
        return replace(self, bodies=tuple(shifted if body is target else body for body in self.bodies))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data; `Scene.from_dict` is its inverse."""
        return _plain(self) | {
            "bodies": [_plain(body) for body in self.bodies],
            "pushes": [_plain(push) for push in self.pushes],
            "markers": [_plain(marker) for marker in self.markers],
            "camera": _plain(self.camera),
            "light": _plain(self.light),
            "background": _plain(self.background),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scene:
        """Rebuild a scene from `to_dict` data (or its JSON round trip).

        Raises:
            ValueError: If a field is missing, unknown or of the wrong form; the message names it.
        """
        data = _known(cls, data)
        try:
            return cls(
                bodies=tuple(_build(Body, body) for body in data["bodies"]),
                pushes=tuple(_build(Push, push) for push in data.get("pushes", ())),
                markers=tuple(_build(Marker, marker) for marker in data.get("markers", ())),
                gravity=float(data.get("gravity", 9.81)),
                floor_friction=float(data.get("floor_friction", 0.8)),
                camera=_build(Camera, data.get("camera", {})),
                light=_build(Light, data.get("light", {})),
                background=_build(Background, data.get("background", {})),
                palette=str(data.get("palette", "standard")),
                panels=tuple(float(moment) for moment in data.get("panels", ())),
                shown=str(data.get("shown", "")),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a scene: {error}") from error

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. Equal scenes give equal strings."""
        return dumps(self.to_dict(), sort_keys=True, compact=True, ascii_only=True)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the canonical JSON, as hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def mirror(scene: Scene) -> Scene:
    """The scene reflected in the plane x = 0, so that its image is the mirror image (up to rasterisation)."""

    def flip(v: Vec3) -> Vec3:
        return (-v[0] + 0.0, v[1], v[2])  # + 0.0 turns -0.0 into 0.0, which would otherwise change the hash

    def turn(thing: Body | Marker) -> Quaternion:
        x, y, z, w = thing.orientation
        if thing.shape in ("wedge", "arrow"):
            # Not symmetric along its own x axis, but along y: its mirror image is itself turned half about z.
            return (-y + 0.0, -x + 0.0, w, z)
        return (x, -y + 0.0, -z + 0.0, w)

    def turned_over(texture: str) -> str:
        return texture.removesuffix(MIRRORED) if texture.endswith(MIRRORED) else texture and texture + MIRRORED

    background = scene.background
    return replace(
        scene,
        bodies=tuple(
            replace(
                b,
                position=flip(b.position),
                velocity=flip(b.velocity),
                orientation=turn(b),
                texture=turned_over(b.texture),
            )
            for b in scene.bodies
        ),
        markers=tuple(
            replace(m, position=flip(m.position), orientation=turn(m), texture=turned_over(m.texture))
            for m in scene.markers
        ),
        pushes=tuple(replace(push, force=flip(push.force), point=flip(push.point)) for push in scene.pushes),
        camera=replace(scene.camera, target=flip(scene.camera.target), yaw=-scene.camera.yaw + 0.0),
        light=replace(scene.light, direction=flip(scene.light.direction)),
        background=replace(
            background,
            floor_texture=turned_over(background.floor_texture),
            sky_texture=turned_over(background.sky_texture),
        ),
    )


def _check_colour(kind: str, name: str, colour: str) -> None:
    if colour not in COLOURS and colour not in NEUTRALS:
        raise ValueError(f"{kind} {name!r}: colour {colour!r} is not one of {', '.join((*COLOURS, *NEUTRALS))}")


def _plain(data: Any) -> dict[str, Any]:
    """One level of a dataclass as a dictionary: `dataclasses.asdict` copies deeply, at ten times the cost."""
    return {name: getattr(data, name) for name in data.__slots__}


def _known(cls: type, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"not a {cls.__name__.lower()}: expected an object, got {type(data).__name__}")
    unknown = set(data) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"not a {cls.__name__.lower()}: unknown field {sorted(unknown)[0]!r}")
    return data


def _build(cls: type, data: Any) -> Any:
    """A frozen dataclass from JSON data, with lists turned back into tuples of floats."""
    known = _known(cls, data)
    kinds = {f.name: str(f.type) for f in fields(cls)}
    return cls(**{name: _value(cls, name, kinds[name], value) for name, value in known.items()})


def _value(cls: type, name: str, kind: str, value: Any) -> Any:
    """A field's value from JSON data. Raises ValueError if it is of another kind than the field."""
    if kind in _LENGTHS:
        if isinstance(value, (list, tuple)) and len(value) == _LENGTHS[kind] and all(map(_finite, value)):
            return tuple(float(x) for x in value)
    elif _finite(value) if kind == "float" else isinstance(value, {"str": str, "bool": bool}[kind]):
        return value
    raise ValueError(f"not a {cls.__name__.lower()}: {name} is {str(value)[:40]!r}")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
