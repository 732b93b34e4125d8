"""How varied a training set is: limits hold and nest, shifts are drawn for every group, and labels stay balanced."""

from __future__ import annotations

from collections import Counter

import pytest

from vlm_probe.finetune.diversity import Diversity, describe, parse_diversity, plan
from vlm_probe.stimuli import design
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.shifts import parse_shifts
from vlm_probe.stimuli.tasks import get_task

TASK = get_task("towers-stability")


def test_without_limits_the_plan_is_that_of_the_design() -> None:
    assert list(plan(TASK, 40, 7)) == list(design.plan(TASK, 40, 7))
    assert [g.variant.style for g in plan(TASK, 3, 7, "think")] == ["think"] * 3


def test_limits_hold_and_nest() -> None:
    few = list(plan(TASK, 200, 7, diversity=Diversity(conditions=3, wordings=2)))
    more = list(plan(TASK, 200, 7, diversity=Diversity(conditions=6, wordings=4)))
    assert len({g.condition for g in few}) == 3 and len({g.variant for g in few}) == 2
    assert {g.condition for g in few} < {g.condition for g in more}
    assert {g.variant for g in few} < {g.variant for g in more}
    other = list(plan(TASK, 200, 8, diversity=Diversity(conditions=3)))
    assert {g.condition for g in other} != {g.condition for g in few}
    used = Counter(g.variant for g in few)
    assert max(used.values()) - min(used.values()) <= 1


def test_every_group_draws_its_shifts_up_to_the_stated_levels() -> None:
    limits = parse_shifts("camera:2,light:1,count:1")
    groups = list(plan(TASK, 400, 7, shifts=limits))
    drawn = Counter(shift for g in groups for shift in g.condition.shifts)
    assert set(drawn) == {("camera", 1), ("camera", 2), ("light", 1), ("count", 1)}
    for (name, _), number in drawn.items():
        expected = 400 / 3 if name == "camera" else 200
        assert abs(number - expected) < 60
    assert any(not g.condition.shifts for g in groups)
    assert groups == list(plan(TASK, 400, 7, shifts=limits))
    # The scenes are those of the set without shifts, apart from what the shifts do.
    plain = list(design.plan(TASK, 400, 7))
    assert [g.variant for g in groups] == [g.variant for g in plain]
    largest = max(c.count for c in TASK.conditions())
    for g, p in zip(groups, plain, strict=True):
        assert g.condition.count == (largest + 1 if ("count", 1) in g.condition.shifts else p.condition.count)


def test_what_a_set_turned_out_to_be_is_described(stability: StimulusSet) -> None:
    found = describe(stability.items)["towers-stability"]
    assert found["items"] == found["scenes"] == 24 and found["groups"] == 6
    base = [item.condition for item in stability.items if item.role == "base"]
    assert found["conditions"] == len({(c.count, c.margin_bin, c.build) for c in base})
    assert sum(found["labels"].values()) == 24 and found["shifts"] == {}


def test_slips_are_refused() -> None:
    assert parse_diversity("") == Diversity()
    assert parse_diversity("wordings=1, conditions = 2") == Diversity(2, 1)
    assert str(parse_diversity("conditions=2,wordings=1")) == "conditions=2,wordings=1"
    for text in ("conditions=0", "conditions", "scenes=3", "conditions=2,conditions=3", "conditions=-1"):
        with pytest.raises(ValueError, match="write conditions=2"):
            parse_diversity(text)
    with pytest.raises(ValueError, match="has 16 wordings, not 17"):
        list(plan(TASK, 2, 0, diversity=Diversity(wordings=17)))
