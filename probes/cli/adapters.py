"""`probe adapters`: what training runs have left: list, show, verify and merge adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from vlm_probe.probes.cli.settings import Config, Json

app = App(name="adapters", help="List, show, verify and merge trained adapters.")

Folder = Annotated[Path, Parameter(name="DIR", help="Folder of an adapter: made by `probe train`, or by PEFT.")]
Base = Annotated[str, Parameter(name="--model", help="The base model; by default the one that the adapter names.")]


@app.command(name="list")
def list_(*folders: Path, json: Json = False, config: Config = None) -> int:
    """List the adapters, and models trained in full, below some folders.

    Args:
        folders: Folders to look in, at any depth; by default `adapters`, where `probe train` puts them.
    """
    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.cli.errors import CommandError
    from vlm_probe.probes.models.adapter_folder import find_trained, read_trained

    places = folders or (Path("adapters"),)
    for place in places:
        if not place.is_dir():
            raise CommandError(f"there is no folder {place}: give the folders in which the adapters are")
    found = [read_trained(path) for path in dict.fromkeys(path for place in places for path in find_trained(place))]
    rows = [_row(trained) for trained in found]
    if json:
        show_json(rows)
        return 0
    if not rows:
        show(f"no adapters in {', '.join(map(str, places))}")
        return 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("adapter", "base", "method", "tasks", "seed", "samples", "success", "trained"):
        long, numeric = header in ("adapter", "base", "tasks"), header in ("seed", "samples", "success")
        table.add_column(header, overflow="fold", no_wrap=not long, justify="right" if numeric else "left")
    for row in rows:
        success = "" if row["success"] is None else f"{row['success']:.3f}"
        what = row["where"] if row["kind"] == "full" else f"{row['where']}, r={row['rank']}"
        cells = (
            row["path"],
            row["base"],
            row["method"],
            ", ".join(row["tasks"]),
            _text(row["seed"]),
            _text(row["samples"]),
        )
        table.add_row(*cells, success, what)
    show(table)
    show("`success`: over the last tenth of the training; test an adapter on new items with `probe run --adapter`.")
    return 0


@app.command(name="show")
def show_(adapter: Folder, /, *, json: Json = False, config: Config = None) -> int:
    """Show what an adapter says about itself: its base, its place and size, how it was trained, and from what."""
    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.models.adapter_folder import read_trained

    trained = read_trained(adapter)
    row = _row(trained)
    if json:
        show_json(row | {"training": {name: value for name, value in trained.training.items() if name != "curves"}})
        return 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _described(trained, row).items():
        if value not in ("", None):
            table.add_row(name, str(value))
    show(table)
    return 0


@app.command
def verify(
    adapter: Folder,
    /,
    *,
    model: Base = "",
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    load_in_4bit: Annotated[bool, Parameter(name="--load-in-4bit", negative=())] = False,
    json: Json = False,
    config: Config = None,
) -> int:
    """Load an adapter as `probe run --adapter` does: every tensor must find its place, and the answers must change.

    Args:
        revision: Of the base model on the hub.
        device: `cpu`, `cuda`, ...
        dtype: Number format of the base.
        load_in_4bit: Quantise the base to 4 bits.
    """
    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.models.adapter_folder import read_adapter
    from vlm_probe.probes.models.loading import load_model

    read = read_adapter(adapter)
    name = model or _base(read)
    loaded: Any = load_model(
        name, revision=revision, adapter=adapter, device=device, dtype=dtype, load_in_4bit=load_in_4bit
    )
    base = (
        "the base that it was trained on"
        if read.base_sha256
        else "a base that fits; which it was trained on is not known"
    )
    found = {
        "adapter": str(adapter),
        "adapter_sha256": read.sha256,
        "base": name,
        "base_sha256": loaded.identity.weights_sha256,
        "base_is_known": bool(read.base_sha256),
        "tensors": len(read.shapes),
        "parameters": read.parameters,
        "layers": read.layers,
        "largest_change_nats": loaded.adapter_change,
    }
    if json:
        show_json(found)
        return 0
    show(f"{adapter}: good, on {name} ({base})")
    show(f"{len(read.shapes)} tensors, each in its place: {_layers(read.layers)}, {read.parameters:,} parameters")
    show(f"log-probabilities of the next token change by up to {loaded.adapter_change:.3g} nats")
    return 0


@app.command
def merge(
    adapter: Folder,
    /,
    *,
    out: Path,
    model: Base = "",
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    json: Json = False,
    config: Config = None,
) -> int:
    """Merge an adapter into its base: the folder is a plain model, which `probe run --model` and other programs load.

    Args:
        out: Folder to make.
        revision: Of the base model on the hub.
        device: `cpu`, `cuda`, ...
        dtype: Number format of the merged weights; `auto`: float32 on a CPU or for small models, else that of the base.
    """
    from vlm_probe.probes.cli.console import show, show_json
    from vlm_probe.probes.models.merging import merge_adapter

    merged = merge_adapter(adapter, out, model=model, revision=revision, dtype=dtype, device=device)
    if json:
        show_json(
            {
                "path": str(merged.folder),
                "base": merged.base,
                "dtype": merged.dtype,
                "weights_sha256": merged.weights_sha256,
                "largest_difference_nats": merged.difference,
            }
        )
        return 0
    show(f"{merged.folder}: {merged.base} with {adapter} merged, {merged.dtype}")
    show(f"log-probabilities differ from base and adapter by at most {merged.difference:.2g} nats")
    show(f"ask it with `probe run --model {merged.folder}`")
    return 0


def _base(read: Any) -> str:
    """The base that an adapter names. Raises CommandError if it names none."""
    from vlm_probe.probes.cli.errors import CommandError

    if not read.base:
        raise CommandError(f"the adapter {read.folder} does not name its base model: give --model")
    return str(read.base)


def _row(trained: Any) -> dict[str, Any]:
    """What the list says of an adapter."""
    training, config = trained.training, trained.config
    curves = training.get("curves") or []
    tail = [row["success"] for row in curves[-max(1, len(curves) // 10) :] if row.get("success") is not None]
    layers = trained.layers
    where = "all" if len(layers) > 1 and {"language", "vision"} <= set(layers) else "+".join(layers)
    return {
        "path": str(trained.folder),
        "kind": trained.kind,
        "base": trained.base,
        "method": str(training.get("method", "")),
        "tasks": [str(task) for task in training.get("tasks", [])],
        "seed": training.get("seed"),
        "samples": (training.get("budget") or {}).get("samples"),
        "success": sum(tail) / len(tail) if tail else None,
        "where": ("merged" if "merged" in training else "full") if trained.kind == "full" else where,
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "parameters": trained.parameters,
        "layers": layers,
        "adapter_sha256": trained.sha256,
        "base_sha256": trained.base_sha256,
        "lineage": training.get("lineage", []),
    }


def _described(trained: Any, row: dict[str, Any]) -> dict[str, Any]:
    """What `show` says, by heading."""
    training = trained.training
    budget = training.get("budget") or {}
    shares = training.get("weights") or []
    tasks = [f"{task} ({share:.0%})" for task, share in zip(row["tasks"], shares, strict=False)] or row["tasks"]
    size = f"{row['parameters']:,} parameters"
    if row["kind"] == "lora":
        size = f"LoRA, rank {row['rank']}, alpha {row['alpha']:g}: {_layers(row['layers'])}, {size}"
    else:
        size = f"a whole model ({row['where']}), {size}: give it as --model"
    steps = [f"{step.get('method')} on {', '.join(step.get('tasks', []))}" for step in row["lineage"]]
    config = training.get("config") or {}
    names = (
        "shift",
        "curriculum",
        "diversity",
        "auxiliary",
        *(("attempts", "memory") if config.get("attempts", 1) > 1 else ()),
    )
    special = {name: config[name] for name in names if config.get(name)}
    return {
        "adapter": row["path"],
        "sha256": row["adapter_sha256"],
        "base": f"{row['base']}{f' (sha256 {trained.base_sha256[:12]})' if trained.base_sha256 else ''}",
        "size": size,
        "method": row["method"],
        "tasks": ", ".join(tasks),
        "seed": row["seed"],
        "learned from": ", ".join(f"{value:,} {name}" for name, value in budget.items() if isinstance(value, int)),
        "special": ", ".join(f"{name} {value}" for name, value in special.items() if value != "none"),
        "success": "" if row["success"] is None else f"{row['success']:.3f} (last tenth of the training)",
        "goes on from": " -> ".join(steps),
        "ended": training.get("ended"),
    }


def _layers(layers: dict[str, int]) -> str:
    return ", ".join(f"{number} layers of {part}" for part, number in layers.items())


def _text(value: Any) -> str:
    return "" if value is None else str(value)
