"""Contact sheets: the images of a set, or of a scene under every shift, side by side, for looking at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.output import whole_file
from vlm_probe.stimuli.picture import draw, painter, staged
from vlm_probe.stimuli.ranges import SHOWN
from vlm_probe.stimuli.shifts import LEVELS, VISUAL, apply_alike, shifted_condition, spell
from vlm_probe.stimuli.tasks import SamplingFailed, get_task

CELL, LINE, GAP = 320, 18, 8
WIDEST = 50
"""Characters of a caption that fit under an image."""
SHOWN_SHIFTS = (*VISUAL, "count", "size")
"""Shifts that an image shows: mass, friction and gravity cannot be seen."""


def contact_sheet(stimuli: StimulusSet, out: str | Path, n: int = 24, columns: int = 4) -> None:
    """Write a PNG of n items, spread evenly over the set, whole pairs side by side.

    Args:
        stimuli: The set.
        out: The PNG to write.
        n: Number of items at most.
        columns: Items per row.

    Raises:
        OutOfRange: If n or columns is.
        OSError: If the file cannot be written.
    """
    SHOWN.check("n", n)
    SHOWN.check("columns", columns)
    items = _spread(stimuli.items, n)
    columns = min(columns, len(items))
    rows = -(-len(items) // columns)
    caption = 3 + LINE * max(len(_lines(item)) for item in items)
    sheet = Image.new("RGB", (columns * (CELL + GAP) + GAP, rows * (CELL + caption + GAP) + GAP), "white")
    draw_on, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for index, item in enumerate(items):
        left = GAP + index % columns * (CELL + GAP)
        top = GAP + index // columns * (CELL + caption + GAP)
        sheet.paste(stimuli.image(item).resize((CELL, CELL), Image.Resampling.LANCZOS), (left, top))
        for number, line in enumerate(_lines(item)):
            draw_on.text((left + 2, top + CELL + 3 + LINE * number), line[:WIDEST], fill="black", font=font)
    with whole_file(Path(out)) as partial:
        sheet.save(partial, "PNG")


def shift_sheet(task: str, out: str | Path, seed: int = 4, renderer: str = "") -> None:
    """Write a PNG of every shift (rows) at every level (columns, after the unshifted image) on one scene of a task.

    Args:
        task: Its name.
        out: The PNG to write.
        seed: Of the scene and the shifts.
        renderer: That draws them; empty for the default.

    Raises:
        UnknownTask: If there is no such task.
        ValueError: If there is no such renderer.
        OSError: If the file cannot be written.
    """
    the_task, simulator = get_task(task), painter(renderer)
    conditions = the_task.conditions()
    condition = max(conditions, key=lambda c: c.count)
    edge, label = 224, 18
    sheet = Image.new(
        "RGB", ((len(LEVELS) + 1) * (edge + GAP) + GAP, len(SHOWN_SHIFTS) * (edge + label + GAP) + GAP), "white"
    )
    draw_on, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, name in enumerate(SHOWN_SHIFTS):
        for column, level in enumerate((0, *LEVELS)):
            shifts = ((name, level),) if level else ()
            left, top = GAP + column * (edge + GAP), GAP + row * (edge + label + GAP)
            try:
                scenes = the_task.sample_matched(
                    np.random.default_rng(seed), shifted_condition(the_task, condition, shifts)
                )
                scene = apply_alike(staged(scenes, renderer), shifts, np.random.default_rng(seed))[0]
            except SamplingFailed:
                draw_on.text((left + 4, top + edge), f"no {name}:{level}", fill="black", font=font)
                continue
            picture = Image.fromarray(draw(simulator, scene, 2 * edge).rgb)
            sheet.paste(picture.resize((edge, edge), Image.Resampling.LANCZOS), (left, top))
            caption = f"{name}:{level}" if level else "unshifted"
            draw_on.text((left + 2, top + edge), caption, fill="black", font=font)
    with whole_file(Path(out)) as partial:
        sheet.save(partial, "PNG", optimize=True)


def _lines(item: Item) -> list[str]:
    """What is written under an image: answer and margin, factor levels in words, and shifts where there are any."""
    condition = item.condition
    words = [f"{condition.count} object" + "s" * (condition.count != 1), condition.build.replace(":", ": ")]
    words += [f"shown by {condition.shown}"] if condition.shown else []
    words += ["mirror image"] if condition.mirrored else []
    return [_caption(item), ", ".join(words), *([spell(condition.shifts)] if condition.shifts else [])]


def _caption(item: Item) -> str:
    """The answer with the margin, or with what was asked about where there is no margin."""
    about = [
        str(value) for name, value in item.question.about.items() if isinstance(value, str | int) and name != "ask"
    ]
    asked = str(item.question.about.get("ask", ""))
    if asked:
        return f"{' '.join([asked, *about])}: {item.answer}"
    answer = ", ".join(map(str, item.answer)) if isinstance(item.answer, tuple) else str(item.answer)
    return f"{answer}   margin {item.margin:+.2f}" if item.condition.margin_bin != (0.0, 0.0) else answer


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
