"""`probe doctor`: what is installed, what is missing for what, and the line that installs it."""

from __future__ import annotations

from typing import Any

from probes.cli.settings import Config, Json

EXTRAS = {
    "mujoco": "the second physics engine",
    "slurm": "studies on a Slurm cluster",
    "served": "models behind an OpenAI-compatible endpoint",
    "quantized": "--load-in-4bit",
    "photoreal": "photorealistic stimuli",
    "report": "`probe report`",
    "test": "the tests",
}
"""The optional parts of the package, and what each is for."""


Check = dict[str, Any]
"""{"what", "ok", "found"}."""


def doctor(*, json: Json = False, config: Config = None) -> int:
    """Check the installation: Python, packages, the physics engine, the embedded model, the GPU, the cache folder.

    Exits with 1 if something that every run needs is missing.
    """
    from probes.cli.console import show, show_json

    packages = _packages()
    checks = _checks()
    missing = sorted({row["extra"] for row in packages if row["extra"] and row["problem"]})
    healthy = all(row["extra"] or not row["problem"] for row in packages) and all(c["ok"] for c in checks)
    if json:
        show_json({"ok": healthy, "checks": checks, "packages": packages, "missing_extras": missing})
        return 0 if healthy else 1
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        table.add_row("ok" if check["ok"] else "PROBLEM", check["what"], check["found"])
    for row in packages:
        if not row["extra"]:
            table.add_row("PROBLEM" if row["problem"] else "ok", row["package"], row["problem"] or row["version"])
    for extra in missing:
        table.add_row("-", f"extra {extra}", f"for {EXTRAS[extra]}: pip install {_wanted(packages, extra)}")
    show(table)
    if not healthy:
        show("Something that every run needs is missing: `make install`, or pip install -c constraints.txt -e .")
    return 0 if healthy else 1


def _wanted(packages: list[dict[str, str]], extra: str) -> str:
    return " ".join(f"'{row['package']}{row['range']}'" for row in packages if row["extra"] == extra and row["problem"])


def _packages() -> list[dict[str, str]]:
    """Every declared dependency with the installed version and what is wrong with it ("" if nothing)."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in requires("vlm-probe") or []]
    except PackageNotFoundError:
        return [
            {"package": "vlm-probe", "range": "", "version": "", "extra": "", "problem": "not installed: make install"}
        ]
    rows = []
    for requirement in declared:
        marker = requirement.marker
        extra = next((e for e in EXTRAS if marker and marker.evaluate({"extra": e}) and "extra" in str(marker)), "")
        if marker and not marker.evaluate({"extra": extra}):
            continue
        found = problem = ""
        try:
            found = version(requirement.name)
            if not requirement.specifier.contains(found, prereleases=True):
                problem = f"{found} is installed, {requirement.specifier} is needed"
        except PackageNotFoundError:
            problem = f"not installed: pip install '{requirement.name}{requirement.specifier}'"
        ranged = str(requirement.specifier)
        rows.append(
            {"package": requirement.name, "range": ranged, "version": found, "extra": extra, "problem": problem}
        )
    return rows


def _checks() -> list[Check]:
    import platform
    import sys

    python: Check = {"what": "Python", "ok": sys.version_info >= (3, 11), "found": platform.python_version()}
    return [python, _engine(), _tiny(), _gpu(), _cache()]


def _engine() -> Check:
    try:
        from stimuli.simulators import get_simulator

        return {"what": "physics engine", "ok": True, "found": str(get_simulator().version())}
    except Exception as error:
        return {"what": "physics engine", "ok": False, "found": f"{error}: pip install 'pybullet>=3.2.7'"}


def _tiny() -> Check:
    from probes.models.catalog import TINY_WEIGHTS, weights_complete

    ok = weights_complete(TINY_WEIGHTS)
    return {"what": "embedded model", "ok": ok, "found": "tiny" if ok else "weights missing: install the package anew"}


def _gpu() -> Check:
    try:
        import torch
    except ImportError as error:
        return {"what": "GPU", "ok": False, "found": f"torch cannot be imported: {error}"}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: models run on the processor"
    return {"what": "GPU", "ok": True, "found": name}


def _cache() -> Check:
    import tempfile

    from stimuli.standard import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return {"what": "cache folder", "ok": True, "found": str(folder)}
    except OSError as error:
        found = f"{folder} cannot be written ({error.strerror}): set PROBE_CACHE to a folder that can"
        return {"what": "cache folder", "ok": False, "found": found}
