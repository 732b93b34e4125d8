"""Linear read-outs that teach the vision tower what each patch shows; they are thrown away after pretraining.

What there is to be said about a thing comes from two sources that know nothing of families: where it is in the image, from
the segmentation; and the answers to all questions of the family's grounding task that are about one thing or about the scene.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from vlm_probe.probes.tiny.architecture import GRID, HIDDEN, PATCH, PIXELS, TOKENS
from vlm_probe.probes.tiny.pictures import Picture
from vlm_probe.probes.tiny.questions import grounding, named, possible_asks, sayable, seen_by
from vlm_probe.stimuli.question import Answer, IntegerFormat, Question
from vlm_probe.stimuli.scene import COLOURS, MARKER_SHAPES, NEUTRALS, Body, Marker, Scene
from vlm_probe.stimuli.shapes import corners, rotation
from vlm_probe.stimuli.tasks import FAMILIES
from vlm_probe.stimuli.viewing import project

CELLS = 2 * GRID
"""The colours of a patch are read in 2 x 2 cells."""
CELL_CLASSES = (*COLOURS, *NEUTRALS, "ghost", "floor", "sky")
LEAST = 12
"""Pixels of a thing in a patch from which the patch is asked about it."""
NOTHING = -1
PLACES, SIZES = 80, 40
"""Places are told apart in eightieths of the image, widths and heights up to half of it."""
ANGLES = 24
OFFSET_CM = 20
"""Furthest offset from what a thing rests on, centimetres."""
LARGEST_NUMBER = 6


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something to be said about a thing or a scene: one of `answers`, which are whole numbers in order if `graded`."""

    answers: tuple[Answer, ...]
    graded: bool

    def index(self, answer: Answer) -> int:
        """Number of the answer; those out of range count as the nearest."""
        if not self.graded:
            return self.answers.index(answer)
        low, high = self.answers[0], self.answers[-1]
        return min(max(int(answer), int(low)), int(high)) - int(low)  # type: ignore[arg-type]


NUMBERS = {"position": (-30, 30), "distance": (0, 40), "shift": (-10, 10)}
"""Ranges of measured numbers; counts go from 1 to `LARGEST_NUMBER`."""


def _range(low: int, high: int) -> Attribute:
    return Attribute(tuple(range(low, high + 1)), True)


@lru_cache(maxsize=1)
def attributes() -> tuple[dict[str, Attribute], dict[str, Attribute]]:
    """What can be said about things, and about scenes, by the name of the question that asks for it."""
    things = {
        "form": Attribute(MARKER_SHAPES, False),
        "offset": _range(-OFFSET_CM, OFFSET_CM),
        "order": _range(1, LARGEST_NUMBER),
    }
    scenes: dict[str, Attribute] = {}
    rng = np.random.default_rng(0)
    for family in FAMILIES:
        task = grounding(family)
        for condition in task.conditions():
            scene = task.sample_scene(rng, condition)
            for name in task.possible_asks(scene):
                ask = task.asks[name]
                about = set(ask.abouts(scene)[0])
                grammar = ask.grammar(scene, 0)[0]
                if isinstance(grammar, IntegerFormat):
                    attribute = _range(*NUMBERS.get(name, (1, LARGEST_NUMBER)))
                else:
                    attribute = Attribute(tuple(value for _, value in grammar.candidates()), False)
                if about == {"a"} and name != "exists":
                    # Families may know different answers, of shapes for example.
                    known = things.get(name, attribute).answers
                    extra = tuple(answer for answer in attribute.answers if answer not in known)
                    things[name] = Attribute(known + extra, attribute.graded)
                elif not about and set(attribute.answers) == set(COLOURS):
                    things[name] = Attribute(("no", "yes"), False)
                elif not about:
                    scenes[name] = attribute
    return things, scenes


@dataclass(frozen=True, slots=True)
class Facts:
    """What is to be seen in a scene: number of the right answer, or `NOTHING` where there is none.

    Attributes:
        things: (bodies and markers, attributes of things) int16.
        angles: (bodies and markers,) where a thing points or moves in the image, in turns; NaN where it does neither.
        scene: (attributes of scenes,) int16.
        colours: (colours,) the body of that colour, or `NOTHING`.
        clear: Whether things can be named by their colours.
    """

    things: npt.NDArray[np.int16]
    angles: npt.NDArray[np.float32]
    scene: npt.NDArray[np.int16]
    colours: npt.NDArray[np.int16]
    clear: bool


def facts(picture: Picture) -> Facts:
    """What is to be seen in the image's scene."""
    return _facts(picture.task, picture.scene)


@cache
def _facts(task_name: str, scene: Scene) -> Facts:
    of_things, of_scenes = attributes()
    everything: list[Body | Marker] = [*scene.bodies, *scene.markers]
    columns = {name: i for i, name in enumerate(of_things)}
    things = np.full((len(everything), len(of_things)), NOTHING, np.int16)
    rows = {body.colour: i for i, body in enumerate(scene.bodies)}
    for i, thing in enumerate(everything):
        things[i, columns["form"]] = of_things["form"].index(thing.shape)
    for i, offset in enumerate(_offsets(scene)):
        if offset is not None:
            things[i, columns["offset"]] = of_things["offset"].index(round(100 * offset))
    told = np.full(len(of_scenes), NOTHING, np.int16)
    task = seen_by(task_name)
    names = named(scene)
    for name in possible_asks(task_name, scene):
        ask = task.asks[name]
        for about in ask.abouts(scene):
            if name in of_things and set(about) == {"a"}:
                answer = ask.answer(scene, about)
                things[rows[str(about["a"])], columns[name]] = of_things[name].index(answer)
            elif name == "nth-colour":
                row = rows[str(ask.answer(scene, about))]
                things[row, columns["order"]] = of_things["order"].index(about["n"])
            elif name in of_things:
                right = ask.answer(scene, about)
                for colour, body in names.items():
                    things[scene.bodies.index(body), columns[name]] = int(colour == right)
            elif name in of_scenes:
                answer = ask.answer(scene, about)
                if sayable(answer, Question("", ask.grammar(scene, 0)[0])):
                    told[list(of_scenes).index(name)] = of_scenes[name].index(answer)
            else:
                break
    colours = np.array([scene.bodies.index(names[c]) if c in names else NOTHING for c in COLOURS], np.int16)
    return Facts(things, _angles(scene), told, colours, bool(names))


def _offsets(scene: Scene) -> list[float | None]:
    """Metres by which each body lies to the right of the middle of the one body that it rests on."""
    points = [corners(body) for body in scene.bodies]
    low = np.array([p.min(axis=0) for p in points])
    high = np.array([p.max(axis=0) for p in points])
    found: list[float | None] = []
    for i, body in enumerate(scene.bodies):
        touches = np.abs(high[:, 2] - low[i, 2]) < 0.002
        overlaps = (low[:, 0] < high[i, 0]) & (high[:, 0] > low[i, 0])
        below = np.flatnonzero(touches & overlaps & (np.arange(len(points)) != i))
        found.append(body.position[0] - scene.bodies[below[0]].position[0] if len(below) == 1 else None)
    return found


def _angles(scene: Scene) -> npt.NDArray[np.float32]:
    """Directions in the image, in turns: of the motion of bodies that are shown to move, and of arrows."""
    angles = np.full(len(scene.bodies) + len(scene.markers), np.nan, np.float32)
    everything: list[Body | Marker] = [*scene.bodies, *scene.markers]
    for i, thing in enumerate(everything):
        if isinstance(thing, Body) and scene.shown and any(thing.velocity):
            ahead = np.array(thing.velocity) / math.hypot(*thing.velocity)
        elif thing.shape == "arrow":
            ahead = rotation(thing.orientation)[:, 0]
        else:
            continue
        middle = np.array(thing.position)
        (x0, y0, _), (x1, y1, _) = project(scene.camera, np.stack([middle, middle + 0.01 * ahead]))
        angles[i] = math.atan2(y1 - y0, x1 - x0) / (2 * math.pi) % 1
    return angles


class ReadOuts(nn.Module):
    """Linear maps from features to what is there.

    Of every patch: the colours of its 2 x 2 cells and, of the thing of which it shows the most, its box, its direction and its
    attributes. Of the mean patch: the attributes of the scene. Of every colour word in a prompt: whether there is such
    a thing, and the same as of a patch that shows it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_things, self.of_scenes = attributes()
        geometry = [PLACES, PLACES, SIZES, SIZES, ANGLES]
        self.widths = [*geometry, *(len(a.answers) for a in self.of_things.values())]
        self.norm = nn.LayerNorm(HIDDEN)
        self.cells = nn.Linear(HIDDEN, 4 * len(CELL_CLASSES))
        self.thing = nn.Linear(HIDDEN, sum(self.widths))
        self.scene = nn.Linear(HIDDEN, sum(len(a.answers) for a in self.of_scenes.values()))
        self.word_norm = nn.LayerNorm(HIDDEN)
        self.word = nn.Linear(HIDDEN, 2 + sum(self.widths))

    def see(self, features: torch.Tensor, pictures: Sequence[Picture]) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of the patches' and the scenes' read-outs, and how often they are right.

        Args:
            features: (n, `TOKENS`, `HIDDEN`) output of the vision tower.
            pictures: The n images.
        """
        hidden = self.norm(features)
        known = [facts(p) for p in pictures]
        cells = torch.from_numpy(np.stack([_cells(p) for p in pictures])).long()
        half = CELLS // GRID
        cells = cells.view(-1, GRID, half, GRID, half).transpose(2, 3).reshape(-1)
        cell_logits = self.cells(hidden).view(len(cells), -1)
        where, patch, boxes, angles, things = _patches(pictures, known)
        right: dict[str, float] = {}
        loss = F.cross_entropy(cell_logits, cells)
        loss = loss + self._things(self.thing(hidden[where, patch]), boxes, angles, things, right)
        told = torch.from_numpy(np.stack([k.scene for k in known])).long()
        logits = self.scene(hidden.mean(dim=1)).split([len(a.answers) for a in self.of_scenes.values()], dim=1)
        for (name, attribute), values, target in zip(self.of_scenes.items(), logits, told.unbind(1), strict=True):
            loss = loss + _attribute_loss(name, attribute, values, target, right)
        right["cells"] = _share(cell_logits.argmax(1) == cells)
        return loss, right

    def read(
        self, hidden: torch.Tensor, picture: torch.Tensor, colour: torch.Tensor, pictures: Sequence[Picture]
    ) -> torch.Tensor:
        """Loss of the colour words' read-outs.

        Args:
            hidden: (w, `HIDDEN`) states of the decoder at the colour words.
            picture: (w,) index of the image that each word is about.
            colour: (w,) index of the colour in `COLOURS`.
            pictures: The images.
        """
        known = [facts(p) for p in pictures]
        rows = np.array([known[p].colours[c] for p, c in zip(picture.tolist(), colour.tolist(), strict=True)])
        clear = torch.tensor([known[p].clear for p in picture.tolist()])
        logits = self.word(self.word_norm(hidden))
        here = torch.from_numpy(rows != NOTHING)
        loss: torch.Tensor = F.cross_entropy(logits[clear, :2], here[clear].long())
        at = np.flatnonzero(rows != NOTHING)
        of = picture.numpy()[at]
        # The last panel of a strip is the moment that questions are about.
        boxes = np.stack([pictures[p].boxes[-1, r] for p, r in zip(of, rows[at], strict=True)])
        angles = np.array([known[p].angles[r] for p, r in zip(of, rows[at], strict=True)])
        things = np.stack([known[p].things[r] for p, r in zip(of, rows[at], strict=True)])
        return loss + self._things(
            logits[torch.from_numpy(at), 2:],
            torch.from_numpy(boxes),
            torch.from_numpy(angles),
            torch.from_numpy(things).long(),
            {},
        )

    def _things(
        self,
        logits: torch.Tensor,
        boxes: torch.Tensor,
        angles: torch.Tensor,
        things: torch.Tensor,
        right: dict[str, float],
    ) -> torch.Tensor:
        x, y, width, height, angle, *others = logits.split(self.widths, dim=1)
        seen = ~boxes[:, 0].isnan()
        boxes = boxes[seen] * PLACES
        loss = (
            _near(x[seen], boxes[:, 0] - 0.5)
            + _near(y[seen], boxes[:, 1] - 0.5)
            + 0.3 * _near(width[seen], (boxes[:, 2] - 0.5).clamp(max=SIZES - 1))
            + 0.3 * _near(height[seen], (boxes[:, 3] - 0.5).clamp(max=SIZES - 1))
        )
        right["x"] = _share((x[seen].argmax(1) - boxes[:, 0] + 0.5).abs() <= 1)
        points = ~angles.isnan()
        if points.any():
            loss = loss + 1.5 * _near(angle[points], angles[points] * ANGLES, circle=ANGLES)
            off = (angle[points].argmax(1) - angles[points] * ANGLES).abs()
            right["angle"] = _share(torch.minimum(off, ANGLES - off) <= 1)
        for (name, attribute), values, target in zip(self.of_things.items(), others, things.unbind(1), strict=True):
            loss = loss + _attribute_loss(name, attribute, values, target, right)
        return loss


def _cells(picture: Picture) -> npt.NDArray[np.int8]:
    """(`CELLS`, `CELLS`) what covers the middle of each cell, as an index into `CELL_CLASSES`."""
    index = {name: i for i, name in enumerate(CELL_CLASSES)}
    scene = picture.scene
    seen = [index[b.colour] for b in scene.bodies] + [index["ghost" if m.fade else m.colour] for m in scene.markers]
    # Background and floor are -2 and -1: the last two entries.
    table = np.array([*seen, index["sky"], index["floor"]], np.int8)
    step = PIXELS // CELLS
    return table[picture.things[step // 2 :: step, step // 2 :: step]]


def _patches(
    pictures: Sequence[Picture], known: Sequence[Facts]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches that show something: number of the image, number of the patch, box, angle and attributes of the thing."""
    parts: list[tuple[npt.NDArray, ...]] = []  # type: ignore[type-arg]
    quarter = (np.arange(GRID) >= GRID // 2).astype(int)
    for number, (picture, fact) in enumerate(zip(pictures, known, strict=True)):
        split = picture.things.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(TOKENS, -1)
        count = len(fact.things)
        held = (split[:, None] == np.arange(count)[:, None]).sum(axis=2)
        # Of what it shows, the thing of which it holds the largest part.
        score = np.where(held >= LEAST, held / np.maximum(held.sum(axis=0), 1), 0)
        patch = np.flatnonzero(score.max(axis=1) > 0)
        thing = score[patch].argmax(axis=1)
        panel = (2 * quarter[patch // GRID] + quarter[patch % GRID]) if picture.scene.panels else 0 * patch
        parts.append(
            (np.full(len(patch), number), patch, picture.boxes[panel, thing], fact.angles[thing], fact.things[thing])
        )
    joined = [torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)]
    return joined[0], joined[1], joined[2], joined[3], joined[4].long()


def _attribute_loss(
    name: str, attribute: Attribute, logits: torch.Tensor, target: torch.Tensor, right: dict[str, float]
) -> torch.Tensor:
    told = target != NOTHING
    if not told.any():
        return logits.sum() * 0
    logits, target = logits[told], target[told]
    # Beyond counts, one off is nearly right.
    soft = attribute.graded and len(attribute.answers) > LARGEST_NUMBER
    off = (logits.argmax(1) - target).abs()
    right[name] = _share(off <= (1 if soft else 0))
    return _near(logits, target) if soft else F.cross_entropy(logits, target)


def _near(logits: torch.Tensor, target: torch.Tensor, circle: int = 0) -> torch.Tensor:
    """Cross-entropy to a bell of one bin around the target, which may lie between bins: the next bin is nearly right."""
    off = (torch.arange(logits.shape[1]) - target[:, None].float()).abs()
    if circle:
        off = torch.minimum(off, circle - off)
    bell = torch.softmax(-0.5 * off**2, dim=1)
    return -(bell * torch.log_softmax(logits.float(), dim=1)).sum(dim=1).sum() / max(1, len(target))


def _share(right: torch.Tensor) -> float:
    return float(right.float().mean())
