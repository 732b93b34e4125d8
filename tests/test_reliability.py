"""A small campaign of kills, and mishaps: nothing is lost, doubled or half; and the same commands give the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROC = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="processor time of others is read from /proc"
)


def script(name: str, *arguments: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@PROC
def test_kills_lose_nothing() -> None:
    script("kills", "kill", "--kills", "20", "--only", "probing", "generation", "analysis")


@pytest.mark.slow
@PROC
def test_mishaps_are_told_and_lose_nothing() -> None:
    script("mishaps")


@pytest.mark.slow
def test_the_same_commands_give_the_same_bytes() -> None:
    script("kills", "repeat")
