"""`probe doctor`: what is installed, what is missing for what, what was not tested, and the line that installs it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Json
from vlm_probe.stimuli.ranges import BATCH

if TYPE_CHECKING:
    from vlm_probe.probes.models.footprint import Footprint


@dataclass(frozen=True)
class Program:
    """Something next to Python that a part of this project calls.

    Attributes:
        name: What a reader knows it as.
        commands: All of which it takes.
        purpose: What cannot be done without it.
        install: On Debian or Ubuntu, as root; for what no package manager of your own gives, what to do instead.
    """

    name: str
    commands: tuple[str, ...]
    purpose: str
    install: str

    @property
    def missing(self) -> list[str]:
        """Commands that are not there."""
        return [command for command in self.commands if shutil.which(command) is None]

    @property
    def place(self) -> str:
        """Where the first of its commands is; empty if there is none."""
        return shutil.which(self.commands[0]) or ""


def programs() -> tuple[Program, ...]:
    """All of them; nothing that a run, a training or an analysis takes is among them."""
    from vlm_probe.paper import tex

    return (Program("TeX", tex.PROGRAMS, "the PDF of `probe paper`", tex.INSTALL), *OTHERS)


OTHERS = (
    Program(
        "Slurm",
        ("sbatch", "squeue", "scontrol"),
        "studies on a cluster (`probe study run --executor slurm`)",
        "give the command on a node of the cluster that has sbatch",
    ),
    Program(
        "Slurm of one node",
        ("munged", "slurmctld", "slurmd"),
        "the tests of Slurm (`make test-slow`)",
        "apt-get install slurm-wlm munge",
    ),
    Program(
        "Chromium",
        ("chromium", "chromedriver"),
        "the tests of pages (`make test-slow`)",
        "apt-get install chromium chromium-driver",
    ),
    Program(
        "R",
        ("Rscript",),
        "the comparisons with lme4 as it runs (`make test`, benchmarks)",
        "apt-get install r-cran-lme4 r-cran-lmertest r-cran-emmeans",
    ),
)


EXTRAS = {
    "mujoco": "the second physics engine",
    "slurm": "studies on a Slurm cluster (`probe study run --executor slurm`)",
    "served": "models behind an OpenAI-compatible server (`--base-url`)",
    "quantized": "--load-in-4bit",
    "timm": "models whose vision tower comes from timm (Gemma 3n, FastVLM, Perception LM)",
    "photoreal": "photoreal images (`probe stimuli make --renderer photoreal`)",
    "docs": "the documentation as a site (`make docs`)",
    "test": "the tests",
}
"""The optional parts of the package, and what each is for."""


Check = dict[str, Any]
"""{"what", "ok", "found"}."""


def doctor(
    *,
    model: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    load_in_4bit: Annotated[bool, Parameter(name="--load-in-4bit", negative=())] = False,
    batch_size: Annotated[int, Parameter(validator=BATCH)] = 0,
    json: Json = False,
    config: Config = None,
) -> int:
    """Check the installation: Python, packages, the physics engine, the embedded model, the GPU, the cache folder, TeX, Slurm, R.

    What is missing is marked `-` with what it would be for and the line that installs it; `PROBLEM` marks what every run needs,
    and `UNTESTED` a package that is newer than those with which the tests passed (see also `untested` in each run.json).

    With a model: how much memory and time it will need on this machine, without loading it or a network. Exits with 1 if
    something that every run needs is missing, or the model does not fit.

    Args:
        model: Short name (see `probe models`), local folder or hub id.
        dtype: Number format of the weights, as for `probe run`.
        device: `cpu`, `cuda`, ...
        load_in_4bit: Quantise the weights to four bits.
        batch_size: Items per batch; 0: what suits the model.
    """
    if model is not None:
        return show_footprint(model, dtype, device, load_in_4bit, batch_size, json)
    from dataclasses import asdict

    from vlm_probe.probes.cli.console import show, show_json

    packages = _packages()
    checks = _checks()
    outside = programs()
    missing = sorted({row["extra"] for row in packages if row["extra"] and row["problem"]})
    healthy = all(row["extra"] or not row["problem"] for row in packages) and all(c["ok"] for c in checks)
    if json:
        found = [asdict(program) | {"missing": program.missing, "found": program.place} for program in outside]
        show_json({"ok": healthy, "checks": checks, "packages": packages, "missing_extras": missing, "programs": found})
        return 0 if healthy else 1
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        table.add_row("ok" if check["ok"] else "PROBLEM", check["what"], check["found"])
    for row in packages:
        verdict = "PROBLEM" if row["problem"] else "UNTESTED" if row["untested"] else "ok"
        if not row["extra"] or verdict == "UNTESTED":
            table.add_row(verdict, row["package"], row["problem"] or row["untested"] or row["version"])
    lacking = [(f"extra {extra}", EXTRAS[extra], f"pip install {_wanted(packages, extra)}") for extra in missing]
    for program in outside:
        if program.missing:
            lacking.append((f"{program.name} ({', '.join(program.missing)})", program.purpose, program.install))
        else:
            table.add_row("ok", program.name, program.place)
    show(table)
    for what, purpose, line in lacking:
        # In lines of their own, so that they can be copied from a narrow terminal.
        show(f"-  {what}: missing, for {purpose}\n     {line}")
    if not healthy:
        show("Something that every run needs is missing: `make install`, or pip install -c constraints.txt -e .")
    return 0 if healthy else 1


def _wanted(packages: list[dict[str, str]], extra: str) -> str:
    return " ".join(f"'{row['package']}{row['range']}'" for row in packages if row["extra"] == extra and row["problem"])


def _packages() -> list[dict[str, str]]:
    """Every declared dependency with its version, what is wrong with it, and whether it is newer than was tested ("" if not)."""
    from importlib.metadata import PackageNotFoundError

    from vlm_probe.probes.provenance import TOOLS, dependencies

    try:
        declared = dependencies()
    except PackageNotFoundError:
        row = dict.fromkeys(("range", "version", "extra", "untested"), "")
        return [row | {"package": "vlm-probe", "problem": "not installed: make install"}]
    rows = []
    for one in declared:
        problem = untested = ""
        if not one.installed:
            problem = f"not installed: pip install '{one.name}{one.tested}'"
        elif one.newer and one.extra not in TOOLS:
            untested = f"{one.installed} is newer than what was tested: pip install '{one.name}{one.tested}'"
        elif one.outside:  # too old, or a tool
            problem = f"{one.installed} is installed, {one.tested} is needed: pip install '{one.name}{one.tested}'"
        row = {"package": one.name, "range": one.tested, "version": one.installed, "extra": one.extra}
        rows.append(row | {"problem": problem, "untested": untested})
    return rows


def _checks() -> list[Check]:
    import platform
    import sys

    python: Check = {"what": "Python", "ok": sys.version_info >= (3, 11), "found": platform.python_version()}
    return [python, _engine(), _tiny(), _gpu(), _served(), _cache()]


def _engine() -> Check:
    try:
        from vlm_probe.stimuli.simulators import get_simulator

        return {"what": "physics engine", "ok": True, "found": str(get_simulator().version())}
    except Exception as error:
        return {"what": "physics engine", "ok": False, "found": f"{error}: pip install 'pybullet>=3.2.7'"}


def _tiny() -> Check:
    from vlm_probe.probes.models.catalog import weights_complete
    from vlm_probe.probes.tiny import WEIGHTS

    ok = weights_complete(WEIGHTS)
    return {"what": "embedded model", "ok": ok, "found": "tiny" if ok else "weights missing: install the package anew"}


def _gpu() -> Check:
    try:
        import torch
    except ImportError as error:
        return {"what": "GPU", "ok": False, "found": f"torch cannot be imported: {error}"}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: models run on the processor"
    return {"what": "GPU", "ok": True, "found": name}


def _served() -> Check:
    import os
    from importlib.util import find_spec

    from vlm_probe.probes.models.endpoint import KEYS

    if find_spec("openai") is None:
        return {"what": "served models", "ok": True, "found": "not set up: pip install 'vlm-probe[served]'"}
    key = next((name for name in KEYS if os.environ.get(name)), None)
    found = f"key in {key}" if key else f"no key in {' or '.join(KEYS)}, which a local server does not need"
    return {"what": "served models", "ok": True, "found": found}


def _cache() -> Check:
    import tempfile

    from vlm_probe.stimuli.standard import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return {"what": "cache folder", "ok": True, "found": str(folder)}
    except OSError as error:
        found = f"{folder} cannot be written ({error.strerror}): set PROBE_CACHE to a folder that can"
        return {"what": "cache folder", "ok": False, "found": found}


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
