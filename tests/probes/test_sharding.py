"""Several processes on one run: the same trials as one gives, whatever ends them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.readout import rescore
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.sharding import ALONE, Processes, _merged, join
from vlm_probe.probes.trials import TRIALS, RunError, TrialLog, read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.output import OutputError, claim

WORKER = """
import sys, time
from pathlib import Path
from vlm_probe.probes.models.observers import Observer, make_observer
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.sharding import join
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.output import OutputError, claim

quick, pause = Observer.generate, float(sys.argv[3])
def slow(self, trials, settings):
    time.sleep(pause)
    return quick(self, trials, settings)
Observer.generate = slow
stimuli, out, processes = StimulusSet.load(sys.argv[1]), Path(sys.argv[2]), join()
report = run(RunConfig("chance", "s", batch_size=1), stimuli, out, model=make_observer("chance"), processes=processes)
print(report.n, report.n_errors)
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(stimuli: StimulusSet, out: Path, count: int, pause: float) -> list[subprocess.Popen[str]]:
    """So many processes on one run, as a launcher starts them."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", WORKER, str(stimuli.path), str(out), str(pause)]
    return [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def alone(stimuli: StimulusSet, out: Path) -> Path:
    run(RunConfig("chance", "s"), stimuli, out, model=make_observer("chance"))
    return out


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    rows = read_trials(folder)
    assert len({row["item_id"] for row in rows}) == len(rows)
    return {row["item_id"]: {k: v for k, v in row.items() if k not in ("latency_s", "time")} for row in rows}


def test_accelerate_launch_gives_what_one_process_gives(stability: StimulusSet, tmp_path: Path) -> None:
    launcher = Path(sys.executable).parent / "accelerate"
    command = [str(launcher), "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    probe = ["-m", "vlm_probe", "run", "--model", "tiny", "--stimuli", str(stability.path), "--no-references", "--json"]
    settings = {"OMP_NUM_THREADS": "1", "PROBE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, *probe, "--out", "both"],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["n"] == 24  # one document: the second process prints nothing
    report = run(RunConfig("tiny", "s"), stability, tmp_path / "one")
    assert contents(tmp_path / "both") == contents(report.path)
    assert (tmp_path / "both" / TRIALS).read_text().count("\n") == 24
    assert not list((tmp_path / "both").glob("trials.*.jsonl"))
    facts, expected = read_run(tmp_path / "both"), read_run(report.path)
    assert (facts["status"], facts["n_errors"], facts["processes"]) == ("finished", 0, 2)
    assert facts["observed"] == expected["observed"] and facts["fingerprint"] == expected["fingerprint"]


@pytest.mark.parametrize(("killed", "then"), [(1, 1), pytest.param(0, 3, marks=pytest.mark.slow)])
def test_a_killed_process_loses_nothing(stability: StimulusSet, tmp_path: Path, killed: int, then: int) -> None:
    """Kill -9 of the second process and of the first; then the run goes on with another number of processes."""
    out = tmp_path / "r"
    logs = [out / TRIALS, out / "trials.1.jsonl"]
    processes = start(stability, out, 2, 0.25)
    deadline = time.monotonic() + 120
    while not all(log.exists() and log.read_bytes().count(b"\n") >= 2 for log in logs):
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes), processes
        time.sleep(0.01)
    processes[killed].send_signal(signal.SIGKILL)
    # A torn row, as a kill in the middle of a write leaves it.
    processes[killed].wait()
    with logs[killed].open("ab") as file:
        file.write(b'{"key": "0123')
    survivor = processes[1 - killed]
    _, told = survivor.communicate(timeout=120)
    assert survivor.returncode == 1 and "ended early; what was answered is kept" in told
    before = {row["item_id"]: row for row in read_trials(out)}
    share = [len(log.read_bytes().splitlines()) - (log == logs[killed]) for log in logs]
    assert share[1 - killed] == 12 and 2 <= share[killed] < 12 and len(before) == sum(share)
    if then == 1:
        alone(stability, out)
    else:
        for number, process in enumerate(start(stability, out, then, 0.0)):
            said, told = process.communicate(timeout=120)
            assert process.returncode == 0, told
            assert number > 0 or said == "24 0\n"
    expected = alone(stability, tmp_path / "whole")
    assert contents(out) == contents(expected)
    rows = [json.loads(line) for line in (out / TRIALS).read_text().splitlines()]
    assert len(rows) == 24 and not list(out.glob("trials.*.jsonl"))
    assert [row for row in rows if before.get(row["item_id"], row) != row] == []  # nothing was asked twice
    assert read_run(out)["status"] == "finished" and read_run(out)["resumed"] == 1


def shard(folder: Path, rows: list[dict[str, Any]], rank: int = 1) -> Path:
    """A log of a further process with these rows."""
    path = folder / f"trials.{rank}.jsonl"
    with claim(folder, "run") as output:
        output.track(path.name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def split(stimuli: StimulusSet, folder: Path, at: int = 10) -> dict[str, dict[str, Any]]:
    """A run whose rows from the tenth on are in the log of a second process, and its contents."""
    expected = contents(alone(stimuli, folder))
    rows = [json.loads(line) for line in (folder / TRIALS).read_text().splitlines()]
    (folder / TRIALS).write_text("".join(json.dumps(row) + "\n" for row in rows[:at]))
    shard(folder, rows[at:])
    return expected


def test_rows_of_other_processes_count_before_they_are_taken_over(stability: StimulusSet, tmp_path: Path) -> None:
    expected = split(stability, tmp_path / "r")
    assert contents(tmp_path / "r") == expected
    assert rescore(tmp_path / "r", stability) == (24, 0, 0)
    assert contents(tmp_path / "r") == expected and not list((tmp_path / "r").glob("trials.*.jsonl"))


def test_taking_over_can_be_killed_at_any_point(stability: StimulusSet, tmp_path: Path) -> None:
    expected = split(stability, tmp_path / "r")
    log, path = tmp_path / "r" / TRIALS, tmp_path / "r/trials.1.jsonl"
    second = path.read_bytes()
    log.write_bytes(log.read_bytes() + second[: len(second) // 2])  # killed after half of the rows
    with TrialLog(tmp_path / "r", read_run(tmp_path / "r")) as opened:
        assert len(opened.done) == 24
    assert log.read_bytes().count(b"\n") == 24 and contents(tmp_path / "r") == expected
    with claim(tmp_path / "r", "run") as output:
        output.track(path.name)
    path.write_bytes(second)  # killed before the log was removed
    with TrialLog(tmp_path / "r", read_run(tmp_path / "r")):
        pass
    assert log.read_bytes().count(b"\n") == 24 and not path.exists()


def test_a_file_that_looks_like_the_log_of_a_further_process_is_left_alone(
    stability: StimulusSet, tmp_path: Path
) -> None:
    expected = contents(alone(stability, tmp_path / "r"))
    backup = tmp_path / "r" / "trials.2024.jsonl"
    backup.write_text("my notes\n")
    alone(stability, tmp_path / "r")
    assert contents(tmp_path / "r") == expected and backup.read_text() == "my notes\n"


def test_an_error_never_stands_over_an_answer(stability: StimulusSet, tmp_path: Path) -> None:
    expected = contents(alone(stability, tmp_path / "r"))
    rows = [json.loads(line) for line in (tmp_path / "r" / TRIALS).read_text().splitlines()]
    shard(tmp_path / "r", [row | {"error": "ValueError: no"} for row in rows[:5]])
    assert contents(tmp_path / "r") == expected
    alone(stability, tmp_path / "r")
    assert contents(tmp_path / "r") == expected


def test_a_run_whose_other_process_still_writes_is_refused(stability: StimulusSet, tmp_path: Path) -> None:
    split(stability, tmp_path / "r")
    with (tmp_path / "r/trials.1.jsonl").open("ab") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process is writing"):
            alone(stability, tmp_path / "r")
        assert len(read_trials(tmp_path / "r")) == 24
    alone(stability, tmp_path / "r")


def test_shares_are_a_partition() -> None:
    for count in (1, 2, 3, 7):
        shares = [Processes(rank, count).share(range(24)) for rank in range(count)]
        assert sorted(i for share in shares for i in share) == list(range(24))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_several_processes_saw_is_what_one_would_have_seen() -> None:
    one, other = {"pictures": ["a"], "tokens": 5, "only": 1}, {"pictures": ["a", "b"], "tokens": 9}
    assert _merged(_merged({}, one), other) == {"pictures": ["a", "b"], "tokens": 9, "only": 1}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK or MASTER_ADDR is missing: start with `accelerate launch`"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost"}, "RANK or MASTER_ADDR is missing"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', which is no number"),
    ],
)
def test_half_an_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert join() is ALONE
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=message):
        join()
