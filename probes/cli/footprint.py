"""What `probe doctor` says of a model: the memory and the time that it needs, and whether this machine has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_probe.probes.models.footprint import Footprint


def show_footprint(model: str, dtype: str, device: str, load_in_4bit: bool, batch_size: int, json: bool) -> int:
    """Show what a model needs, and whether this machine has it.

    Args:
        model, dtype, device, load_in_4bit, batch_size: As for `probe doctor`.
        json: Print a JSON object instead of a table.

    Returns:
        The exit code: 1 if the model does not fit.

    Raises:
        UnknownName: If there is no such model.
        ModelError: If it has no weights, or its size cannot be known without a network.
    """
    from dataclasses import asdict

    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.cli.resources import check_model_name
    from vlm_probe.probes.models.footprint import footprint

    check_model_name(model)
    found = footprint(model, dtype=dtype, device=device, load_in_4bit=load_in_4bit, batch_size=batch_size)
    if json:
        show_json(asdict(found) | {"needed_bytes": found.needed_bytes, "fits": found.fits})
    else:
        show(_table(found))
        for line in _verdict(found):
            show(line)
    return 0 if found.fits else 1


def _table(found: Footprint) -> Any:
    from rich.table import Table

    published = found.source == "catalogue"
    exact = "published, not checked here" if published else "read from its files"
    counted = "published" if published else "counted with its processor"
    seen = f" seen as {found.picture}" if found.picture else ""
    formats = ", ".join(f"{kind} {_size(number)}" for kind, number in found.weight_bytes.items())
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = [
        ("parameters", f"{found.parameters / 1e6:,.1f} million", exact),
        ("on disk", "not on this machine" if found.stored_bytes is None else _size(found.stored_bytes), ""),
        ("weights in memory", formats, "4bit is an estimate" if not published else "estimate"),
        ("prompt", f"{found.prompt_tokens} tokens: a question and a picture", counted),
        ("picture", f"224 x 224{seen}", ""),
        ("", "", ""),
        (f"weights, {found.dtype}", _size(found.weight_bytes[found.dtype]), ""),
        (f"keys and values, batch of {found.batch_size}", _size(found.cache_bytes), "estimate"),
        ("activations", _size(found.activation_bytes), "estimate"),
        ("Python and libraries", _size(found.process_bytes), "estimate"),
        ("needed", _size(found.needed_bytes), "estimate"),
        (f"free on {found.device_name}", _size(found.available_bytes), "now"),
        ("time for 500 items", _duration(found.seconds), found.timing),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _verdict(found: Footprint) -> list[str]:
    lines = []
    if found.fits:
        lines.append(f"{found.model} fits on {found.device_name}.")
    else:
        smaller = [] if found.dtype == "4bit" else ["--load-in-4bit"]
        smaller += ["--batch-size 1"] if found.batch_size > 1 else []
        fix = f"try {' or '.join(smaller)}, or " if smaller else ""
        lines.append(f"{found.model} does not fit on {found.device_name}: {fix}use a larger machine.")
    if found.timing == "estimate":
        lines.append(
            "The time is arithmetic: the model's operations at half the speed of a matrix product measured here."
            " Take it for the order of magnitude."
        )
    if found.source == "catalogue":
        lines.append("It is not on this machine: all sizes are from published numbers, and a run downloads it first.")
    return lines


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
