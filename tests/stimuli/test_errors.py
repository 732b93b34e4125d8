"""Reading files of unknown origin: whatever goes wrong is one line that names the file and ends with the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_probe.stimuli.dataset import StimulusError
from vlm_probe.stimuli.errors import InvalidInput, ProbeError, is_installed, is_text, reading, whole_text


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (ValueError("half\na line"), "half a line"),
        (KeyError("items"), "it has no 'items'"),
        (TypeError("'int' object is not iterable"), "wrong type"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (MemoryError(), "too large"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not UTF-8 at byte 0"),
        (InvalidInput("the margin is nan"), "the margin is nan"),
        (ValueError("\ud83d"), "ud83d"),
        (ValueError("x" * 10_000), "xxx..."),
        (OSError("of a library, without a number"), "of a library"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_exception_becomes_one_line(problem: Exception, reason: str) -> None:
    with pytest.raises(StimulusError) as told, reading("SET/card.json", StimulusError, "make the set again"):
        raise problem
    text = str(told.value)
    assert text.startswith("SET/card.json is damaged (") and text.endswith("): make the set again")
    assert reason in text and "\n" not in text and len(text) < 300 and is_text(text)
    assert told.value.__cause__ is problem


def test_what_names_its_file_already_passes_and_a_missing_file_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(StimulusError, match=r"^line 3$"), reading("card.json", StimulusError, "fix"):
        raise StimulusError("line 3")
    missing = r"^cannot read .*none \(No such file or directory\): fix$"
    with pytest.raises(StimulusError, match=missing), reading(tmp_path / "none", StimulusError, "fix"):
        (tmp_path / "none").read_bytes()
    with pytest.raises(KeyboardInterrupt), reading("card.json", StimulusError, "fix"):
        raise KeyboardInterrupt
    assert issubclass(StimulusError, ProbeError)


def test_texts_that_no_file_takes() -> None:
    assert is_text("Zürich 🗼") and not is_text("out\udcff") and not is_text("\ud83d")
    assert whole_text("a\ud83d") == "a\ufffd" and whole_text("\ud83d\uddfc") == "🗼" and whole_text("ü") == "ü"


def test_a_folder_without_code_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb_of_nobody").mkdir()  # as the tracker of that name leaves one where it ran
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("numpy") and not is_installed("wandb_of_nobody") and not is_installed("no_such_package")
