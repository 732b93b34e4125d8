"""`probe analyze` through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_probe.probes.cli import main
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.stimuli.dataset import StimulusSet


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["analyze", *(str(a) for a in arguments)])
    return int(end.value.code or 0)


@pytest.fixture
def observed(stability: StimulusSet, tmp_path: Path) -> Path:
    """A run of an observer, which is a run like any other."""
    config = RunConfig("chance", str(stability.path), readout="options")
    return run(config, stability, tmp_path / "run", model=make_observer("chance")).path


def test_a_report_is_written_and_summed_up(observed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(observed, "--out", tmp_path / "out") == 0
    told = capsys.readouterr()
    assert "The data: 24 trials of 1 run on 1 test, from 1 log or table" in told.out and "not answered" in told.out
    assert str(tmp_path / "out" / "report.md") in told.out.replace("\n", "")
    assert (tmp_path / "out" / "report.md").is_file()
    lines = told.err.splitlines()
    assert "analysing: Planned contrasts (4 of 15)" in lines and lines[-1] == "analysing: writing figures and tables"
    assert len(lines) == 16  # one per section
    assert call(observed, "--out", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "analysis.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda t: (t / "nothing",), "holds no run"),
        (lambda t: (t / "table.csv",), "lacks the column"),
        (lambda t: (t / "run", "--bound", "0.7"), "bound"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: Callable[[Path], tuple[object, ...]],
    message: str,
    observed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "table.csv").write_text("run,correct\na,1\n")
    assert call(*arguments(tmp_path), "--out", tmp_path / "out") in (1, 2)
    told = capsys.readouterr().err.strip()
    assert message in told and "Traceback" not in told and "analysing" not in told
    assert not (tmp_path / "out").exists()
