"""Several models and sets at once, one question of one's own, and trials as a table, by the command line."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vlm_probe.analysis.frame import load
from vlm_probe.probes.cli import main
from vlm_probe.probes.cli.many import ALL, named_sets
from vlm_probe.stimuli.dataset import StimulusSet


def probe(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(str(ended.value.code))


@pytest.fixture(scope="module")
def runs(stability: StimulusSet, sideblock: StimulusSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An observer on two sets, and a model that cannot be loaded."""
    sets, out = f"{stability.path},{sideblock.path}", tmp_path_factory.mktemp("many") / "runs"
    options = ("--stimuli", sets, "--limit", 4, "--out", out, "--no-references")
    assert probe("run", "--model", "heuristic,nobody/nothing", *options) == 1
    return out


def test_models_and_sets_are_compared(runs: Path, stability: StimulusSet, sideblock: StimulusSet, capsys: Any) -> None:
    sets = f"{stability.path},{sideblock.path}"
    assert len(list(runs.iterdir())) == 2  # what cannot be loaded leaves nothing
    before = {path: path.read_bytes() for path in runs.glob("*/trials.jsonl")}
    options = ("--stimuli", sets, "--limit", 4, "--out", runs, "--no-references")
    assert probe("run", "--model", "heuristic", *options) == 0
    table = capsys.readouterr().out.rpartition("95 % Wilson intervals")[2]
    assert "heuristic" in table and "best non-physical baseline" in table and stability.path.name in table
    assert before == {path: path.read_bytes() for path in before}  # resumed, and there was nothing left to ask
    assert probe("run", "--model", "heuristic", *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in found] == ["heuristic", "heuristic"] and {one["n"] for one in found} == {4}
    with pytest.raises(SystemExit):
        main(["run", "--model", "heuristic,heuristics", "--stimuli", "towers"])
    assert "unknown model" in capsys.readouterr().err


def test_names_of_sets() -> None:
    assert named_sets("towers@visual:2,size:1,balance, towers") == ["towers@visual:2,size:1", "balance", "towers"]
    every = named_sets(ALL)
    assert {"towers-stability", "collision-aim"} <= set(every) and "towers-grounding" not in every


def test_trials_as_a_table(runs: Path, tmp_path: Path, capsys: Any) -> None:
    """It is read back as it was, and R fits it."""
    file = tmp_path / "t.csv"
    assert probe("trials", "export", runs, "--csv", file) == 0
    lines = capsys.readouterr().out
    with file.open(newline="") as opened:
        assert len(list(csv.DictReader(opened))) == 8
    assert load([file]).table["correct"].tolist() == load([runs]).table["correct"].tolist()
    assert "correct ~ test_task" in lines and f'read.csv("{file.as_posix()}"' in lines
    assert probe("trials", "export", runs, "--csv", file) != 0 and "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_the_lines_of_r_fit_the_table(runs: Path, tmp_path: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert probe("trials", "export", runs, "--csv", tmp_path / "t.csv") == 0
    subprocess.run(["Rscript", "-e", capsys.readouterr().out], check=True, capture_output=True)


def test_one_question_of_ones_own(stability: StimulusSet, capsys: Any, tmp_path: Path) -> None:
    image = stability.path / stability.items[0].file_name
    question = "Will this tower fall? Answer yes or no."
    assert probe("ask", "--model", "tiny", "--image", image, question) == 0
    said = capsys.readouterr().out
    assert (
        said.split()[0] in ("yes", "no")
        and "1 tokens after a prompt of" in said
        and "64 x 64 seen as 112 x 112" in said
    )
    assert probe("ask", "--model", "tiny", "--image", f"{image},{image}", question, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reply"] in ("yes", "no") and found["thought"] is None and found["prompt_tokens"] > 128
    (tmp_path / "no.png").write_text("no image")
    for arguments, words in (
        (("--model", "tiny", "--image", tmp_path / "no.png", "?"), "cannot be shown"),
        (("--model", "heuristic", "?"), "ask a vision-language model"),
    ):
        assert probe("ask", *arguments) == 2 and words in capsys.readouterr().err
