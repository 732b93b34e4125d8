from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Probe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PROBE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def probe(_clean: None, tmp_path: Path) -> Probe:
    """The real command line in a process of its own, in an empty folder."""

    def call(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vlm_probe", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of towers-stability."""
    from vlm_probe.stimuli.generate import make_set

    return make_set("towers-stability", 48, 0, tmp_path_factory.mktemp("sets") / "towers", size=64).path
