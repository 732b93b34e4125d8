"""Reports: complete, the same every time, and honest about what cannot be answered."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.conftest import run_rows, write_run, write_study
from vlm_probe.analysis.frame import load
from vlm_probe.analysis.material import Settings, select
from vlm_probe.analysis.report import DATA, REPORT, SECTIONS, analyse, answer
from vlm_probe.analysis.section import Section
from vlm_probe.probes.models import Identity
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.output import claim
from vlm_probe.stimuli.responses import Response, to_csv

QUICK = Settings(resamples=40)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def everything(folder: Path) -> None:
    """A small study in which every question but that of people can be answered."""
    write_study(folder, seeds=2, tasks=("towers-stability", "towers-topblock"), n=32, shifts=(("camera", 2),))
    battery = [row for manner in ("", "blank") for row in run_rows(manner=manner, n=32, seed=len(manner))]
    write_run(folder / "base-towers-stability" / "grounding", run_rows("towers-grounding", logit=3, n=16))
    write_run(folder / "sampled", battery, seed=1, temperature=1.0)
    scored = run_rows(readout="options", logit=1, n=32)
    for number, row in enumerate(scored):
        row |= {
            "logprobs": [-0.01 - 0.6 * number / 32, -4.0 - number / 10],
            "p_correct": 0.9 if row["correct"] else 0.2,
        }
    write_run(folder / "options", scored)
    write_run(folder / "heuristic", run_rows(model="heuristic", logit=1, n=32, seed=9))
    tried = []
    for attempt in (1, 2):
        rows = run_rows("towers-topblock", n=16, logit=attempt, seed=attempt)
        tried += [row | {"attempt": attempt, "attempts": 2, "key": f"{row['key']}{attempt}"} for row in rows]
    write_run(folder / "attempts", tried)
    for seed in range(2):
        facts = {
            "model": "tiny",
            "method": "grpo",
            "tasks": ["towers-stability"],
            "seed": seed,
            "budget": {"samples": 300},
        }
        curves = [{"samples": n, "success": min(0.9, 0.2 + n / (300 + 50 * seed))} for n in range(0, 301, 50)]
        (folder / f"adapter-{seed}").mkdir()
        (folder / f"adapter-{seed}" / "training.json").write_text(json.dumps(facts | {"curves": curves}))


def test_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path("study")
    everything(here)
    runs = sorted(here.iterdir())
    report = analyse([here], tmp_path / "a", QUICK)
    assert report.failed == ()
    found = contents(tmp_path / "a")
    # The same logs give the same bytes, in whatever order they are named, and an earlier report is replaced.
    with claim(tmp_path / "b", "report") as earlier:
        earlier.write("figures/old.png", b"old")
    analyse(reversed(runs), tmp_path / "b", QUICK)
    assert contents(tmp_path / "b") == found

    data = json.loads(found[DATA])
    assert list(data["sections"]) == [key for key, _ in SECTIONS]
    assert [key for key, section in data["sections"].items() if section["missing"]] == ["people"]
    text = found[REPORT].decode()
    assert "NaN" not in text and "nan" not in text.replace("finance", "") and str(tmp_path) not in text
    for key, section in data["sections"].items():
        assert section["missing"] or section["results"], key
        for name, result in section["results"].items():
            assert result["how"] and result["title"] and f"{key}-{name}.csv" in text
            assert f"tables/{key}-{name}.csv" in found and f"tables/{key}-{name}.tex" in found
        for name, figure in section["figures"].items():
            assert f"figures/{name}.png" in found and f"figures/{name}.pdf" in found
            assert figure["caption"] in text
            assert "runs" in figure["caption"] or "trials" in figure["caption"]
            assert all(figure["data"].values()), name
    assert "old.png" not in "".join(found)


def test_a_figure_that_cannot_be_drawn_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **more: Any) -> None:
        raise RuntimeError("no fonts\nhere")

    write_run(tmp_path / "runs" / "a", run_rows(n=24))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    report = analyse([tmp_path / "runs"], tmp_path / "a", QUICK)
    assert report.failed == () and "could not be drawn: no fonts here" in caplog.text
    text = (tmp_path / "a" / REPORT).read_text()
    assert "![" not in text and "tables/accuracy-" in text and not list((tmp_path / "a").rglob("*.png"))


def sections(folder: Path) -> tuple[dict[str, Section], list[str]]:
    found, failed = answer(select(load([folder]), QUICK))
    return {section.key: section for section in found}, failed


class Renamed:
    """An observer under another name, so that it passes for a model that looks at nothing but the scene."""

    needs_images = False
    identity = Identity("walnut")

    def __init__(self, name: str) -> None:
        self.generate = make_observer(name).generate


def test_rules_and_people_of_a_set_that_is_still_there(stability: StimulusSet, tmp_path: Path) -> None:
    stimuli = StimulusSet.load(shutil.copytree(stability.path, tmp_path / "set"))
    said = [
        Response(item.item_id, f"p{person}", item.answer if (number + person) % 4 else "falls")
        for number, item in enumerate(stimuli.items)
        for person in range(5)
    ]
    (stimuli.path / "responses.csv").write_text(to_csv(said))
    digest = hashlib.sha256(to_csv(said).encode()).hexdigest()
    card = stimuli.card | {"responses": {"file": "responses.csv", "sha256": digest}}
    (stimuli.path / "card.json").write_text(json.dumps(card))
    for name, model in (("walnut", Renamed("noisy-simulation")), ("heuristic", make_observer("heuristic"))):
        run(RunConfig(name, str(stimuli.path)), stimuli, tmp_path / "runs" / name, model=model)
    found, failed = sections(tmp_path / "runs")
    assert failed == []
    people = found["people"].results["runs"].table
    assert set(people["run"]) == {"walnut", "heuristic"} and (people["n_people"] == 5).all()
    assert "neighbour rule" in set(found["pairs"].results["adjusted"].table["rule"])
    assert found["observers"].results["consistency"].table["observer"].tolist() == ["heuristic"]
    # Without the set, the same runs say what is missing.
    shutil.rmtree(stimuli.path)
    found, failed = sections(tmp_path / "runs")
    assert failed == [] and "human responses" in found["people"].missing
    assert "not where the runs found them" in " ".join(found["pairs"].answer)


def one_run(folder: Path) -> None:
    write_run(folder / "r", run_rows())


def actions_only(folder: Path) -> None:
    write_study(folder, tasks=("towers-topblock",), seeds=2)


def nothing_took_place(folder: Path) -> None:
    write_run(folder / "r", [row | {"error": "OSError: gone", "answer": None} for row in run_rows(n=8)])


def nothing_was_read(folder: Path) -> None:
    unread = {"answer": None, "status": "no_answer", "correct": False, "success": False, "reward": 0.0}
    write_run(folder / "r", [row | unread for row in run_rows(n=24)])


def all_right(folder: Path) -> None:
    write_study(folder, seeds=2)
    write_run(folder / "perfect", run_rows(logit=50), method="ppo", train_tasks=["towers-stability"])


def controls_only(folder: Path) -> None:
    write_run(folder / "r", run_rows(manner="blank"))


def observers_only(folder: Path) -> None:
    write_run(folder / "r", run_rows(model="ideal", logit=9))


def without_base(folder: Path) -> None:
    write_study(folder, seeds=2)
    for path in folder.glob("base-*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def grounding_only(folder: Path) -> None:
    write_run(folder / "r", run_rows("towers-grounding"))


def options(folder: Path) -> None:
    rows = run_rows(readout="options", logit=1)
    for number, row in enumerate(rows):
        sure = -0.01 - 0.6 * number / len(rows)
        row |= {"logprobs": [sure, -4.0 - number / 10], "p_correct": 0.9 if row["correct"] else 0.2}
    write_run(folder / "r", rows)


def one_trial(folder: Path) -> None:
    write_run(folder / "r", run_rows(n=1))


CASES: tuple[Callable[[Path], None], ...] = (
    one_run,
    actions_only,
    nothing_took_place,
    nothing_was_read,
    all_right,
    controls_only,
    observers_only,
    without_base,
    grounding_only,
    options,
    one_trial,
)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_what_cannot_be_answered_is_said(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    found, failed = sections(tmp_path)
    assert failed == [], {key: found[key].missing for key in failed}
    assert found["data"].results
    for section in found.values():
        assert bool(section.missing) != bool(section.results)
        if section.missing:
            # One line that says what is missing, and how to get it.
            assert len(section.missing) > 30 and "\n" not in section.missing
        json.dumps(section.to_dict(), allow_nan=False)
    expected: dict[str, Any] = {
        "one_run": {"perception", "calibration"},
        "actions_only": {"detection", "psychometry"},
        "nothing_took_place": {"accuracy", "detection", "psychometry"},
        "grounding_only": {"accuracy", "detection"},
        "observers_only": {"accuracy"},
        "controls_only": {"accuracy"},
        "options": {"perception"},
    }
    assert expected.get(make.__name__, set()) <= {key for key, section in found.items() if section.missing}
    if make is options:
        assert found["calibration"].results["methods"].table["n_trials"].tolist() == [48]


def test_attempts_that_did_not_take_place_leave_open_whether_an_item_is_solved(tmp_path: Path) -> None:
    wrong, right = (run_rows("towers-topblock", n=16, logit=logit) for logit in (-50, 50))
    rows = []
    for attempt, tried in ((1, wrong), (2, right)):
        for number, row in enumerate(tried):
            gone = {"error": "OSError: gone", "answer": None} if attempt == 2 and number % 4 == 0 else {}
            rows.append(row | gone | {"attempt": attempt, "attempts": 2, "key": f"{row['key']}{attempt}"})
    write_run(tmp_path / "r", rows)
    table = sections(tmp_path)[0]["attempts"].results["within"].table
    assert table[["within", "rate", "n_items"]].to_numpy().tolist() == [[1, 0.0, 16], [2, 1.0, 12]]


def test_trainings_that_differ_in_what_was_special_are_not_pooled(tmp_path: Path) -> None:
    tasks = ["towers-stability"]
    write_run(tmp_path / "base", run_rows(n=64))
    write_run(tmp_path / "base-seen", run_rows("towers-grounding", n=16))
    for number, shift in enumerate(("", "visual:2")):
        facts = {"method": "sft", "train_tasks": tasks, "seed": 0, "shift": shift}
        write_run(tmp_path / f"r{number}", run_rows(n=64, logit=3 - 3 * number, slope=1, seed=number), **facts)
        write_run(tmp_path / f"g{number}", run_rows("towers-grounding", n=16, seed=number), **facts)
        curves = [{"samples": n, "success": (number + n / 100) / 3} for n in (0, 100)]
        (tmp_path / f"a{number}").mkdir()
        facts = {"model": "tiny", "method": "sft", "tasks": tasks, "seed": 0, "shift": shift, "curves": curves}
        (tmp_path / f"a{number}" / "training.json").write_text(json.dumps(facts))
    found, failed = sections(tmp_path)
    assert failed == []
    for key, name in (("psychometry", "cells"), ("perception", "kinds"), ("accuracy", "cells")):
        table = found[key].results[name].table
        trained = table[table["method"].astype(str) == "sft"]
        assert set(trained["regime"].astype(str)) == {"", "shift visual:2"} and (trained["n_runs"] == 1).all(), key
    assert len(found["psychometry"].figures) == 2
    means = found["accuracy"].figures[0].tables["cells"]
    assert set(means["trained_on"]) == {"none", "towers-stability", "towers-stability (shift visual:2)"}
    curve = found["learning"].figures[0].tables["means"]
    assert (
        curve.groupby(["panel", "method"])["samples"].apply(lambda x: x.is_unique).all()
        and curve["panel"].nunique() == 2
    )


def test_checkpoints_of_other_trainings_do_not_cost_the_curves_of_training(tmp_path: Path) -> None:
    write_run(tmp_path / "base", run_rows())
    for seed, (tasks, samples) in enumerate(((["towers-stability"], 64), (["towers-stability"], 128))):
        shift = "visual:2" if seed else ""
        write_run(
            tmp_path / f"r{seed}", run_rows(seed=seed), method="ppo", train_tasks=tasks, samples=samples, shift=shift
        )
    (tmp_path / "a").mkdir()
    curves = [{"samples": n, "success": n / 100} for n in (0, 50, 64)]
    facts = {"model": "tiny", "method": "ppo", "tasks": ["towers-stability"], "seed": 0, "curves": curves}
    (tmp_path / "a" / "training.json").write_text(json.dumps(facts))
    assert set(sections(tmp_path)[0]["learning"].results) >= {"training"}
