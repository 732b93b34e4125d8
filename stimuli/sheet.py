"""Contact sheets: the pictures of a set side by side, with their labels and margins, for looking at."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stimuli.dataset import Item, StimulusSet

CELL, CAPTION, GAP = 224, 44, 6


def contact_sheet(stimuli: StimulusSet, out: str | Path, n: int = 24, columns: int = 6) -> None:
    """Write a PNG of n items, spread evenly over the set, whole pairs side by side.

    Args:
        stimuli: The set.
        out: The PNG to write.
        n: Number of items at most.
        columns: Items per row.

    Raises:
        ValueError: If n or columns is below 1.
        OSError: If the file cannot be written.
    """
    if n < 1 or columns < 1:
        raise ValueError(f"a contact sheet needs at least one item and one column, got n = {n}, columns = {columns}")
    items = _spread(stimuli.items, n)
    columns = min(columns, len(items))
    rows = -(-len(items) // columns)
    sheet = Image.new("RGB", (columns * (CELL + GAP) + GAP, rows * (CELL + CAPTION + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for index, item in enumerate(items):
        left = GAP + index % columns * (CELL + GAP)
        top = GAP + index // columns * (CELL + CAPTION + GAP)
        sheet.paste(stimuli.image(item).resize((CELL, CELL), Image.Resampling.LANCZOS), (left, top))
        lines = [_caption(item), item.condition.code]
        for number, line in enumerate(lines):
            draw.text((left + 2, top + CELL + 3 + 17 * number), line, fill="black", font=font)
    sheet.save(out, "PNG")


def _caption(item: Item) -> str:
    """The answer with the margin, or with what was asked about where there is no margin."""
    if item.task.endswith("grounding"):
        return " ".join(str(value) for value in item.question.about.values()) + f": {item.answer}"
    return f"{item.answer}   margin {item.margin:+.2f}"


def _spread(items: list[Item], n: int) -> list[Item]:
    """About n items, evenly spread over the groups, keeping the members of a pair together."""
    pairs: dict[str, list[Item]] = {}
    for item in items:
        pairs.setdefault(item.pair_id, []).append(item)
    ids = list(pairs)
    wanted = max(1, n // max(1, len(pairs[ids[0]])))
    step = max(1, len(ids) // wanted)
    # An odd step alternates between base and mirrored pairs.
    step -= step > 1 and step % 2 == 0
    return [item for pair in ids[::step][:wanted] for item in pairs[pair]][:n]
