"""Foreign items as sets store them: square sRGB PNG images as a viewer shows them, and the bins and signs of stated margins."""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.opening import open_picture
from vlm_probe.stimuli.question import Answer
from vlm_probe.stimuli.tables import Report
from vlm_probe.stimuli.tasks import SamplingFailed, Task

BINS = 3
"""On each side of the boundary, as designed sets have."""


def with_bins(items: Sequence[Item]) -> list[Item]:
    """Items with the bin of their margin in their condition, so that success can be counted over the margin.

    Bins are those of the absolute margin, the same on both sides; none straddles the boundary. Items whose margin is 0, which
    may as well be one that nobody stated, have no bin.

    Args:
        items: Of one set.
    """
    sizes = np.array([abs(item.margin) for item in items if item.margin])
    if not len(sizes):
        return list(items)
    edges = np.unique([float(f"{edge:.3g}") for edge in np.quantile(sizes, np.linspace(0, 1, BINS + 1))])
    if len(edges) == 1:
        edges = np.array([0.0, edges[0]])
    return [_with_bin(item, edges) if item.margin else item for item in items]


def _with_bin(item: Item, edges: npt.NDArray[np.float64]) -> Item:
    # Rounding may leave the smallest and the largest just outside.
    place = int(np.clip(np.searchsorted(edges, abs(item.margin), side="right"), 1, len(edges) - 1))
    low, high = float(edges[place - 1]), float(edges[place])
    margin_bin = (low, high) if item.margin > 0 else (-high, -low)
    return replace(item, condition=replace(item.condition, margin_bin=margin_bin))


PROBED = 12
"""Conditions of a task from which a group of scenes is drawn to see what its margin means."""


def signs(task: Task) -> dict[Answer, int]:
    """The sign of the margin (1 or -1) that goes with each answer of a judgement; empty where signs do not tell answers apart.

    Found on scenes of the task, whose answers are those of the closed form, or of the simulator where there is none.
    """
    if task.kind != "judgement":
        return {}
    rng, conditions = np.random.default_rng(0), task.conditions()
    found: dict[Answer, set[int]] = {}
    for condition in conditions[:: max(1, len(conditions) // PROBED)]:
        try:
            scenes = task.sample_matched(rng, condition)
            for scene in scenes:
                answer = task.statics_answer(scene)
                if answer is None:
                    answer = task.solve(scene, task.question(scene, task.variants()[0]))
                found.setdefault(answer, set()).add(int(np.sign(task.margin(scene))))
        except (SamplingFailed, ValueError):
            continue
    meant = {answer: only for answer, each in found.items() if len(each) == 1 and (only := next(iter(each)))}
    return meant if len(set(meant.values())) == 2 else {}


def contradictions(items: list[Item], expected: dict[Answer, int]) -> list[Item]:
    """The items whose margin has the sign of another answer than theirs. A margin of 0 has none (it is often just not known).

    Args:
        items: Of one task.
        expected: The sign that goes with each answer, from `signs`.
    """
    return [item for item in items if np.sign(item.margin) == -expected.get(item.answer, 0) != 0]


SMALLEST = 16
"""Edge of the smallest image that is taken, pixels."""


@dataclass(frozen=True)
class Picture:
    """An image as it will be stored: its hash, the bytes of the PNG, and its edge in pixels."""

    sha256: str
    data: bytes
    edge: int


def convert(
    folder: Path,
    file: str,
    size: int | None,
    loaded: dict[str, Picture],
    report: Report,
    wrong: Callable[[str, str], None],
) -> Picture | None:
    """An image as a square RGB PNG, turned as its camera was.

    Args:
        folder: That of the table, which no image may lie outside of.
        file: The image's name in the table.
        size: Edge to which it is scaled, pixels; None leaves it as it is.
        loaded: Images that have been converted already, by name; this one is added.
        report: Where what was done to it is noted.
        wrong: Told a column's role and what is wrong, if it cannot be had.

    Returns:
        The image; None if it cannot be had.
    """
    if file in loaded:
        return loaded[file]
    try:
        path = (folder / file).resolve()
        inside, there = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, or links in a circle
        wrong("file", f"{file[:100]!r} is no name of a picture: {error}")
        return None
    if not file or not inside:
        wrong("file", "is empty" if not file else f"{file!r} lies outside the folder of pictures")
        return None
    if not there:
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        wrong("file", f"there is no picture {file!r} in {folder}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        return None
    try:
        opened, several = open_picture(path)
        picture = _rgb(opened, report)
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        wrong("file", f"{file!r} cannot be read as a picture ({error}): save it anew as PNG or JPEG")
        return None
    if several:
        report.notes["pictures of several frames, of which the first was taken"] += 1
    if min(picture.size) < SMALLEST:
        wrong("file", f"{file!r} has {picture.size[0]} x {picture.size[1]} pixels: at least {SMALLEST} are needed")
        return None
    if picture.size[0] != picture.size[1]:
        report.notes["pictures that were not square, padded in the colour of their border"] += 1
        edge = max(picture.size)
        picture = ImageOps.pad(picture, (edge, edge), Image.Resampling.LANCZOS, color=_border(picture))
    if size is not None and picture.size[0] != size:
        report.notes[f"pictures scaled to {size} pixels"] += 1
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    data = encoded.getvalue()
    loaded[file] = Picture(hashlib.sha256(data).hexdigest(), data, picture.size[0])
    return loaded[file]


def _rgb(picture: Image.Image, report: Report) -> Image.Image:
    """An image with three channels of eight bits in sRGB; what is transparent becomes white.

    Raises:
        ValueError: If its numbers say nothing about how bright they are to be shown.
    """
    if picture.mode in ("F", "I"):
        raise ValueError("its grey values do not say which of them is white")
    profile = picture.info.get("icc_profile")
    if picture.mode != "RGB":
        report.notes[f"pictures converted from {picture.mode} to RGB"] += 1
    if picture.mode.startswith("I;16"):  # Pillow would cut off whatever is above 255
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) * 255 + 32767) // 65535).convert("L")
    alpha = None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
    if picture.mode != "CMYK":
        picture = picture.convert("RGB")
    shown = _to_srgb(picture, profile, report) if profile else picture.convert("RGB")
    if alpha is None:
        return shown
    ground = Image.new("RGB", shown.size, "white")
    ground.paste(shown, mask=alpha)
    return ground


def _to_srgb(picture: Image.Image, data: bytes, report: Report) -> Image.Image:
    """An image whose colours are those of a profile, as cameras and printers have them, in the colours of a screen."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    grey = profile.profile.xcolor_space.strip() == "GRAY"  # its curve is close to that of sRGB
    if grey or "srgb" in ImageCms.getProfileDescription(profile).lower():
        return picture.convert("RGB")
    converted = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # it works in place only when told to
    report.notes["pictures whose colour profile was applied"] += 1
    return converted


def _border(picture: Image.Image) -> tuple[int, int, int]:
    """The median colour of the outermost pixels."""
    pixels = np.asarray(picture)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(edge, axis=0).astype(int).tolist()
    return red, green, blue
