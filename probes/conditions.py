"""How an item is presented: as it is, or in one of the control conditions, with worked examples, in another wording.

A run crosses its items with a list of `PromptCondition`s. Every manner is a whole trial of its own, with its own key in the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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

GROUNDING_N, GROUNDING_SEED = 120, 10_009
"""Size and seed of the grounding set that a battery of controls begins with."""
GREY = (128, 128, 128)
TILES = 8


class PresentationError(ProbeError, ValueError):
    """A manner cannot be had with these items; the message says why and what to do."""


class Control:
    """The item as it is: its image and its question. Every other control condition changes some of that.

    Attributes:
        name: In designs and logs.
        has_image: Whether an image is shown, with the question and with worked examples.
        hides_scene: Whether what there is to see is changed or taken away, which means nothing to an observer of the scene.
        needs_scene: Whether the scene behind an image has to be known.
        purpose: Of its random numbers, which are drawn with it.
    """

    name, purpose = "intact", ""
    has_image, hides_scene, needs_scene = True, False, False

    def check(self, items: Sequence[Item]) -> None:
        """Refuse items for which it is not defined. Raises PresentationError."""

    def item(self, item: Item) -> Item:
        """The item that is asked."""
        return item

    def image(self, item: Item, stimuli: StimulusSet, rng: np.random.Generator) -> Image.Image:
        """What is shown.

        Args:
            item: Of the set.
            stimuli: The set.
            rng: Of the item and this control.
        """
        return stimuli.image(item)

    def words(self, item: Item) -> str:
        """What is said before the question."""
        return ""


class Blank(Control):
    """A grey image."""

    name, hides_scene = "blank", True

    def image(self, item: Item, stimuli: StimulusSet, rng: np.random.Generator) -> Image.Image:
        """Grey, of the size of the item's own."""
        return Image.new("RGB", stimuli.image(item).size, GREY)


class Mirrored(Control):
    """The mirror image, whose right answer is the mirrored one."""

    name, needs_scene = "mirrored", True

    def item(self, item: Item) -> Item:
        """The item of the mirror image."""
        return item if item.scene is None else _mirrored(item)

    def image(self, item: Item, stimuli: StimulusSet, rng: np.random.Generator) -> Image.Image:
        """The mirror image; each panel of a strip on its own, since their order in time stays."""
        image = stimuli.image(item)
        if item.scene is None or not item.scene.panels:
            return ImageOps.mirror(image)
        flipped = image.copy()
        for box in panel_boxes(image.width):
            flipped.paste(ImageOps.mirror(image.crop(box)), box)
        return flipped


class Shuffled(Control):
    """The image cut into tiles in random order."""

    name, purpose, hides_scene = "shuffled", "tiles", True

    def image(self, item: Item, stimuli: StimulusSet, rng: np.random.Generator) -> Image.Image:
        """The image in `TILES` x `TILES` tiles; a rim that does not divide stays as it is."""
        image = stimuli.image(item)
        width, height = image.width // TILES, image.height // TILES
        if not width or not height:
            return image
        places = [(x * width, y * height) for y in range(TILES) for x in range(TILES)]
        shuffled = image.copy()
        for (x, y), source in zip(places, rng.permutation(len(places)), strict=True):
            left, top = places[source]
            shuffled.paste(image.crop((left, top, left + width, top + height)), (x, y))
        return shuffled


class OtherImage(Control):
    """The image of an item of another group."""

    name, purpose, hides_scene = "other-picture", "other", True

    def check(self, items: Sequence[Item]) -> None:
        """Refuse sets of a single group."""
        if len({item.group_id for item in items}) < 2:
            raise PresentationError("other-picture needs a set of at least two groups of items")

    def image(self, item: Item, stimuli: StimulusSet, rng: np.random.Generator) -> Image.Image:
        """That of an item drawn at random."""
        items, other = stimuli.items, item
        while other.group_id == item.group_id:  # there are at least two groups
            other = items[int(rng.integers(len(items)))]
        return stimuli.image(other)


class Description(Control):
    """No image, but an exact description of the scene in words: perfect perception."""

    name, needs_scene, hides_scene, has_image = "description", True, True, False

    def words(self, item: Item) -> str:
        """The scene in words."""
        return "" if item.scene is None else describe(item.scene) + " "


class Facts(Control):
    """The image, and the physics of the task stated before the question."""

    name = "facts"

    def check(self, items: Sequence[Item]) -> None:
        """Refuse tasks that state no physics."""
        for name in sorted({item.task for item in items}):
            if not get_task(name).facts:
                raise PresentationError(f"{name} states no physics facts: leave the control out")

    def words(self, item: Item) -> str:
        """The physics."""
        return get_task(item.task).facts + " "


CONTROLS: Mapping[str, Control] = {
    control.name: control
    for control in (Control(), Blank(), Mirrored(), Shuffled(), OtherImage(), Description(), Facts())
}
"""The control conditions by name, the plain one first."""


@dataclass(frozen=True, slots=True)
class PromptCondition:
    """One way of asking an item.

    Attributes:
        control: One of `CONTROLS`.
        examples: Number of worked examples that come first, with images and right answers.
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
    def from_dict(cls, data: dict[str, Any] | None) -> PromptCondition:
        """Inverse of `to_dict`; nothing is the plain manner."""
        return cls(**{name: value for name, value in (data or {}).items() if name != "code"})

    @property
    def rewords(self) -> bool:
        """Whether the question is worded again."""
        return bool(self.style) or any(v is not None for v in (self.paraphrase, self.polarity, self.order))


PLAIN = PromptCondition()


def manners(
    design: str = "plain", examples: Sequence[int] = (0,), style: str = "", variants: Sequence[Variant] = ()
) -> tuple[PromptCondition, ...]:
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
        bases = [PromptCondition(paraphrase=v.paraphrase, polarity=v.polarity, order=v.order) for v in variants]
    else:
        wanted = {"plain": ("intact",), "controls": CONTROLS}.get(design) or tuple(design.split(","))
        bases = [PromptCondition(control=name) for name in dict.fromkeys(("intact", *wanted))]
    return tuple(replace(b, examples=k, style=style) for b, k in product(bases, examples))  # type: ignore[arg-type]


class Presenter:
    """Makes trials: items of a set in given manners.

    Args:
        stimuli: The set.
        asked: The manners.
        example_set: Where worked examples are drawn from; it may share no scene and no image with `stimuli`.
        seed: Of what is drawn at random (examples, other images, orders of tiles), with the item's id.

    Raises:
        PresentationError: If a manner cannot be had with these items.
    """

    def __init__(
        self,
        stimuli: StimulusSet,
        asked: Sequence[PromptCondition] = (PLAIN,),
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

    def asked(self, item: Item, manner: PromptCondition) -> Item:
        """The item as it is asked in that manner: with another wording, or as its mirror image.

        Args:
            item: Of the set.
            manner: One of the presenter's.
        """
        item = CONTROLS[manner.control].item(item)
        if not manner.rewords:
            return item
        assert item.scene is not None  # checked at the start
        changes = {
            name: value for name in ("paraphrase", "polarity", "order") if (value := getattr(manner, name)) is not None
        }
        variant = replace(item.variant, **changes, style=manner.style or item.variant.style)
        return replace(item, question=get_task(item.task).question(item.scene, variant), variant=variant)

    def trial(self, item: Item, manner: PromptCondition, with_picture: bool = True) -> Trial:
        """What the model is shown and asked.

        Args:
            item: Of the set.
            manner: One of the presenter's.
            with_picture: Whether the model looks at images.

        Raises:
            StimulusError: If the image cannot be read.
        """
        asked, control = self.asked(item, manner), CONTROLS[manner.control]
        image = None
        if with_picture and control.has_image:
            image = control.image(item, self.stimuli, self._rng(item, control.purpose))
        return Trial(asked, image, self._context(asked, manner, with_picture), control.words(item), manner.code)

    def example_ids(self, item: Item, manner: PromptCondition) -> list[str]:
        """Ids of the worked examples that come before an item.

        Args:
            item: Of the set.
            manner: One of the presenter's.
        """
        return [example.item_id for example in self._drawn(item, manner)]

    def _check(self) -> None:
        items = self.stimuli.items
        for manner in self.manners:
            control = CONTROLS[manner.control]
            if control.needs_scene or manner.rewords:
                bare = next((item.item_id for item in items if item.scene is None), None)
                if bare is not None:
                    raise PresentationError(
                        f"the manner {manner.code!r} needs the scene behind a picture, and {bare} (imported) has none"
                    )
            control.check(items)
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

    def _drawn(self, item: Item, manner: PromptCondition) -> list[Item]:
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

    def _context(self, asked: Item, manner: PromptCondition, with_picture: bool) -> tuple[Turn, ...]:
        control, turns = CONTROLS[manner.control], list[Turn]()
        for example in self._drawn(asked, manner):
            assert self._example_set is not None
            shown = self._worded_alike(example, asked)
            pictures = (self._example_set.image(example),) if with_picture and control.has_image else ()
            words = shown.question.prompt if control.has_image else control.words(example) + shown.question.prompt
            turns += [Turn("user", words, pictures), Turn("assistant", shown.question.reply(shown.answer))]
        return tuple(turns)

    def _worded_alike(self, example: Item, asked: Item) -> Item:
        """The example, asked in the words of the item, so that the format of the answer is the same."""
        if example.scene is None:
            return example
        variant = replace(asked.variant, ask=example.variant.ask, detail=example.variant.detail)
        return replace(example, question=get_task(example.task).question(example.scene, variant), variant=variant)

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
