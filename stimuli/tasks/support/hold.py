"""support-hold: does the structure stay up under a push from the side?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.condition import Condition, in_bin
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.question import THINK, Answer, ChoiceFormat, Option, Question, Variant, named_options
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.tasks import SamplingFailed, Task
from vlm_probe.stimuli.tasks.support.structure import (
    FRICTION_NEEDED,
    MARGIN_BINS,
    THICKNESS,
    Floats,
    Load,
    Look,
    Post,
    Structure,
    direction,
    force,
    loads,
    posts,
    push_margin,
    simulate,
    stated_weights,
    weight,
    withstood,
)

# Wordings by polarity: whether "yes" means that the structure holds, or that it comes down.
HOLD = (
    "Does the structure stay up?",
    "Nothing is glued together. Will everything remain standing?",
    "Do the posts and the plank withstand this push, so that nothing comes down?",
    "Will the structure keep standing while it is pushed?",
)
FALL = (
    "Does the structure come down?",
    "Nothing is glued together. Will something topple?",
    "Is this push too much for the posts and the plank, so that they come down?",
    "Will the structure collapse while it is pushed?",
)
Mask = npt.NDArray[np.bool_]

TRIES = 6
"""Other places tried for the body that moves, per structure that holds."""
SMALLEST_FORCE = 0.8
"""Newtons."""
UNPUSHED = 0.25
"""Half widths of the narrowest post by which the centre of the weight lies inside the supports."""
CLEAR = 1.4
"""By how many times the load itself must withstand the push that brings the structure down."""


class SupportHold(Task):
    """Does the structure stay up while it is pushed, or does it come down?

    Items come as minimal pairs: the same image, push and weights except for the place of one body, the load or a post. Force,
    height and everything stated are thus the same for both outcomes. On one post a load ahead of the post always makes the
    structure weaker, so both members of a pair have the load ahead of it, or both behind. On two posts of different width the load
    makes the structure stronger where it presses on the wider post, which half the pairs have ahead.
    """

    name: ClassVar[str] = "support-hold"
    family: ClassVar[str] = "support"
    facts: ClassVar[str] = (
        "A pushed structure comes down when the push, times its height above an edge about which a part can tip, exceeds the "
        "weight of that part times the distance of its centre of mass from that edge. Two posts under a plank tip together, and "
        "each withstands the more, the wider it is and the more weight presses on it."
    )
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    known_shortcuts: ClassVar[Mapping[str, str]] = {
        "overturning as one block": "on one post it is the physics itself; at chance on two",
        "load ahead of the posts": "on one post, the further ahead the load the weaker the structure: a fitted threshold is right on "
        "most pairs there; at chance on two",
        "load nearer to the wider post": "on two posts it is half of the physics; at chance on one",
    }

    def conditions(self) -> tuple[Condition, ...]:
        """Number of posts x |margin| bin x body pushed x (one post) load ahead or behind, (two) whether ahead is weaker."""
        one = [
            Condition(1, margin_bin, f"{pushed}-{kind}")
            for margin_bin in MARGIN_BINS
            for pushed in ("plank", "load", "post")
            for kind in ("ahead", "behind")
        ]
        # Beyond 0.4 the place of one body does not decide on two posts. The two bins there are count twice.
        two = [
            Condition(2, margin_bin, f"{pushed}-{kind}")
            for margin_bin in 2 * MARGIN_BINS[:2]
            for pushed in ("plank", "load")
            for kind in ("plain", "tricky")
        ]
        return (*one, *two)

    def foil_condition(self, condition: Condition) -> Condition:
        """The same cell on the other side of the boundary."""
        low, high = condition.margin_bin
        return replace(condition, margin_bin=(-high, -low))

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene, Scene]:
        """The scene on the condition and its foil, in which one body stands elsewhere and the outcome is the other."""
        low, high = condition.margin_bin
        if low < 0 < high or (low, high) == (0.0, 0.0):
            raise SamplingFailed(f"{self.name} needs a margin bin on one side of 0, got ({low}, {high})")
        holds_bin = condition.margin_bin if low >= 0 else (-high, -low)
        holds, falls = _pair(rng, condition.count, holds_bin, condition.build)
        look = Look(rng, condition.count + 1)
        first, second = look.scene(holds), look.scene(falls)
        return (first, second) if low >= 0 else (second, first)

    def margin(self, scene: Scene) -> float:
        """(critical force - force) / critical force."""
        return push_margin(scene)

    def critical(self, scene: Scene) -> Mapping[str, str | int]:
        """Where the push acts."""
        return {"ask": "arrow-target"}

    def question(self, scene: Scene, variant: Variant) -> Question:
        """A yes/no question; polarity 0 asks whether it stays up, 1 whether it comes down."""
        yes, no = ("holds", "falls") if variant.polarity == 0 else ("falls", "holds")
        options, clause = named_options((Option("yes", yes), Option("no", no)), variant.order)
        wording = (HOLD, FALL)[variant.polarity][variant.paraphrase]
        body = scene.pushes[0].body
        target = f"the {scene.body(body).colour} {'post' if body in [p.name for p in posts(scene)] else 'load'}"
        prompt = (
            f"A steady push of {force(scene):.1f} N acts on {'the plank' if body == 'plank' else target} where the arrow points."
            f" {stated_weights(scene)} {wording} Answer with one word: {clause}."
        )
        return Question(prompt + (THINK if variant.style == "think" else ""), ChoiceFormat(options), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """ "holds" or "falls", by simulation."""
        return "falls" if simulate(scene, simulator).decided else "holds"

    def statics_answer(self, scene: Scene) -> Answer:
        """ "holds" or "falls", by the sign of the margin."""
        return "holds" if self.margin(scene) > 0 else "falls"

    def cues(self) -> Mapping[str, Callable[[Scene], float]]:
        """Numbers that are not the physics, but go with it in badly designed sets."""
        return {
            "force": force,
            "height of the push": lambda scene: scene.pushes[0].point[2],
            "arrow length": lambda scene: scene.markers[0].size[0],
            "force as a share of the weight": _force_share,
            "height": lambda scene: max(b.position[2] + b.size[2] / 2 for b in scene.bodies),
            "weight of the load": lambda scene: weight(scene, loads(scene)[0]),
            "width of the posts": lambda scene: sum(p.size[0] for p in posts(scene)),
            "load off centre": lambda scene: abs(_ahead(scene)),
            "load ahead of the posts": _ahead,
            "load off the middle of the plank": lambda s: abs(loads(s)[0].position[0] - s.body("plank").position[0]),
            "load ahead in the plank": lambda s: direction(s) * (loads(s)[0].position[0] - s.body("plank").position[0]),
            "distance to the nearest post": lambda s: min(
                abs(loads(s)[0].position[0] - p.position[0]) for p in posts(s)
            ),
            "load nearer to the wider post": _to_wider,
            "distance between the posts": lambda s: (
                max(p.position[0] for p in posts(s)) - min(p.position[0] for p in posts(s))
            ),
            "overturning as one block": _as_one_block,
        }

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Answers from one look: where the load is, or whether the push exceeds a fifth of all weight."""
        return {
            "load ahead of the posts": lambda scene: "falls" if _ahead(scene) > 0 else "holds",
            "force above a fifth of the weight": lambda scene: "falls" if _force_share(scene) > 0.2 else "holds",
            "overturning as one block": lambda scene: "falls" if _as_one_block(scene) < 0 else "holds",
        }


def _ahead(scene: Scene) -> float:
    """How far the load is ahead of the middle of the posts, in the direction of the push, metres."""
    return direction(scene) * (loads(scene)[0].position[0] - float(np.mean([p.position[0] for p in posts(scene)])))


def _force_share(scene: Scene) -> float:
    return force(scene) / sum(weight(scene, b) for b in scene.bodies)


def _to_wider(scene: Scene) -> float:
    """How far the load is off the middle of the posts towards the wider one, metres; 0 on one post."""
    first, *others = sorted(posts(scene), key=lambda p: p.size[0])
    if not others:
        return 0.0
    middle = (first.position[0] + others[0].position[0]) / 2
    return float(np.sign(others[0].position[0] - middle)) * (loads(scene)[0].position[0] - middle)


def _as_one_block(scene: Scene) -> float:
    """The margin that the structure would have if all its bodies were glued together: right on one post, wrong on two."""
    sign, push = direction(scene), scene.pushes[0]
    total = np.array([weight(scene, b) for b in scene.bodies])
    centre = sign * float(total @ [b.position[0] for b in scene.bodies] / total.sum())
    edge = max(sign * p.position[0] + p.size[0] / 2 for p in posts(scene))
    return (edge - centre) * float(total.sum()) / push.point[2] / force(scene) - 1


def _pair(
    rng: np.random.Generator, count: int, holds_bin: tuple[float, float], build: str
) -> tuple[Structure, Structure]:
    """A structure that holds and one that falls, which differ in the place of one body, both in the bin on their side."""
    pushed, _, kind = build.partition("-")
    if pushed not in ("plank", "load", "post") or kind not in ("ahead", "behind", "plain", "tricky"):
        raise InvalidInput(f"support-hold knows no build {build!r}; use plank, load or post, and e.g. -plain")
    if count > 2:
        raise SamplingFailed(
            f"support-hold has one post or two, not {count}: with more, statics does not say what happens"
        )
    falls_bin = (-holds_bin[1], -holds_bin[0])
    batch = 1024
    for _ in range(60):
        a = _draw(rng, count, batch, pushed)
        critical = _critical(a)
        a["force"] = np.round((1 - rng.uniform(*holds_bin, batch)) * critical, 1)
        a = _rows(a, (a["force"] >= SMALLEST_FORCE) & _sound(a, critical))
        critical = _critical(a)
        a = _rows(a, in_bin(1 - a["force"] / np.maximum(critical, 1e-9), holds_bin))
        # Several other places for the one body that moves, for every structure that can be the one that holds.
        a = _rows(a, np.repeat(np.arange(len(a["force"])), TRIES))
        size = len(a["force"])
        b = dict(a)
        column = rng.integers(-1, count, size)  # -1 is the load
        load, posts_x = a["load"].copy(), a["x"].copy()
        reach = a["length"] / 2 - a["load_width"] / 2
        load[column < 0] = np.round(rng.uniform(-reach, reach), 3)[column < 0]
        for i in range(count):
            elsewhere = np.round(posts_x[:, i] + rng.uniform(-0.08, 0.08, size), 3)
            posts_x[column == i, i] = elsewhere[column == i]
        b["load"], b["x"] = load, posts_x
        other = _critical(b)
        good = _sound(b, other) & in_bin(1 - a["force"] / np.maximum(other, 1e-9), falls_bin)
        u, v = (s["load"] - s["x"].mean(axis=1) for s in (a, b))
        if count == 1:
            side = 1 if kind == "ahead" else -1
            good &= (side * u > 0.005) & (side * v > 0.005)
        else:
            good &= (v > u + 0.005) if kind == "plain" else (v < u - 0.005)
        found = np.flatnonzero(good)
        if len(found):
            return _structure(a, found[0], pushed), _structure(b, found[0], pushed)
        batch = min(2 * batch, 16384)
    raise SamplingFailed(f"found no {build} pair on {count} post(s) with |margin| in {holds_bin}")


def _draw(rng: np.random.Generator, count: int, batch: int, pushed: str) -> dict[str, Floats]:
    """That many structures, columns by name, on a grid of a millimetre and a tenth of a newton."""
    height: Floats = np.round(rng.uniform(0.12, 0.19, batch), 3)
    length: Floats = np.round(rng.uniform(0.26, 0.34, batch), 2)
    width: Floats
    if count == 1:
        width = np.round(rng.uniform(0.05, 0.09, (batch, 1)), 3)
        x = np.round(rng.uniform(-0.06, 0.06, (batch, 1)), 3)
    else:
        # A narrow and a wide post, in either order.
        either = np.stack([rng.uniform(0.02, 0.05, batch), rng.uniform(0.05, 0.1, batch)], axis=1)
        width = np.round(rng.permuted(either, axis=1), 3)
        x = np.round(np.sort(rng.uniform(-0.5, 0.5, (batch, 2)), axis=1) * (length[:, None] - width), 3)
    load_width, load_height = np.round(rng.uniform(0.05, 0.08, (2, batch)), 3)
    share = rng.uniform(0.15, 0.9, batch)
    push_height = {
        "plank": height + THICKNESS / 2,
        "load": height + THICKNESS + share * load_height,
        "post": height * (0.45 + 0.5 * share),
    }[pushed]
    reach = (length - load_width) / 2
    return {
        "height": height,
        "length": length,
        "width": width,
        "x": x,
        "post_weight": np.round(rng.uniform(20, 40, (batch, count)) * width, 1),
        "plank_weight": np.round(rng.uniform(2.0, 4.0, batch), 1),
        "load_width": load_width,
        "load_height": load_height,
        "load_weight": np.round(rng.uniform(8.0, 20.0, batch), 1),
        "load": np.round(rng.uniform(-1, 1, batch) * reach, 3),
        "push_height": np.round(push_height, 3),
        "round": (rng.random(batch) < 0.5).astype(float),
    }


def _critical(s: dict[str, Floats]) -> Floats:
    """The critical force of every structure, newtons (those that do not stand unpushed are left out by `_sound`)."""
    above = s["plank_weight"] + s["load_weight"]
    return withstood(
        s["x"] - s["width"] / 2,
        s["x"] + s["width"] / 2,
        s["post_weight"],
        s["height"],
        s["length"],
        above,
        s["load_weight"] * s["load"] / above,
        s["push_height"],
    )[1]


def _sound(s: dict[str, Floats], critical: Floats) -> Mask:
    """Which structures fit together, need no more friction than there is, and have loads that tip after all else."""
    x, width, length = s["x"], s["width"], s["length"]
    good: Mask = np.all(np.abs(x) + width / 2 <= length[:, None] / 2 + 1e-9, axis=1)
    good &= np.abs(s["load"]) <= (length - s["load_width"]) / 2 + 1e-9
    on = s["height"] + THICKNESS
    over = s["push_height"] > on
    with np.errstate(divide="ignore"):
        tips = s["load_weight"] * s["load_width"] / 2 / np.where(over, s["push_height"] - on, np.inf)
    # Without the push it stands well clear of tipping to either side.
    above = s["plank_weight"] + s["load_weight"]
    centre = s["load_weight"] * s["load"] / above
    inside = np.minimum(centre - (x - width / 2).min(axis=1), (x + width / 2).max(axis=1) - centre)
    good &= inside > UNPUSHED * width.min(axis=1) / 2
    slides = FRICTION_NEEDED * s["load_weight"]
    good &= ~over | ((np.where(over, tips, np.inf) > CLEAR * critical) & (slides > critical))
    if x.shape[1] == 1:
        return good & (critical < FRICTION_NEEDED * above)
    good &= x[:, 1] - x[:, 0] - width.mean(axis=1) > 0.03
    return good & (friction_needed(s, critical) < FRICTION_NEEDED)


def friction_needed(s: dict[str, Floats], push: Floats) -> Floats:
    """(batch,) the largest friction that the top of a post needs when two posts rock; infinite if one carries nothing.

    Args:
        s: Structures, columns by name, each (batch,) or (batch, posts).
        push: (batch,) newtons.
    """
    above = s["plank_weight"] + s["load_weight"]
    start = s["x"] - s["width"] / 2
    gap = np.where(start[:, 1] > start[:, 0], start[:, 1] - start[:, 0], 1.0)
    moment = s["load_weight"] * s["load"] + push * np.maximum(s["push_height"] - s["height"], 0.0)
    second = (moment - start[:, 0] * above) / gap
    reaction = np.stack([above - second, second], axis=1)
    carries: Mask = np.all(reaction > 0, axis=1)
    reaction = np.where(carries[:, None], reaction, 1.0)
    need = s["width"] * (1 + s["post_weight"] / 2 / reaction) / s["height"][:, None]
    return np.where(carries, need.max(axis=1), np.inf)


def _rows(s: dict[str, Floats], which: Any) -> dict[str, Floats]:
    return {name: values[which] for name, values in s.items()}


def _structure(s: dict[str, Floats], i: int, pushed: str) -> Structure:
    """One row as a structure."""
    return Structure(
        posts=tuple(
            Post(float(x), float(w), float(p))
            for x, w, p in zip(s["x"][i], s["width"][i], s["post_weight"][i], strict=True)
        ),
        height=float(s["height"][i]),
        length=float(s["length"][i]),
        plank_weight=float(s["plank_weight"][i]),
        loads=(
            Load(
                float(s["load"][i]),
                float(s["load_width"][i]),
                float(s["load_height"][i]),
                float(s["load_weight"][i]),
                "cylinder" if s["round"][i] else "box",
            ),
        ),
        # Of the posts the first, which is the one behind, is pushed.
        pushed="post1" if pushed == "post" else pushed,
        push_height=float(s["push_height"][i]),
        force=float(s["force"][i]),
    )
