"""What a structure is: posts, a plank on them, loads on the plank, a push; its statics, its look, and when it has come down.

Nothing is joined: posts, plank and loads are separate rigid bodies that hold each other by weight and friction. All posts of
a structure are equally high.

Statics under a push to the right. Let W be the weight of everything above the posts, x its centre, h the height of the posts
and F the push at height z. Post i, of weight p_i, touches the floor from l_i to r_i and the plank from c_i to e_i. Split F
into what racks the posts, F min(z, h), and what tilts the plank, F (z - h) where z > h. The reactions N_i of the posts act
somewhere in [c_i, e_i], add up to W and balance W x + F max(z - h, 0). A post rocks about its lower right corner, so the posts
together withstand sum_i N_i (r_i - x_i) + p_i (r_i - l_i) / 2. Every condition is linear in F, and the smallest F at which one
gives way is the critical force. This is the static theorem of limit analysis (Livesley 1978) for so few blocks that it can be
solved by hand, with friction high enough that nothing slides; the tests compare it with the linear programme, friction included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.look import draw_colours, draw_surroundings
from vlm_probe.stimuli.scene import Body, Camera, Marker, Push, Scene
from vlm_probe.stimuli.shapes import bottom
from vlm_probe.stimuli.simulators import Outcome, Simulator, Stop
from vlm_probe.stimuli.tasks import simulator_or_default

Floats = npt.NDArray[np.float64]

GRAVITY = 9.81
"""Metres per second squared, in designed scenes."""
FRICTION = 1.4
"""Of everything, like rubber."""
FRICTION_NEEDED = 0.55
"""Largest friction (product of two) that a contact of a designed scene may need at the critical force. A push then tips and
never slides, even with the least friction among the shifts."""
DEPTH = 0.08
"""Metres from front to back, of everything."""
THICKNESS = 0.02
"""Metres, of planks."""
PUSH_DURATION = 3.0
"""Seconds: many times what a structure takes to topple."""
SUNK = 0.08
"""Something that sank by this share of the plank's height above the floor has left its place."""
SETTLING = 0.8
"""Simulated seconds after which a structure at rest counts as holding: one that gives way moves from the first moment."""
MARGIN_BINS = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.7))
"""|margin| of the designed sets: near, middle and far from the boundary."""


def posts(scene: Scene) -> list[Body]:
    """The posts, in scene order (those named post1, post2, ...)."""
    return [b for b in scene.bodies if b.name.startswith("post")]


def loads(scene: Scene) -> list[Body]:
    """What lies on the plank, in scene order."""
    return [b for b in scene.bodies if b.name != "plank" and not b.name.startswith("post")]


def force(scene: Scene) -> float:
    """Size of the push, newtons; 0 without one."""
    return sum(abs(push.force[0]) for push in scene.pushes)


def direction(scene: Scene) -> int:
    """Where the push goes: 1 to the right, -1 to the left."""
    return -1 if scene.pushes and scene.pushes[0].force[0] < 0 else 1


def weight(scene: Scene, body: Body) -> float:
    """Of a body in a scene, newtons.

    Args:
        scene: For its gravity.
        body: Of it.
    """
    return body.mass * scene.gravity


def withstood(
    left: Floats,
    right: Floats,
    post_weight: Floats,
    height: Floats | float,
    length: Floats | float,
    above: Floats,
    centre: Floats,
    push_height: Floats | float,
) -> tuple[Floats, Floats]:
    """The weakest and the strongest push to the right that a structure on one or two posts withstands, newtons.

    The weakest is 0 unless the plank would tip backwards without a push (and infinite if no push at that height helps). Where
    the strongest is below the weakest, the structure comes down in any case.

    Args:
        left, right: (..., n) edges of the posts, n = 1 or 2, from left to right, metres.
        post_weight: (..., n) newtons.
        height: Of the posts, metres.
        length: Of the plank, whose middle is at 0, metres.
        above: (...,) weight of plank and loads, newtons.
        centre: (...,) their common centre, metres.
        push_height: Of the push above the floor, metres.
    """
    racking = np.minimum(push_height, height)
    tilting = push_height - racking
    start = np.maximum(left, -np.asarray(length)[..., None] / 2)
    end = np.minimum(right, np.asarray(length)[..., None] / 2)
    own = (post_weight * (right - left)).sum(axis=-1) / 2
    # Each condition holds as long as F <= capacity / lever.
    if left.shape[-1] == 1:
        rock = above * (right[..., 0] - centre) + own, racking + tilting
    else:
        gap = start[..., 1] - start[..., 0]
        share = (right[..., 1] - right[..., 0]) / np.where(gap > 0, gap, 1.0)
        rock = (
            above * (right[..., 0] - centre + share * (centre - start[..., 0])) + own,
            racking + tilting * (1 - share),
        )
    # With all the weight on the last post, the others cannot help it.
    last = (post_weight * (right - left))[..., -1] / 2
    overturn = above * (right[..., -1] - centre) + last, racking + tilting
    tip = above * (end[..., -1] - centre), tilting
    strongest = np.min([_quotient(capacity, lever) for capacity, lever in (rock, overturn, tip)], axis=0)
    lacking = above * (start[..., 0] - centre)
    weakest = np.where(lacking > 0, _quotient(lacking, tilting), 0.0)
    return weakest, np.where(centre <= end[..., -1], np.maximum(strongest, 0.0), 0.0)


def _quotient(capacity: Floats, lever: Floats) -> Floats:
    """capacity / lever, infinite without a lever."""
    useful = np.broadcast_to(lever > 1e-12, np.broadcast_shapes(np.shape(capacity), np.shape(lever)))
    return np.where(useful, capacity / np.where(useful, lever, 1.0), np.inf)


def margin_of(push: Floats | float, weakest: Floats | float, strongest: Floats | float) -> Floats:
    """(strongest - push) / strongest, or (push - weakest) / weakest if that is less; from -1 to 1.

    Args:
        push: (...,) newtons.
        weakest, strongest: (...,) newtons that the structure withstands, from `withstood`.
    """
    above = np.where(np.asarray(strongest) > 0, 1 - push / np.where(np.asarray(strongest) > 0, strongest, 1.0), -1.0)
    below = np.where(np.asarray(weakest) > 0, push / np.where(np.asarray(weakest) > 0, weakest, 1.0) - 1, 1.0)
    return np.clip(np.minimum(above, below), -1.0, 1.0)


def push_margin(scene: Scene) -> float:
    """(critical force - force) / critical force of a structure on one or two posts under a push; not below -1.

    The critical force is the strongest that the structure withstands. Where the plank would tip backwards without a push, the
    margin is (force - weakest) / weakest if that is less. Next to the structure as a whole, the pushed load may tip or slide on the plank, and everything may slide on the floor.
    """
    push, sign, plank = scene.pushes[0], direction(scene), scene.body("plank")
    z = push.point[2]
    on_top = loads(scene)
    above = np.array([weight(scene, b) for b in [plank, *on_top]])
    centre = float(above @ [sign * (b.position[0] - plank.position[0]) for b in [plank, *on_top]] / above.sum())
    standing = sorted(_touching(scene), key=lambda b: sign * b.position[0])
    if not standing:
        return -1.0
    # Along the push, from the middle of the plank.
    x = np.array([sign * (b.position[0] - plank.position[0]) for b in standing])
    width = np.array([b.size[0] for b in standing])
    weakest, strongest = withstood(
        x - width / 2,
        x + width / 2,
        np.array([weight(scene, b) for b in standing]),
        standing[0].size[2],
        plank.size[0],
        above.sum(),
        np.array(centre),
        z,
    )
    limits = [float(strongest)]
    limits.append(
        scene.floor_friction
        * min(b.friction for b in standing)
        * (above.sum() + sum(weight(scene, b) for b in standing))
    )
    if not push.body.startswith("post"):
        limits.append(plank.friction * min(b.friction for b in standing) * float(above.sum()))
    for body in on_top:
        if body.name == push.body:
            own = weight(scene, body)
            base = body.position[2] - bottom(body.shape, body.size)
            limits.append(own * body.size[0] / 2 / (z - base))
            limits.append(own * body.friction * plank.friction)
    return float(margin_of(force(scene), weakest, min(limits)))


def rest_margin(scene: Scene) -> float:
    """How far inside its supports the common centre of plank and loads lies, in mean half widths of posts, without a push.

    Positive stands. The structure stands if and only if that centre lies between the outermost points of contact with
    the posts. -1 without posts; not below -1 and not above 1.
    """
    plank, standing = scene.body("plank"), _touching(scene)
    if not standing:
        return -1.0
    above = [plank, *loads(scene)]
    mass = np.array([b.mass for b in above])
    centre = float(mass @ [b.position[0] for b in above] / mass.sum())
    low = max(min(b.position[0] - b.size[0] / 2 for b in standing), plank.position[0] - plank.size[0] / 2)
    high = min(max(b.position[0] + b.size[0] / 2 for b in standing), plank.position[0] + plank.size[0] / 2)
    half = float(np.mean([b.size[0] for b in posts(scene)])) / 2
    return float(np.clip(min(centre - low, high - centre) / half, -1.0, 1.0))


def _touching(scene: Scene) -> list[Body]:
    """The posts on which the plank lies."""
    plank = scene.body("plank")
    return [b for b in posts(scene) if abs(b.position[0] - plank.position[0]) < (b.size[0] + plank.size[0]) / 2 - 1e-9]


def come_down(scene: Scene) -> Stop:
    """A stop condition: something has sunk by more than `SUNK` of the plank's height, so the outcome is decided."""
    start = np.array([body.position[2] for body in scene.bodies])
    limit = SUNK * scene.body("plank").position[2]
    return lambda positions: bool((start - positions[:, 2] > limit).any())


def simulate(scene: Scene, simulator: Simulator | None = None) -> Outcome:
    """What happens to a structure; `decided` says that it came down.

    Args:
        scene: With or without a push.
        simulator: Engine; by default the standard one.
    """
    return simulator_or_default(simulator).simulate(scene, stop=come_down(scene), min_duration=SETTLING)


@dataclass(frozen=True, slots=True)
class Post:
    """A post: where its middle stands and how wide it is (metres), and its weight (newtons)."""

    x: float
    width: float
    weight: float


@dataclass(frozen=True, slots=True)
class Load:
    """Something on the plank: where its middle is, its width and height (metres), its weight (newtons), its shape."""

    x: float
    width: float
    height: float
    weight: float
    shape: str = "box"


@dataclass(frozen=True, slots=True)
class Structure:
    """A structure in its own coordinates: the middle of the plank is at x = 0, and the push goes to the right.

    Attributes:
        posts: From left to right.
        height: Of all posts, metres.
        length: Of the plank, metres.
        plank_weight: Newtons.
        loads: What lies on the plank.
        pushed: Name of the body that is pushed, or empty.
        push_height: Of the push, metres above the floor.
        force: Newtons.
    """

    posts: tuple[Post, ...]
    height: float
    length: float
    plank_weight: float
    loads: tuple[Load, ...]
    pushed: str = ""
    push_height: float = 0.0
    force: float = 0.0


class Look:
    """Everything about an image that is not physics: colours, camera, light, place. Drawn once, shared by foils.

    Args:
        rng: Draws it.
        colours: How many are needed.
    """

    def __init__(self, rng: np.random.Generator, colours: int) -> None:
        self.colours = draw_colours(rng, colours)
        self.shades = np.round(rng.uniform(0.9, 1.05, colours + 1), 2).tolist()
        self.plank = str(rng.choice(("white", "brown")))
        self.place = float(np.round(rng.uniform(-0.01, 0.01), 3))
        self.camera = Camera(
            target=(0.0, 0.0, float(np.round(rng.uniform(0.155, 0.17), 3))),
            distance=float(np.round(rng.uniform(0.91, 0.95), 3)),
            yaw=float(np.round(rng.uniform(-4, 4), 1)),
            pitch=float(np.round(rng.uniform(-10, -5), 1)),
        )
        surroundings = draw_surroundings(rng)
        self.light, self.background = surroundings.light, surroundings.background

    def scene(
        self, structure: Structure, names: Sequence[str] = ("load",), colours: Sequence[str] | None = None
    ) -> Scene:
        """The scene of a structure.

        Args:
            structure: What to build.
            names: Of the loads.
            colours: Of the posts and then the loads; this look's own by default.
        """
        hues, s = list(colours or self.colours), structure
        on = s.height + THICKNESS
        bodies = [
            self._body(f"post{i + 1}", "box", (p.width, DEPTH, s.height), p.x, s.height / 2, hues[i], p.weight, i)
            for i, p in enumerate(s.posts)
        ]
        plank = (s.length, DEPTH, THICKNESS)
        bodies.append(self._body("plank", "box", plank, 0.0, s.height + THICKNESS / 2, self.plank, s.plank_weight, -1))
        for i, (name, x) in enumerate(zip(names, s.loads, strict=True)):
            k = len(s.posts) + i
            # A cylinder is as deep as it is wide, or else it would not be round.
            size = (x.width, x.width if x.shape == "cylinder" else DEPTH, x.height)
            bodies.append(self._body(name, x.shape, size, x.x, on + x.height / 2, hues[k], x.weight, k))
        scene = Scene(tuple(bodies), floor_friction=FRICTION, camera=self.camera, light=self.light)
        scene = replace(scene, background=self.background, gravity=GRAVITY)
        if not s.pushed:
            return scene
        body = scene.body(s.pushed)
        point = (round(body.position[0] - body.size[0] / 2, 6), 0.0, round(s.push_height, 6))
        push = Push(s.pushed, (s.force, 0.0, 0.0), point, duration=PUSH_DURATION)
        length = round(float(np.clip(0.045 + 0.006 * s.force, 0.05, 0.09)), 3)
        middle = (round(point[0] - length / 2 - 0.003, 6), 0.0, point[2])
        arrow = Marker("arrow", "arrow", (length, 0.012, 0.032), middle, "black")
        return replace(scene, pushes=(push,), markers=(arrow,))

    def _body(
        self,
        name: str,
        shape: str,
        size: tuple[float, float, float],
        x: float,
        z: float,
        colour: str,
        newtons: float,
        shade: int,
    ) -> Body:
        return Body(
            name=name,
            shape=shape,
            size=(round(size[0], 6), round(size[1], 6), round(size[2], 6)),
            position=(round(x + self.place, 6), 0.0, round(z, 6)),
            colour=colour,
            # To a microgram, so that the weight is the stated tenth of a newton.
            mass=round(newtons / GRAVITY, 9),
            friction=FRICTION,
            shade=self.shades[shade],
        )


def stated_weights(scene: Scene) -> str:
    """The sentence that gives the weights in newtons, the same for a scene and its mirror image."""
    standing, on_top = posts(scene), loads(scene)
    parts = [
        f"the {b.colour} {'post' if b in standing else 'load'} {weight(scene, b):.1f} N" for b in (*standing, *on_top)
    ]
    return f"Weights: {', '.join(parts)}, the plank {weight(scene, scene.body('plank')):.1f} N."
