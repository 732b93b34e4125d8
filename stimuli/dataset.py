"""Stimulus sets: a folder with one row per item, the images, and a card that says what the set is worth.

SET/metadata.jsonl            one item per line; `datasets.load_dataset("imagefolder", data_dir=SET)` opens it
SET/images/<sha256>.png
SET/segmentation/, depth/     on request, as .npy
SET/card.json                 versions, seed, design, balance, agreement of engine and statics, content hash
SET/responses.csv             human responses, in imported sets that have them
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.errors import ProbeError, reading
from vlm_probe.stimuli.opening import LARGEST_EDGE, open_picture
from vlm_probe.stimuli.plain_json import dumps, parse_object
from vlm_probe.stimuli.question import Answer, ChoiceFormat, Grammar, Question, Variant, grammar_from_dict
from vlm_probe.stimuli.ranges import AMOUNT, shown, whole
from vlm_probe.stimuli.responses import Response, read_csv
from vlm_probe.stimuli.scene import Scene

METADATA, CARD = "metadata.jsonl", "card.json"
KIND = "stimulus set"
"""What the manifest of a set's folder calls it."""
CARD_TYPES = {
    "task": str,
    "n": int,
    "image_size": int,
    "renderer": str,
    "versions": dict,
    "baselines": dict,
    "checks": dict,
}
"""Entries of a card that the program itself reads."""
LONGEST_SHAPE = 50
"""Models scale the shorter edge to a size of theirs, and the longer one would be as many times as long."""


class StimulusError(ProbeError, ValueError):
    """A stimulus set is missing, incomplete or damaged; the message names the file, the line and the fix."""


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Attributes:
        item_id: Unique in the set, and opaque: it says nothing about the answer.
        task: Task name; `task_version` is the version that made it.
        file_name: Image, relative to the set's folder.
        image_sha256: Hash of the image's file.
        question: Prompt, answer grammar and style.
        answer: The correct answer.
        margin: Signed physical margin, dimensionless.
        condition: Factor levels.
        variant: Wording.
        pair_id: Shared by the minimal-pair foils of a group (and by nothing else).
        group_id: Shared by a base scene, its foils and their mirror images.
        role: "base" or "foil1", "foil2", ...
        scene: What the image shows; None in imported sets.
        certificate: Facts found by the simulator, such as all answers that work.
    """

    item_id: str
    task: str
    task_version: int
    file_name: str
    image_sha256: str
    question: Question
    answer: Answer
    margin: float
    condition: Condition
    variant: Variant
    pair_id: str
    group_id: str
    role: str
    scene: Scene | None
    scene_sha256: str
    certificate: dict[str, Any] = field(default_factory=dict)

    @property
    def working(self) -> list[Answer]:
        """All answers that work, where they were listed: by the simulator, or in an imported table. Else empty."""
        return [tuple(w) if isinstance(w, list) else w for w in self.certificate.get("working", ())]

    def to_row(self) -> dict[str, Any]:
        """The item as one row of metadata.jsonl."""
        return {
            "file_name": self.file_name,
            "item_id": self.item_id,
            "task": self.task,
            "task_version": self.task_version,
            "prompt": self.question.prompt,
            "answer": self.question.grammar.text(self.answer),
            "margin": self.margin,
            "pair_id": self.pair_id,
            "group_id": self.group_id,
            "role": self.role,
            "condition": self.condition.to_dict(),
            "variant": self.variant.to_dict(),
            "grammar": self.question.grammar.to_dict(),
            "about": self.question.about,
            "certificate": self.certificate,
            "image_sha256": self.image_sha256,
            "scene_sha256": self.scene_sha256,
            "scene": self.scene.to_dict() if self.scene is not None else None,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Item:
        """Inverse of `to_row`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: On malformed data.
        """
        grammar: Grammar = grammar_from_dict(row["grammar"])
        variant = Variant(**row["variant"])
        answer, status = grammar.read(row["answer"])
        if answer is None:
            raise ValueError(f"the answer {row['answer']!r} is not one that the grammar allows ({status})")
        scene = Scene.from_dict(row["scene"]) if row.get("scene") else None
        margin = float(row["margin"])
        if not math.isfinite(margin):
            raise ValueError(f"the margin is {margin}")
        return cls(
            item_id=str(row["item_id"]),
            task=str(row["task"]),
            task_version=int(row["task_version"]),
            file_name=str(row["file_name"]),
            image_sha256=str(row["image_sha256"]),
            question=Question(str(row["prompt"]), grammar, variant.style, dict(row.get("about") or {})),
            answer=answer,
            margin=margin,
            condition=Condition.from_dict(row["condition"]),
            variant=variant,
            pair_id=str(row["pair_id"]),
            group_id=str(row["group_id"]),
            role=str(row["role"]),
            scene=scene,
            scene_sha256=str(row["scene_sha256"]),
            certificate=dict(row.get("certificate") or {}),
        )


@dataclass(frozen=True)
class StimulusSet:
    """A set on disk: its folder, its card and its items (read when first asked for)."""

    path: Path
    card: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> StimulusSet:
        """Open a set and check that its rows are whole.

        Raises:
            StimulusError: If the folder is not a set, or its metadata is not what the card says.
        """
        folder = Path(path)
        missing = [name for name in (METADATA, CARD) if not (folder / name).is_file()]
        if missing:
            raise StimulusError(
                f"{folder} is not a stimulus set: it has no {' and no '.join(missing)}; make one with"
                " `probe stimuli make TASK --out DIR`"
            )
        with reading(folder / CARD, StimulusError, "make the set again, or restore the file"):
            card = parse_object((folder / CARD).read_bytes())
            expected = (int(card["n"]), str(card["content_sha256"]))
            _check_card(card)
        with (folder / METADATA).open("rb") as metadata:
            found = hashlib.file_digest(metadata, "sha256").hexdigest()
        opened = cls(folder, card)
        if found != expected[1]:
            list(opened.rows())  # names the damaged line, if it is one that cannot be read
            raise StimulusError(
                f"{folder / METADATA} is not what {CARD} describes ({len(list(opened.rows()))} rows,"
                f" {expected[0]} expected, or edited by hand): make the set anew or restore the file"
            )
        return opened

    @property
    def content_sha256(self) -> str:
        """Hash of the metadata, which holds the hash of every image."""
        return str(self.card["content_sha256"])

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the metadata as plain data, in order.

        Raises:
            StimulusError: If a line cannot be read; the message names it.
        """
        with (self.path / METADATA).open("rb") as file:
            for number, line in enumerate(file, 1):
                with reading(f"{self.path / METADATA}, line {number},", StimulusError, "make the set again"):
                    row = parse_object(line)
                yield row

    @cached_property
    def items(self) -> list[Item]:
        """All items in order.

        Raises:
            StimulusError: If a line is no item; the message names it.
        """
        items = []
        for number, row in enumerate(self.rows(), 1):
            with reading(f"{self.path / METADATA}, line {number},", StimulusError, "make the set again"):
                items.append(Item.from_row(row))
        return items

    def __len__(self) -> int:
        return int(self.card["n"])

    def responses(self) -> list[Response]:
        """The human responses that came with the set; none in most sets.

        Raises:
            StimulusError: If the card names a file that is missing or was changed.
        """
        stated = self.card.get("responses")
        if not stated:
            return []
        with reading(f"the list of human responses of {self.path}", StimulusError, "import the set again"):
            path = self._within(str(stated["file"]))
            return list(read_csv(path, str(stated["sha256"])))

    def flat_rows(self) -> Iterator[dict[str, Any]]:
        """The items as flat rows of text and numbers, for a table: one column for every factor, scenes left out."""
        for item in self.items:
            grammar, row = item.question.grammar, item.to_row()
            options = (
                "|".join(f"{o.text}={o.value}" for o in grammar.options) if isinstance(grammar, ChoiceFormat) else ""
            )
            ranges = (
                "" if isinstance(grammar, ChoiceFormat) else ", ".join(f"{low}..{high}" for low, high in grammar.ranges)
            )
            working = [_listed(w) for w in item.working]
            names = ("file_name", "item_id", "task", "task_version", "prompt", "answer")
            yield (
                {name: row[name] for name in names}
                | {"meaning": _listed(row["answer"] if not options else item.answer), "options": options or ranges}
                | {"working": ";".join(working), "margin": item.margin}
                | {name: row[name] for name in ("pair_id", "group_id", "role")}
                | {f"condition_{name}": _joined(value) for name, value in row["condition"].items()}
                | {f"variant_{name}": value for name, value in row["variant"].items()}
                | {"about": dumps(row["about"]) if row["about"] else ""}
                | {name: row[name] for name in ("image_sha256", "scene_sha256")}
            )

    def image(self, item: Item) -> Image.Image:
        """The image of an item, RGB.

        Raises:
            StimulusError: If it is missing, unreadable, or not the image that the metadata describes.
        """
        try:
            data = self._within(item.file_name).read_bytes()
        except OSError as error:
            raise StimulusError(f"{item.item_id}: cannot read {item.file_name}: {error.strerror}") from error
        except ValueError as error:
            raise StimulusError(f"{item.item_id}: the picture {error}") from error
        if hashlib.sha256(data).hexdigest() != item.image_sha256:
            raise StimulusError(f"{item.item_id}: {item.file_name} is corrupt: its hash is not the one in the metadata")
        try:
            picture = open_picture(data)[0].convert("RGB")
            if max(picture.size) > LONGEST_SHAPE * min(picture.size):
                raise ValueError(f"one edge is more than {LONGEST_SHAPE} times as long as the other: pad it")
            return picture
        except ValueError as error:
            raise StimulusError(f"{item.item_id}: {item.file_name} is not a picture: {error}") from error

    def _within(self, name: str) -> Path:
        """The path of a file of the set. Raises ValueError if it would lead out of the folder, by a link or otherwise."""
        try:
            path = (self.path / name).resolve()
            inside = path.is_relative_to(self.path.resolve())
        except RuntimeError as error:
            raise ValueError(f"{name} is a link in a circle") from error
        if not inside:
            raise ValueError(f"{name} lies outside the set")
        return path


def _check_card(card: dict[str, Any]) -> None:
    """Raise ValueError if an entry that the program reads is of another kind than it writes."""
    for name, kind in CARD_TYPES.items():
        if not isinstance(card.get(name, kind()), kind):
            raise ValueError(f"{name} is {str(card[name])[:40]!r}")
    for name, most in (("n", AMOUNT.most), ("image_size", LARGEST_EDGE)):
        if not whole(0, most).holds(card.get(name, 0)):
            raise ValueError(f"{name} must be {whole(0, most)}, got {shown(card[name])}")
    if "task" not in card:
        raise ValueError("it names no task")


def package_version() -> str:
    """Version of this package, as cards state it."""
    try:
        return version("vlm-probe")
    except PackageNotFoundError:
        return "0+unknown"


def _listed(answer: Any) -> str:
    """An answer as a cell of a table."""
    return ", ".join(map(str, answer)) if isinstance(answer, (list, tuple)) else str(answer)


def _joined(value: Any) -> Any:
    """A factor's level as a cell of a table: lists in one cell."""
    return (
        ";".join(":".join(map(str, v)) if isinstance(v, list) else str(v) for v in value)
        if isinstance(value, list)
        else value
    )
