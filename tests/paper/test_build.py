"""A paper is built from a study through the command line, and its numbers are those of the logs."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vlm_probe.paper.tex import lacking, typeset
from vlm_probe.probes.cli import main

FIGURES = ["contrasts", "decoding", "learning", "matrix", "psychometric", "signed", "stimuli", "trained"]
TABLES = ["conditions", "contrasts", "controls", "directed", "grounding", "hypotheses", "trained"]

FEW = [("towers-topblock", ""), ("towers-stability", "")]


@dataclass(frozen=True)
class Built:
    """What a call of the command line left and said."""

    out: Path
    code: int
    said: str
    told: str

    @property
    def numbers(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "generated" / "numbers.json").read_text(encoding="utf-8"))
        return found


def probe_paper(study: Path, out: Path, *options: str) -> Built:
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told), pytest.raises(SystemExit) as end:
        main(["paper", str(study), "--out", str(out), *options])
    return Built(out, int(end.value.code or 0), said.getvalue(), told.getvalue())


@pytest.fixture(scope="session")
def built(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The paper of the small study, on a machine without TeX."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path_factory.mktemp("no-tex")))
        return probe_paper(study, tmp_path_factory.mktemp("paper"), "--json")


def counted(study: Path, *folders: str) -> float:
    """The mean success of some runs, from their logs."""
    means = []
    for folder in folders:
        rows = [json.loads(line) for line in (study / "runs" / folder / "trials.jsonl").open(encoding="utf-8")]
        means.append(sum(row["success"] for row in rows) / len(rows))
    return sum(means) / len(means)


def test_without_tex_everything_else_is_made_and_the_install_line_is_said(built):
    data = json.loads(built.said)
    assert built.code == 0, built.told
    assert data["figures"] == FIGURES
    assert data["tables"] == TABLES
    assert data["failed"] == [] and data["missing"] == {}
    assert data["pdf"] is None
    assert "latexmk" in data["problem"] and "apt-get install" in data["problem"]
    for name in FIGURES:
        assert (built.out / "generated" / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_numbers_are_those_of_the_logs(built, study):
    numbers = built.numbers
    assert numbers["trained.towers-stability.none"]["value"] == counted(study, "tiny_none/towers-stability")
    ours = counted(study, *(f"tiny_ppo_topblock_s{seed}/towers-topblock" for seed in (0, 1)))
    assert numbers["trained.towers-topblock.ppo"]["value"] == pytest.approx(ours)
    assert numbers["runs.trained"]["value"] == 18
    assert numbers["best-shortcut.towers-topblock"]["text"] == "$.60$"
    assert numbers["training.sft.samples"]["text"] == "$1{,}000$"
    assert numbers["bound"]["value"] == 0.15  # as registered, and not the default


def test_verdicts_follow_the_made_up_effects_and_contrasts_are_called_registered(built):
    numbers = built.numbers
    assert numbers["contrasts.status"]["value"] == "registered"
    for method in ("sft", "ppo", "grpo"):
        assert numbers[f"contrast.within.{method}-none.verdict"]["value"] == "higher"
        assert numbers[f"contrast.within.{method}-none"]["value"] > 0.2
        assert numbers[f"contrast.cross-task.{method}-none.verdict"]["value"] != "higher"
    assert numbers["hypothesis.within"]["value"] == "agrees"
    assert numbers["hypothesis.far"]["value"] in ("agrees", "open")
    assert numbers["joint.there"]["value"] == "yes" and numbers["varied.there"]["value"] == "no"


def test_the_table_of_contrasts_has_the_numbers_of_the_text(built):
    table = (built.out / "generated" / "tables" / "contrasts.tex").read_text(encoding="utf-8")
    numbers = built.numbers
    for level in ("within", "cross-task", "zero-shot"):
        row = next(line for line in table[table.index(HEADINGS[level]) :].split("\n") if line.startswith("PPO"))
        assert numbers[f"contrast.{level}.ppo-none"]["text"] in row
        assert numbers[f"contrast.{level}.ppo-none.ci"]["text"] in row
        assert row.rstrip("\\ ").endswith(numbers[f"contrast.{level}.ppo-none.verdict"]["text"])


HEADINGS = {"within": "Trained task, new items", "cross-task": "Same family", "zero-shot": "Held-out questions"}


@pytest.mark.skipif(bool(lacking()), reason="TeX is not installed")
def test_the_paper_is_typeset_where_tex_is(built, tmp_path):
    shutil.copytree(built.out, tmp_path / "paper")
    pdf, problem = typeset(tmp_path / "paper" / "main.tex")
    assert problem == ""
    assert pdf is not None and pdf.read_bytes().startswith(b"%PDF")
    assert pdf.stat().st_size < 2_000_000


def test_a_study_without_trainings_says_what_is_missing_and_its_manuscript_is_refused(make_study, tmp_path):
    study = make_study({}, methods=(), tests=[("towers-stability", "")])
    text = tmp_path / "mine" / "main.tex"
    text.parent.mkdir()
    text.write_text(
        "\\documentclass{article}\\begin{document}\nIt rose by \\val{contrast.within.ppo-none}.\n\\end{document}"
    )
    (study / "remarks.tex").write_text("It was stopped\ntwice, for 3 days.\n")
    made = probe_paper(study, tmp_path / "out", "--manuscript", str(text))
    assert made.code == 1
    assert "remarks.tex, line 2: the number 3 is typed by hand" in made.said
    assert "fit: line 2: \\val{contrast.within.ppo-none} is no number of this study" in made.said
    for part in ("contrasts", "learning", "decoding"):
        assert f"not made: {part}: " in made.said
    assert made.numbers["trials"]["value"] > 0


def test_the_manuscript_that_comes_along_speaks_of_the_methods_that_there_are(make_study, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # without TeX it is quicker
    study = make_study(
        {"within": 3.0}, methods=("rloo",), conditions={"topblock": ("towers-topblock", "")}, tests=FEW, seeds=1
    )
    (study / "remarks.tex").write_text("It was stopped twice.\n")
    made = probe_paper(study, tmp_path / "out")
    numbers = made.numbers
    assert (made.out / "generated" / "remarks.tex").read_text() == "It was stopped twice.\n"
    assert "no PDF: latexmk" in made.said, made.said
    assert numbers["methods.kinds"]["value"] == "acting" and numbers["versus.there"]["value"] == "no"
    assert numbers["contrast.within.methods"]["text"].startswith("success after RLOO is higher (")
    assert "after RLOO was not measured" in numbers["contrast.cross-family.methods"]["text"]


def test_the_manuscript_that_comes_along_refuses_a_study_without_trainings_in_one_line(make_study, tmp_path):
    made = probe_paper(make_study({}, methods=(), tests=FEW[:1]), tmp_path / "out")
    assert made.code == 1
    (line,) = [line for line in made.said.splitlines() if line.startswith("no PDF: ")]
    assert "no trained model was tested" in line and line.endswith("(--manuscript)")


def test_a_folder_that_is_no_study_is_one_line(tmp_path):
    made = probe_paper(tmp_path, tmp_path / "out")
    assert made.code == 1
    assert made.told.startswith("probe: ") and made.told.count("\n") == 1
    assert "holds no study" in made.told


@pytest.mark.slow
def test_a_paper_is_built_again_around_the_files_of_others(built, study, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(built.out, out)
    mine = ["notes.txt", "generated/ch2.txt", "generated/tables/extra.tex"]
    for name in mine:
        (out / name).write_text("mine", encoding="utf-8")
    assert probe_paper(study, out).code == built.code
    assert all((out / name).read_text(encoding="utf-8") == "mine" for name in mine)
    with (out / "main.tex").open("a", encoding="utf-8") as text:
        text.write("% edited by hand\n")
    refused = probe_paper(study, out)
    assert refused.code == 1 and "main.tex was changed since it was written" in refused.told
    assert (out / "main.tex").read_text(encoding="utf-8").endswith("% edited by hand\n")
