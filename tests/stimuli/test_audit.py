"""The audit finds planted shortcuts, and the designed set has none of those that it was designed against."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vlm_probe.stimuli.audit import audit
from vlm_probe.stimuli.baselines import cue_accuracy
from vlm_probe.stimuli.dataset import StimulusError
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.sheet import contact_sheet, shift_sheet
from vlm_probe.stimuli.standard import resolve
from vlm_probe.stimuli.tasks import get_task
from vlm_probe.stimuli.tasks.towers.stability import TowersStability


@pytest.fixture(scope="module")
def stability(tmp_path_factory):
    return make_set("towers-stability", 360, 5, tmp_path_factory.mktemp("sets") / "s", size=64, jobs=2)


def test_count_and_neighbour_rule_do_not_solve_the_judgement_set(stability, tmp_path):
    result = audit(stability)
    by_name = {shortcut.name: shortcut for shortcut in result.shortcuts}
    assert by_name["block count"].score < 0.55
    assert by_name["prompt alone"].score < 0.55
    rule = by_name["neighbour rule"]
    assert rule.by_level["build"] == {"counterweighted": 0.5, "leaning": 0.5, "plain": 1.0}
    assert rule.by_bin["0.4-0.7"] == 1.0  # beyond 0.4 the rule is the physics, and the audit says so
    assert result.limit == 0.6
    assert rule in result.above
    assert all(shortcut.reason and "not explained" not in shortcut.reason for shortcut in result.above)
    assert by_name["block count"].reason == ""
    card = stability.card["baselines"]
    assert card["limit"] == 0.6
    assert card["above_limit"]["neighbour rule"]["reason"] == rule.reason
    assert {row["shortcut"] for row in result.rows()} == set(by_name)
    result.plot(tmp_path / "audit.png")
    assert (tmp_path / "audit.png").stat().st_size > 10_000


def test_a_shortcut_that_the_task_does_not_know_is_named_as_such(stability, monkeypatch):
    monkeypatch.setattr(TowersStability, "known_shortcuts", {})
    assert {s.reason for s in audit(stability).above} == {"not explained by the task"}


def test_actions_have_no_limit_and_are_split_by_count(tmp_path):
    result = audit(make_set("towers-topblock", 24, 0, tmp_path / "t", size=32))
    assert result.limit is None
    assert result.above == ()
    assert set(result.levels["count"]) == {"3", "4"}
    assert all(row["above limit"] == "" for row in result.rows())
    result.plot(tmp_path / "audit.png")


def test_a_planted_cue_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    labels = ["stands", "falls"] * 100
    groups = [str(i // 4) for i in range(200)]
    assert cue_accuracy(np.array([1.0, 2.0] * 100), labels, groups) == 1.0
    assert cue_accuracy(rng.random(200), labels, groups) < 0.62


def test_order_and_ids_are_audited_like_any_shortcut(stability, monkeypatch):
    scores = {s.name: s.score for s in audit(stability).shortcuts if s.kind == "order"}
    assert set(scores) == {"item id", "place in the set", "place within the group", "answer before"}
    assert max(scores.values()) < 0.6
    by_pair = sorted(stability.items, key=lambda item: (item.pair_id, str(item.answer)))
    planted = [replace(item, item_id=f"{item.answer}{i}") for i, item in enumerate(by_pair)]
    monkeypatch.setitem(stability.__dict__, "items", planted)
    found = {s.name: s.score for s in audit(stability).shortcuts if s.kind == "order"}
    assert found["item id"] == found["answer before"] == 1.0 > found["place in the set"]


def test_margins_are_given_in_pixels_and_visual_tokens(stability, tmp_path):
    seen = {one.bin: one for one in audit(stability).visibility}
    # Half a block of 5 cm, seen at 0.94 m by a camera of 36 degrees, is 5.2 pixels of 64.
    assert seen["0.4-0.7"].pixels == pytest.approx(0.55 * 5.2, abs=0.4)
    assert seen["0.4-0.7"].tokens["LLaVA-1.5"] == pytest.approx(seen["0.4-0.7"].pixels * 336 / 64 / 14, abs=0.1)
    assert audit(make_set("support-hold", 48, 0, tmp_path / "s", size=32)).visibility == ()


def test_no_single_look_gives_the_side_of_a_fall():
    task, right = get_task("towers-direction"), Counter()
    conditions = [c for c in task.conditions() if c.count == 7 and c.margin_bin in ((0.1, 0.2), (-0.2, -0.1))]
    scenes = {c: task.sample_matched(np.random.default_rng(1), c)[0] for c in dict.fromkeys(conditions)}
    for condition in conditions:
        scene = scenes[condition]
        for name, rule in task.rules().items():
            right[name] += rule(scene) == task.statics_answer(scene)
    shares = {name: count / len(conditions) for name, count in right.items()}
    assert shares.pop("side of the largest step") == pytest.approx(7 / 8)  # half of the physics, as the card says
    assert len(shares) == 4 and set(shares.values()) == {9 / 16}


@pytest.mark.slow
def test_fitted_thresholds_do_not_give_the_side_of_a_fall_either(tmp_path):
    result = audit(make_set("towers-direction", 256, 0, tmp_path / "d", size=64, jobs=2))
    scores = {s.name: s.score for s in result.shortcuts}
    for name in ("lean", "place of the top block", "top block from the one below", "centroid in the picture"):
        assert scores[name] < 0.6
    assert all("not explained" not in shortcut.reason for shortcut in result.above)


def test_constant_answers_solve_few_action_items(tmp_path):
    stimuli = make_set("towers-topblock", 64, 0, tmp_path / "t", size=64)
    assert stimuli.card["baselines"]["constant"]["score"] < 0.35
    assert stimuli.card["baselines"]["shortcuts"]["push to the middle"] == 0.0
    assert len({item.answer for item in stimuli.items}) >= 10


def test_small_sets_cannot_be_audited(tmp_path):
    with pytest.raises(StimulusError, match="at least 10 groups"):
        audit(make_set("towers-stability", 8, 0, tmp_path / "s", size=64))


def test_contact_sheet_shows_pairs(stability, tmp_path):
    contact_sheet(stability, tmp_path / "sheet.png", n=12)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="must be a whole number from 1"):
        contact_sheet(stability, tmp_path / "none.png", n=0)


def test_shift_sheet_shows_every_visible_shift(tmp_path):
    shift_sheet("towers-stability", tmp_path / "shifts.png", renderer="raycast")
    assert (tmp_path / "shifts.png").stat().st_size > 50_000


def test_names_resolve_to_cached_standard_sets(tmp_path, monkeypatch, stability):
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path))
    monkeypatch.setattr("vlm_probe.stimuli.standard.STANDARD_N", 8)
    monkeypatch.setattr("vlm_probe.stimuli.standard.STANDARD_SIZE", 64)
    made = resolve("towers")
    assert made.card["task"] == "towers-stability"
    assert resolve("towers-stability").path == made.path
    assert resolve(str(stability.path)).path == stability.path
    with pytest.raises(StimulusError, match="does not exist"):
        resolve("no/such/folder")
