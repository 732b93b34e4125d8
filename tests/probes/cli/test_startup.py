from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "pybullet",
    "pandas",
    "numpy",
    "scipy",
    "matplotlib",
    "PIL",
    "statsmodels",
    "datasets",
    "rich",
)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["stimuli", "make", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom vlm_probe.probes.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as end: assert not end.code, end.code\n"
        f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "loaded: []"


def test_help_names_every_command() -> None:
    found = subprocess.run([sys.executable, "-m", "vlm_probe", "--help"], capture_output=True, text=True, check=True)
    for command in ("run", "stimuli", "models", "score", "pretrain", "doctor"):
        assert f" {command} " in found.stdout
