"""`probe report` and `probe view` through the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from vlm_probe.probes.cli import main
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.stimuli.dataset import StimulusSet


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["report", *(str(a) for a in arguments)])
    return int(end.value.code or 0)


@pytest.fixture
def observed(stability: StimulusSet, tmp_path: Path) -> Path:
    config = RunConfig("chance", str(stability.path))
    return run(config, stability, tmp_path / "run", model=make_observer("chance")).path


def test_a_page_is_written(observed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "page.html"
    assert call(observed, "--out", out, "--motions", 2, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "out": str(out),
        "trials": 24,
        "pictures": told["pictures"],
        "motions": 2,
        "bytes": out.stat().st_size,
    }
    assert told["pictures"] > 12 and out.read_text().startswith("<!doctype html>")
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert call(observed, "--out", out, "--motions", 0, "--size", 0) == 1
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert call(observed, "--out", out, "--overwrite", "--motions", 0, "--size", 0) == 0
    assert "24 trials, 0 pictures, 0 simulated" in capsys.readouterr().out
    assert out.stat().st_size < told["bytes"]


def test_bad_input_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nothing").mkdir()
    for arguments, message in (((tmp_path / "nothing",), "holds no run"), ((tmp_path / "missing",), "does not exist")):
        assert call(*arguments, "--out", tmp_path / "page.html") in (1, 2)
        told = capsys.readouterr().err.strip()
        assert message in told and "Traceback" not in told
    assert not (tmp_path / "page.html").exists()


def test_the_page_is_served_until_it_is_interrupted(observed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlm_probe", "view", str(observed), "--port", "0", "--motions", "0"]
    server = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert b"24 trials of 1 run<" in answer.read()
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
    finally:
        server.kill()
        server.wait()
