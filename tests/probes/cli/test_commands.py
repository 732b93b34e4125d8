"""The commands beside `probe run`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vlm_probe.probes import provenance
from vlm_probe.probes.cli import main
from vlm_probe.stimuli.replies import VERSION


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_making_a_set_twice_gives_the_same_bytes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, jobs in (("a", "1"), ("b", "2")):
        arguments = ["stimuli", "make", "towers", "--out", name, "-n", "12", "--size", "64", "--jobs", jobs, "--json"]
        code, out, err = call(capsys, *arguments)
        assert code == 0 and json.loads(out)["n"] == 12 and "making stimuli: 12/12" in err
    assert (tmp_path / "a/metadata.jsonl").read_bytes() == (tmp_path / "b/metadata.jsonl").read_bytes()


@pytest.mark.slow
def test_what_pixels_show_and_where_bodies_are_is_written_if_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["stimuli", "make", "towers", "-n", "4", "--jobs", "1", "--json", "--renderer", "raycast"]
    code, out, _ = call(capsys, *arguments, "--out", "s", "--segmentation", "--depth", "--state")
    assert code == 0 and json.loads(out)["image_size"] == 448
    assert all(len(list((tmp_path / "s" / name).glob("*.npy"))) == 4 for name in ("segmentation", "depth", "state"))
    code, _, err = call(capsys, *arguments[:-1], "gl", "--out", "t")
    assert code == 2 and '"raycast"' in err


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "stimuli", "list")
    assert code == 0 and "towers-topblock" in out and "action" in out
    code, out, _ = call(capsys, "stimuli", "list", "--json")
    found = {row["task"]: row for row in json.loads(out)}
    assert found["towers-direction"]["held_out"] is True and found["towers-stability"]["kind"] == "judgement"


def test_a_set_is_shown(capsys: pytest.CaptureFixture[str], towers: Path, tmp_path: Path) -> None:
    code, out, _ = call(capsys, "stimuli", "show", towers, "--out", "sheet.png", "-n", "6")
    assert code == 0 and out.strip() == "sheet.png"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 600


def test_a_set_is_audited(capsys: pytest.CaptureFixture[str], towers: Path, tmp_path: Path) -> None:
    code, out, _ = call(capsys, "stimuli", "audit", towers, "--json", "--out", "audit.png")
    found = json.loads(out)
    names = {row["shortcut"] for row in found["shortcuts"]}
    assert code == 0 and {"block count", "prompt alone", "neighbour rule", "item id", "answer before"} <= names
    assert [row["|margin|"] for row in found["visibility"]] == ["0.1-0.2", "0.2-0.4", "0.4-0.7"]
    assert (tmp_path / "audit.png").stat().st_size > 5000


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "models", "--json")
    found = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and found["chance"]["available"] is True and "/" in found["qwen3-vl"]["source"]
    assert all({"licence", "parameters", "kind"} <= set(row) for row in found.values())
    code, out, _ = call(capsys, "models")
    assert code == 0 and "Qwen/Qwen3-VL-8B-Instruct" in out and "tiny" in out


def test_a_run_is_scored_again(capsys: pytest.CaptureFixture[str], towers: Path, tmp_path: Path) -> None:
    arguments = ["run", "--model", "chance", "--stimuli", towers, "--no-references", "--out", "r", "--json"]
    _, before, _ = call(capsys, *arguments)
    code, after, err = call(capsys, "score", "r", "--json")
    assert code == 0 and json.loads(after) == json.loads(before) and "0 of them differently" in err
    assert f"readings that changed: 0 (parser {VERSION} before, parser {VERSION} now)" in err


def test_the_doctor_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "doctor", "--json")
    found = json.loads(out)
    packages = {row["package"]: row for row in found["packages"]}
    assert packages["torch"]["version"] and not packages["torch"]["problem"]
    assert {"Python", "physics engine", "embedded model", "GPU", "served models", "cache folder"} == {
        c["what"] for c in found["checks"]
    }
    assert code == (0 if found["ok"] else 1)
    for extra in found["missing_extras"]:
        assert any(row["extra"] == extra and "pip install" in row["problem"] for row in found["packages"])
    assert {"TeX", "Slurm", "Chromium", "R"} <= {row["name"] for row in found["programs"]}


@pytest.mark.parametrize(
    ("installed", "verdict", "code"), [("5.24.7", "ok", 0), ("5.31.0", "UNTESTED", 0), ("5.2.0", "PROBLEM", 1)]
)
def test_the_doctor_knows_versions_that_were_not_tested(
    installed: str, verdict: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = {"numpy": ">=2.0", "transformers": ">=5.15,<5.25"}
    monkeypatch.setattr(provenance, "requires", lambda _: [name + tested for name, tested in ranges.items()])
    monkeypatch.setattr(provenance, "version", {"numpy": "9.0", "transformers": installed}.__getitem__)
    assert call(capsys, "doctor")[:1] == (code,)
    line = next(line for line in call(capsys, "doctor")[1].splitlines() if "transformers" in line)
    assert line.split()[0] == verdict and (verdict == "ok") != ("pip install 'transformers>=5.15,<5.25'" in line)
    row = next(row for row in json.loads(call(capsys, "doctor", "--json")[1])["packages"] if row["package"] != "numpy")
    assert [bool(row[name]) for name in ("problem", "untested")] == [
        verdict == name for name in ("PROBLEM", "UNTESTED")
    ]


def test_the_doctor_says_what_a_missing_program_is_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    _, out, _ = call(capsys, "doctor")
    lines = out.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("-  TeX"))
    assert "latexmk" in lines[place] and "`probe paper`" in lines[place]
    assert "apt-get install" in lines[place + 1]
