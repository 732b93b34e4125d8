"""Pictures of other people, as sets store them: square, RGB, PNG; what was converted is noted."""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stimuli.tables import Report

SMALLEST = 16
"""Edge of the smallest picture that is taken, pixels."""


@dataclass(frozen=True)
class Picture:
    """A picture as it will be stored: its hash, the bytes of the PNG, and its edge in pixels."""

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
    """A picture as a square RGB PNG; None, with the problem reported, if it cannot be had."""
    if file in loaded:
        return loaded[file]
    path = (folder / file).resolve()
    if not file or not path.is_relative_to(folder.resolve()):
        wrong("file", "is empty" if not file else f"{file!r} lies outside the folder of pictures")
        return None
    if not path.is_file():
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        wrong("file", f"there is no picture {file!r} in {folder}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        return None
    try:
        with Image.open(path) as opened:
            opened.load()
            turned = ImageOps.exif_transpose(opened)
            picture = _rgb(turned, report)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        wrong("file", f"{file!r} cannot be read as a picture: {error}")
        return None
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
    """A picture with three channels; what is transparent becomes white."""
    if picture.mode == "RGB":
        return picture.copy()
    report.notes[f"pictures converted from {picture.mode} to RGB"] += 1
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def _border(picture: Image.Image) -> tuple[int, int, int]:
    """The median colour of the outermost pixels."""
    pixels = np.asarray(picture)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(edge, axis=0).astype(int).tolist()
    return red, green, blue
