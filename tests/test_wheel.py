"""The wheel that is released: from the tree and from the sdist, installed into an empty environment, and used in a folder full of traps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("stimuli", "probes", "finetune", "analysis", "paper")
DATA = ("probes/tiny/weights/model.safetensors", "finetune/presets/tiny.toml", "analysis/page/assets/main.js")
"""Files that are no Python and must be in the wheel."""
PIP = [sys.executable, "-m", "pip", "--quiet"]


def names_of(wheel: Path) -> set[str]:
    """Files in a wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


def build(source: Path, folder: Path) -> Path:
    """The wheel of a source tree."""
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("vlm_probe-*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files, links as links."""
    pytest.importorskip("hatchling")
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name, follow_symlinks=False)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment that holds the wheel and, by a path file, the dependencies of this one."""
    home = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    # As text after the first line, it is no path: this environment's own path file (of an editable install) is not followed.
    dependencies = next(p for p in map(Path, sys.path) if p.name == "site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf-8")
    return home / "bin" / "python"


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """A working folder of a psychologist's, in which every file with a name like ours shouts when it is run."""
    folder = tmp_path / "desk"
    folder.mkdir()
    shout = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch(); raise SystemExit('the user file was run')\n"
    for name in (*LAYERS, "probe", "benchmarks", "tests", "statistics", "random", "secrets"):
        (folder / f"{name}.py").write_text(shout, encoding="utf-8")
    for name in LAYERS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(shout, encoding="utf-8")
    return folder


def call(python: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the wheel's interpreter in a folder."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")} | {
        "PROBE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [str(python), *arguments]
    return subprocess.run(command, cwd=folder, env=environment | variables, capture_output=True, text=True)


@pytest.mark.slow
def test_the_wheel_holds_one_package_whether_built_from_the_tree_or_the_sdist(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    names = names_of(wheel)
    assert {f"vlm_probe/{name}" for name in (*DATA, "py.typed", "__main__.py")} <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vlm_probe"}
    tracked = {path.relative_to(source).as_posix() for layer in LAYERS for path in (source / layer).rglob("*.py")}
    assert {f"vlm_probe/{name}" for name in tracked} <= names

    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    assert names_of(build(unpacked, tmp_path)) == names


@pytest.mark.slow
def test_files_of_the_working_folder_are_never_run(python: Path, traps: Path) -> None:
    where = call(python, traps, "-P", "-c", "import vlm_probe.probes; print(vlm_probe.probes.__file__)")
    assert str(python.parent.parent) in where.stdout, where.stderr
    asked = ["--model", "tiny", "--stimuli", "towers", "--limit", "4", "--no-references"]
    probe = ["-m", "vlm_probe"]
    launched = ["-P", "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "vlm_probe"]
    for number, start in enumerate((probe, launched)):
        done = call(python, traps, *start, "run", *asked, "--out", f"run{number}")
        assert done.returncode == 0 and "parse rate" in done.stdout, done.stderr
        assert (traps / f"run{number}" / "psychometric.png").is_file()
    made = call(python, traps, *probe, "stimuli", "make", "towers-stability", "-n", "40", "--jobs", "2", "--out", "set")
    assert made.returncode == 0, made.stderr
    assert not list(traps.rglob("*.ran"))


@pytest.mark.slow
def test_a_study_runs_in_a_folder_full_of_such_files(python: Path, traps: Path) -> None:
    (traps / "study.yaml").write_text(
        "study: trapped\nobservers: [heuristic]\nsets: {n: 16, seed: 5, size: 32}\ntests: {tasks: [towers-stability]}\n",
        encoding="utf-8",
    )
    done = call(python, traps, "-m", "vlm_probe", "study", "run", "study.yaml", "--out", "study")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(traps.rglob("*.ran"))
