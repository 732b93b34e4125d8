"""`probe decode` through the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_probe.probes.cli import main

Probe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 items in 20 groups."""
    from vlm_probe.stimuli.generate import make_set

    return make_set("towers-stability", 80, 3, tmp_path_factory.mktemp("sets") / "many", size=64).path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["decode", *(str(a) for a in arguments)])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_two_targets_share_activations(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, llava: Path, many: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("vlm_probe.probes.decoding.intervention.TRIALS", 8)
    monkeypatch.setattr("vlm_probe.probes.decoding.intervention.PERMUTED", 2)
    arguments = ["--model", llava, "--stimuli", many, "--layers", "vision,1-2", "--permutations", "9", "--out", "out"]
    code, out, err = run(capsys, *arguments, "--target", "com-offset,count", "--directions", "1")
    assert code == 0, err
    for word in ("com-offset (centre of mass", "count (number", "language-2-image", "pixels", "selectivity", "readout"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 120
    folder = tmp_path / "out"
    for target in ("com-offset", "count"):
        assert (folder / target / "decode.png").stat().st_size > 5000
        assert (folder / target / "intervention.png").stat().st_size > 5000
        assert json.loads((folder / target / "decode.json").read_text())["target"]["name"] == target
    assert (folder / "decode.png").stat().st_size > 5000
    (store,) = (path for path in (folder / "activations").iterdir() if path.is_dir())
    written = (store / "done.npy").stat().st_mtime_ns
    code, out, err = run(capsys, *arguments, "--target", "top-offset", "--intervene", "none", "--json")
    assert code == 0 and "reading hidden states" not in err
    found = json.loads(out)
    assert found == json.loads((folder / "top-offset/decode.json").read_text()) and "intervention" not in found
    assert (store / "done.npy").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "com-ofset"), "did you mean com-offset"),
        (("--target", "margin,force"), "'force' is not defined for all of these items; these items have margin"),
        (("--target", "margin", "--adapter", "a", "--compare", "b"), "either an adapter to decode"),
        (("--target", "margin", "--intervene", "best"), "give auto, none, or the number"),
        (("--target", "margin", "--layers", "9"), "layers 0 (its input) to 2"),
        (("--target", "margin", "--position", "first"), "choose from last, image, question"),
        (("--target", "margin", "--layers", "2", "--intervene", "1"), "not among --layers 2"),
        (("--target", "margin", "--compare", "nowhere"), "no adapter folder nowhere"),
        (("--target", "margin", "--limit", "6"), "groups of items are too few"),
    ],
)
def test_slips_are_told_before_work_starts(
    capsys: pytest.CaptureFixture[str],
    llava: Path,
    many: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    code, out, err = run(capsys, "--model", llava, "--stimuli", many, "--out", "out", *arguments)
    assert code == 1 and message in err and len(err.splitlines()) == 1 and not out
    assert not (tmp_path / "out").exists()


def test_observers_have_no_states(capsys: pytest.CaptureFixture[str], many: Path) -> None:
    code, _, err = run(capsys, "--model", "chance", "--stimuli", many, "--target", "margin")
    assert code == 1 and "chance has no hidden states" in err


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom vlm_probe.probes.cli import main\n"
        "try: main(['decode', '--help'])\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print([m for m in ('torch', 'numpy', 'sklearn', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]" and "--intervene" in found.stdout
