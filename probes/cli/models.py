"""`probe models`: the models that have a short name."""

from __future__ import annotations

from vlm_probe.probes.cli.settings import Config, Json


def models(*, json: Json = False, config: Config = None) -> int:
    """List the models that have a short name; any local folder or hub id works as well."""
    from dataclasses import asdict

    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.models.catalog import ENTRIES, is_available

    rows = [asdict(entry) | {"available": is_available(entry)} for entry in ENTRIES]
    for row in rows:
        if row["kind"] == "embedded":
            row["source"] = "ships with this package"  # a path of this machine tells nobody anything
    if json:
        show_json(rows)
        return 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("model", "hub id", "parameters", "licence", "here", "about"):
        table.add_column(header, no_wrap=header in ("model", "hub id"))
    for row in rows:
        source = row["source"] if row["kind"] == "hub" else "-"
        here = "yes" if row["available"] else "no"
        table.add_row(row["name"], source, _size(row["parameters"]), row["licence"] or "-", here, row["note"])
    show(table)
    show("`here`: can be loaded on this machine without a network.")
    return 0


def _size(billions: float | None) -> str:
    if billions is None:
        return "-"
    return f"{billions:.1f} B" if billions >= 0.1 else f"{billions * 1000:.1f} M"
