"""Curricula: easy first or hard first, or by success; the same items in another order, and exactly so after a resume."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest

from vlm_probe.finetune.curriculum import (
    EVIDENCE,
    OPEN_AT_FIRST,
    STEP,
    Competence,
    Kind,
    difficulty,
    paced_share,
    parse_curriculum,
)
from vlm_probe.finetune.mixture import parse_mixture
from vlm_probe.finetune.sampling import LAG, Order
from vlm_probe.stimuli.dataset import StimulusSet

HARD = {"a": np.linspace(0, 1, 40), "b": np.repeat([0.0, 0.5, 1.0], 8)}
MIXTURE = parse_mixture("a:2,b:1")


def order(kind: Kind, places: int = 240, block: int = 12, seed: int = 0) -> Order:
    return Order(MIXTURE, HARD, kind, places, block, seed)


def learner(order: Order, block: int, skill: float) -> list[float]:
    """Successes of a learner who can do whatever is not harder than its skill."""
    places = range(block * order.block, min((block + 1) * order.block, len(order)))
    return [float(HARD[order[place].task][order[place].item] <= skill) for place in places]


def run(order: Order, skill: float, until: int | None = None) -> None:
    """Show blocks and record them as a training does: the next one is fetched before the present one is recorded."""
    blocks = -(-len(order) // order.block)
    for block in range(len(order.state()["results"]), blocks if until is None else until):
        order[min(len(order), (block + 2) * order.block) - 1]
        order.record(block, learner(order, block, skill))


def shown(order: Order) -> list[tuple[str, int]]:
    return [(order[place].task, order[place].item) for place in range(len(order))]


def test_difficulty_is_closeness_to_the_boundary_and_number_of_objects(stability: StimulusSet) -> None:
    items = stability.items
    hard = difficulty(items)
    assert hard.shape == (len(items),) and hard.min() >= 0 and hard.max() <= 1
    same = [i for i, item in enumerate(items) if item.condition.count == items[0].condition.count]
    margins = np.array([abs(items[i].margin) for i in same])
    assert (np.diff(hard[same][np.argsort(margins)]) <= 1e-9).all()
    counts = np.array([item.condition.count for item in items])
    assert np.corrcoef(hard, counts)[0, 1] > 0.3


def test_without_a_curriculum_every_item_comes_once_before_any_comes_again() -> None:
    plain = order("none")
    items = [item for task, item in shown(plain) if task == "a"]
    assert len(items) == 160
    for start in range(0, 160, 40):
        assert sorted(items[start : start + 40]) == list(range(40))
    assert items[:40] != items[40:80]
    assert plain.summary()["distinct"] == {"a": 40, "b": 24}
    assert plain.summary()["realised"] == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3)}


def test_easy_to_hard_and_hard_to_easy_open_from_their_ends() -> None:
    for kind, sign in (("easy-to-hard", 1), ("hard-to-easy", -1)):
        means = [block["difficulty"]["a"] for block in _blocks(order(kind))]  # type: ignore[arg-type]
        assert sign * (np.mean(means[-6:]) - np.mean(means[:3])) > 0.25
    first = [item for task, item in shown(order("easy-to-hard"))[:12] if task == "a"]
    assert max(first) < OPEN_AT_FIRST * 40
    first = [item for task, item in shown(order("hard-to-easy"))[:12] if task == "a"]
    assert min(first) >= 40 * (1 - OPEN_AT_FIRST)
    assert paced_share(0) == OPEN_AT_FIRST and paced_share(0.5) == paced_share(1) == 1


def _blocks(order: Order) -> list[dict[str, dict[str, float]]]:
    shown(order)
    return list(order.summary()["blocks"])


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_order_is_a_function_of_the_seed_and_the_successes(kind: Kind) -> None:
    one, two, other = order(kind), order(kind), order(kind, seed=1)
    for each in (one, two, other):
        run(each, 0.6)
    assert shown(one) == shown(two) != shown(other)
    assert one.summary() == two.summary() != other.summary()


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_resumed_order_goes_on_exactly(kind: Kind) -> None:
    whole = order(kind, places=600)
    run(whole, 0.8)
    stopped = order(kind, places=600)
    run(stopped, 0.8, until=17)
    resumed = order(kind, places=600)
    resumed.restore(json.loads(json.dumps(stopped.state())))
    # What was shown before the stop is skipped by the data loader, which asks for none of it.
    resumed[17 * resumed.block]
    run(resumed, 0.8)
    assert shown(resumed) == shown(whole) and resumed.summary() == whole.summary()


def test_an_adaptive_curriculum_follows_the_learner() -> None:
    able, unable = order("adaptive", places=1200), order("adaptive", places=1200)
    run(able, 1.0)
    run(unable, 0.45)
    opened = [[block["open"]["a"] for block in _blocks(each)] for each in (able, unable)]
    assert opened[0][0] == opened[1][0] == OPEN_AT_FIRST
    assert opened[0][-1] == 1.0
    assert 0.45 <= max(opened[1]) < 0.8
    assert np.all(np.abs(np.diff(opened[1])) <= STEP + 1e-9)


def test_competence_moves_by_evidence_alone() -> None:
    start = Competence()
    assert start.after(EVIDENCE - 1, EVIDENCE - 1).share == OPEN_AT_FIRST
    up = start.after(EVIDENCE, EVIDENCE)
    assert up == Competence(OPEN_AT_FIRST + STEP)
    assert up.after(EVIDENCE / 2, EVIDENCE) == up
    assert up.after(0, EVIDENCE) == start and start.after(0, EVIDENCE) == start


def test_successes_that_are_missing_or_out_of_turn_are_an_error() -> None:
    hasty = order("adaptive")
    hasty[LAG * hasty.block - 1]
    with pytest.raises(RuntimeError, match="before block 0 was recorded"):
        hasty[LAG * hasty.block]
    with pytest.raises(ValueError, match="block 0 was due"):
        hasty.record(1, [1.0] * 12)
    with pytest.raises(ValueError, match="12 places"):
        hasty.record(0, [1.0] * 11)
    hasty.restore({"results": []})  # trainers look at the first row before they resume
    hasty.record(0, [1.0] * 12)
    with pytest.raises(ValueError, match="make it anew"):
        hasty.restore({"results": []})
    with pytest.raises(IndexError):
        hasty[240]


def test_slips_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean easy-to-hard"):
        parse_curriculum("easy-hard")
    with pytest.raises(ValueError, match="no items of b"):
        Order(MIXTURE, HARD | {"b": np.empty(0)}, "none", 10, 2, 0)
    with pytest.raises(ValueError, match="needs places"):
        Order(MIXTURE, HARD, "none", 0, 2, 0)
