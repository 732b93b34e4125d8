"""How an item is presented: as it is, or in one of the control conditions, with worked examples, in another wording.

A run crosses its items with a list of `Manner`s. Every manner is a whole trial of its own, with its own key in the log.

intact          the picture and the question
blank           a grey picture
mirrored        the mirror image, whose right answer is the mirrored one
shuffled        the picture cut into 8 x 8 tiles in random order
other-picture   the picture of an item of another group
description     no picture, but an exact description of the scene in words: perfect perception
facts           the picture, and the physics of the task stated before the question
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from vlm_probe.probes.models import Trial, Turn
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.description import describe
from vlm_probe.stimuli.errors import ProbeError
from vlm_probe.stimuli.picture import panel_boxes
from vlm_probe.stimuli.question import Variant
from vlm_probe.stimuli.scene import mirror
from vlm_probe.stimuli.tasks import get_task

CONTROLS = ("intact", "blank", "mirrored", "shuffled", "other-picture", "description", "facts")
HIDES_PICTURE = ("blank", "shuffled", "other-picture", "description")
"""Controls that change or take away what there is to see, which means nothing to an observer of the scene."""
GREY = (128, 128, 128)
TILES = 8


class PresentationError(ProbeError, ValueError):
    """A manner cannot be had with these items; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Manner:
    """One way of asking an item.

    Attributes:
        control: One of `CONTROLS`.
        examples: Number of worked examples that come first, with pictures and right answers.
        style: "direct" or "think" (reason first); empty for the item's own.
        paraphrase, polarity, order: Wording; None for the item's own.

    Raises:
        PresentationError: If there is no such control or style, or the number of examples is negative.
    """

    control: str = "intact"
    examples: int = 0
    style: Literal["", "direct", "think"] = ""
    paraphrase: int | None = None
    polarity: int | None = None
    order: int | None = None

    def __post_init__(self) -> None:
        if self.control not in CONTROLS:
            raise PresentationError(f"unknown control {self.control!r}: there are {', '.join(CONTROLS)}")
        if self.style not in ("", "direct", "think"):
            raise PresentationError(f"unknown style {self.style!r}: use direct or think")
        if self.examples < 0:
            raise PresentationError(f"the number of examples cannot be negative, got {self.examples}")

    @property
    def code(self) -> str:
        """The manner as a short string; empty for the plain one."""
        parts = [] if self.control == "intact" else [self.control]
        parts += [f"examples{self.examples}"] if self.examples else []
        parts += [self.style] if self.style else []
        names = {"paraphrase": self.paraphrase, "polarity": self.polarity, "order": self.order}
        parts += [f"{name}{value}" for name, value in names.items() if value is not None]
        return "_".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data, for the log."""
        return {name: getattr(self, name) for name in self.__slots__} | {"code": self.code}

    @classmethod
    def from_dict(cls, data: dict[str, Any] | None) -> Manner:
        """Inverse of `to_dict`; nothing is the plain manner."""
        return cls(**{name: value for name, value in (data or {}).items() if name != "code"})

    @property
    def rewords(self) -> bool:
        """Whether the question is worded anew."""
        return bool(self.style) or any(v is not None for v in (self.paraphrase, self.polarity, self.order))


PLAIN = Manner()


def manners(
    design: str = "plain", examples: Sequence[int] = (0,), style: str = "", variants: Sequence[Variant] = ()
) -> tuple[Manner, ...]:
    """The manners that a design names, crossed with numbers of examples.

    Args:
        design: "plain", "controls" (all of `CONTROLS`), "variants" (all wordings of the task), or control names separated
            by commas, of which "intact" is always the first.
        examples: Numbers of worked examples.
        style: "direct" or "think"; empty for the items' own.
        variants: The task's wordings, for "variants".

    Raises:
        PresentationError: If the design or a number is not one.
    """
    if not examples or len(set(examples)) != len(examples):
        raise PresentationError(f"give different numbers of examples, got {list(examples)}")
    if design == "variants":
        bases = [Manner(paraphrase=v.paraphrase, polarity=v.polarity, order=v.order) for v in variants]
    else:
        wanted = {"plain": ("intact",), "controls": CONTROLS}.get(design) or tuple(design.split(","))
        bases = [Manner(control=name) for name in dict.fromkeys(("intact", *wanted))]
    return tuple(replace(b, examples=k, style=style) for b, k in product(bases, examples))  # type: ignore[arg-type]


class Presenter:
    """Makes trials: items of a set in given manners.

    Args:
        stimuli: The set.
        asked: The manners.
        example_set: Where worked examples are drawn from; it may share no scene and no picture with `stimuli`.
        seed: Of what is drawn at random (examples, other pictures, orders of tiles), with the item's id.

    Raises:
        PresentationError: If a manner cannot be had with these items.
    """

    def __init__(
        self,
        stimuli: StimulusSet,
        asked: Sequence[Manner] = (PLAIN,),
        example_set: StimulusSet | None = None,
        seed: int = 0,
    ) -> None:
        self.stimuli, self.manners, self._seed = stimuli, tuple(asked), seed
        self._examples = example_set.items if example_set is not None else []
        self._example_set = example_set
        self._check()

    @property
    def examples_sha256(self) -> str:
        """Content hash of the set of worked examples; empty if there is none."""
        return "" if self._example_set is None else self._example_set.content_sha256

    def asked(self, item: Item, manner: Manner) -> Item:
        """The item as it is asked in that manner: with another wording, or as its mirror image.

        Args:
            item: Of the set.
            manner: One of the presenter's.
        """
        if item.scene is not None and manner.control == "mirrored":
            item = _mirrored(item)
        if not manner.rewords:
            return item
        assert item.scene is not None  # checked at the start
        changes = {
            name: value for name in ("paraphrase", "polarity", "order") if (value := getattr(manner, name)) is not None
        }
        variant = replace(item.variant, **changes, style=manner.style or item.variant.style)
        return replace(item, question=get_task(item.task).question(item.scene, variant), variant=variant)

    def trial(self, item: Item, manner: Manner, with_picture: bool = True) -> Trial:
        """What the model is shown and asked.

        Args:
            item: Of the set.
            manner: One of the presenter's.
            with_picture: Whether the model looks at pictures.

        Raises:
            StimulusError: If the picture cannot be read.
        """
        asked = self.asked(item, manner)
        image = self._picture(item, manner) if with_picture and manner.control != "description" else None
        preamble = ""
        if manner.control == "description":
            assert item.scene is not None
            preamble = describe(item.scene) + " "
        elif manner.control == "facts":
            preamble = get_task(item.task).facts + " "
        return Trial(asked, image, self._context(asked, manner, with_picture), preamble, manner.code)

    def example_ids(self, item: Item, manner: Manner) -> list[str]:
        """Ids of the worked examples that come before an item.

        Args:
            item: Of the set.
            manner: One of the presenter's.
        """
        return [example.item_id for example in self._drawn(item, manner)]

    def _check(self) -> None:
        items = self.stimuli.items
        for manner in self.manners:
            if manner.control in ("description", "mirrored") or manner.rewords:
                bare = next((item.item_id for item in items if item.scene is None), None)
                if bare is not None:
                    raise PresentationError(
                        f"the manner {manner.code!r} needs the scene behind a picture, and {bare} (imported) has none"
                    )
            if manner.control == "facts":
                for name in sorted({item.task for item in items}):
                    if not get_task(name).facts:
                        raise PresentationError(f"{name} states no physics facts: leave the control out")
            if manner.control == "other-picture" and len({item.group_id for item in items}) < 2:
                raise PresentationError("other-picture needs a set of at least two groups of items")
        most = max((manner.examples for manner in self.manners), default=0)
        if not most:
            return
        if self._example_set is None:
            raise PresentationError("worked examples need a set to come from: give --examples-from SET")
        # One mirror image or foil of a test item as an example would give its answer away.
        shown = {item.image_sha256 for item in items} | {item.scene_sha256 for item in items if item.scene}
        common = [e.item_id for e in self._examples if {e.image_sha256, e.scene_sha256} & shown]
        if common:
            raise PresentationError(
                f"{len(common)} worked examples (such as {common[0]}) are items of {self.stimuli.path} as well:"
                " make the set of examples with another --seed"
            )
        tasks = {item.task for item in items}
        for name in tasks:
            found = len({e.group_id for e in self._examples if e.task == name})
            if found < most:
                raise PresentationError(
                    f"{self._example_set.path} has {found} groups of {name} items, and {most} examples are wanted"
                )

    def _drawn(self, item: Item, manner: Manner) -> list[Item]:
        """Worked examples for an item: of different groups, drawn with the item's id; the first k of a longer draw."""
        if not manner.examples:
            return []
        pool: dict[str, list[Item]] = {}
        for example in self._examples:
            if example.task == item.task and _ask_of(example) == _ask_of(item):
                pool.setdefault(example.group_id, []).append(example)
        if len(pool) < manner.examples:
            raise PresentationError(
                f"too few worked examples like {item.item_id}: {len(pool)} groups, {manner.examples} wanted"
            )
        rng = self._rng(item, "examples")
        groups = [pool[group] for group in (list(pool)[i] for i in rng.permutation(len(pool)))]
        return [group[int(rng.integers(len(group)))] for group in groups][: manner.examples]

    def _context(self, asked: Item, manner: Manner, with_picture: bool) -> tuple[Turn, ...]:
        turns: list[Turn] = []
        for example in self._drawn(asked, manner):
            assert self._example_set is not None
            shown = self._worded_alike(example, asked)
            pictures = (
                () if not with_picture or manner.control == "description" else (self._example_set.image(example),)
            )
            words = shown.question.prompt
            if manner.control == "description" and example.scene is not None:
                words = describe(example.scene) + " " + words
            turns += [Turn("user", words, pictures), Turn("assistant", shown.question.reply(shown.answer))]
        return tuple(turns)

    def _worded_alike(self, example: Item, asked: Item) -> Item:
        """The example, asked in the words of the item, so that the format of the answer is the same."""
        if example.scene is None:
            return example
        variant = replace(asked.variant, ask=example.variant.ask, detail=example.variant.detail)
        return replace(example, question=get_task(example.task).question(example.scene, variant), variant=variant)

    def _picture(self, item: Item, manner: Manner) -> Image.Image:
        if manner.control == "other-picture":
            items, rng = self.stimuli.items, self._rng(item, "other")
            other = item
            while other.group_id == item.group_id:  # there are at least two groups
                other = items[int(rng.integers(len(items)))]
            return self.stimuli.image(other)
        picture = self.stimuli.image(item)
        if manner.control == "blank":
            return Image.new("RGB", picture.size, GREY)
        if manner.control == "mirrored":
            return _flip(picture, item)
        if manner.control == "shuffled":
            return _shuffle(picture, self._rng(item, "tiles"))
        return picture

    def _rng(self, item: Item, purpose: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{item.item_id}\0{purpose}\0{self._seed}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _ask_of(item: Item) -> str:
    return str(item.question.about.get("ask", ""))


def _mirrored(item: Item) -> Item:
    """The item of the mirror image."""
    assert item.scene is not None
    task = get_task(item.task)
    scene = mirror(item.scene)
    certificate = item.certificate
    if item.working:
        turned = [task.mirrored(answer) for answer in item.working]
        certificate = certificate | {"working": [list(w) if isinstance(w, tuple) else w for w in turned]}
    # What is right of a grounding question about the mirror image is read from it.
    answer = task.solve(scene, item.question) if task.kind == "grounding" else task.mirrored(item.answer)
    return replace(
        item,
        answer=answer,
        margin=-item.margin if task.signed_side else item.margin,
        condition=replace(item.condition, mirrored=not item.condition.mirrored),
        scene=scene,
        scene_sha256=scene.content_hash,
        certificate=certificate,
    )


def _flip(picture: Image.Image, item: Item) -> Image.Image:
    """The mirror image; each panel of a strip on its own, since their order in time stays."""
    if item.scene is None or not item.scene.panels:
        return ImageOps.mirror(picture)
    flipped = picture.copy()
    for box in panel_boxes(picture.width):
        flipped.paste(ImageOps.mirror(picture.crop(box)), box)
    return flipped


def _shuffle(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture in `TILES` x `TILES` tiles, in random order; a rim that does not divide stays as it is."""
    width, height = picture.width // TILES, picture.height // TILES
    if not width or not height:
        return picture
    places = [(x * width, y * height) for y in range(TILES) for x in range(TILES)]
    shuffled = picture.copy()
    for (x, y), source in zip(places, rng.permutation(len(places)), strict=True):
        left, top = places[source]
        shuffled.paste(picture.crop((left, top, left + width, top + height)), (x, y))
    return shuffled
