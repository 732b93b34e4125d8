"""Checking a set with a second engine: what agrees, what does not, and what becomes of the card."""

import json

import pytest

from vlm_probe.stimuli import agreement
from vlm_probe.stimuli.agreement import check
from vlm_probe.stimuli.dataset import StimulusError, StimulusSet
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.output import MANIFEST

pytest.importorskip("mujoco")


@pytest.fixture(scope="module")
def stability(tmp_path_factory) -> StimulusSet:
    return make_set("towers-stability", 24, 1, tmp_path_factory.mktemp("sets") / "s", size=32)


def test_engines_agree_on_designed_towers_and_the_card_says_so(stability):
    card, metadata = stability.path / "card.json", (stability.path / "metadata.jsonl").read_bytes()
    before = json.loads(card.read_text())
    found = check(stability, "mujoco")
    assert found.passed
    assert found.disagreements == ()
    assert found.outside("towers") == (24, 24)
    assert sum(row["n"] for row in found.rows()) == 24
    after = json.loads(card.read_text())
    assert after.pop("checks")["mujoco"] == json.loads(json.dumps(found.to_dict()))
    assert after == before
    assert (stability.path / "metadata.jsonl").read_bytes() == metadata
    check(StimulusSet.load(stability.path), "pybullet")
    assert set(StimulusSet.load(stability.path).card["checks"]) == {"mujoco", "pybullet"}
    assert [p.name for p in stability.path.glob(".*")] == [MANIFEST]


@pytest.mark.parametrize("task", ["towers-topblock", "towers-sideblock"])
def test_actions_are_compared_by_what_works_and_what_fails(task, tmp_path):
    made = make_set(task, 8, 0, tmp_path / "set", size=32)
    assert check(made, "mujoco").passed
    for item in made.items:
        working = [tuple(w) if isinstance(w, list) else w for w in item.certificate["working"]]
        wrong = agreement._wrong(agreement.get_task(task), item, working)
        assert wrong is not None
        assert wrong not in working


def test_an_engine_in_which_nothing_falls_fails_and_is_listed(stability, monkeypatch):
    class Glue:
        name = "glue"

        def version(self):
            return "glue 1"

        def simulate(self, scene, **_):
            return type("Outcome", (), {"decided": False, "on_floor": frozenset()})()

    monkeypatch.setattr(agreement, "get_simulator", lambda name: Glue())
    found = check(stability, "glue")
    assert not found.passed
    assert found.outside("towers") == (12, 24)
    assert {d.expected for d in found.disagreements} == {"falls"}
    assert all(d.margin <= -0.1 for d in found.disagreements)
    items = {item.item_id for item in stability.items}
    assert {d.item_id for d in found.disagreements} <= items


def test_what_cannot_be_checked_is_refused(tmp_path, monkeypatch):
    grounding = make_set("towers-grounding", 4, 0, tmp_path / "g", size=32)
    with pytest.raises(StimulusError, match="asks about no outcome"):
        check(grounding, "mujoco")
    blind = make_set("towers-stability", 4, 0, tmp_path / "s", size=32)
    object.__setattr__(blind.items[0], "scene", None)
    with pytest.raises(StimulusError, match="has no scene to simulate"):
        check(blind, "mujoco")
    with pytest.raises(ValueError, match="unknown simulator"):
        check(blind, "newton")
