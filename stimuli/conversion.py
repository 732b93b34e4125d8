"""Pictures of other people, as sets store them: square, sRGB, PNG, as a viewer shows them; what was converted is noted."""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from vlm_probe.stimuli.opening import open_picture
from vlm_probe.stimuli.tables import Report

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
    """A picture as a square RGB PNG, turned as its camera was.

    Args:
        folder: That of the table, which no picture may lie outside of.
        file: The picture's name in the table.
        size: Edge to which it is scaled, pixels; None leaves it as it is.
        loaded: Pictures that have been converted already, by name; this one is added.
        report: Where what was done to it is noted.
        wrong: Told a column's role and what is wrong, if it cannot be had.

    Returns:
        The picture; None if it cannot be had.
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
    """A picture with three channels of eight bits in sRGB; what is transparent becomes white.

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
    """A picture whose colours are those of a profile, as cameras and printers have them, in the colours of a screen."""
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
