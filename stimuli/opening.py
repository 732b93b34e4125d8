"""Opening images of unknown origin: what is too large, torn or no common format is refused."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is read. Other decoders of Pillow hand files to programs of the system (EPS), or are hardly tested by anybody."""
LARGEST_EDGE = 10_954
"""Pixels. A square of this edge has 120 million of them, as the best cameras give. A file of a few kilobytes can claim a hundred times
as many, and a narrow strip becomes that large once it is padded to a square; either would fill the memory."""


def open_picture(source: Path | bytes) -> tuple[Image.Image, bool]:
    """An image, decoded and turned as its camera was; and whether its file has further ones.

    Args:
        source: A file, or its contents.

    Raises:
        ValueError: If it is no image, is cut off, or has an edge longer than `LARGEST_EDGE`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, which is looked at here
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as opened:
                width, height = opened.size
                if max(width, height) > LARGEST_EDGE:
                    raise ValueError(
                        f"{width} x {height} pixels are too many: scale it to edges of at most {LARGEST_EDGE:,}"
                    )
                # A telephone may hide a second image (a map of depth, say) in a JPEG, which no viewer shows.
                several = bool(getattr(opened, "is_animated", False)) and opened.format != "MPO"
                opened.load()
                return ImageOps.exif_transpose(opened), several
    except Image.DecompressionBombError as error:
        raise ValueError(f"it is too large: scale it to edges of at most {LARGEST_EDGE:,} pixels") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
    except ValueError:
        raise
    except Exception as error:  # decoders have errors of every kind for what is torn or forged
        raise ValueError(str(error) or type(error).__name__) from error
