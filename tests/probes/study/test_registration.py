"""Registering a study, and packing it: what was planned is on record, and every trial comes back as it was."""

from __future__ import annotations

import json

import pytest

from vlm_probe.probes.cli import main
from vlm_probe.probes.trials import read_run, read_trials, runs_below, trials_hash


def call(capsys, *arguments):
    """The exit code, and what was printed to stdout and stderr."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, *capsys.readouterr()


@pytest.fixture
def study(tmp_path, watching):
    """The file of a study of one quick observer."""
    path = tmp_path / "study.yaml"
    path.write_text(watching.replace(", noisy-simulation", ""))
    return path


def test_a_registration_holds_the_design_and_the_items_and_tells_what_changed(study, capsys, tmp_path):
    folder = tmp_path / "studies" / "watch"
    code, out, err = call(capsys, "study", "freeze", study)
    assert code == 0, err
    record = json.loads((folder / "registration.json").read_text())
    assert record["sha256"] in out
    assert record["design"]["observers"] == ["chance"]
    assert record["done_before"] == []
    items = record["sets"]["sets/towers-stability"]
    card = json.loads((folder / "sets" / "towers-stability" / "card.json").read_text())
    assert (items["n"], items["content_sha256"]) == (8, card["content_sha256"])

    # The same once more is the same record; another design is refused, and named when it is run all the same.
    assert json.loads(call(capsys, "study", "freeze", study, "--json")[1]) == record
    study.write_text(study.read_text().replace("n: 8", "n: 12"))
    code, _, err = call(capsys, "study", "freeze", study)
    assert code == 1
    assert 'sets is {"n": 12' in err
    code, _, err = call(capsys, "study", "run", study)
    assert code == 0, err
    assert f"not as registered on {record['registered']}: sets is" in err

    code, out, err = call(capsys, "study", "freeze", study, "--again", "--json")
    assert code == 0, err
    again = json.loads(out)
    assert again["earlier"] == [record["sha256"]]
    assert again["done_before"] == ["observers/chance/towers-stability"], "what was run before counts as such"
    assert json.loads((folder / "registration-1.json").read_text()) == record

    (folder / "registration.json").write_text(json.dumps(again | {"registered": "2020-01-01"}))
    code, _, err = call(capsys, "study", "run", study)
    assert code == 1
    assert "is not what was registered" in err


def test_a_packed_study_is_read_like_the_runs(study, capsys, tmp_path):
    folder, packed = tmp_path / "studies" / "watch", tmp_path / "packed"
    assert call(capsys, "study", "run", study)[0] == 0
    code, out, err = call(capsys, "study", "pack", study, "--to", packed, "--json")
    assert code == 0, err
    assert json.loads(out) == {"folder": str(packed), "runs": 1, "trials": 8, "bytes": json.loads(out)["bytes"]}
    (run,) = runs_below(folder / "observers")
    (kept,) = runs_below(packed)
    assert kept == packed / "observers" / "chance" / "towers-stability"
    assert not kept.exists()
    assert read_trials(kept) == read_trials(run)
    assert read_run(kept) == read_run(run)
    assert trials_hash(kept) == trials_hash(run) == read_run(run)["trials_sha256"]
    record = json.loads((run / "run.json").read_text())
    record["stimuli"]["path"] = f"{tmp_path}/cache/sets/some-set"
    (run / "run.json").write_text(json.dumps(record))
    assert call(capsys, "study", "pack", study, "--to", packed)[0] == 0
    assert read_run(kept) == record | {"stimuli": record["stimuli"] | {"path": "some-set"}}, "no place of this machine"
    state = json.loads((packed / "state.json").read_text())
    assert [cell["state"] for cell in state["cells"]] == ["done", "done"]
    assert state["deviations"] == ["it was not registered"]

    from vlm_probe.analysis.frame import load

    columns = [name for name in load([run]).table if name != "folder"]
    assert load([packed]).table[columns].equals(load([folder / "observers"]).table[columns])

    # Again replaces it; a folder with anything else in it stays as it is.
    (folder / "remarks.tex").write_text("It was stopped twice.\n")
    assert call(capsys, "study", "pack", study, "--to", packed)[0] == 0
    assert (packed / "remarks.tex").read_text() == "It was stopped twice.\n"
    code, _, err = call(capsys, "study", "pack", study, "--to", tmp_path)
    assert code == 1
    assert "holds files that vlm-probe did not write" in err


def test_an_archive_gives_logs_back_to_the_byte_or_is_not_made(study, capsys, tmp_path):
    folder, packed = tmp_path / "studies" / "watch", tmp_path / "packed"
    assert call(capsys, "study", "run", study)[0] == 0
    log = folder / "observers" / "chance" / "towers-stability" / "trials.jsonl"
    whole = log.read_text()
    log.write_text(whole.replace('"attempt": 1, ', "", 1))  # as an earlier version would have written it
    code, _, err = call(capsys, "study", "pack", study, "--to", packed)
    assert code == 1
    assert "score it anew with `probe score`" in err
    log.write_text(whole)
    assert call(capsys, "study", "pack", study, "--to", packed)[0] == 0
    (packed / "logs.parquet").write_bytes(b"damaged")
    code, _, err = call(capsys, "analyze", packed)
    assert code == 1
    assert "logs.parquet is damaged" in err
