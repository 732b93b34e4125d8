"""support-brace: where must the post stand so that the loaded plank withstands the push?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.question import THINK, Answer, IntegerFormat, Question, Variant, wordings
from vlm_probe.stimuli.scene import Body, Scene, mirror
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND, SamplingFailed, Score, Task
from vlm_probe.stimuli.tasks.support.structure import (
    FRICTION_NEEDED,
    THICKNESS,
    Floats,
    Load,
    Look,
    Post,
    Structure,
    direction,
    force,
    loads,
    margin_of,
    posts,
    push_margin,
    simulate,
    stated_weights,
    weight,
    withstood,
)

RANGE = (-20, 20)
"""Whole centimetres that an answer may state."""
WORKING = (3, 6)
"""An item has at least and at most this many answers that work."""
REWARD_WIDTH = 12
"""Centimetres from the nearest working answer at which the partial reward has fallen to 0."""
MOVABLE = "post2"
CLEARLY = 0.05
"""|margin| by which answers that need no physics fail."""
SMALLEST_FORCE = 0.8
"""Newtons."""
TOUCHING = 1e-6
"""Metres of gap below which two posts touch."""
GAP = 0.01
"""Metres between the posts, in the image."""

TEXTS = (
    "As it is, something comes down. Where must the {moved} post stand so that everything stays up?",
    "Only the {moved} post may be moved. At which place does it keep everything standing?",
    "This structure does not withstand the push. To which place must the {moved} post go so that nothing comes down?",
    "Find a place for the {moved} post at which the structure withstands the push.",
)


class SupportBrace(Task):
    """Where must the wide post stand so that the loaded plank withstands the push?

    The narrow post stays where it is. The wide one can carry more of the push the more weight presses on it, so it must stand
    close to the common centre of plank and load, but beyond it, or else the plank tips. Both too near and too far fail, so that
    neither the end of the plank nor a place right under the load works. Items are stratified by the place that is needed.
    """

    name: ClassVar[str] = "support-brace"
    family: ClassVar[str] = "support"
    facts: ClassVar[str] = (
        "A plank stays on two posts while the common centre of mass of plank and load lies between the outer edges of the posts. "
        "Under a push the posts tip together, and each withstands the more, the wider it is and the more weight presses on it; "
        "the weight presses more on the post that is nearer to the common centre."
    )
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "action"

    def conditions(self) -> tuple[Condition, ...]:
        """Body pushed x side of the plank's middle, seen along the push, x needed distance from it, centimetres."""
        return tuple(
            Condition(2, (-1.0, -AMBIGUITY_BAND), f"{pushed}-{side}-{low}to{high}cm")
            for pushed in ("plank", "load")
            for side, low, high in (
                *(("ahead", *span) for span in ((2, 3), (4, 6))),
                # Further behind the middle there is no room for the other post. Far ahead twice, so that no place is needed
                # much more often than another.
                *(("ahead", *span) for span in 2 * ((7, 9), (10, 12))),
                *(("behind", *span) for span in ((2, 3), (4, 6))),
            )
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """Actions have no foils but their mirror images, whose answers have the other sign."""
        return condition

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene]:
        """A structure that comes down under the push, and withstands it with the movable post elsewhere."""
        if condition.count != 2:
            raise SamplingFailed(f"{self.name} has two posts, not {condition.count}")
        structure = _find(rng, condition.build)
        scene = Look(rng, 3).scene(structure)
        return (mirror(scene) if rng.random() < 0.5 else scene,)

    def margin(self, scene: Scene) -> float:
        """(critical force - force) / critical force of the structure as shown; negative, since it comes down."""
        return push_margin(scene)

    def question(self, scene: Scene, variant: Variant) -> Question:
        """One whole number of centimetres. Polarity and order do not apply."""
        body = scene.body(scene.pushes[0].body)
        target = "the plank" if body.name == "plank" else f"the {body.colour} load"
        text = TEXTS[variant.paraphrase].format(moved=scene.body(MOVABLE).colour)
        prompt = (
            f"A steady push of {force(scene):.1f} N acts on {target} where the arrow points. {stated_weights(scene)}"
            f" The plank is {100 * scene.body('plank').size[0]:.0f} cm long. {text} Give the distance of the middle of that"
            " post from the middle of the plank; right is positive, left is negative. Answer with one whole number of"
            f" centimetres from {RANGE[0]} to {RANGE[1]}."
        )
        return Question(prompt + (THINK if variant.style == "think" else ""), IntegerFormat((RANGE,)), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The place in the middle of those that work, centimetres."""
        answers = working_places(scene)
        return answers[len(answers) // 2] if answers else 0

    def score(self, scene: Scene, question: Question, answer: Answer, simulator: Simulator | None = None) -> Score:
        """Reward 1 if everything stays up under the push, in simulation; otherwise up to 0.5 for coming close.

        The post may not be put where the other one is. Partial reward: 0.5 (1 - d / `REWARD_WIDTH`)^2, d being the distance
        to the nearest working answer in cm.
        """
        if not isinstance(answer, int):
            return Score(False, 0.0, {"truth": None})
        moved = self.apply(scene, answer)
        fits, outcome = not _collide(moved), None
        if fits:
            outcome = simulate(moved, simulator)
            if not outcome.decided:
                return Score(True, 1.0, {"distance_cm": 0}, outcome)
        distance = min((abs(answer - a) for a in working_places(scene)), default=99)
        reward = 0.5 * max(0.0, 1 - distance / REWARD_WIDTH) ** 2
        return Score(False, reward, {"distance_cm": distance, "fits": fits}, outcome)

    def apply(self, scene: Scene, answer: Answer) -> Scene:
        """The scene with the movable post `answer` centimetres from the middle of the plank."""
        if not isinstance(answer, int):
            raise TypeError(f"an answer is one whole number of centimetres, got {answer!r}")
        goal = scene.body("plank").position[0] + answer / 100
        return scene.moved(MOVABLE, dx=goal - scene.body(MOVABLE).position[0])

    def variants(self) -> tuple[Variant, ...]:
        """One per paraphrase."""
        return wordings(polarities=1, orders=1)

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Whole centimetres that need little or no physics."""
        return {
            "leave it where it stands": lambda scene: _place(scene, scene.body(MOVABLE).position[0]),
            "under the load": lambda scene: _place(scene, loads(scene)[0].position[0]),
            "under the end of the plank": _end,
            "as far from the middle as the other post": lambda s: -_place(s, posts(s)[0].position[0]),
            "the wrong side of the other post": lambda s: 2 * _place(s, posts(s)[0].position[0]) - _middle(s),
            "under the common centre of weight": lambda scene: _place(scene, _centre(scene)),
        }

    def certify(self, scene: Scene, question: Question) -> dict[str, Any]:
        """Which answers work, in simulation: those that statics names, and their neighbours."""
        near = {a + d for a in working_places(scene) for d in (-1, 0, 1)}
        tried = sorted(a for a in near if RANGE[0] <= a <= RANGE[1])
        return {"working": [a for a in tried if self.score(scene, question, a).success]}


def working_places(scene: Scene) -> list[int]:
    """Whole centimetres from the middle of the plank at which statics lets the movable post hold the structure."""
    sign, plank, moving = direction(scene), scene.body("plank"), scene.body(MOVABLE)
    fixed = next(b for b in posts(scene) if b.name != MOVABLE)
    above = sum(weight(scene, b) for b in (plank, *loads(scene)))
    answers = np.arange(RANGE[0], RANGE[1] + 1)
    margins = place_margins(
        np.array([force(scene)]),
        sign * answers[None] / 100,
        tuple(np.array([v]) for v in (moving.size[0], weight(scene, moving))),
        tuple(
            np.array([v]) for v in (sign * (fixed.position[0] - plank.position[0]), fixed.size[0], weight(scene, fixed))
        ),
        np.array([fixed.size[2]]),
        np.array([plank.size[0]]),
        np.array([above]),
        np.array([sign * (_centre(scene) - plank.position[0])]),
        np.array([scene.pushes[0].point[2]]),
    )[0]
    return [int(a) for a in answers[margins > 1e-9]]


def place_margins(
    push: Floats,
    places: Floats,
    moving: tuple[Floats, ...],
    fixed: tuple[Floats, ...],
    height: Floats,
    length: Floats,
    above: Floats,
    centre: Floats,
    push_height: Floats,
) -> Floats:
    """(batch, k) margins with the movable post at each of k places; -1 where it meets the other post.

    Args:
        push: (batch,) newtons.
        places: (batch or 1, k) metres from the middle of the plank, in the direction of the push.
        moving: Width (m) and weight (N) of the movable post, each (batch,).
        fixed: Place (m), width (m) and weight (N) of the other post, each (batch,).
        height, length, above, centre, push_height: (batch,) as for `structure.withstood`, with the plank's length.
    """
    x = np.broadcast_to(places, (len(height), places.shape[-1]))
    width, own = (np.broadcast_to(v[:, None], x.shape) for v in moving)
    other_x, other_width, other_own = (np.broadcast_to(v[:, None], x.shape) for v in fixed)
    ahead = (x > other_x)[..., None]

    def ordered(first: Floats, second: Floats) -> Floats:
        return np.where(ahead, np.stack([first, second], axis=-1), np.stack([second, first], axis=-1))

    middles, widths, weights = ordered(other_x, x), ordered(other_width, width), ordered(other_own, own)
    common = (
        height[:, None],
        length[:, None],
        above[:, None],
        centre[:, None],
        push_height[:, None],
    )
    both = withstood(middles - widths / 2, middles + widths / 2, weights, *common)
    edges = (other_x - other_width / 2)[..., None], (other_x + other_width / 2)[..., None]
    alone = withstood(*edges, other_own[..., None], *common)
    under = np.abs(x) < (width + length[:, None]) / 2 - 1e-9
    free = np.abs(x - other_x) > (width + other_width) / 2 + TOUCHING
    margins = np.where(under, margin_of(push[:, None], *both), margin_of(push[:, None], *alone))
    return np.where(free, margins, -1.0)


def _find(rng: np.random.Generator, build: str) -> Structure:
    """A structure with the movable post at a place where it fails, and with a middle working place as the build says."""
    try:
        pushed, side, span = build.split("-")
        low, high = (int(part) for part in span.removesuffix("cm").split("to"))
    except ValueError:
        raise InvalidInput(f"support-brace knows no build {build!r}; use e.g. plank-ahead-2to4cm") from None
    answers = np.arange(RANGE[0], RANGE[1] + 1)
    batch = 1024
    for _ in range(400):
        height: Floats = np.round(rng.uniform(0.12, 0.19, batch), 3)
        length: Floats = np.round(rng.uniform(0.26, 0.34, batch), 2)
        moving = np.round(rng.uniform(0.05, 0.09, batch), 3)
        fixed = np.round(rng.uniform(0.025, 0.04, batch), 3)
        own, other_own = (np.round(rng.uniform(20, 40, batch) * w, 1) for w in (moving, fixed))
        load_width, load_height = np.round(rng.uniform(0.05, 0.08, (2, batch)), 3)
        plank_weight, load_weight = (np.round(rng.uniform(a, b, batch), 1) for a, b in ((2.0, 4.0), (8.0, 20.0)))
        # A proposal: the common centre a little behind the place that is wanted, the other post further behind.
        wanted = rng.integers(low, high + 1, batch) / 100 * (1 if side == "ahead" else -1)
        near = wanted - rng.uniform(-0.01, 0.04, batch)
        load: Floats = np.round(near * (plank_weight + load_weight) / load_weight, 3)
        start_at = -(length - fixed) / 2
        other = np.round(start_at + rng.random(batch) * np.maximum(wanted - 0.04 - start_at, 0.0), 3)
        share: Floats = rng.uniform(0.15, 0.4, batch)
        on_plank = THICKNESS + share * load_height
        push: Floats = np.round(height + THICKNESS / 2 if pushed == "plank" else height + on_plank, 3)
        above = plank_weight + load_weight
        centre = load_weight * load / above
        needed: Floats = np.round(rng.uniform(0.04, 0.4, batch) * above, 1)
        # Clear of sliding, and of the load's own tipping.
        likely = (needed >= SMALLEST_FORCE) & (np.abs(load) <= (length - load_width) / 2)
        likely &= np.maximum(needed / load_weight, moving / height) < 0.9 * FRICTION_NEEDED
        if pushed == "load":
            likely &= load_weight * load_width / 2 > 1.4 * needed * (push - height - THICKNESS)
        # The first ten are those of `_columns`.
        first_ten = (moving, own, other, fixed, other_own, height, length, above, centre, push)
        others = (needed, load, wanted, load_width, load_height, load_weight, plank_weight)
        drawn = np.stack([*first_ten, *others], axis=1)[likely]
        # Only where the wanted place works, and what needs no physics fails, are all places looked at.
        wanted, load, length = drawn[:, 12], drawn[:, 11], drawn[:, 6]
        end = np.where(drawn[:, 2] > 0, -1, 1) * (50 * (length - drawn[:, 0])).astype(int) / 100
        few = place_margins(drawn[:, 10], np.stack([wanted, -wanted, np.round(load, 2), end], axis=1), *_columns(drawn))
        drawn = drawn[(few[:, 0] > AMBIGUITY_BAND) & (few[:, 1:] < -CLEARLY).all(axis=1)]
        moving, own, other, fixed, other_own, height, length, above, centre, push, needed, load = drawn.T[:12]
        load_width, load_height, load_weight, plank_weight = drawn.T[13:]
        margins = place_margins(needed, answers[None] / 100, *_columns(drawn))
        works = margins > 1e-9
        count = works.sum(axis=1)
        first, last = works.argmax(axis=1), len(answers) - 1 - works[:, ::-1].argmax(axis=1)
        middle = answers[np.minimum(first + count // 2, len(answers) - 1)]
        rows = np.arange(len(needed))
        good = (count >= WORKING[0]) & (count <= WORKING[1]) & (last - first == count - 1)
        along = middle if side == "ahead" else -middle
        good &= (along >= low) & (along <= high) & (middle / 100 > other)
        good &= margins[rows, middle - RANGE[0]] > AMBIGUITY_BAND
        # The wanted place may not be the middle one: what needs no physics fails here, too.
        end = np.where(other > 0, -1, 1) * (50 * (length - moving)).astype(int)
        for place in (-middle, np.round(100 * load).astype(int), end):
            good &= margins[rows, place - RANGE[0]] < -CLEARLY
        for i in np.flatnonzero(good):
            inside = np.abs(answers) / 100 + moving[i] / 2 <= length[i] / 2
            apart = np.abs(answers / 100 - other[i]) >= (moving[i] + fixed[i]) / 2 + GAP
            start = answers[inside & apart & (margins[i] < -AMBIGUITY_BAND - 1e-6)]
            if not len(start):
                continue
            return Structure(
                posts=(
                    Post(float(other[i]), float(fixed[i]), float(other_own[i])),
                    Post(float(rng.choice(start)) / 100, float(moving[i]), float(own[i])),
                ),
                height=float(height[i]),
                length=float(length[i]),
                plank_weight=float(plank_weight[i]),
                loads=(Load(float(load[i]), float(load_width[i]), float(load_height[i]), float(load_weight[i])),),
                pushed=pushed,
                push_height=float(push[i]),
                force=float(needed[i]),
            )
    raise SamplingFailed(f"support-brace: found no structure on {build}")


def _columns(drawn: Floats) -> tuple[Any, ...]:
    """The arguments of `place_margins` after the places, from the first ten columns."""
    c = tuple(drawn.T[:10])
    return c[:2], c[2:5], *c[5:]


def _collide(scene: Scene) -> bool:
    first, second = posts(scene)
    return abs(first.position[0] - second.position[0]) < (first.size[0] + second.size[0]) / 2 + TOUCHING


def _place(scene: Scene, x: float) -> int:
    """A place in the world as whole centimetres from the middle of the plank."""
    return round(100 * (x - scene.body("plank").position[0]))


def _centre(scene: Scene) -> float:
    """The common centre of mass of plank and load, metres."""
    above: list[Body] = [scene.body("plank"), *loads(scene)]
    return sum(b.mass * b.position[0] for b in above) / sum(b.mass for b in above)


def _end(scene: Scene) -> int:
    """Under the end of the plank that is further from the other post, with its outer edges flush."""
    plank, fixed = scene.body("plank"), posts(scene)[0]
    side = -1 if fixed.position[0] > plank.position[0] else 1
    return side * int(50 * (plank.size[0] - scene.body(MOVABLE).size[0]))


def _middle(scene: Scene) -> int:
    answers = working_places(scene)
    return answers[len(answers) // 2] if answers else 0
