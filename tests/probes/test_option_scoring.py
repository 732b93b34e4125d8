"""Option scoring: the tree over the cached prompt gives what reading every candidate from the start gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlm_probe.probes.models import Trial
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.option_scoring import OptionScorer
from vlm_probe.probes.models.reply_tree import build_tree, divide, groups
from vlm_probe.stimuli.dataset import StimulusSet


@pytest.fixture(scope="module")
def model(llava: Path) -> Any:
    return load_model(str(llava))


def plain(model: Any, trial: Trial, reply: Sequence[int]) -> float:
    """The log-probability of one reply, without a cache, a batch or padding."""
    inputs = model._inputs([trial])
    ids = inputs["input_ids"]
    whole = torch.cat([ids, torch.tensor([reply], device=ids.device)], dim=1)
    with torch.inference_mode():
        out = model._model(input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values=inputs["pixel_values"])
    steps = torch.log_softmax(out.logits[0, ids.shape[1] - 1 : -1].float().cpu(), dim=-1)
    return float(steps[torch.arange(len(reply)), torch.tensor(reply)].sum())


def test_the_tree_has_every_beginning_once() -> None:
    tree = build_tree([(1, 2, 9), (1, 3, 9), (1, 9), (4, 9), (1, 3, 9)])
    assert tree.tokens.tolist() == [1, 2, 9, 3, 9, 9, 4, 9]
    assert tree.parents.tolist() == [-1, 0, 1, 0, 3, 0, -1, 6]
    assert tree.depths.tolist() == [0, 1, 2, 1, 2, 1, 0, 1]
    assert tree.inner.tolist() == [0, 1, 3, 6]
    assert tree.leaves.tolist() == [2, 4, 5, 7, 4]


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
def test_parts_hold_every_inner_node_below_its_ancestors(limit: int) -> None:
    tree = build_tree([(*map(int, f"{x}5{y}"), 99) for x in range(30) for y in range(12)])
    parts = divide(tree, limit)
    assert {node for part in parts for node in part} == set(tree.inner.tolist())
    for part in parts:
        assert len(part) <= max(limit, 5) and len(set(part)) == len(part)
        for i, node in enumerate(part):
            assert tree.parents[node] in (-1, *part[:i])


@pytest.mark.parametrize("name", ["stability", "topblock", "grounding"])
def test_scores_are_those_of_the_plain_computation(name: str, model: Any, request: pytest.FixtureRequest) -> None:
    stimuli = request.getfixturevalue(name)
    trials = [Trial(item, stimuli.image(item)) for item in stimuli.items[:6]]
    for trial, scores in zip(trials, model.score_options(trials), strict=True):
        replies = model._prompter.replies(trial)
        some = range(0, len(replies), 1 + len(replies) // 8)
        assert [plain(model, trial, replies[i]) for i in some] == pytest.approx(scores[list(some)].tolist(), abs=1e-4)
    assert model._scorer._use_tree


def test_pairs_of_numbers_are_scored_whole(model: Any, sideblock: StimulusSet) -> None:
    """All 3111 pairs; some of them against the plain computation."""
    trial = Trial(sideblock.items[0], sideblock.image(sideblock.items[0]))
    scores = model.score_options([trial])[0]
    replies = model._prompter.replies(trial)
    assert scores.shape == (61 * 51,)
    for i in (0, 7, 1500, 3110):
        assert scores[i] == pytest.approx(plain(model, trial, replies[i]), abs=1e-4)


def test_small_parts_give_the_same(model: Any, topblock: StimulusSet, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [Trial(item, topblock.image(item)) for item in topblock.items[:2]]
    expected = model.score_options(trials)
    assert model._scorer.at_once
    monkeypatch.setattr("vlm_probe.probes.models.option_scoring.LOGITS_BUDGET", 1)  # now by way of the cache, in parts
    for a, b in zip(expected, model.score_options(trials), strict=True):
        assert np.abs(a - b).max() < 1e-4


@pytest.mark.parametrize(("name", "options"), [("stability", 2), ("grounding", 3), ("topblock", 41)])
def test_scoring_costs_little_more_than_reading_the_prompts(
    name: str, options: int, request: pytest.FixtureRequest
) -> None:
    """Arithmetic operations against a plain forward pass over the same batch; `benchmarks/asking.py scoring` has the times."""
    tiny: Any = load_model("tiny")
    stimuli = request.getfixturevalue(name)
    trials = [Trial(item, stimuli.image(item)) for item in stimuli.items[:8]]
    assert max(len(tiny._prompter.replies(trial)) for trial in trials) >= options
    tiny.score_options(trials)  # the first batch is checked against plain generation
    inputs = tiny._inputs(trials)
    with FlopCounterMode(display=False) as plain, torch.inference_mode():
        tiny._model(**inputs)
    with FlopCounterMode(display=False) as scored:
        tiny.score_options(trials)
    assert 0.5 < scored.get_total_flops() / plain.get_total_flops() < 1.3


def test_small_trees_share_a_pass_and_large_ones_do_not() -> None:
    yes_no = build_tree([(1, 9), (2, 9)])
    numbers = build_tree([(x, y, 9) for x in range(10) for y in range(10)])
    few = build_tree([(x, 9) for x in range(4)])
    assert groups([yes_no, few, yes_no]) == [[0, 1, 2]]
    assert groups([numbers, yes_no, numbers]) == [[0, 1, 2]]
    assert groups([numbers, *[yes_no] * 30]) == [[0], list(range(1, 31))]


def test_a_decoder_that_takes_no_tree_is_served_by_generation(
    llava: Path, model: Any, grounding: StimulusSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trials = [Trial(item, grounding.image(item)) for item in grounding.items[:3]]
    expected = model.score_options(trials)
    stubborn = load_model(str(llava))
    wrong = [lambda *_: (_ for _ in ()).throw(ValueError("no mask")), OptionScorer._read_nodes]
    for error in wrong[:1]:
        monkeypatch.setattr(OptionScorer, "_read_nodes", error)
        for a, b in zip(expected, stubborn.score_options(trials), strict=True):
            assert np.abs(a - b).max() < 1e-4
    assert "one by one" in caplog.text


def test_a_tree_that_is_off_is_noticed(
    llava: Path, model: Any, stability: StimulusSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trials = [Trial(item, stability.image(item)) for item in stability.items[:3]]
    expected = model.score_options(trials)
    monkeypatch.setattr(OptionScorer, "_offset", lambda self, rows: 5)  # positions that are wrong
    other = load_model(str(llava))
    for a, b in zip(expected, other.score_options(trials), strict=True):
        assert np.abs(a - b).max() < 1e-4
    assert "is off by" in caplog.text


def test_impossible_replies_are_less_likely_than_the_model_s_own(model: Any, stability: StimulusSet) -> None:
    """Scores are log-probabilities: at most 0, and those of a set of replies add up to at most 1."""
    trials = [Trial(item, stability.image(item)) for item in stability.items[:2]]
    for scores in model.score_options(trials):
        assert (scores <= 0).all() and np.exp(scores).sum() <= 1
