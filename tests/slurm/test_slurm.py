"""A study on a real Slurm: one job per cell, put back into the queue in the middle, and driven by a driver that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vlm_probe.probes.trials import read_run, read_trials

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("slurm.sh")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
STUDY = """
study: watch
observers: [chance, noisy-simulation]
sets: {n: 96, seed: 5, size: 32}
tests: {tasks: [towers-stability]}
"""
NOISY = "observers/noisy-simulation"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)),
        reason="needs root and Debian's packages: apt-get install slurm-wlm munge",
    ),
]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Slurm of one node; its folder."""
    # The socket of munge must be within reach of all, which folders of pytest are not.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    ports = {"SLURMCTLD_PORT": str(free_port()), "SLURMD_PORT": str(free_port())}
    started = subprocess.run([SCRIPT, "start", folder], env=os.environ | ports, capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield folder
    subprocess.run(["scancel", "--user=root"], check=False)
    time.sleep(2)
    subprocess.run([SCRIPT, "stop", folder], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def study(*arguments: str) -> subprocess.Popen[str]:
    """Start `probe study`."""
    command = [sys.executable, "-m", "vlm_probe", "study", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def lines(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


def state(job: str) -> str:
    shown = subprocess.run(["squeue", "--noheader", "--format=%T", "--jobs", job], capture_output=True, text=True)
    return shown.stdout.strip()


def test_a_study_on_slurm_outlives_its_driver_and_a_requeue(cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    folder = tmp_path / "studies" / "watch"
    options = ("run", "study.yaml", "--executor", "slurm", "--partition", "main", "--time", "20", "--jobs", "2")
    log = folder / NOISY / "towers-stability" / "trials.jsonl"

    driver = study(*options)
    wait_for(lambda: lines(log) >= 8)
    job = json.loads((folder / "cells" / NOISY / "job.json").read_text())["job"]
    assert state(job) == "RUNNING"
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert state(job) == "RUNNING", "jobs do not depend on the driver"

    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_for(lambda: state(job) != "RUNNING")
    before = lines(log)
    # Slurm lets a requeued job wait for two minutes, unless it is told otherwise.
    wait_for(lambda: state(job) in ("PENDING", "RUNNING"))
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)

    again = study(*options)
    out, err = again.communicate(timeout=400)
    assert again.returncode == 0, err
    assert "3 of 3 cells are done" in out
    assert f"{NOISY}: started" not in err, "the second driver watches the job of the first"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == len({row["key"] for row in rows}) == 96 > before > 0
    assert read_run(log.parent)["status"] == "finished"
    assert len(read_trials(folder / "observers" / "chance" / "towers-stability")) == 96
    assert not (folder / "cells" / NOISY / "job.json").exists()


def test_what_slurm_refuses_is_told(cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    refused = study("run", "study.yaml", "--executor", "slurm", "--partition", "none-such")
    _, err = refused.communicate(timeout=120)
    assert refused.returncode == 1
    assert "Slurm does not take the jobs" in err
    assert "invalid partition" in err.lower()
