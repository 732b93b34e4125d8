"""Bad input: one clear line on stderr with the fix, the right exit code, nothing written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.probes.cli.conftest import Probe
from vlm_probe.probes.cli import main
from vlm_probe.probes.cli.errors import expected, report, usage_line
from vlm_probe.stimuli.errors import InvalidInput, is_installed

USAGE, FAILURE = 2, 1
BAD_ADDRESSES = (
    "http://[::1",
    "http://host:port",
    "ftp://host",
    "http://host:99999",
    "http://a b",
    "http://a..b",
    "host:80",
)
CASES = [
    (["rn"], USAGE, 'Did you mean "run"?'),
    (["run"], USAGE, "--model"),
    (["run", "--model", "chance", "--stimuli", "towers", "--lmit", "3"], USAGE, "did you mean --limit?"),
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
    (["stimuli", "make", "towers", "--out", "."], FAILURE, "exists already"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--model", "tiny", "--tasks", "towers-topblock", "--method", "sft", "--report-to", "trackio"],
        ["train", "--model", "tiny", "--tasks", "towers-topblock", "--method", "sft", "--init", "nowhere"],
        [
            "train",
            "--model",
            "tiny",
            "--tasks",
            "towers-topblock",
            "--method",
            "ppo",
            "--adaptive-kl",
            "1",
            "--beta",
            "0",
        ],
        ["run", "--model", "tiny", "--stimuli", "towers", "--device", "gpu"],
        ["run", "--model", "Qwen/Qwen3-VL-8B-Instruct", "--stimuli", "towers", "--adapter", "nowhere"],
        ["run", "--model", "chance", "--stimuli", "towers", "--examples", "1", "--examples-from", "./nowhere"],
        *(["run", "--model", "m", "--stimuli", "towers", "--base-url", url] for url in BAD_ADDRESSES),
        ["decode", "--model", "tiny", "--stimuli", "towers", "--target", "margin", "--compare", "nowhere"],
        ["stimuli", "make", "towers", "--out", "s", "--renderer", "photoreal"],
        ["stimuli", "audit", "towers", "--out", "figure.xyz"],
        ["analyze", "empty", "--registered", "nowhere"],
        ["paper", "empty", "--manuscript", "nowhere.tex"],
        ["report", "empty", "--out", "empty"],
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[-2:]),
)
def test_what_an_option_needs_is_looked_for_first(
    capsys: pytest.CaptureFixture[str], place: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_probe.finetune.config.is_installed", lambda package: False)
    if "photoreal" in arguments and is_installed("mitsuba"):
        pytest.skip("the renderer is installed")
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    assert end.value.code in (FAILURE, USAGE) and out == ""
    assert err.startswith("probe: ") and err.count("\n") == 1
    assert sorted(p.name for p in place.iterdir()) == ["empty", "file"], "nothing was begun"


def test_the_cache_is_looked_at_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], place: Path, towers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBE_CACHE", str(place / "file"))
    monkeypatch.setattr("vlm_probe.probes.run.load", lambda config: pytest.fail("the model was loaded"))
    train = ["train", "--model", "tiny", "--tasks", "towers-topblock", "--method", "sft"]
    for arguments in (["run", "--model", "tiny", "--stimuli", "towers"], train):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        err = capsys.readouterr().err
        assert end.value.code == FAILURE and err.count("\n") == 1 and "PROBE_CACHE" in err
    assert sorted(p.name for p in place.iterdir()) == ["empty", "file"]


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_terminal_that_has_ascii_only(probe: Probe, towers: Path, tmp_path: Path) -> None:
    arguments = ["run", "--model", "heuristic", "--stimuli", towers, "--no-references", "--out", "r"]
    done = probe(*arguments, **ASCII)
    assert done.returncode == 0 and done.stdout.isascii() and done.stderr.isascii()
    assert 'always "' in done.stdout and "?" not in done.stdout
    assert probe("report", "r", "--out", "page.html", **ASCII).returncode == 0
    assert not (tmp_path / "page.html").read_text(encoding="utf-8").isascii(), "files are UTF-8 in any locale"
    done = probe("run", "--model", "chance", "--stimuli", towers, "--out", "köln", **ASCII)
    assert done.returncode == USAGE and done.stderr.count("\n") == 1 and "C.UTF-8" in done.stderr
    (tmp_path / "my.toml").write_text('stimuli = "türme"', encoding="utf-8")
    done = probe("run", "--model", "chance", "--config", "my.toml", PYTHONIOENCODING="ascii")
    assert done.returncode == USAGE and "t?rme" in done.stderr


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_quiet(towers: Path, tmp_path: Path, closed: str) -> None:
    run = f"run --model heuristic --stimuli {towers} --limit 8 --no-references --out r"
    for command, code in ((run, 0), ("stimuli list", 0), ("stimuli lst", USAGE)):
        line = f"exec {sys.executable} -m vlm_probe {command} {closed}"
        done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
        assert done.returncode == code and "Traceback" not in done.stdout + done.stderr
        if "2" in closed:
            assert not done.stderr
    # What was opened later did not take the place of a closed stream, and got what was printed.
    log = (tmp_path / "r/trials.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(log) == 8 and all(line.startswith("{") for line in log)


def test_a_full_disk_behind_a_stream() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    for command, code in (("stimuli list >/dev/full", FAILURE), ("stimuli lst 2>/dev/full", USAGE)):
        line = f"exec {sys.executable} -m vlm_probe {command}"
        done = subprocess.run(["sh", "-c", line], capture_output=True, encoding="utf-8", timeout=120)
        assert done.returncode == code and done.stderr.count("\n") <= 1


def test_names_that_are_not_utf8(
    capsys: pytest.CaptureFixture[str], place: Path, towers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = ["run", "--model", "chance", "--stimuli", str(towers), "--limit", "2", "--no-references"]
    odd = "out\udcff"  # as Python reads a name that is not UTF-8
    (place / odd).mkdir()
    (place / "link").symlink_to(place / odd)
    (place / odd / "trials.jsonl").touch()
    refusals = ("not UTF-8", "did not write")  # the second one where a link hides the name
    for arguments in ([*good, "--out", odd], [*good, "--out", "link"], ["analyze", "."], ["report", odd]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        err = capsys.readouterr().err
        assert end.value.code in (FAILURE, USAGE) and err.count("\n") == 1
        assert any(refusal in err for refusal in refusals[: 1 + ("link" in arguments)]), err
    with monkeypatch.context() as patch:
        patch.setenv("PROBE_OUT", odd)
        with pytest.raises(SystemExit):
            main(good)
        assert r"PROBE_OUT is out\xff, which is not UTF-8" in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["empty", "file", "link", odd]
    assert [path.name for path in (place / odd).iterdir()] == ["trials.jsonl"]


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
        assert not expected(error)
    assert expected(FileNotFoundError(2, "gone", "x")) and expected(InvalidInput("a slip"))
    assert not expected(ValueError("of a library")) and not expected(RuntimeError("of a library"))
    assert callable(report) and callable(usage_line)
