"""What a processor makes of images: whether its numbers are sound, and in which size a model sees an image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from vlm_probe.probes.models.dummy_inputs import dummy_inputs
from vlm_probe.probes.models.model_folder import entries
from vlm_probe.stimuli.plain_json import dumps, parse

IMAGE_SIZES = (
    *("size", "crop_size", "pad_size", "max_image_size", "image_grid_pinpoints", "patch_size", "merge_size"),
    *("min_pixels", "max_pixels", "min_patches", "max_patches", "max_image_tiles"),
)
IMAGE_SCALES = ("rescale_factor", "image_mean", "image_std")
LONGEST_EDGE, MOST_PIXELS = 8192, 120_000_000
"""Pixels to which the edge of an image, and an image, may be enlarged."""
MOST_TOKENS = 100_000
"""Tokens that a processor may write in the place of one image."""
COUNTED = ("max_patches", "longest_edge", "max_pixels")
"""Limits that are numbers of pixels or of patches in processors that cut an image into patches."""

_Size = tuple[int, int]
"""Width and height, pixels."""


def takes_images(processor: Any) -> bool:
    """Whether a processor takes images and text."""
    return hasattr(processor, "tokenizer") and getattr(processor, "image_processor", None) is not None


def plain_settings(processor: Any) -> dict[str, Any]:
    """The settings of a processor as plain data."""
    found: dict[str, Any] = parse(dumps(processor.to_dict(), default=str, sort_keys=True))
    return found


def check_images(processor: Any) -> None:
    """Refuse a processor that makes too many numbers of an image, or some that are not finite.

    Args:
        processor: Of a model, with an image processor.

    Raises:
        ValueError: If it does; the message names the setting.
    """
    images = processor.image_processor
    settings = plain_settings(images)
    # Some processors give their sizes as numbers of pixels, of which only the least enlarges an image.
    counts = any(settings.get(name) is not None for name in ("merge_size", "min_pixels"))
    for path, value in entries({name: settings[name] for name in IMAGE_SIZES if name in settings}):
        if isinstance(value, int | float) and not isinstance(value, bool):
            free = counts and path.rpartition(".")[2] in COUNTED
            largest = math.inf if free else MOST_PIXELS if counts else LONGEST_EDGE
            if not 0 < value <= largest:
                raise ValueError(f"the image processor's {path} is {value}")
    for name, value in plain_settings(processor).items():
        if name.endswith(("tokens", "seq_length")) and isinstance(value, int) and not 0 <= value <= MOST_TOKENS:
            raise ValueError(f"{name} is {value}")
    made = images(images=[[dummy_inputs().images[0]]], return_tensors="pt")
    if not all(bool(tensor.isfinite().all()) for values in pixel_values(made) for tensor in values):
        given = ", ".join(f"{name} {settings[name]}" for name in IMAGE_SCALES if name in settings)
        raise ValueError(f"the image processor makes numbers that are not finite of an image, with {given}")


def pixel_values(made: Mapping[str, Any]) -> list[list[Any]]:
    """The tensors of pixels among a processor's outputs: one list for each name under which there are some.

    Args:
        made: What a processor, or an image processor, returns.
    """
    named = [value for name, value in made.items() if name.endswith("pixel_values") or name == "pixel_values_images"]
    return [list(value) if isinstance(value, list | tuple) else [value] for value in named]


def seen_size(made: Mapping[str, Any], images: Any, copies: int = 1) -> str:
    """The size in which a model sees an image: "336 x 336" (width x height, pixels), "5 of 384 x 384" if it is cut into tiles.

    Args:
        made: What the processor returns for one prompt.
        images: The image processor.
        copies: How often the image is in the prompt.

    Returns:
        The sizes of its parts, joined by " and " where they differ; empty where the processor does not tell.
    """
    try:
        sizes = [
            size for found in _sizes(made, images) for size, count in found.items() for _ in range(count // copies)
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        return ""  # made in a way that is not known here
    if not sizes or any(side <= 0 for size in sizes for side in size):
        return ""
    told = Counter(sizes)
    return " and ".join(f"{n} of {w} x {h}" if n > 1 else f"{w} x {h}" for (w, h), n in told.items())


def _sizes(made: Mapping[str, Any], images: Any) -> Iterator[Counter[_Size]]:
    """Size -> number of the parts of that size, for each tensor of pixels; of patches, the area that they cover."""
    patch = _side(images, "encoder_patch_size") or _side(images, "patch_size")
    if "image_grid_thw" in made:  # patches in one row, and how many of them there are in each direction
        yield _count(made["image_grid_thw"][:, 1:], patch)
    elif "image_position_ids" in made:  # the place of every patch, -1 where there is none
        yield _count(made["image_position_ids"].flatten(0, -3).amax(dim=1).flip(-1) + 1, patch)
    elif "spatial_shapes" in made or "target_sizes" in made:
        yield _count(made["spatial_shapes" if "spatial_shapes" in made else "target_sizes"], patch)
    elif "image_num_crops" in made:  # crops of one size, each a row of patches
        yield Counter({(images.size["width"], images.size["height"]): int(made["image_num_crops"].sum())})
    else:
        for tensors in pixel_values(made):
            yield sum((_tiles(made, tensor, patch) for tensor in tensors), Counter[_Size]())


def _count(grids: Any, patch: int) -> Counter[_Size]:
    return Counter((int(columns) * patch, int(rows) * patch) for rows, columns in grids.reshape(-1, 2).tolist())


def _side(images: Any, name: str) -> int:
    value: Any = getattr(images, name, None) or 0
    return int(value if isinstance(value, int) else value["height"])


def _tiles(made: Mapping[str, Any], tensor: Any, patch: int) -> Counter[_Size]:
    """The tiles in a tensor (..., channels, height, width), without those that fill up."""
    *_, channels, height, width = tensor.shape
    if tensor.ndim < 3 or channels not in (1, 3, 4) or height == width == patch:
        raise ValueError("no pictures, but patches")
    mask = made.get("aspect_ratio_mask", made.get("pixel_attention_mask"))
    if mask is None:
        return Counter({(width, height): tensor[..., 0, 0, 0].numel()})
    if mask.shape[-2:] != (height, width):  # one entry for each tile
        return Counter({(width, height): int((mask > 0).sum())})
    parts = mask.flatten(0, -3).bool()
    return Counter((int(part.any(0).sum()), int(part.any(1).sum())) for part in parts if part.any())
