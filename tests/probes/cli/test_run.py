"""`probe run` through the real command line, with observers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from vlm_probe.probes.cli import main

Probe = Callable[..., subprocess.CompletedProcess[str]]
KEYS = "run model stimuli n accuracy accuracy_ci d_prime criterion parse_rate reward baselines"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_the_ideal_observer_end_to_end(probe: Probe, towers: Path, tmp_path: Path) -> None:
    arguments = ["run", "--model", "ideal", "--stimuli", towers, "--limit", "24", "--json", "--out", "r"]
    done = probe(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(KEYS.split()) <= set(found)
    assert found["accuracy"] == 1.0 and found["n"] == 24 and found["signal"] == "stands" and found["errors"] == 0
    assert json.loads((tmp_path / "r/summary.json").read_text()) == found
    assert (tmp_path / "r/psychometric.png").stat().st_size > 5000
    assert len(rows(tmp_path / "r")) == 24
    # The reference observer ran once, and is kept.
    kept = list((tmp_path / "cache/references").rglob("trials.jsonl"))
    assert len(kept) == 1 and len(rows(kept[0].parent)) == 24
    written = kept[0].stat().st_mtime_ns
    again = probe(*arguments)
    assert again.returncode == 0 and json.loads(again.stdout) == found
    assert len(rows(tmp_path / "r")) == 24 and kept[0].stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_standard_set_of_another_size_by_another_renderer(
    capsys: pytest.CaptureFixture[str], towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_probe.stimuli.standard.STANDARD_N", 8)
    arguments = ["run", "--model", "chance", "--no-references", "--jobs", "1", "--size", "48", "--renderer", "raycast"]
    code, _, err = run(capsys, *arguments, "--stimuli", "towers")
    assert code == 0, err
    assert len(rows(tmp_path / "runs/chance_towers-stability_px48_raycast")) == 8
    (made,) = (tmp_path / "cache/sets").iterdir()
    card = json.loads((made / "card.json").read_text())
    assert (card["image_size"], card["renderer"]) == (48, "raycast")
    code, _, err = run(capsys, *arguments, "--stimuli", towers)
    assert code == 1 and "--size 48 --renderer raycast" in err and "Traceback" not in err


def test_the_default_folder_and_the_table(capsys: pytest.CaptureFixture[str], towers: Path, tmp_path: Path) -> None:
    arguments = ["run", "--model", "chance", "--stimuli", towers, "--no-references"]
    code, out, err = run(capsys, *arguments)
    assert code == 0 and "accuracy" in out and "chance on towers-stability" in out and "figure" in err
    assert (tmp_path / "runs/chance_towers/trials.jsonl").exists()
    code, *_ = run(capsys, *arguments, "--limit", "8", "--seed", "3", "--readout", "options")
    assert code == 0 and len(rows(tmp_path / "runs/chance_towers_options_n8_s3")) == 8


def test_the_saved_settings_run_the_same_again(
    capsys: pytest.CaptureFixture[str], towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", "--model", "chance", "--stimuli", os.path.relpath(towers), "--limit", "12", "--seed", "4"]
    code, *_ = run(capsys, *arguments, "--no-references", "--out", "first")
    assert code == 0
    saved = tomllib.loads((tmp_path / "first/config.toml").read_text())
    assert saved["seed"] == 4 and saved["references"] is False
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, *_ = run(capsys, "run", "--config", tmp_path / "first/config.toml", "--out", "second")
    assert code == 0
    same = ("key", "raw", "answer", "correct")
    first, second = rows(tmp_path / "first"), rows(tmp_path / "elsewhere/second")
    assert [[row[k] for k in same] for row in first] == [[row[k] for k in same] for row in second]
    code, *_ = run(capsys, "run", "--config", tmp_path / "first/config.toml")
    assert code == 0 and len(rows(tmp_path / "first")) == 12


def test_another_configuration_is_refused_and_harms_nothing(
    capsys: pytest.CaptureFixture[str], towers: Path, tmp_path: Path
) -> None:
    arguments = ["run", "--stimuli", towers, "--no-references", "--out", "r", "--limit", "4", "--model"]
    assert run(capsys, *arguments, "chance")[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    for other in (
        ["chance", "--seed", "1"],
        ["heuristic"],
        ["chance", "--readout", "options"],
        ["chance", "--no-resume"],
    ):
        code, out, err = run(capsys, *arguments, *other)
        assert code == 1 and out == "" and err.count("\n") == 1 and "--out" in err
    assert {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()} == before


def test_failed_trials_end_with_three(
    capsys: pytest.CaptureFixture[str], towers: Path, llava: Path, tmp_path: Path
) -> None:
    shutil.copytree(towers, tmp_path / "s")
    first = json.loads((tmp_path / "s/metadata.jsonl").read_text().splitlines()[0])
    (tmp_path / "s" / first["file_name"]).write_bytes(b"no picture")
    arguments = ["run", "--model", llava, "--stimuli", "s", "--limit", "8", "--readout", "options", "--no-references"]
    code, out, _ = run(capsys, *arguments, "--json", "--out", "r")
    found = json.loads(out)
    assert code == 3 and (found["n"], found["errors"]) == (8, 1) and found["parse_rate"] == 1
    assert [row["item_id"] for row in rows(tmp_path / "r") if row["error"]] == [first["item_id"]]
    shutil.copy(towers / first["file_name"], tmp_path / "s" / first["file_name"])
    code, out, _ = run(capsys, *arguments, "--json", "--out", "r")
    assert code == 0 and (json.loads(out)["n"], json.loads(out)["errors"]) == (8, 0)


def test_a_run_whose_trials_all_failed_says_so_first(
    capsys: pytest.CaptureFixture[str], towers: Path, llava: Path, tmp_path: Path
) -> None:
    shutil.copytree(llava, tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    name = next(name for name in tensors if name.endswith("norm.weight"))
    save_file(tensors | {name: tensors[name] * float("nan")}, tmp_path / "model/model.safetensors", {"format": "pt"})
    arguments = ["run", "--model", "./model", "--stimuli", towers, "--limit", "4", "--out", "r"]
    code, out, err = run(capsys, *arguments)
    assert code == 3 and out.startswith("all 4 trials failed: NonFiniteLogits: ")
    assert "nan" not in out and "Traceback" not in err
    assert not list((tmp_path / "r").glob("*.png")) and not (tmp_path / "cache/references").exists()
    assert json.loads((tmp_path / "r/summary.json").read_text())["problem"].startswith("all 4 trials failed: ")
    code, out, _ = run(capsys, "score", "r")
    assert code == 0 and out.startswith("all 4 trials failed: ")


def test_a_run_of_which_no_reply_could_be_read_says_so_first(
    capsys: pytest.CaptureFixture[str], towers: Path, llava: Path, tmp_path: Path
) -> None:
    short = ["--style", "think", "--max-new-tokens", "1", "--limit", "6", "--out", "r"]
    code, out, _ = run(capsys, "run", "--model", llava, "--stimuli", towers, *short)
    assert code == 0 and out.startswith("none of the 6 replies could be read: ")
    assert "cut at the token limit" in out and "--max-new-tokens" in out
    assert not list((tmp_path / "r").glob("*.png"))


@pytest.mark.parametrize("broken", ["figures.single.draw", "summary.summarise"])
def test_a_figure_or_summary_that_fails_costs_nothing_else(
    capsys: pytest.CaptureFixture[str], towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*args: object, **more: object) -> None:
        raise RuntimeError("no fonts\nhere")

    monkeypatch.setattr(f"vlm_probe.analysis.{broken}", fail)
    code, _, err = run(capsys, "run", "--model", "chance", "--stimuli", towers, "--no-references", "--out", "r")
    told = [line for line in err.splitlines() if not line.startswith("asking")]
    assert code == 0 and len(told) == 1 and "no fonts here" in told[0] and len(rows(tmp_path / "r")) == 48


def test_the_model_comes_before_the_stimuli(probe: Probe, tmp_path: Path) -> None:
    done = probe("run", "--model", "./no/model", "--stimuli", "towers")
    assert done.returncode == 1 and "making stimuli" not in done.stderr
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists()


def test_an_interrupted_run_goes_on(probe: Probe, towers: Path, tmp_path: Path) -> None:
    command = ["run", "--model", "noisy-simulation", "--stimuli", str(towers), "--batch-size", "1", "--out", "r"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlm_probe", *command],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    log = tmp_path / "r/trials.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err and b"the same command" in err.splitlines()[-1]
    assert 0 < len(rows(tmp_path / "r")) < 48
    done = probe(*command, "--json", "--resume")
    assert done.returncode == 0 and json.loads(done.stdout)["n"] == 48
    assert len({row["key"] for row in rows(tmp_path / "r")}) == len(rows(tmp_path / "r")) == 48


def test_actions_have_no_sensitivity_and_a_figure_of_their_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(capsys, "stimuli", "make", "towers-topblock", "--out", "s", "-n", "16", "--size", "64")[0] == 0
    code, out, _ = run(capsys, "run", "--model", "ideal", "--stimuli", "s", "--json")
    found = json.loads(out)
    assert code == 0 and found["accuracy"] == 1.0 and found["d_prime"] is None and found["reward"] == 1.0
    assert (tmp_path / "runs/ideal_s/psychometric.png").exists()
    assert not (tmp_path / "cache").exists()


def test_several_attempts_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, "stimuli", "make", "towers-topblock", "--out", "s", "-n", "16", "--size", "64")[0] == 0
    arguments = ["run", "--model", "chance", "--stimuli", "s", "--attempts", "3", "--memory", "last-1"]
    code, out, _ = run(capsys, *arguments, "--json")
    found = json.loads(out)
    assert code == 0 and found["n"] == 16 and found["memory"] == "last-1"
    solved = [cell["success"] for cell in found["by_attempts"]]
    assert solved[0] == found["accuracy"] and sorted(solved) == solved and len(solved) == 3
    assert (tmp_path / "runs/chance_s_attempts3_memory-last-1/psychometric.png").exists()
    assert "within 3" in run(capsys, *arguments)[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--stimuli", "towers", "--attempts", "2"], "--attempts needs an action"),
        (["--stimuli", "towers-grounding", "--attempts", "2"], "use towers-topblock"),
        (["--stimuli", "towers-topblock", "--attempts", "2", "--memory", "some"], "last-1"),
        (["--stimuli", "towers-topblock", "--attempts", "0"], "--attempts"),
        (["--stimuli", "towers", "--design", "blnk"], "there are intact, blank"),
        (["--stimuli", "towers", "--examples", "one"], "write numbers separated by commas"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, "run", "--model", "chance", *given)
    assert code == 2 and out == "" and err.count("\n") == 1 and said in err
    assert not list(tmp_path.iterdir())
