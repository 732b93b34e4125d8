"""The trial log: nothing lost, nothing doubled, nothing overwritten."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_probe.probes.archive import LOGS
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.readout import Scorer, rescore
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import (
    COLUMNS,
    RUN,
    TRIALS,
    RunError,
    TrialLog,
    archive_runs,
    load_frame,
    parser_of,
    read_run,
    read_trials,
    trials_hash,
)
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.output import OutputError
from vlm_probe.stimuli.replies import VERSION
from vlm_probe.stimuli.tasks import Score

SLOW_RUN = """
import sys, time
from pathlib import Path
from vlm_probe.probes.models.observers import Observer, make_observer
from vlm_probe.probes.readout import rescore
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.output import OutputError

quick = Observer.generate
def slow(self, trials, settings):
    time.sleep(0.02)
    return quick(self, trials, settings)
Observer.generate = slow
stimuli, out = StimulusSet.load(sys.argv[1]), Path(sys.argv[2])
run(RunConfig("chance", "s", batch_size=2), stimuli, out, model=make_observer("chance"))
"""


def finished(stimuli: StimulusSet, out: Path, **changes: Any) -> Path:
    """A run of `chance` in that folder."""
    run(RunConfig("chance", "s", **changes), stimuli, out, model=make_observer("chance"))
    return out


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows by item, without what differs from run to run; one row per item, or this fails."""
    rows = read_trials(folder)
    assert len({row["item_id"] for row in rows}) == len(rows)
    return {row["item_id"]: {k: v for k, v in row.items() if k not in ("latency_s", "time")} for row in rows}


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(stability: StimulusSet, tmp_path: Path) -> None:
    expected = contents(finished(stability, tmp_path / "whole", batch_size=2))
    out, log = tmp_path / "killed", tmp_path / "killed" / TRIALS
    rng, kills = random.Random(0), 0
    while True:
        size = log.stat().st_size if log.exists() else 0
        until = size + rng.randrange(1, 8000)
        process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(stability.path), str(out)])
        while process.poll() is None and (not log.exists() or log.stat().st_size < until):
            time.sleep(0.001)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.kill()
        process.wait()
        kills += 1
        # What a kill within a write leaves: the beginning of a row.
        with log.open("ab") as file:
            file.write(b'{"key": "0123'[: rng.randrange(14)])
    assert kills >= 3
    assert contents(out) == expected
    assert log.read_bytes().count(b"\n") == len(stability)


def test_a_log_cut_at_any_byte_is_completed(stability: StimulusSet, tmp_path: Path) -> None:
    whole = finished(stability, tmp_path / "run", limit=3)
    expected, data = contents(whole), (whole / TRIALS).read_bytes()
    second = data.index(b"\n") + 1
    for cut in [0, 1, second - 2, second - 1, second, second + 1, second + 700, len(data) - 1, len(data)]:
        (whole / TRIALS).write_bytes(data[:cut])
        assert len(read_trials(whole)) == data[:cut].count(b"\n")
        finished(stability, whole, limit=3)
        assert contents(whole) == expected
        assert (whole / TRIALS).read_bytes().count(b"\n") == 3


def test_zeros_after_a_power_cut_are_dropped(stability: StimulusSet, tmp_path: Path) -> None:
    out = finished(stability, tmp_path / "run", limit=3)
    expected = contents(out)
    with (out / TRIALS).open("ab") as file:
        file.write(b"\0" * 512)
    finished(stability, out, limit=3)
    assert contents(out) == expected


def test_damage_in_the_middle_is_reported(stability: StimulusSet, tmp_path: Path) -> None:
    out = finished(stability, tmp_path / "run", limit=3)
    lines = (out / TRIALS).read_bytes().splitlines(keepends=True)
    (out / TRIALS).write_bytes(lines[0] + lines[1][40:] + lines[2])
    with pytest.raises(RunError, match="line 2: damaged"):
        read_trials(out)
    with pytest.raises(RunError, match="line 2: damaged"):
        finished(stability, out, limit=3)


@pytest.mark.parametrize(
    ("column", "value"),
    [("reward", 1.5), ("attempt", 0), ("status", "fine"), ("item_id", ""), ("correct", 1), ("n_candidates", 0.5)],
)
def test_a_row_out_of_range_is_reported_wherever_it_stands(
    stability: StimulusSet, tmp_path: Path, column: str, value: Any
) -> None:
    out = finished(stability, tmp_path / "run", limit=3)
    rows = [json.loads(line) for line in (out / TRIALS).read_text().splitlines()]
    for place in range(3):
        changed = [row | {column: value} if at == place else row for at, row in enumerate(rows)]
        (out / TRIALS).write_text("".join(json.dumps(row) + "\n" for row in changed))
        with pytest.raises(RunError, match=rf"trials\.jsonl, line {place + 1}: damaged \({column} must be"):
            read_trials(out)
    lines = (out / TRIALS).read_text().splitlines()
    (out / TRIALS).write_text(
        "\n".join([*lines[:2], lines[2].replace('"margin": ', '"margin": NaN, "margin": ')]) + "\n"
    )
    with pytest.raises(RunError, match="line 3: damaged"):
        read_trials(out)


def test_archives_have_the_same_ranges(stability: StimulusSet, tmp_path: Path) -> None:
    archive_runs([finished(stability, tmp_path / "runs" / "a", limit=3)], tmp_path / "runs", tmp_path / "archive")
    assert len(read_trials(tmp_path / "archive" / "a")) == 3
    good = pq.read_table(tmp_path / "archive" / LOGS)
    for column, value in (("reward", 1.5), ("margin", math.inf), ("margin", math.nan), ("status", "fine"), ("key", "")):
        values = good[column].to_pylist()
        values[1] = value
        place = good.column_names.index(column)
        pq.write_table(good.set_column(place, column, pa.array(values)), tmp_path / "archive" / LOGS)
        with pytest.raises(RunError, match=rf"archived log of .*a, row 2: damaged \({column} must be"):
            read_trials(tmp_path / "archive" / "a")
        with pytest.raises(RunError, match="damaged"):
            load_frame([tmp_path / "archive" / "a"])
    pq.write_table(good.drop_columns(["key"]), tmp_path / "archive" / LOGS)
    with pytest.raises(RunError, match="it has no key"):
        read_trials(tmp_path / "archive" / "a")
    pq.write_table(good.append_column("key", good["key"]), tmp_path / "archive" / LOGS)
    with pytest.raises(RunError, match=r"is damaged \(Multiple matches.*restore it"):
        read_trials(tmp_path / "archive" / "a")


def test_a_scorer_out_of_range_fails_its_trial_and_not_the_log(
    stability: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scorer, "score", lambda *_: Score(True, 1.5, {}))
    out = finished(stability, tmp_path / "run", limit=3)
    assert {row["error"] for row in read_trials(out)} == {"ValueError: reward must be a number from 0 to 1, got 1.5"}
    log = TrialLog(tmp_path / "other", {"fingerprint": {}})
    with log, pytest.raises(ValueError, match="reward must be"):
        log.append(read_trials(out)[0] | {"reward": 2})
    assert read_trials(tmp_path / "other") == []


def test_a_second_process_is_refused(stability: StimulusSet, tmp_path: Path) -> None:
    out = finished(stability, tmp_path / "run")
    with TrialLog(out, read_run(out)):
        with pytest.raises(OutputError, match="another process is writing"):
            finished(stability, out)
        with pytest.raises(OutputError, match="another process is writing"):
            rescore(out, stability)
        assert len(read_trials(out)) == len(stability)  # reading is free
    finished(stability, out)


def test_another_configuration_is_refused_by_name(
    stability: StimulusSet, topblock: StimulusSet, tmp_path: Path
) -> None:
    out = finished(stability, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(RunError, match=r"another configuration: temperature \(0.0, now 0.7\), seed \(0, now 3\)"):
        finished(stability, out, temperature=0.7, seed=3)
    with pytest.raises(RunError, match=r"another configuration: stimuli"):
        finished(topblock, out)
    with pytest.raises(RunError, match=r"another configuration: .*model \(chance, now heuristic\)"):
        run(RunConfig("heuristic", "s"), stability, out, model=make_observer("heuristic"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    finished(stability, out, batch_size=5)  # batches do not change answers


def test_a_log_without_its_description_is_not_touched(stability: StimulusSet, tmp_path: Path) -> None:
    out = finished(stability, tmp_path / "run")
    (out / RUN).unlink()
    with pytest.raises(RunError, match=r"no run\.json"):
        finished(stability, out)
    (out / RUN).write_text('{"model": ')
    with pytest.raises(RunError, match="damaged"):
        finished(stability, out)


def test_a_full_disk_is_reported_and_what_was_written_stays(
    stability: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written, write = tmp_path / "run", [0], os.write

    def full(descriptor: int, data: Any) -> int:
        # The fifth row finds room for its beginning only.
        written[0] += 1
        if written[0] == 5:
            return write(descriptor, data[:100])
        if written[0] > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(RunError, match=r"No space left on device.*same command again"):
            finished(stability, out)
    assert (out / TRIALS).read_bytes().count(b"\n") == 4
    assert (out / TRIALS).read_bytes().endswith(b"\n")
    assert read_run(out)["status"] == "failed"
    finished(stability, out)
    assert contents(out) == contents(finished(stability, tmp_path / "whole"))


def test_a_folder_that_cannot_be_written_is_refused(stability: StimulusSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        finished(stability, tmp_path / "file" / "run")


@pytest.mark.parametrize("readout", ["generate", "options"])
@pytest.mark.parametrize("name", ["stability", "topblock", "sideblock", "grounding"])
def test_scoring_again_changes_nothing(name: str, readout: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    stimuli = request.getfixturevalue(name)
    out = tmp_path / "run"
    run(RunConfig("noisy-simulation", "s", readout, limit=4), stimuli, out, model=make_observer("noisy-simulation"))  # type: ignore[arg-type]
    before = (out / TRIALS).read_bytes()
    assert rescore(out, stimuli) == (4, 0, 0)
    assert (out / TRIALS).read_bytes() == before


def test_scoring_again_mends_scores_and_needs_the_right_set(
    stability: StimulusSet, topblock: StimulusSet, tmp_path: Path
) -> None:
    out = finished(stability, tmp_path / "run")
    expected = contents(out)
    rows = [json.loads(line) for line in (out / TRIALS).read_text().splitlines()]
    for row in rows[:5]:
        row.update(correct=not row["correct"], reward=0.5, status="no_answer", answer=None)
    (out / TRIALS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rescore(out, stability) == (len(stability), 5, 5)
    assert contents(out) == expected
    with pytest.raises(RunError, match="another stimulus set"):
        rescore(out, topblock)


def read_by(folder: Path, parser: str | None, raw: str = "") -> None:
    """Make a run look as if another parser had read it, and its first reply in its own way."""
    record = read_run(folder)
    record["versions"].pop("parser")
    record["versions"] |= {"parser": parser} if parser else {}
    rows = [json.loads(line) for line in (folder / TRIALS).read_text().splitlines()]
    if raw:
        rows[0] |= {"raw": raw, "answer": None, "answer_text": None, "status": "no_answer", "correct": False}
    (folder / TRIALS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / RUN).write_text(json.dumps(record | {"trials_sha256": trials_hash(folder)}))


@pytest.mark.parametrize("parser", ["1", None])
def test_old_runs_are_read_again_by_the_current_parser(
    stability: StimulusSet, tmp_path: Path, parser: str | None
) -> None:
    out = finished(stability, tmp_path / "run")
    assert parser_of(read_run(out)) == str(VERSION)
    read_by(out, parser, "### Answer\n**Yes**")
    with pytest.raises(RunError, match=rf"read by parser 1, and this is parser {VERSION}: .*`probe score"):
        finished(stability, out)
    assert rescore(out, stability).readings == 1
    assert read_trials(out)[0]["status"] == "ok"
    assert parser_of(read_run(out)) == str(VERSION) and "edited" not in read_run(out)
    finished(stability, out)


def test_no_parser_has_read_log_probabilities(stability: StimulusSet, tmp_path: Path) -> None:
    config = RunConfig("noisy-simulation", "s", "options", limit=2)
    for _ in range(2):
        run(config, stability, tmp_path / "run", model=make_observer("noisy-simulation"))
        read_by(tmp_path / "run", "1")


def test_the_frame_has_every_column_and_the_factors(stability: StimulusSet, tmp_path: Path) -> None:
    frame = load_frame([finished(stability, tmp_path / "a"), finished(stability, tmp_path / "b", seed=1)])
    assert len(frame) == 2 * len(stability)
    assert {*COLUMNS, "run", "seed", "adapter", "condition_count", "variant_polarity"} <= set(frame.columns)
    assert set(frame["seed"]) == {0, 1}


def test_what_is_not_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run"):
        read_trials(tmp_path)
    with pytest.raises(RunError, match="not a run"):
        read_run(tmp_path)
