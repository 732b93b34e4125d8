"""Outputs: what is whole or absent, and what is never touched."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_probe.stimuli import output as module
from vlm_probe.stimuli.output import (
    LOCK,
    MANIFEST,
    Busy,
    OutputError,
    check_claim,
    claim,
    claim_file,
    files_of,
    kind_of,
    whole_file,
    whole_folder,
)


class Killed(BaseException):
    """A process that ends between two steps."""


def contents(folder: Path) -> dict[str, str]:
    """Files below a folder but for our own records."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_text() for name, p in found.items() if name not in (MANIFEST, LOCK)}


def killed_after(changes: int, action: Callable[[], None]) -> bool:
    """Do something until so many files were renamed or deleted; whether it was ended by that."""
    replace, unlink = Path.replace, Path.unlink
    left = changes

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    def counted_replace(self: Path, target: Path) -> Path:
        count()
        return replace(self, target)

    def counted_unlink(self: Path, missing_ok: bool = False) -> None:
        if ".partial" not in self.name:
            count()
        unlink(self, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", counted_replace)
        patch.setattr(Path, "unlink", counted_unlink)
        try:
            action()
        except Killed:
            return True
    return False


def write_all(folder: Path, files: dict[str, str]) -> None:
    """Replace everything in a claimed folder."""
    with claim(folder, "report") as output, output.scratch() as made:
        for name, text in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(text)
        output.replace_all(made, last="report.md")


def test_a_folder_is_replaced_wherever_the_process_before_was_killed(tmp_path: Path) -> None:
    old = {"report.md": "old", "figures/a.png": "old", "figures/gone.png": "old"}
    new = {"report.md": "new", "figures/a.png": "new", "tables/t.csv": "new"}
    for number in itertools.count():
        out = tmp_path / str(number)
        write_all(out, old)
        (out / "figures" / "mine.png").write_text("mine")
        killed = killed_after(number, lambda out=out: write_all(out, new))
        found = contents(out)
        if "report.md" in found:  # where the text is, everything belongs to it
            assert found["report.md"] == found["figures/a.png"]
        write_all(out, new)
        assert contents(out) == new | {"figures/mine.png": "mine"}
        assert not [path for path in out.iterdir() if "partial" in path.name]
        if not killed:
            break
    assert number > 5


def test_a_file_is_old_or_new_and_ours_wherever_the_process_was_killed(tmp_path: Path) -> None:
    def write(out: Path, *texts: str) -> None:
        with claim(out, "run") as output:
            for text in texts:
                output.write("summary.json", text)

    for number in itertools.count():
        out = tmp_path / str(number)
        killed = killed_after(number, lambda out=out: write(out, "one", "two"))
        assert contents(out).get("summary.json", "one") in ("one", "two")
        write(out, "three")
        assert contents(out) == {"summary.json": "three"}
        if not killed:
            break
    assert number > 4


def test_what_a_library_has_half_written_goes_and_what_others_put_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with claim(out, "training run") as output:
        output.announce("checkpoints/checkpoint-1", "checkpoints/checkpoint-2")
        for step in (1, 2):
            (out / f"checkpoints/checkpoint-{step}").mkdir(parents=True)
            (out / f"checkpoints/checkpoint-{step}/optimizer.pt").write_text("x")
        output.adopt("checkpoints/checkpoint-1")
    (out / "checkpoints/best.bin").write_text("mine")
    (out / "checkpoints/checkpoint-1/notes.txt").write_text("mine")
    with claim(out, "training run") as output:
        output.drop("checkpoints/checkpoint-1")
        output.drop("checkpoints/checkpoint-2")  # a kill came before it was whole
        output.drop("checkpoints/checkpoint-3")
    assert contents(out) == {"checkpoints/best.bin": "mine", "checkpoints/checkpoint-1/notes.txt": "mine"}
    with claim(out, "training run") as output, pytest.raises(OutputError, match="checkpoint-1 was not written by"):
        output.announce("checkpoints/checkpoint-1")


def test_a_folder_is_taken_if_it_is_new_empty_or_of_this_kind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/deep", "empty"):
        with claim(tmp_path / name, "run") as output:
            output.write("a", "1")
        assert kind_of(tmp_path / name) == "run" and files_of(tmp_path / name) == ("a",)
        with claim(tmp_path / name, "run"):
            pass
        with pytest.raises(OutputError, match="holds a run, not a report: choose another folder with --to"):
            claim(tmp_path / name, "report", "--to")


@pytest.mark.parametrize(
    "manifest",
    [
        "{}",
        '{"program": "other", "kind": "run", "files": {}}',
        '{"program": "vlm-probe", "kind": "run", "files": {"../x": []}}',
        '{"program": "vlm-probe", "kind": "run", "files": {"/etc/x": []}}',
        '{"program": "vlm-probe", "kind": "run", "files": {"a": 3}}',
        '{"program": "vlm-probe", "kind": "run", "files": []}',
        '{"program": "vlm-probe", "kind": "run", "files": {}, "scratch": ["pictures"]}',
        '{"program": "vlm-probe", "kind": "run", "files": {}, "scratch": ["../x"]}',
        '{"program": "vlm-probe", "kind": "run", "files": {}, "folders": ["../x"]}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_a_manifest_that_is_not_ours_gives_no_rights(tmp_path: Path, manifest: str) -> None:
    out = tmp_path / "out"
    (out / "pictures").mkdir(parents=True)
    (out / "pictures" / "a.png").write_text("mine")
    (out / MANIFEST).write_text(manifest)
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OutputError, match=r"did not write|damaged"):
        claim(out, "run")
    assert (out / "pictures" / "a.png").read_text() == (tmp_path / "x").read_text() == "mine"
    assert (out / MANIFEST).read_text() == manifest


def test_another_files_place_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_all(out, {"report.md": "one", "figures/a.png": "one"})
    (out / "tables").mkdir()
    (out / "tables" / "t.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"t\.csv was not written by this program"):
        write_all(out, {"report.md": "two", "tables/t.csv": "two"})
    assert contents(out) == {"report.md": "one", "figures/a.png": "one", "tables/t.csv": "mine"}
    (out / "figures" / "a.png").write_text("edited")
    with pytest.raises(OutputError, match=r"a\.png was changed since it was written"):
        write_all(out, {"report.md": "two"})
    assert contents(out) == {"report.md": "one", "figures/a.png": "edited", "tables/t.csv": "mine"}


def test_a_link_to_somebody_elses_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with claim(tmp_path / "out", "run") as output:
        output.write("a.txt", "one")
        (output.path / "a.txt").unlink()
        (output.path / "a.txt").symlink_to(tmp_path / "thesis.txt")
        with pytest.raises(OutputError, match="changed"):
            output.write("a.txt", "two")
        output.remove("a.txt")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with claim(tmp_path / "out", "run"), pytest.raises(Busy, match="another process is writing to"):
        claim(tmp_path / "out", "run")
    with claim(tmp_path / "out", "run"):
        pass
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom vlm_probe.stimuli.output import whole_folder\n"
        "with whole_folder(Path(sys.argv[1]), 'set'):\n print('at work', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "set")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        with pytest.raises(Busy, match="another process is making"), whole_folder(tmp_path / "set", "set"):
            pass
        process.communicate()
    assert kind_of(tmp_path / "set") == "set"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]  # the lock's own file has gone


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(ZeroDivisionError), whole_folder(out, "set") as made:
        (made / "a").write_text("1")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    stale, other = tmp_path / ".set.partial-1", tmp_path / ".set.partial-holiday"
    for folder in (stale, other):
        folder.mkdir()
    (stale / MANIFEST).write_text(json.dumps({"program": "vlm-probe", "kind": "set", "files": {}}))
    (other / "x.jpg").write_text("mine")
    with whole_folder(out, "set") as made:
        (made / "a").write_text("1")
    assert contents(out) == {"a": "1"} and not stale.exists() and contents(other) == {"x.jpg": "mine"}
    with pytest.raises(OutputError, match="exists already"), whole_folder(out, "set"):
        pass


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(tmp_path / "out", "run") as output:
        output.write("a", "one")

        def full(path: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "_sync", full)
        with pytest.raises(OutputError, match=r"cannot write .*a: No space left on device; make room"):
            output.write("a", "two")
        monkeypatch.undo()
        assert contents(output.path) == {"a": "one"}


def test_nothing_is_left_of_a_claim_that_came_to_nothing(tmp_path: Path) -> None:
    with claim(tmp_path / "out", "run"):
        assert (tmp_path / "out" / MANIFEST).is_file()
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with claim(tmp_path / "empty", "run"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_single_files(tmp_path: Path) -> None:
    assert claim_file(tmp_path / "deep" / "a.png").parent.is_dir()
    (tmp_path / "b.png").write_text("mine")
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere")
    for name in ("b.png", "c.png"):
        with pytest.raises(OutputError, match="exists already: choose another name, or replace it with --overwrite"):
            claim_file(tmp_path / name)
    assert claim_file(tmp_path / "b.png", overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        claim_file(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="cannot write"):
        claim_file(tmp_path / "b.png" / "x.png")
    with whole_file(tmp_path / "b.png"):
        pass  # nothing written, nothing changed
    assert (tmp_path / "b.png").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused_beforehand(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        check_claim(tmp_path / "out", "run")


def test_a_name_that_is_no_utf8_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not UTF-8"):
        check_claim(tmp_path / os.fsdecode(b"out\xff"), "run")
