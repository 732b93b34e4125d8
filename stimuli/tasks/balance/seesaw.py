"""What a loaded plank is: its geometry on a millimetre grid, its look, its centre of mass, and when it has tilted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.look import draw_colours, draw_surroundings
from vlm_probe.stimuli.scene import Body, Camera, Scene, Vec3
from vlm_probe.stimuli.shapes import WALL, bottom, corners, volume
from vlm_probe.stimuli.simulators import Outcome, Stop
from vlm_probe.stimuli.statics import centre_of_mass, seesaw_margin

Floats = npt.NDArray[np.float64]

LENGTH, DEPTH, THICKNESS = 0.40, 0.05, 0.012
"""Extents of the plank, metres."""
HEIGHT = 0.06
"""Of the fulcrum, metres: an end of the plank that has come down to the floor is about 18 degrees lower."""
FRICTION = 0.9
"""Of everything, so that nothing slides on a tilted plank (the product of two is 0.81: it holds up to 39 degrees)."""
DENSITY = 600.0
"""Kilograms per cubic metre of what is all of one material: wood."""
GAP = 0.005
"""Metres at least between two objects, and metres an object keeps from the ends of the plank."""
MARGIN_BINS = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.7))
"""|margin| of the designed sets, half widths of the fulcrum: near, middle and far from the boundary."""
TILTED = 6.0
"""Degrees by which a plank has turned when its outcome is decided: it turns back from no such angle."""
SHOWN = ("size", "colour", "text")
"""How weight is shown: by size at equal density, by colour with a legend in the prompt, or stated in the prompt."""
SHAPE_WORDS = {"box": "box", "cylinder": "cylinder", "sphere": "ball", "wedge": "wedge"}
SIDES = {-1: "left", 0: "balanced", 1: "right"}

# Sizes on a millimetre grid, smallest to largest: what "weight is size" chooses from.
SIZES: dict[str, tuple[Vec3, ...]] = {
    "box": tuple((edge / 1000, DEPTH, edge / 1000) for edge in range(28, 73, 2)),
    "cylinder": tuple((edge / 1000, edge / 1000, 1.4 * edge / 1000) for edge in range(25, 56, 5)),
    "sphere": tuple((edge / 1000,) * 3 for edge in range(34, 63, 4)),
    "wedge": tuple((edge / 1000, DEPTH, edge / 1500) for edge in range(42, 103, 6)),
}
# Equal volumes (100 cubic centimetres to 2 %), so that size says nothing about weight.
EQUAL: dict[str, Vec3] = {
    "box": (0.045, 0.050, 0.045),
    "cylinder": (0.046, 0.046, 0.060),
    "sphere": (0.058, 0.058, 0.058),
    "wedge": (0.066, 0.050, 0.061),
}
CRADLE = (0.8, 0.7, 0.3)
"""Extents of the cradle of a ball, in diameters: the ball rests on the inner edges of the two walls."""


@dataclass(frozen=True, slots=True)
class Load:
    """Something to be put on a plank.

    Attributes:
        shape: "box", "cylinder", "sphere" (in a cradle) or "wedge".
        size: Full extents, metres (of the ball alone).
        mass: Kilograms, a ball together with its cradle.
        facing: Of a wedge: 1 if it slopes down to the right, -1 to the left.
    """

    shape: str
    size: Vec3
    mass: float
    facing: int = 1

    @property
    def width(self) -> float:
        """Of what it covers along the plank, metres."""
        return self.size[0]

    @property
    def offset(self) -> float:
        """Of its centre of mass from the middle of what it covers, metres."""
        return -self.facing * self.size[0] / 6 if self.shape == "wedge" else 0.0


@dataclass(frozen=True, slots=True)
class Layout:
    """A plank with its loads, measured from the middle of the fulcrum.

    Attributes:
        half_width: Half the width of the fulcrum's top, metres.
        offset: Of the plank's middle, metres.
        plank_mass: Kilograms.
        loads: What stands on it.
        places: The middle of what each load covers, metres.
    """

    half_width: float
    offset: float
    plank_mass: float
    loads: tuple[Load, ...]
    places: tuple[float, ...]

    def with_load(self, index: int, load: Load, place: float) -> Layout:
        """A copy in which one load is another one, or stands elsewhere.

        Args:
            index: Of the load.
            load: What stands there instead.
            place: The middle of what it covers, from the fulcrum's, metres.
        """
        loads, places = list(self.loads), list(self.places)
        loads[index], places[index] = load, place
        return replace(self, loads=tuple(loads), places=tuple(places))

    def about(self, fulcrum: float) -> Layout:
        """A copy in which the fulcrum stands that much further to the right, metres."""
        places = tuple(round(place - fulcrum, 6) for place in self.places)
        return replace(self, offset=round(self.offset - fulcrum, 6), places=places)

    def free(self, index: int, width: Floats | float, places: Floats | float) -> npt.NDArray[np.bool_]:
        """(k,) whether load `index` could stand at each of the places, with that width, clear of the ends and the others.

        Args:
            index: Of the load.
            width: (k,) metres.
            places: (k,) the middle of what it would cover, from the fulcrum's, metres.
        """
        places = np.asarray(places, dtype=float)
        clear = np.abs(places - self.offset) <= LENGTH / 2 - GAP - np.asarray(width) / 2 + 1e-9
        for other, (load, place) in enumerate(zip(self.loads, self.places, strict=True)):
            if other != index:
                clear &= np.abs(places - place) >= (np.asarray(width) + load.width) / 2 + GAP - 1e-9
        return clear


@dataclass(frozen=True, slots=True)
class Standing:
    """One object on the plank of a scene, a ball together with its cradle.

    Attributes:
        body: The object itself.
        x: Of its centre of mass, from the middle of the fulcrum, metres.
        mass: Kilograms.
        volume: Cubic metres.
        span: From where to where it covers the plank, metres in the world.
    """

    body: Body
    x: float
    mass: float
    volume: float
    span: tuple[float, float]


def plank_mass() -> float:
    """Kilograms of a plank of the common material."""
    return round(DENSITY * LENGTH * DEPTH * THICKNESS, 6)


def cradle_size(diameter: float) -> Vec3:
    """Extents of the cradle of a ball, metres."""
    x, y, z = (round(diameter * share, 6) for share in CRADLE)
    return (x, y, z)


def load_volume(shape: str, size: Vec3) -> float:
    """Of a load, a ball together with its cradle, cubic metres.

    Args:
        shape: Of the load.
        size: Full extents, metres (of the ball alone).
    """
    return volume(shape, size) + (volume("cradle", cradle_size(size[0])) if shape == "sphere" else 0.0)


def whole(shape: str, size: Vec3, facing: int = 1) -> Load:
    """A load of the common material.

    Args:
        shape: Of the load.
        size: Full extents, metres (of the ball alone).
        facing: Of a wedge: 1 if it slopes down to the right, -1 to the left.
    """
    return Load(shape, size, round(DENSITY * load_volume(shape, size), 6), facing)


def scatter(rng: np.random.Generator, loads: Sequence[Load]) -> tuple[float, ...] | None:
    """Random places for the loads, in their order, from the plank's middle; None if they do not fit on it.

    Args:
        rng: Draws the gaps.
        loads: From left to right.

    Returns:
        The middle of what each covers, metres; None if they do not fit.
    """
    widths = np.array([load.width for load in loads])
    room = LENGTH - 2 * GAP - widths.sum() - GAP * (len(loads) - 1)
    if room < 0:
        return None
    spaces = rng.dirichlet(np.ones(len(loads) + 1))[:-1] * room
    left = -LENGTH / 2 + GAP + np.cumsum(spaces) + np.concatenate([[0.0], np.cumsum(widths + GAP)[:-1]])
    places: list[float] = np.floor(1000 * (left + widths / 2) + 1e-6).astype(int).tolist()
    return tuple(place / 1000 for place in places)


class Look:
    """Everything about an image that is not physics: colours, camera, light, place. Drawn once, shared by foils.

    Args:
        rng: Draws it.
        reserved: A colour that is left out.
    """

    def __init__(self, rng: np.random.Generator, reserved: str | None = None) -> None:
        self.colours = draw_colours(rng, 6, reserved)
        self.shades: list[float] = np.round(rng.uniform(0.92, 1.05, 8), 2).tolist()
        self.place = float(np.round(rng.uniform(-0.015, 0.015), 3))  # of the plank's middle in the image, metres
        self.camera = Camera(
            target=(float(np.round(rng.uniform(-0.01, 0.01), 3)), 0.0, float(np.round(rng.uniform(0.075, 0.09), 3))),
            distance=float(np.round(rng.uniform(0.78, 0.81), 3)),
            yaw=float(np.round(rng.uniform(-4, 4), 1)),
            pitch=float(np.round(rng.uniform(-11, -7), 1)),
        )
        surroundings = draw_surroundings(rng)
        self.light, self.background = surroundings.light, surroundings.background

    def scene(self, layout: Layout, shown: str, colours: Sequence[str] | None = None) -> Scene:
        """The scene of a layout, its loads named load1, load2, ... from left to right, in those colours.

        Args:
            layout: What is shown.
            shown: How weight is shown (`SHOWN`); empty where it does not matter.
            colours: Of the loads; by default this look's own.
        """
        origin = round(self.place - layout.offset, 6)
        bodies = [
            Body(
                "fulcrum",
                "box",
                (round(2 * layout.half_width, 6), DEPTH, HEIGHT),
                (origin, 0.0, HEIGHT / 2),
                "grey",
                friction=FRICTION,
                fixed=True,
            ),
            Body(
                "plank",
                "box",
                (LENGTH, DEPTH, THICKNESS),
                (round(origin + layout.offset, 6), 0.0, round(HEIGHT + THICKNESS / 2, 6)),
                "brown",
                mass=layout.plank_mass,
                friction=FRICTION,
                shade=self.shades[-1],
            ),
        ]
        floor = HEIGHT + THICKNESS
        for number, (load, place) in enumerate(zip(layout.loads, layout.places, strict=True)):
            colour = (colours or self.colours)[number]
            bodies += load_bodies(load, f"{number + 1}", (origin + place, 0.0, floor), colour, self.shades[number])
        return Scene(tuple(bodies), camera=self.camera, light=self.light, background=self.background, shown=shown)


def load_bodies(load: Load, number: str, place: Vec3, colour: str, shade: float = 1.0) -> list[Body]:
    """The bodies of a load (a ball has a cradle) on the ground at `place`, the middle of what it covers, metres.

    Args:
        load: The load.
        number: Ends the names of its bodies.
        place: The middle of what it covers, metres.
        colour: Of its body; cradles are black.
        shade: Brightness of that colour.
    """
    x, y, z = place
    # Exact, where about_z(180) would leave a cosine of 6e-17.
    turn = (0.0, 0.0, 1.0, 0.0) if load.shape == "wedge" and load.facing < 0 else (0.0, 0.0, 0.0, 1.0)
    mass = load.mass
    bodies = []
    if load.shape == "sphere":
        size = cradle_size(load.size[0])
        share = volume("cradle", size) / load_volume("sphere", load.size)
        position = (round(x, 6), y, round(z + bottom("cradle", size), 6))
        cradle_mass = round(load.mass * share, 6)
        mass = round(load.mass - cradle_mass, 6)
        bodies.append(Body(f"cradle{number}", "cradle", size, position, "black", mass=cradle_mass, friction=FRICTION))
        z += seat(load.size[0])
    position = (round(x + load.offset, 6), y, round(z + bottom(load.shape, load.size), 6))
    bodies.append(
        Body(f"load{number}", load.shape, load.size, position, colour, mass, FRICTION, orientation=turn, shade=shade)
    )
    return bodies


def seat(diameter: float) -> float:
    """Height of the lowest point of a ball above the ground on which its cradle stands, metres."""
    x, _, z = cradle_size(diameter)
    inside = x * (0.5 - WALL)
    return z - diameter / 2 + math.sqrt((diameter / 2) ** 2 - inside**2)


def standing(scene: Scene) -> list[Standing]:
    """The objects on the plank from left to right."""
    fulcrum, plank = scene.body("fulcrum"), scene.body("plank")
    cradles = {b.name.removeprefix("cradle"): b for b in scene.bodies if b.name.startswith("cradle")}
    found = []
    for body in scene.bodies:
        if not body.name.startswith(("load", "counterweight")) or body.position[2] < plank.position[2]:
            continue
        cradle = cradles.get(body.name.removeprefix("load"))
        mass, size = body.mass, volume(body.shape, body.size)
        if cradle is not None:
            mass, size = mass + cradle.mass, size + volume("cradle", cradle.size)
        across = corners(body)[:, 0]
        span = float(across.min()), float(across.max())
        found.append(Standing(body, body.position[0] - fulcrum.position[0], mass, size, span))
    return sorted(found, key=lambda thing: thing.x)


def arrays(scene: Scene) -> tuple[Floats, Floats]:
    """Centres of mass from the fulcrum's middle (metres) and masses (kg) of the plank and all that stands on it."""
    plank, things = scene.body("plank"), standing(scene)
    centre = plank.position[0] - scene.body("fulcrum").position[0]
    return np.array([centre, *(t.x for t in things)]), np.array([plank.mass, *(t.mass for t in things)])


def half_width(scene: Scene) -> float:
    """Half the width of the fulcrum's top, metres."""
    return scene.body("fulcrum").size[0] / 2


def lean(scene: Scene) -> float:
    """Common centre of mass of plank and objects, from the fulcrum's middle in its half widths: positive is right."""
    return float(centre_of_mass(*arrays(scene))) / half_width(scene)


def scene_margin(scene: Scene) -> float:
    """Signed margin of the loaded plank, half widths of the fulcrum (see `vlm_probe.stimuli.statics.seesaw_margin`)."""
    return float(seesaw_margin(lean(scene), 1.0))


def side_of(scene: Scene) -> str:
    """What statics says: "left", "right" or "balanced"."""
    leaning = lean(scene)
    return "balanced" if abs(leaning) < 1 else ("right" if leaning > 0 else "left")


def tilted(scene: Scene) -> Stop:
    """A stop condition: the plank has turned by more than `TILTED` degrees, so the outcome is decided."""
    reading, limit = _slope(scene), math.sin(math.radians(TILTED))
    return lambda positions: abs(reading(positions)) > limit


def outcome_side(scene: Scene, outcome: Outcome) -> str:
    """What happened: "left", "right" or "balanced"."""
    if not outcome.decided:
        return "balanced"
    return "right" if _slope(scene)(outcome.positions[-1]) > 0 else "left"


def _slope(scene: Scene) -> Callable[[Floats], float]:
    """Sine of the plank's angle, positive where its right end is down, from the positions (n, 3) of the bodies.

    A stop condition sees positions only. The plank turns about the right edge of the fulcrum or about the left one, and
    each way everything sinks in proportion to how far beyond that edge it stands (and rises on the other side): the angle
    is that of the better of the two least-squares fits.
    """
    things = [scene.body("plank"), *(thing.body for thing in standing(scene))]
    rows = [scene.bodies.index(thing) for thing in things]
    height = np.array([thing.position[2] for thing in things])
    x = np.array([thing.position[0] for thing in things]) - scene.body("fulcrum").position[0]
    arms = np.stack([half_width(scene) - x, half_width(scene) + x])  # about the right edge, about the left one
    squares = (arms**2).sum(axis=1)

    def slope(positions: Floats) -> float:
        rise = positions[rows, 2] - height
        sines = np.maximum(arms @ rise / squares, 0.0)
        misfit = ((rise - sines[:, None] * arms) ** 2).sum(axis=1)
        return float(sines[0] if misfit[0] <= misfit[1] else -sines[1])

    return slope
