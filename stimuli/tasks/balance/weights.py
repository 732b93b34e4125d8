"""How the weight of an object is shown, and the sentences of a prompt that say so."""

from __future__ import annotations

import numpy as np

from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.tasks import SamplingFailed
from vlm_probe.stimuli.tasks.balance.seesaw import (
    EQUAL,
    SHAPE_WORDS,
    SHOWN,
    SIZES,
    Layout,
    Load,
    Look,
    plank_mass,
    scatter,
    standing,
    whole,
)

MATERIALS = (1.0, 2.0, 4.0)
"""Kilograms of an object of each of the three colours, where weight is colour."""
STATED = tuple(float(kilograms) for kilograms in np.arange(1, 8.5, 0.5))
"""Kilograms that an object may weigh, where weight is stated."""
PLANK = 3.0
"""Kilograms of the plank, where weight is colour or stated."""
HALF_WIDTHS = (10, 14)
"""Least and greatest half width of the fulcrum's top, millimetres."""


def draw_load(rng: np.random.Generator, shown: str) -> Load:
    """A load of random shape whose weight is shown that way.

    Args:
        rng: Draws it.
        shown: One of `SHOWN`.

    Raises:
        ValueError: If there is no such way.
    """
    if shown not in SHOWN:
        raise InvalidInput(f"weight cannot be shown by {shown!r}: use one of {', '.join(SHOWN)}")
    shape = str(rng.choice(list(SHAPE_WORDS)))
    facing = 1 if rng.random() < 0.5 else -1
    if shown == "size":
        return whole(shape, SIZES[shape][int(rng.integers(len(SIZES[shape])))], facing)
    return Load(shape, EQUAL[shape], float(rng.choice(MATERIALS if shown == "colour" else STATED)), facing)


def draw_layout(
    rng: np.random.Generator, count: int, shown: str, half_widths: tuple[int, int] = HALF_WIDTHS
) -> Layout | None:
    """A plank with that many random loads, measured from its middle, or None if they do not fit on it.

    Args:
        rng: Draws it.
        count: How many loads.
        shown: How weight is shown, one of `SHOWN`.
        half_widths: Least and greatest half width of the fulcrum's top, millimetres.

    Raises:
        Unsatisfiable: If weights are stated for more objects than there are colours to name them by.
    """
    if shown == "text" and count > 6:
        raise SamplingFailed(f"{count} objects cannot all have colours of their own, by which their weights are stated")
    loads = tuple(draw_load(rng, shown) for _ in range(count))
    places = scatter(rng, loads)
    if places is None:
        return None
    half_width = int(rng.integers(half_widths[0], half_widths[1] + 1)) / 1000
    return Layout(half_width, 0.0, plank_mass() if shown == "size" else PLANK, loads, places)


def load_colours(layout: Layout, look: Look, shown: str) -> list[str]:
    """The colour of each load: of its weight where weight is colour, else its own.

    Args:
        layout: Whose loads.
        look: Of the image.
        shown: How weight is shown.
    """
    if shown == "colour":
        return [look.colours[MATERIALS.index(load.mass)] for load in layout.loads]
    return [look.colours[i % len(look.colours)] for i in range(len(layout.loads))]


def weight_sentences(scene: Scene) -> str:
    """What the prompt says about the weights of a scene, with a space before it."""
    things, plank = standing(scene), scene.body("plank")
    extra = [b for b in scene.bodies if b.name == "counterweight" and b.name not in {t.body.name for t in things}]
    stands = any(t.body.shape == "sphere" for t in things)
    if scene.shown == "size":
        also = ", the objects and the stands of the balls" if stands else " and the objects"
        return f" The plank{also} are all made of the same wood."
    by_colour = {t.body.colour: t for t in things}
    # By name, not from left to right: the prompt alone must not tell what stands where.
    if scene.shown == "colour":
        weights = {colour: t.mass for colour, t in by_colour.items()} | {b.colour: b.mass for b in extra}
        named = [
            f"{_article(colour)} {colour} object weighs {kilograms(weights[colour])}" for colour in sorted(weights)
        ]
        text = " Weight goes by colour alone: " + ", ".join(named) + "."
    else:
        weights = {f"the {c} {SHAPE_WORDS[t.body.shape]}": t.mass for c, t in by_colour.items()}
        weights |= {f"the {b.colour} {SHAPE_WORDS[b.shape]}": b.mass for b in extra}
        named = [f"{name} weighs {kilograms(weights[name])}" for name in sorted(weights)]
        text = " " + ", ".join(named).capitalize() + "."
    text += f" The plank weighs {kilograms(plank.mass)}."
    return text + (" Each ball is weighed with its black stand." if stands else "")


def kilograms(mass: float) -> str:
    """A mass as it is stated, to three digits."""
    return f"{mass:.3g} kg"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
