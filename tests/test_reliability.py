"""A small campaign of kills, and mishaps: nothing is lost, doubled or half."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="processor time of others is read from /proc")
def test_kills_and_mishaps_lose_nothing() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "reliability.py"), "--kills", "20"]
    kinds = ["probing", "generation", "analysis", "mishaps"]
    done = subprocess.run([*command, "--only", *kinds], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
