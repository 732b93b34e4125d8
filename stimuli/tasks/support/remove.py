"""support-remove: which coloured block can be taken away without a collapse? Held out: never trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.condition import Condition, in_bin
from vlm_probe.stimuli.question import THINK, Answer, ChoiceFormat, Option, Question, Variant, named_options, wordings
from vlm_probe.stimuli.scene import COLOURS, Body, Scene
from vlm_probe.stimuli.simulators import Simulator
from vlm_probe.stimuli.tasks import SamplingFailed, Task
from vlm_probe.stimuli.tasks.support.structure import (
    DEPTH,
    MARGIN_BINS,
    THICKNESS,
    Floats,
    Load,
    Look,
    Post,
    Structure,
    loads,
    rest_margin,
    simulate,
)

TEXTS = (
    "Which coloured block can be taken away without a collapse?",
    "One coloured block is not needed. Which one can be removed so that everything else stays up?",
    "Nothing is glued together. If one coloured block is taken out, the rest stays up. Which block is it?",
    "Which of the coloured blocks could vanish without anything coming down?",
)
MATERIAL = " Everything is made of the same material."
DENSITY = 7000.0
"""Newtons per cubic metre: hard wood."""
UNTOUCHED = 0.3
"""Margin of the structure before anything is taken away, half widths."""
PLACES = 24
"""Other places tried for the load, per structure."""
GAP = 0.008
"""Metres between two things side by side."""
CASTS = {
    (2, "post-post"): ((2, (True, True), 0), (3, (True, False, True), 0)),
    (2, "block-block"): ((1, (False,), 2),),
    (2, "post-block"): ((2, (True, False), 1), (2, (False, True), 1)),
    (2, "block-post"): ((2, (True, False), 1), (2, (False, True), 1)),
    (3, "post-block"): ((2, (True, True), 1),),
    (3, "block-post"): ((2, (True, True), 1),),
}
"""By number of coloured blocks and build: how many posts there may be, which of them are coloured, and how many blocks lie on
the plank. These are all the casts of two or three coloured blocks in which the place of the load decides which one can go."""
NEUTRAL = ("black", "grey")
"""Colours of what cannot be taken away: the post in the middle, and the load that moves between foils."""


class SupportRemove(Task):
    """Which coloured block can be taken away without a collapse?

    Some blocks are posts under the plank, others lie on it. Of the coloured ones exactly one can go: a post that the others can do
    without, or a block that is no counterweight. In the foil the load, which is never asked about, lies elsewhere on the
    plank, so that another block can go. The middle one of three posts, which can always go, is not coloured.
    """

    name: ClassVar[str] = "support-remove"
    family: ClassVar[str] = "support"
    facts: ClassVar[str] = (
        "A plank stays up while the common centre of mass of the plank and everything on it lies between the outer edges of the "
        "posts under it; otherwise it tips."
    )
    kind: ClassVar[Literal["judgement", "action", "grounding"]] = "judgement"
    held_out: ClassVar[bool] = True

    def conditions(self) -> tuple[Condition, ...]:
        """Number of coloured blocks x |margin| bin x what can be taken away: in the base scene, then in the foil."""
        return tuple(
            Condition(count, margin_bin, build)
            for margin_bin in MARGIN_BINS
            # Three coloured blocks, and two on the plank, twice: both counts and both kinds of block are about as frequent.
            for count, build in (*CASTS, *(cast for cast in CASTS if cast[0] == 3), (2, "block-block"))
        )

    def foil_condition(self, condition: Condition) -> Condition:
        """The same cell, with the kinds of block in the other order."""
        first, _, second = condition.build.partition("-")
        return replace(condition, build=f"{second}-{first}")

    def sample_matched(self, rng: np.random.Generator, condition: Condition) -> tuple[Scene, Scene]:
        """The scene on the condition and its foil, in which the load lies elsewhere and another block can go."""
        return _pair(rng, condition)

    def margin(self, scene: Scene) -> float:
        """The smaller of: how clearly the structure stands without the right block, and falls without any other one.

        In mean half widths of the posts (`structure.rest_margin`). Negative if not exactly one block can go.
        """
        left = sorted(removal_margins(scene).values(), reverse=True)
        return min([left[0], *(-m for m in left[1:])])

    def question(self, scene: Scene, variant: Variant) -> Question:
        """The colours of the blocks, in the order of `COLOURS` or the reverse. Polarity does not apply."""
        colours = sorted((b.colour for b in candidates(scene)), key=list(COLOURS).index)
        options, clause = named_options([Option(c, c) for c in colours], variant.order)
        prompt = f"{TEXTS[variant.paraphrase]}{MATERIAL} Answer with one word: {clause}."
        return Question(prompt + (THINK if variant.style == "think" else ""), ChoiceFormat(options), variant.style)

    def solve(self, scene: Scene, question: Question, simulator: Simulator | None = None) -> Answer:
        """The colour of the block without which the structure stays up, by simulating every removal.

        If several or none can go, as may happen in scenes that were changed, the one that is clearest by statics.
        """
        margins = removal_margins(scene)
        standing = [b for b in candidates(scene) if not simulate(without(scene, b.name), simulator).decided]
        return max(standing or candidates(scene), key=lambda b: margins[b.name]).colour

    def variants(self) -> tuple[Variant, ...]:
        """Paraphrase x order."""
        return wordings(polarities=1)

    def statics_answer(self, scene: Scene) -> Answer | None:
        """The colour of the only block that statics lets go; none if there is not exactly one."""
        free = [name for name, margin in removal_margins(scene).items() if margin > 0]
        return scene.body(free[0]).colour if len(free) == 1 else ""

    def certify(self, scene: Scene, question: Question) -> dict[str, Any]:
        """The blocks without which the structure stays up, and whether it stays up as it is, both by simulation."""
        free = [b.colour for b in candidates(scene) if not simulate(without(scene, b.name)).decided]
        return {"working": free, "stands": not simulate(scene).decided}

    def rules(self) -> Mapping[str, Callable[[Scene], Answer]]:
        """Blocks that one look picks."""
        return {
            "the block at the top": lambda s: _pick(s, lambda b: b.position[2] + b.size[2] / 2),
            "the smallest block": lambda s: _pick(s, lambda b: -b.size[0] * b.size[2]),
            "the largest block": lambda s: _pick(s, lambda b: b.size[0] * b.size[2]),
            "the smallest block on the plank": lambda s: _pick(s, lambda b: -b.size[0] * b.size[2], "block"),
            "the post furthest from the load": lambda s: _pick(s, lambda b: abs(b.position[0] - _load(s)), "post"),
            "the post nearest to the load": lambda s: _pick(s, lambda b: -abs(b.position[0] - _load(s)), "post"),
            "the block furthest from the load": lambda s: _pick(s, lambda b: abs(b.position[0] - _load(s))),
            "the block nearest to the load": lambda s: _pick(s, lambda b: -abs(b.position[0] - _load(s))),
            "the block nearest to the middle of the plank": lambda s: _pick(
                s, lambda b: -abs(b.position[0] - s.body("plank").position[0])
            ),
            "the outermost block": lambda s: _pick(s, lambda b: abs(b.position[0] - s.body("plank").position[0])),
            "the post on the lighter side": _lighter_side,
        }


def candidates(scene: Scene) -> list[Body]:
    """The coloured blocks, which may be asked about."""
    return [b for b in scene.bodies if b.colour in COLOURS]


def without(scene: Scene, name: str) -> Scene:
    """The scene without one body.

    Args:
        scene: The scene.
        name: Of the body.
    """
    bodies = tuple(body for body in scene.bodies if body.name != name)
    return replace(scene, bodies=bodies, pushes=tuple(push for push in scene.pushes if push.body != name))


def removal_margins(scene: Scene) -> dict[str, float]:
    """The margin that the structure has without each of the coloured blocks, by name."""
    return {b.name: rest_margin(without(scene, b.name)) for b in candidates(scene)}


def _load(scene: Scene) -> float:
    return scene.body("load").position[0]


def _pick(scene: Scene, key: Callable[[Body], float], kind: str = "") -> str:
    """The colour of the coloured block (of that kind, if there is one) with the largest key."""
    found = [b for b in candidates(scene) if b.name.startswith(kind)] or candidates(scene)
    return max(found, key=lambda b: (key(b), b.name)).colour


def _lighter_side(scene: Scene) -> str:
    """The post away from the common centre of plank and loads."""
    above = [scene.body("plank"), *loads(scene)]
    centre = sum(b.mass * b.position[0] for b in above) / sum(b.mass for b in above)
    return _pick(scene, lambda b: abs(b.position[0] - centre), "post")


def _pair(rng: np.random.Generator, condition: Condition) -> tuple[Scene, Scene]:
    """Two structures that differ in the place of the load, and of which different blocks can go."""
    casts, kinds = CASTS.get((condition.count, condition.build)), condition.build.split("-")
    if casts is None:
        known = ", ".join(f"{build} with {count}" for count, build in CASTS)
        raise SamplingFailed(
            f"support-remove knows no build {condition.build!r} with {condition.count}; there are {known}"
        )
    batch = 1024
    for _ in range(60):
        standing, asked, blocks = casts[int(rng.integers(len(casts)))]
        s = _draw(rng, batch, standing, blocks)
        first = _judge(s, s["load"], np.array(asked), condition.margin_bin)
        s = {name: values[first >= 0] for name, values in s.items()}
        right = np.repeat(first[first >= 0], PLACES)
        s = {name: np.repeat(values, PLACES, axis=0) for name, values in s.items()}
        reach = (s["length"] - s["load_width"]) / 2
        elsewhere = np.round(rng.uniform(-1, 1, len(reach)) * reach, 3)
        other = _judge(s, elsewhere, np.array(asked), condition.margin_bin)
        is_post = [(answer < standing) & (answer >= 0) for answer in (right, other)]
        good = (other >= 0) & (other != right)
        for answer, kind in zip(is_post, kinds, strict=True):
            good &= answer == (kind == "post")
        found = np.flatnonzero(good)
        if len(found):
            i = int(found[0])
            look, hues = Look(rng, condition.count), rng.permutation(NEUTRAL).tolist()
            look.plank = "brown"
            coloured = iter(look.colours)
            colours = [next(coloured) if wanted else hues[0] for wanted in asked]
            colours += [hues[1], *coloured]
            look.shades = (2 * look.shades)[: len(colours) + 1]
            names = ("load", *(f"block{k + 1}" for k in range(blocks)))
            scenes = [look.scene(_structure(s, i, float(x)), names, colours) for x in (s["load"][i], elsewhere[i])]
            return scenes[0], scenes[1]
        batch = min(2 * batch, 8192)
    raise SamplingFailed(f"support-remove: found no {condition.build} pair of {condition.count} coloured blocks")


def _draw(rng: np.random.Generator, batch: int, standing: int, blocks: int) -> dict[str, Floats]:
    """That many structures, columns by name, on a grid of a millimetre."""
    length = np.round(rng.uniform(0.28, 0.36, batch), 2)
    width = np.round(rng.uniform(0.03, 0.06 if standing > 1 else 0.09, (batch, standing)), 3)
    # Close together or far apart: only on close posts do the blocks on the plank matter.
    spread = np.exp(rng.uniform(np.log(0.25), 0, (batch, 1)))
    middle = rng.uniform(-0.5, 0.5, (batch, 1)) * (1 - spread)
    x = middle + np.sort(rng.uniform(-0.5, 0.5, (batch, standing)), axis=1) * spread
    x = np.round(x * (length[:, None] - width), 3)
    sizes = np.round(rng.uniform(0.03, 0.07, (2, batch, blocks)), 3)
    return {
        "height": np.round(rng.uniform(0.1, 0.15, batch), 3),
        "length": length,
        "width": width,
        "x": x,
        "block": np.round(rng.uniform(-0.5, 0.5, (batch, blocks)) * (length[:, None] - sizes[0]), 3),
        "block_width": sizes[0],
        "block_height": sizes[1],
        "load": np.round(rng.uniform(-0.5, 0.5, batch) * (length - 0.08), 3),
        "load_width": np.round(rng.uniform(0.04, 0.08, batch), 3),
        "load_height": np.round(rng.uniform(0.04, 0.08, batch), 3),
    }


def _judge(
    s: dict[str, Floats], load: Floats, asked: npt.NDArray[np.bool_], margin_bin: tuple[float, float]
) -> npt.NDArray[np.int_]:
    """(batch,) index of the only block that can go, posts first, with the load at `load`; -1 where the scene is no good."""
    x, width, length = s["x"], s["width"], s["length"]
    standing = x.shape[1]
    items = np.concatenate([load[:, None], s["block"]], axis=1)
    extents = np.concatenate([s["load_width"][:, None], s["block_width"]], axis=1)
    heights = np.concatenate([s["load_height"][:, None], s["block_height"]], axis=1)
    good = (np.abs(load) <= (length - s["load_width"]) / 2 + 1e-9) & (
        np.diff(x, axis=1) - (width[:, 1:] + width[:, :-1]) / 2 > GAP
    ).all(axis=1)
    for i in range(items.shape[1]):
        for j in range(i):
            good &= np.abs(items[:, i] - items[:, j]) >= (extents[:, i] + extents[:, j]) / 2 + GAP
    areas = np.concatenate([(length * THICKNESS)[:, None], extents * heights], axis=1)
    places = np.concatenate([np.zeros((len(load), 1)), items], axis=1)
    mass, moment = areas.sum(axis=1), (areas * places).sum(axis=1)
    low, high = x - width / 2, x + width / 2

    def margin(centre: Floats, kept: list[int]) -> Floats:
        # The half width is that of the posts that are left.
        own = width[:, kept].mean(axis=1) / 2
        inside = np.minimum(centre - low[:, kept].min(axis=1), high[:, kept].max(axis=1) - centre)
        return np.clip(inside / own, -1.0, 1.0)

    everything = list(range(standing))
    good &= margin(moment / mass, everything) > UNTOUCHED
    columns = [
        *(margin(moment / mass, [k for k in everything if k != i]) for i in everything if asked[i]),
        *(
            margin((moment - areas[:, k] * places[:, k]) / (mass - areas[:, k]), everything)
            for k in range(2, areas.shape[1])
        ),
    ]
    index = [*(i for i in everything if asked[i]), *range(standing, standing + s["block"].shape[1])]
    left = np.stack(columns, axis=1)
    best = left.argmax(axis=1)
    others = np.sort(left, axis=1)[:, -2]
    smallest = np.minimum(left.max(axis=1), -others)
    return np.where(good & in_bin(smallest, margin_bin), np.array(index)[best], -1)


def _structure(s: dict[str, Floats], i: int, load: float) -> Structure:
    """One row as a structure, with the load at that place."""

    def newtons(width: float, height: float) -> float:
        return DENSITY * width * height * DEPTH

    height, length = float(s["height"][i]), float(s["length"][i])
    things = [(load, float(s["load_width"][i]), float(s["load_height"][i]))] + [
        (float(x), float(w), float(h))
        for x, w, h in zip(s["block"][i], s["block_width"][i], s["block_height"][i], strict=True)
    ]
    return Structure(
        posts=tuple(
            Post(float(x), float(w), newtons(float(w), height)) for x, w in zip(s["x"][i], s["width"][i], strict=True)
        ),
        height=height,
        length=length,
        plank_weight=newtons(length, THICKNESS),
        loads=tuple(Load(x, w, h, newtons(w, h)) for x, w, h in things),
    )
