"""The wheel that is released: built, installed into an empty environment, and used there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("probes/tiny/weights/model.safetensors", "finetune/presets/tiny.toml", "analysis/page/assets/main.js")
"""Files that are no Python and must be in the wheel."""


@pytest.mark.slow
def test_the_wheel_works_on_its_own(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("vlm_probe-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert set(HEAVY) <= set(names)
    assert {name.partition("/")[0] for name in names} <= {"stimuli", "probes", "finetune", "analysis", "paper"} | {
        name.partition("/")[0] for name in names if ".dist-info/" in name
    }
    # Dependencies are those of this environment, by a path file; the package itself comes from the wheel alone.
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    (site / "dependencies.pth").write_text(
        str(next(p for p in map(Path, sys.path) if p.name == "site-packages")) + "\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PROBE_CACHE": str(tmp_path / "cache")}
    code = "import probes; print(probes.__file__)"
    where = subprocess.run(
        [home / "bin/python", "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert str(site) in where.stdout, where.stderr
    command = ["run", "--model", "tiny", "--stimuli", "towers", "--limit", "4", "--no-references", "--out", "run"]
    done = subprocess.run(
        [home / "bin/python", "-m", "probes", *command], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0 and "parse rate" in done.stdout, done.stderr
    assert (tmp_path / "run" / "psychometric.png").is_file()
