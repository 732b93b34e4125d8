"""Bad input: one clear line on stderr with the fix, the right exit code, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vlm_probe.probes.cli import main
from vlm_probe.probes.cli.errors import expected, report, usage_line

USAGE, FAILURE = 2, 1
CASES = [
    (["rn"], USAGE, 'Did you mean "run"?'),
    (["run"], USAGE, "--model"),
    (["run", "--model", "chance", "--stimuli", "towers", "--lmit", "3"], USAGE, "Did you mean --limit?"),
    (["run", "--model", "chance", "--stimuli", "towers", "--limit", "0"], USAGE, "--limit"),
    (["run", "--model", "chance", "--stimuli", "towers", "--limit", "-5"], USAGE, "--limit"),
    (["run", "--model", "chance", "--stimuli", "towers", "--readout", "lips"], USAGE, "generate"),
    (["run", "--model", "qwen3vl", "--stimuli", "towers"], USAGE, "qwen3-vl"),
    (["run", "--model", "chance", "--stimuli", "towrs"], USAGE, "did you mean towers"),
    (["run", "--model", "chance", "--stimuli", "./nothing"], FAILURE, "probe stimuli make"),
    (["run", "--model", "chance", "--stimuli", "empty"], FAILURE, "not a stimulus set"),
    (["run", "--model", "chance", "--stimuli", "towers", "--adapter", "nowhere"], FAILURE, "observer"),
    (["run", "--model", "chance", "--stimuli", "towers", "--out", "file"], FAILURE, "--out"),
    (["run", "--model", "chance", "--stimuli", "towers", "--out", "file/below"], FAILURE, "--out"),
    (["stimuli", "mke"], USAGE, 'Did you mean "make"?'),
    (["stimuli", "make", "towers-stabilty", "--out", "s"], USAGE, "towers-stability"),
    (["stimuli", "make", "towers", "--out", "s", "-n", "0"], USAGE, "must be a whole number from 1 to"),
    (["stimuli", "make", "towers", "--out", "s", "-n", "-3"], USAGE, "must be a whole number from 1 to"),
    (["stimuli", "make", "towers", "--out", "s", "--size", "1"], USAGE, "must be a whole number from 16 to"),
    (["stimuli", "make", "towers", "--out", "empty"], FAILURE, "exists already"),
    (["stimuli", "make", "towers", "--out", "file/below", "-n", "4"], FAILURE, "file/below"),
    (["stimuli", "show", "empty"], FAILURE, "probe stimuli make"),
    (["stimuli", "audit", "empty"], FAILURE, "probe stimuli make"),
    (["score", "empty"], FAILURE, "not a run"),
    (["models", "all"], USAGE, "all"),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(("arguments", "code", "message"), CASES, ids=lambda v: " ".join(v) if type(v) is list else "")
def test_bad_input(
    capsys: pytest.CaptureFixture[str], place: Path, arguments: list[str], code: int, message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    assert end.value.code == code, err
    assert out == ""
    assert err.startswith("probe: ") and err.count("\n") == 1 and message in err
    assert sorted(p.name for p in place.iterdir()) == ["empty", "file"] and not list((place / "empty").iterdir())


def test_damaged_sets(capsys: pytest.CaptureFixture[str], place: Path, towers: Path) -> None:
    shutil.copytree(towers, place / "cut")
    with (place / "cut/metadata.jsonl").open("r+b") as file:
        file.truncate(5000)
    shutil.copytree(towers, place / "card")
    (place / "card/card.json").write_text("{")
    for name, message in (("cut", "line"), ("card", "damaged")):
        with pytest.raises(SystemExit) as end:
            main(["run", "--model", "chance", "--stimuli", name])
        err = capsys.readouterr().err
        assert end.value.code == FAILURE and err.count("\n") == 1 and message in err
    assert not (place / "runs").exists()


def test_a_full_disk_in_the_cache_is_one_line(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    import os

    os.environ["PROBE_CACHE"] = str(place / "file")  # restored by the fixture that set it
    with pytest.raises(SystemExit) as end:
        main(["run", "--model", "chance", "--stimuli", "towers"])
    err = capsys.readouterr().err
    assert end.value.code == FAILURE and err.count("\n") == 1 and "cannot write" in err


def test_debug_shows_where_it_happened(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_probe.stimuli.dataset import StimulusError

    monkeypatch.setenv("PROBE_DEBUG", "1")
    with pytest.raises(StimulusError):
        main(["run", "--model", "chance", "--stimuli", "empty"])


def test_bugs_keep_their_traceback() -> None:
    assert not expected(KeyError("x"))
    try:
        int("x")
    except ValueError as error:
        assert not expected(error)  # raised here, which is none of our packages
    assert expected(FileNotFoundError(2, "gone", "x"))
    assert callable(report) and callable(usage_line)
