"""Running a study: cell by cell, through kills and failures, and never anything twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm_probe.probes.cli import main
from vlm_probe.probes.trials import read_run, read_trials
from vlm_probe.stimuli.output import claim

ROOT = Path(__file__).parents[3]
NOISY = "observers/noisy-simulation/towers-stability"


def call(capsys, *arguments):
    """The exit code, and what was printed to stdout and stderr."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, *capsys.readouterr()


def start(*arguments):
    """Start the command line as a user would."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "vlm_probe", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def study(tmp_path, watching, monkeypatch):
    """The file of a study of observers."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    path = tmp_path / "study.yaml"
    path.write_text(watching)
    return path


def wait_for(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_study_is_planned_run_changed_and_watched(study, capsys, tmp_path):
    code, out, _ = call(capsys, "study", "plan", study, "--json")
    plan = json.loads(out)
    assert (code, plan["trials"], plan["is_known"]) == (0, 16, False)
    assert [cell["id"] for cell in plan["cells"]] == [
        "sets/towers-stability",
        "observers/chance",
        "observers/noisy-simulation",
    ]
    code, out, err = call(capsys, "study", "run", study, "--jobs", "2")
    assert code == 0, err
    assert "3 of 3 cells are done" in out
    folder = tmp_path / "studies" / "watch"
    assert len(read_trials(folder / NOISY)) == 8
    made = {path: path.stat().st_mtime_ns for path in folder.glob("observers/*/*/trials.jsonl")}

    code, out, err = call(capsys, "study", "run", study)
    assert "0 of 3 cells to do" in err
    code, out, _ = call(capsys, "study", "plan", study, "--json")
    again = json.loads(out)
    assert again["is_known"]
    assert again["seconds"] > 0
    assert again["bytes"] > 10_000

    # Another readout is another run beside those that are there, and what is not declared any more is put aside.
    study.write_text(study.read_text().replace("chance, ", "") + "readouts: [generate, options]\n")
    code, out, err = call(capsys, "study", "run", study)
    assert code == 0, err
    assert "1 results of an earlier one" in err
    assert sorted(p.name for p in (folder / "observers").glob("*/*")) == [
        "towers-stability",
        "towers-stability_options",
    ]
    assert read_run(folder / f"{NOISY}_options")["config"]["readout"] == "options"
    noisy = folder / NOISY / "trials.jsonl"
    assert noisy.stat().st_mtime_ns == made[noisy]
    assert len(list((folder / "aside" / "observers" / "chance").iterdir())) == 1

    code, out, _ = call(capsys, "study", "status", study, "--json")
    (sets, observers) = json.loads(out)["groups"]
    assert (sets["done"], observers["done"], observers["steps_done"]) == (1, 1, 2)


def test_some_cells_are_done_with_what_they_need_and_the_others_left_alone(study, capsys, tmp_path):
    folder = tmp_path / "studies" / "watch"
    code, out, err = call(capsys, "study", "run", study, "--only", "observers/ch*")
    assert code == 0, err
    assert "2 of 2 cells are done" in out
    assert (folder / "observers/chance").is_dir() and not (folder / "observers/noisy-simulation").exists()
    # Nothing is put aside for not having been asked for.
    call(capsys, "study", "run", study, "--only", "observers/noisy-simulation")
    assert (folder / "observers/chance").is_dir() and not (folder / "aside").exists()
    _, out, _ = call(capsys, "study", "status", study, "--only", "observers/*", "--json")
    (observers,) = json.loads(out)["groups"]
    assert (observers["all"], observers["done"]) == (2, 2)
    code, _, err = call(capsys, "study", "run", study, "--only", "observers/chanse")
    assert code == 1 and "did you mean observers/chance" in err
    code, _, err = call(capsys, "study", "status", study, "--only", "adapters/*")
    assert code == 1 and "there are sets/* (1), observers/* (2)" in err


def test_a_pilot_times_what_was_not_timed_before(study, capsys, tmp_path):
    study.write_text(study.read_text().replace(", noisy-simulation", ""))
    code, out, err = call(capsys, "study", "plan", study, "--pilot", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["is_known"]
    assert plan["seconds"] > 0
    folder = tmp_path / "studies" / "watch"
    paces = json.loads((folder / "pilot.json").read_text())["paces"]
    assert {"set towers-stability", "run chance generate towers-stability", "start"} == set(paces)
    # Two sizes tell what a step costs in any case from what every item adds.
    assert all(pace["seconds_fixed"] >= 0 and pace["seconds_each"] >= 0 for pace in paces.values())
    assert paces["set towers-stability"]["bytes_each"] > 100
    written = (folder / "pilot.json").stat().st_mtime_ns
    code, out, _ = call(capsys, "study", "plan", study, "--pilot")
    assert code == 0
    assert "Not everything has been timed" not in out
    assert (folder / "pilot.json").stat().st_mtime_ns == written
    assert not (folder / "observers").exists(), "the pilot's items are not the study's"


@pytest.mark.slow
def test_what_fails_does_not_stop_the_rest_and_can_be_repeated_by_hand(study, capsys, tmp_path):
    folder = tmp_path / "studies" / "watch"
    in_the_way = (folder / NOISY).parent
    with claim(folder, "study") as output:
        output.write(str(in_the_way.relative_to(folder)), "a file where a folder should be")
    code, out, _ = call(capsys, "study", "run", study)
    assert code == 3
    assert "2 of 3 cells are done" in out
    assert f"failed: {NOISY}:" in out
    assert "(cd studies/watch && probe run --model noisy-simulation " in out
    code, out, _ = call(capsys, "study", "status", study, "--json")
    (failure,) = json.loads(out)["failures"]
    assert failure["step"] == NOISY
    in_the_way.unlink()
    words = failure["command"].split()
    assert words[:3] == ["probe", "run", "--model"]
    by_hand = subprocess.run(
        [sys.executable, "-m", "vlm_probe", *words[1:]], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}
    )
    assert by_hand.returncode == 0
    code, out, _ = call(capsys, "study", "run", study)
    assert code == 0
    assert len(read_trials(folder / NOISY)) == 8


def test_a_killed_study_goes_on_and_does_nothing_twice(study, capsys, tmp_path):
    study.write_text(study.read_text().replace("n: 8", "n: 48"))
    folder = tmp_path / "studies" / "watch"
    log = folder / NOISY / "trials.jsonl"
    running = start("study", "run", study, "--jobs", "2")
    try:
        wait_for(lambda: log.exists() and log.stat().st_size > 0, running)
        code, _, err = call(capsys, "study", "run", study)
        assert code == 1
        assert "another `probe study run` is at work" in err
        code, out, _ = call(capsys, "study", "status", study, "--json")
        assert "observers/noisy-simulation" in json.loads(out)["running"]
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    code, out, err = call(capsys, "study", "run", study, "--jobs", "2")
    assert code == 0, out + err
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 48
    assert read_run(folder / NOISY)["status"] == "finished"


def test_a_polite_end_ends_the_cells_and_keeps_what_they_have(study, capsys, tmp_path):
    study.write_text(study.read_text().replace("n: 8", "n: 48"))
    log = tmp_path / "studies" / "watch" / NOISY / "trials.jsonl"
    running = start("study", "run", study)
    wait_for(lambda: log.exists() and log.stat().st_size > 0, running)
    running.send_signal(signal.SIGTERM)  # which is taken for Ctrl-C
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    n = len(read_trials(log.parent))
    assert 0 < n < 48
    assert read_run(log.parent)["status"] == "interrupted"
    now = json.loads(call(capsys, "study", "status", study, "--json")[1])
    assert (now["running"], now["failures"]) == ([], [])


def test_jobs_of_submitit_do_the_same(study, capsys, tmp_path, monkeypatch):
    study.write_text(study.read_text().replace(", noisy-simulation", ""))
    code, out, err = call(capsys, "study", "run", study, "--executor", "rehearsal", "--jobs", "2")
    assert code == 0, out + err
    assert len(read_trials(tmp_path / "studies" / "watch" / "observers" / "chance" / "towers-stability")) == 8
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without Slurm
    code, _, err = call(capsys, "study", "run", study, "--executor", "slurm")
    assert code == 1
    assert "jobs cannot be submitted" in err
    code, _, err = call(capsys, "study", "run", study, "--partition", "gpu")
    assert code == 2
    assert "are for Slurm" in err


@pytest.mark.slow
def test_accelerate_starts_what_a_model_is_asked(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    study = tmp_path / "study.yaml"
    study.write_text(
        "study: base\nmodels: [tiny]\nsets: {n: 8, seed: 5, size: 32}\ntests: {tasks: [towers-stability]}\n"
    )
    cpu = tmp_path / "cpu.yaml"
    cpu.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n")
    code, out, err = call(capsys, "study", "run", study, "--launch", cpu)
    folder = tmp_path / "studies" / "base"
    log = (folder / "cells" / "runs" / "tiny_none" / "log.txt").read_text()
    assert code == 0, out + err + log
    assert f"--config_file {cpu} -m vlm_probe run --model tiny" in log
    assert len(read_trials(folder / "runs" / "tiny_none" / "towers-stability")) == 8
    code, _, err = call(capsys, "study", "run", study, "--launch", "zero")
    assert code == 1
    assert "did you mean zero3" in err
