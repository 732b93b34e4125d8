"""Making sets: same arguments give same bytes, labels balance in every cell, and a set is whole or absent."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlm_probe.stimuli.dataset import StimulusError, StimulusSet
from vlm_probe.stimuli.generate import make_matched, make_set
from vlm_probe.stimuli.output import MANIFEST, OutputError
from vlm_probe.stimuli.raycast import get_raycast
from vlm_probe.stimuli.scene import SHAPES
from vlm_probe.stimuli.simulators import STATE
from vlm_probe.stimuli.tasks import UnknownTask


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def stability(tmp_path_factory) -> StimulusSet:
    return make_set("towers-stability", 144, 0, tmp_path_factory.mktemp("sets") / "stability", size=64)


def test_the_same_arguments_give_the_same_bytes_over_any_number_of_processes(stability, tmp_path):
    make_set("towers-stability", 144, 0, tmp_path / "again", size=64, jobs=2)
    assert digest(tmp_path / "again") == digest(stability.path)
    make_set("towers-stability", 144, 1, tmp_path / "other", size=64)
    shared = set(digest(tmp_path / "other")) & set(digest(stability.path))
    assert shared == {"metadata.jsonl", "card.json", MANIFEST}


def test_labels_are_balanced_in_every_cell_and_pairs_are_whole(stability):
    cells: dict[tuple, Counter] = {}
    for item in stability.items:
        size = tuple(sorted(map(abs, item.condition.margin_bin)))
        cells.setdefault((item.condition.count, size, item.condition.mirrored), Counter())[item.answer] += 1
    assert len(cells) == 18
    for counts in cells.values():
        assert counts["stands"] == counts["falls"] > 0
    assert stability.card["balance"]["largest_difference_of_label_counts_in_a_cell"] == 0
    pairs = Counter(item.pair_id for item in stability.items)
    assert set(pairs.values()) == {2}
    assert all(abs(item.margin) >= 0.1 for item in stability.items)


def test_neither_order_nor_ids_tell_the_answer(stability):
    items = stability.items
    assert len({item.item_id for item in items}) == len(items)
    assert not any(item.condition.code in item.item_id or item.role in item.item_id for item in items)
    # Members of a group are spread over the set, and no place in the group has one label.
    firsts = {item.group_id: item for item in reversed(items)}
    assert {item.answer for item in firsts.values()} == {"stands", "falls"}
    places = [[i for i, item in enumerate(items) if item.group_id == group] for group in firsts]
    assert np.mean([max(p) - min(p) for p in places]) > len(items) / 3


def test_the_matched_set_asks_what_decides_on_the_same_images(stability, tmp_path):
    matched = make_matched(stability, tmp_path / "matched")
    assert matched.card["task"] == "towers-grounding" and matched.card["kind"] == "grounding"
    assert matched.card["matched"]["content_sha256"] == stability.content_sha256
    theirs = {item.item_id: item for item in stability.items}
    assert 0.8 * len(theirs) < len(matched.items) == len(matched) <= len(theirs)
    for item in matched.items:
        source, about = theirs[item.item_id], item.question.about
        assert (item.image_sha256, item.margin) == (source.image_sha256, source.margin)
        blocks = {body.colour: body for body in item.scene.bodies}
        above, below = blocks[about["a"]], blocks[about["b"]]
        assert above.position[2] - below.position[2] == pytest.approx(0.1)
        assert item.answer == round(100 * (above.position[0] - below.position[0]))
        assert matched.image(item).size == (64, 64)


@pytest.mark.parametrize(
    ("name", "ask"),
    [("balance-tilt", "distance"), ("collision-outcome", "left-right"), ("support-hold", "arrow-target")],
)
def test_every_headline_judgement_has_a_matched_question(name, ask, tmp_path):
    matched = make_matched(make_set(name, 12, 0, tmp_path / "set", size=32), tmp_path / "matched")
    assert {item.question.about["ask"] for item in matched.items} == {ask}


def test_tasks_without_a_matched_question_say_which_have_one(topblock, tmp_path):
    with pytest.raises(StimulusError, match=r"nothing can be asked .* towers-topblock: take one of towers-stability"):
        make_matched(topblock, tmp_path / "matched")
    assert not list(tmp_path.iterdir())


def test_cut_off_sets_hold_no_orphaned_files(tmp_path):
    cut = make_set("towers-stability", 5, 0, tmp_path / "cut", size=64, segmentation=True, depth=True, state=True)
    assert len(cut.items) == len(cut) == 5
    for folder in ("images", "segmentation", "depth", "state"):
        assert len(list((cut.path / folder).iterdir())) == 5
    item = cut.items[0]
    assert item.scene is not None
    state = np.load(cut.path / "state" / f"{item.scene_sha256}.npy")
    assert state.shape == (len(item.scene.bodies), len(STATE))
    for row, body in zip(state, item.scene.bodies, strict=True):
        found = dict(zip(STATE, row.tolist(), strict=True))
        assert (found["present"], SHAPES[int(found["shape"])]) == (1, body.shape)
        assert [found[name] for name in ("x", "y", "z")] == pytest.approx(body.position)
        assert [found["size_x"], found["mass"]] == pytest.approx([body.size[0], body.mass])
    assert np.load(cut.path / "segmentation" / f"{item.image_sha256}.npy").max() == len(item.scene.bodies) - 1


@pytest.mark.slow
def test_a_ray_cast_set_is_the_same_on_two_processes(tmp_path):
    one = make_set("balance-tilt", 14, 0, tmp_path / "one", size=64, renderer="raycast")
    two = make_set("balance-tilt", 14, 0, tmp_path / "two", size=64, renderer="raycast", jobs=2)
    assert digest(one.path) == digest(two.path)
    assert one.card["renderer"] == "raycast"
    assert one.card["versions"]["renderer"] == get_raycast().renderer
    # The same scenes as those that the engine draws, from another point of view.
    plain = make_set("balance-tilt", 14, 0, tmp_path / "plain", size=64)
    assert plain.card["renderer"] == "engine"
    for ours, theirs in zip(one.items, plain.items, strict=True):
        assert ours.scene is not None and theirs.scene is not None
        assert ours.scene.camera != theirs.scene.camera
        assert replace(ours.scene, camera=theirs.scene.camera) == theirs.scene
        assert (ours.item_id, ours.answer, ours.margin) == (theirs.item_id, theirs.answer, theirs.margin)


@pytest.mark.parametrize(("renderer", "size"), [("", 224), ("engine", 224), ("raycast", 448)])
def test_every_renderer_has_its_own_size(renderer, size, tmp_path):
    assert make_set("towers-stability", 4, 0, tmp_path / "set", renderer=renderer).card["image_size"] == size


@pytest.mark.parametrize("task", ["towers-direction", "towers-topblock", "towers-sideblock", "towers-grounding"])
def test_other_tasks_make_sets_that_load(task, tmp_path):
    stimuli = make_set(task, 8, 0, tmp_path / task, size=64)
    again = StimulusSet.load(stimuli.path)
    assert [i.to_row() for i in again.items] == [i.to_row() for i in stimuli.items]
    for item in again.items:
        assert stimuli.image(item).size == (64, 64)
        if stimuli.card["kind"] == "action":
            assert item.certificate["working"]


def test_datasets_opens_a_set_as_an_imagefolder(stability, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(stability.path), split="train", cache_dir=str(tmp_path))
    assert len(loaded) == 144
    row = loaded[0]
    assert row["image"].size == (64, 64)
    assert row["answer"] in ("yes", "no")
    assert row["prompt"] == stability.items[0].question.prompt


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "set"
    for bad in ({"n": 0}, {"n": -3}, {"n": 10**30}, {"size": 3}, {"size": 64.5}, {"jobs": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be a whole number from"):
            make_set(**({"task": "towers-stability", "n": 4, "seed": 0, "out": out} | bad))
    with pytest.raises(UnknownTask, match="did you mean"):
        make_set("towers-stabilty", 4, 0, out)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        make_set("towers-stability", 4, 0, out)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_generation_leaves_no_set(tmp_path, sign):
    out = tmp_path / "set"
    code = (
        f"from vlm_probe.stimuli.generate import make_set; make_set('towers-stability', 4000, 0, {str(out)!r}, size=64)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".set.partial-*/images/*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sign)
    process.wait()
    assert not out.exists()
    with pytest.raises(StimulusError, match="not a stimulus set"):
        StimulusSet.load(out)
    make_set("towers-stability", 4, 0, out, size=64)
    assert [p.name for p in tmp_path.iterdir()] == ["set"], "left-overs of a dead process are swept away"


def test_damaged_sets_are_named(tmp_path):
    stimuli = make_set("towers-stability", 4, 0, tmp_path / "set", size=64)
    metadata = stimuli.path / "metadata.jsonl"
    whole = metadata.read_bytes()
    metadata.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(StimulusError, match=r"line \d+, is damaged"):
        StimulusSet.load(stimuli.path)
    metadata.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    with pytest.raises(StimulusError, match="2 rows, 4 expected"):
        StimulusSet.load(stimuli.path)
    metadata.write_bytes(whole)
    card = json.loads((stimuli.path / "card.json").read_text())
    (stimuli.path / "card.json").write_text("{")
    with pytest.raises(StimulusError, match=r"card.json is damaged"):
        StimulusSet.load(stimuli.path)
    (stimuli.path / "card.json").write_text(json.dumps(card))
    first, second, third, _ = stimuli.items
    (stimuli.path / first.file_name).unlink()
    with pytest.raises(StimulusError, match="cannot read"):
        stimuli.image(first)
    (stimuli.path / second.file_name).write_bytes(b"not a picture")
    with pytest.raises(StimulusError, match="corrupt"):
        stimuli.image(second)
    assert stimuli.image(third).mode == "RGB"
