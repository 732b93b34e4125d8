"""No command changes a file of somebody else's: every option that names an output is pointed at one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cyclopts import App

from vlm_probe.probes.cli import app, main

INPUTS = {
    *("--config", "--images", "--table", "--responses", "--manuscript", "--registered"),
    *("RUN", "RUNS", "SET", "STUDY", "FOLDERS", "ADAPTER", "DIR"),
}
"""Options and arguments that are paths, and are read only."""
WRITES_WHAT_IT_READS = {"score": "RUN", "stimuli check": "SET"}
OUTPUTS = {
    "run": "--model chance --stimuli {set} --limit 2 --no-references --out {out}",
    "stimuli make": "towers-stability -n 2 --size 32 --jobs 1 --out {out}",
    "stimuli matched": "{set} --out {out}",
    "stimuli show": "{set} -n 2 --out {out}",
    "stimuli audit": "{set} --out {out}",
    "stimuli export": "{set} --csv {out}",
    "trials export": "{run} --csv {out}",
    "stimuli import": "--images {images} --table {table} --task towers-stability --out {out}",
    "train": "--model tiny --tasks towers-topblock --method sft --budget samples=8 --items 8 --size 32 --out {out}",
    "decode": "--model tiny --stimuli {set} --target margin --limit 8 --permutations 0 --intervene none --out {out}",
    "analyze": "{run} --out {out}",
    "report": "{run} --motions 0 --out {out}",
    "power": "--runs 3 --items 20 --simulations 100 --out {out}",
    "paper": "{packed} --out {out}",
    "adapters merge": "{adapter} --out {out}",
    "study run": "{study} --out {out}",
    "study freeze": "{study} --out {out}",
    "study plan": "{study} --pilot --out {out}",
    "study pack": "{study} --to {out}",
    "pretrain": "--out {out}",
}
"""Command -> arguments with which it would write to {out}."""
READS_ONLY = {"study status"}
"""Commands whose --out says where to look."""
DEFAULTS = {
    "stimuli show": ("contact-sheet.png", "{set} -n 2"),
    "analyze": ("analysis", "{run}"),
    "report": ("report.html", "{run} --motions 0"),
    "paper": ("paper-build", "{packed}"),
    "train": ("adapters/tiny_towers-topblock_sft_s0", "--model tiny --tasks towers-topblock --method sft"),
    "run": ("runs/chance_towers", "--model chance --stimuli {set} --no-references"),
    "decode": ("decode/tiny_towers", "--model tiny --stimuli {set} --target margin --limit 8"),
    "study run": ("studies/small", "{study}"),
}
"""Command -> where it writes if nothing is said, and its arguments."""
FOREIGN = (
    *(
        "chapter1.txt",
        ".env",
        "tokenizer.json",
        "README.md",
        "training.json",
        "settings.json",
        "adapter_model.safetensors",
    ),
    *("run.json", "trials.jsonl", "summary.json", "config.toml", "card.json", "metadata.jsonl", "images/a.png"),
    *("ref/paper.bib", "checkpoints/best.bin", "checkpoints/checkpoint-1/optimizer.pt", "critic/x", "curves.png"),
    *("report.md", "analysis.json", "figures/scan-7.png", "tables/budget.csv", "power.csv", "power.json"),
    *("main.tex", "main.pdf", "references.bib", "generated/ch2.txt", "generated/tables/t.tex"),
    *("sets/kitchen/a.png", "adapters/old/weights.bin", "aside/x", "cells/log.txt", "registration.json", "state.json"),
    *(
        "margin/decode.json",
        "activations/k/done.npy",
        "state.pt",
        "log.jsonl",
        "weights/model.safetensors",
        "cache/c.npz",
    ),
    *(
        "logs.parquet",
        "study.yaml",
        "registration-grant.json",
        ".lock",
        "decode.png",
        "observers/chance/x/trials.jsonl",
    ),
)
"""Names that other programs use, and this one too."""


@pytest.fixture(scope="module")
def given(
    tmp_path_factory: pytest.TempPathFactory, towers: Path, llava: Path, save_adapter: Callable[..., Path]
) -> dict[str, str]:
    """What commands are given to read."""
    home = tmp_path_factory.mktemp("given")
    (home / "set").symlink_to(towers)
    with pytest.raises(SystemExit) as end:
        main(f"run --model chance --stimuli {home / 'set'} --no-references --out {home / 'run'}".split())
    assert end.value.code == 0
    (home / "images").mkdir()
    picture = next((towers / "images").iterdir())
    (home / "images" / "a.png").write_bytes(picture.read_bytes())
    (home / "table.csv").write_text("file,answer\na.png,yes\n", encoding="utf-8")
    (home / "study.yaml").write_text(
        "study: small\nobservers: [chance]\nsets: {n: 8, seed: 5, size: 32}\ntests: {tasks: [towers-stability]}\n",
        encoding="utf-8",
    )
    return {
        "set": str(home / "set"),
        "run": str(home / "run"),
        "images": str(home / "images"),
        "table": str(home / "table.csv"),
        "study": str(home / "study.yaml"),
        "adapter": str(save_adapter(llava, home / "adapter")),
        "packed": str(Path(__file__).parents[3] / "paper" / "results"),
    }


def commands(group: App, before: tuple[str, ...] = ()) -> Iterator[tuple[str, App]]:
    """All commands below a group, by their names."""
    for name in group:
        if not name.startswith("-"):
            command = group[name]
            yield from commands(command, (*before, name))
            if command.default_command is not None:
                yield " ".join((*before, name)), command


def paths_of(command: App) -> set[str]:
    """The options and arguments of a command that are paths."""
    found = command.assemble_argument_collection()
    return {argument.name for argument in found if "Path" in str(argument.hint)}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def plant(folder: Path) -> None:
    """Put somebody's files into a folder."""
    for name in FOREIGN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of mine", encoding="utf-8")


def call(command: str, arguments: str, given: dict[str, str], **places: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main([*command.split(), *(part.format(**given, **places) for part in arguments.split())])
    return int(end.value.code or 0)


def test_every_option_that_is_a_path_is_known_here() -> None:
    """A new command or option fails here until it is said whether it reads or writes."""
    every = dict(commands(app))
    assert every
    for name, command in every.items():
        new = {path for path in paths_of(command) if path.strip("-").upper() not in INPUTS and path not in INPUTS}
        written = "--to" if name == "study pack" else "--csv" if name.endswith("export") else "--out"
        expected = {written} if name in OUTPUTS or name in READS_ONLY else set()
        assert new - ({"--out"} if name == "study pack" else set()) == expected, name


@pytest.mark.parametrize("command", OUTPUTS)
def test_a_folder_of_somebody_elses_is_left_as_it_is(
    command: str, given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "thesis"
    plant(out)
    before = snapshot(out)
    code = call(command, OUTPUTS[command], given, out=str(out))
    assert snapshot(out) == before
    told = capsys.readouterr().err.splitlines()[-1]
    assert code in (1, 2) and told.startswith("probe: ") and str(out) in told, told


@pytest.mark.parametrize("command", OUTPUTS)
def test_a_file_of_somebody_elses_is_left_as_it_is(
    command: str, given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grades.csv"
    out.write_text("name,grade\n", encoding="utf-8")
    code = call(command, OUTPUTS[command], given, out=str(out))
    assert out.read_text(encoding="utf-8") == "name,grade\n" and [p.name for p in tmp_path.iterdir() if p != out] in (
        [],
        ["cache"],
    )
    told = capsys.readouterr().err.splitlines()[-1]
    assert code in (1, 2) and told.startswith("probe: ") and "grades.csv" in told, told


@pytest.mark.parametrize("command", DEFAULTS)
def test_what_is_where_a_command_writes_by_default_is_left_as_it_is(
    command: str, given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, arguments = DEFAULTS[command]
    if "." in place:
        (tmp_path / place).write_text("mine", encoding="utf-8")
    else:
        plant(tmp_path / place)
    before = snapshot(tmp_path)
    assert call(command, arguments, given) == 1
    after = {name: data for name, data in snapshot(tmp_path).items() if not name.startswith("cache")}
    assert after == before
    assert place in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["run", "analyze", "power"])
def test_files_that_somebody_puts_into_our_folders_stay_when_the_command_is_repeated(
    command: str, given: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = call(command, OUTPUTS[command], given, out=str(out))
    mine = [f"{folder}mine.txt" for folder in ("", *(f"{p.relative_to(out)}/" for p in out.rglob("*") if p.is_dir()))]
    for name in mine:
        (out / name).write_text("mine", encoding="utf-8")
    assert call(command, OUTPUTS[command], given, out=str(out)) == first
    assert all((out / name).read_text(encoding="utf-8") == "mine" for name in mine)


@pytest.mark.parametrize(
    ("command", "name"), [("analyze", "report.md"), ("power", "power.csv"), ("run", "summary.json")]
)
def test_a_file_of_ours_that_somebody_has_changed_is_not_replaced(
    command: str, name: str, given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(command, OUTPUTS[command], given, out=str(out)) == 0
    with (out / name).open("a", encoding="utf-8") as file:
        file.write("a note of mine")
    before = (out / name).read_bytes()
    assert call(command, OUTPUTS[command], given, out=str(out)) == 1
    assert (out / name).read_bytes() == before
    assert f"{name} was changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "stimuli show", "stimuli export", "stimuli audit"])
def test_a_file_is_replaced_where_that_is_asked_for(command: str, given: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    out.write_text("mine", encoding="utf-8")
    assert call(command, OUTPUTS[command] + " --overwrite", given, out=str(out)) == 0
    assert out.read_bytes() != b"mine" and out.stat().st_size > 100


def test_what_is_read_and_rewritten_keeps_the_files_of_others(given: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert call("run", OUTPUTS["run"], given, out=str(folder)) == 0
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert call("score", str(folder), given) == 0
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("run.json", "trials.jsonl"):
        (foreign / name).write_bytes((folder / name).read_bytes())
    before = snapshot(foreign)
    assert (
        call("score", str(foreign), given) == 1
    )  # a copy of the two files alone has no manifest: it may be another program's
    assert snapshot(foreign) == before


def test_a_study_moves_only_results_of_its_own(given: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "lab"
    assert call("study run", OUTPUTS["study run"], given, out=str(out)) == 0
    for name in ("sets/kitchen/a.png", "adapters/old/weights.bin", "observers/mine/x/y.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine", encoding="utf-8")
    before = {name: data for name, data in snapshot(out).items() if data == b"mine"}
    assert call("study run", OUTPUTS["study run"], given, out=str(out)) == 0
    assert {name: data for name, data in snapshot(out).items() if data == b"mine"} == before
    assert json.loads((out / ".vlm-probe.json").read_text(encoding="utf-8"))["kind"] == "study"
