"""Every number that the command line takes: what is outside its range is refused in one line, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from vlm_probe.probes.cli import app, main

REACHED = {
    "run": ["--model", "chance", "--stimuli", "./none"],
    "stimuli make": ["towers", "--out", "file/below"],
    "stimuli show": ["./none"],
    "stimuli check": ["./none"],
    "stimuli audit": ["./none"],
    "stimuli import": ["--images", "none", "--table", "none.csv", "--out", "set"],
    "train": ["--model", "tiny", "--tasks", "towers-count", "--method", "ppo"],
    "decode": ["--model", "tiny", "--stimuli", "./none", "--target", "margin"],
    "analyze": ["none"],
    "report": ["none"],
    "view": ["none"],
    "power": ["--runs", "2", "--items", "2", "--simulations", "100"],
    "pretrain": ["--out", "file/below"],
    "doctor": ["--model", "nonesuch"],
    "stimuli matched": ["./none", "--out", "file/below"],
    "ask": ["what?", "--model", "nonesuch"],
    "study plan": ["none.yaml"],
    "study freeze": ["none.yaml"],
    "study run": ["none.yaml"],
    "study status": ["none.yaml"],
}
"""Arguments with which a command gets no further than a name of nothing, if its numbers are in their ranges."""


def numbers(command: App, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(command, option) of every option of the command line that is a number."""
    if command.default_command is not None:
        for argument in command.assemble_argument_collection(parse_docstring=False):
            if {"int", "float"} & set(str(argument.hint).replace("'", " ").split()):
                yield " ".join(path), argument.name
    for name in command:
        if not name.startswith("-"):
            yield from numbers(command[name], (*path, name))


OPTIONS = list(numbers(app))


def test_the_numbers_of_all_commands_are_seen() -> None:
    """The test below would pass on a command line whose options it does not find, or without arguments for a command."""
    assert len(OPTIONS) > 60 and {command for command, _ in OPTIONS} == set(REACHED)
    assert {("train", "--learning-rate"), ("power", "--bound"), ("run", "--limit")} <= set(OPTIONS)


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", str(10**30), "-1", "0"])
def test_every_number_has_a_range(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for command, option in OPTIONS:
        with pytest.raises(SystemExit) as end:
            main([*command.split(), *REACHED[command], f"{option}={value}"])
        out, told = capsys.readouterr()
        case = f"{command} {option} {value[:20]}: {told}"
        if command == "power" and value == "0" and end.value.code == 0:
            continue  # without an effect, say: a simulation of no time
        assert out == "" and told.startswith("probe: ") and told.count("\n") == 1, case
        refused = end.value.code == 2 and option in told
        # None of the options takes the others; -1 and 0 may be in the range of one, and then something else is wrong.
        assert refused or (value in ("-1", "0") and end.value.code in (1, 2)), case
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["run", "--model", "chance", "--stimuli", "towers", "--examples", str(10**30)], "--examples"),
        (["run", "--model", "chance", "--stimuli", "towers", "--examples", "0,-1"], "--examples"),
        (["train", "--model", "tiny", "--tasks", "towers-topblock:nan", "--method", "sft"], "towers-topblock"),
        (["train", "--model", "tiny", "--tasks", "towers:1e-9,balance", "--method", "sft"], "the weight '1e-9'"),
        (["train", "--model", "tiny", "--tasks", "towers", "--method", "sft", "--budget", "steps=inf"], "--budget"),
        (["train", "--model", "tiny", "--tasks", "towers", "--method", "sft", "--budget", "steps=1e30"], "--budget"),
        (["train", "--model", "tiny", "--tasks", "towers", "--method", "sft", "--diversity", "wordings=0"], "wordings"),
        (["power", "--runs", f"3..{10**30}"], "--runs"),
        (["power", "--items", f"1,{10**400}"], "--items"),
        (["power", "--items", "1000000", "--runs", "10000"], "--items"),
        (["power", "--items", "1000000", "--simulations", "1000000", "--runs", "2"], "--items"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value)[:80],
)
def test_numbers_within_texts_have_ranges_too(
    arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, told = capsys.readouterr()
    assert end.value.code in (1, 2) and out == "" and told.count("\n") == 1 and option in told, told


def test_files_and_variables_pass_the_same_ranges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.toml").write_text("learning_rate = nan\n")
    train = ["train", "--model", "tiny", "--tasks", "towers", "--method", "sft"]
    for arguments in ([*train, "--config", "my.toml"], train):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2 and "--learning-rate must be" in capsys.readouterr().err
        monkeypatch.setenv("PROBE_LEARNING_RATE", "inf")
