"""Demonstrations in the closed loop: the prompt is what would be asked at probing, and the expert's reply alone is learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlm_probe.finetune.train
from vlm_probe.finetune.config import TrainConfig, TrainingError, make_config
from vlm_probe.finetune.corrections import FailedAttemptAugmentation
from vlm_probe.finetune.data import Example, TrainingSet
from vlm_probe.finetune.sft import Labelled
from vlm_probe.probes.conditions import PLAIN, Presenter
from vlm_probe.probes.episodes import Episodes, Memory, TrialSpec
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.readout import Scorer
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.tasks import get_task


def settings(**changes: Any) -> TrainConfig:
    given = {"model": "tiny", "tasks": ("towers-topblock",), "method": "sft", "budget": "samples=24", "items": 8}
    return make_config(given | {"batch": 12, "size": 64, "rank": 4, "attempts": 3} | changes)


def examples(stimuli: StimulusSet) -> tuple[Example, ...]:
    return tuple(Example(item, (stimuli.path / item.file_name).read_bytes()) for item in stimuli.items)


def test_what_comes_before_the_expert_has_failed_and_is_a_function_of_seed_and_place(topblock: StimulusSet) -> None:
    shown = examples(topblock)
    corrections = FailedAttemptAugmentation(shown, Memory(4, "all"), seed=5)
    rows = [{"place": place, "index": place % len(shown), "completion": "kept"} for place in range(24)]
    found = [corrections(row) for row in rows]
    earlier = [sum(turn["role"] == "assistant" for turn in row["prompt"]) for row in found]
    assert set(earlier) == {0, 1, 2, 3}
    for row, number in zip(found, earlier, strict=True):
        item = shown[row["index"]].item
        assert len(row["images"]) == number + 1 and row["completion"] == "kept"
        replies = [turn["content"][0]["text"] for turn in row["prompt"] if turn["role"] == "assistant"]
        assert len(set(replies)) == number
        for reply in replies:
            value = item.question.parse(reply).value
            assert value is not None and item.scene is not None
            assert not get_task(item.task).score(item.scene, item.question, value).success
    again = FailedAttemptAugmentation(shown, Memory(4, "all"), seed=5)
    assert [row["prompt"] for row in map(again, reversed(rows))] == [row["prompt"] for row in reversed(found)]
    other = FailedAttemptAugmentation(shown, Memory(4, "all"), seed=6)
    assert [row["prompt"] for row in map(other, rows)] != [row["prompt"] for row in found]


def test_answers_near_the_right_one_fail_most_often(topblock: StimulusSet) -> None:
    (example, *_), rng = examples(topblock), np.random.default_rng(0)
    corrections, right = FailedAttemptAugmentation([example], Memory(2, "all"), 0), example.item.answer
    assert isinstance(right, int)
    replies = [corrections.trial(0, 1, rng).context[1].text for _ in range(60)]
    distances = [abs(int(reply) - right) for reply in replies]
    assert 1 <= np.median(distances) <= 6 < max(distances)


@pytest.mark.parametrize(("family", "kept"), [("llava", "all"), ("qwen3-vl", "all"), ("qwen2.5-vl", "last-1")])
def test_the_expert_is_asked_as_at_probing_and_its_reply_alone_is_learned(
    family: str,
    kept: str,
    save_family: Callable[[str], Path],
    topblock: StimulusSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, memory = str(save_family(family)), Memory(3, kept)
    monkeypatch.setattr(vlm_probe.finetune.train, "training_set", lambda *_, **__: TrainingSet(examples(topblock)))
    monkeypatch.setattr(vlm_probe.finetune.train, "try_batch", lambda *_, **__: None)
    batches: list[dict[str, Any]] = []
    collate = Labelled.__call__

    def watch(self: Any, rows: Any) -> Any:
        batches.append(collate(self, rows))
        return batches[-1]

    monkeypatch.setattr(Labelled, "__call__", watch)
    vlm_probe.finetune.train.train(settings(model=folder, memory=kept), tmp_path / "run")
    model: Any = load_model(folder)
    scorer = Scorer()
    episodes = Episodes(scorer, lambda _: "", (), Path(), True, 64)
    lengths: set[int] = set()
    for batch in batches:
        for place, index, ids, mask, labels in zip(
            *(batch[name] for name in ("place", "index", "input_ids", "attention_mask", "labels")), strict=True
        ):
            said, item = labels[labels != -100].tolist(), topblock.items[int(index)]
            assert model._prompter.decode(said).strip() == str(item.answer)
            # The same earlier replies, carried out by the code that probing uses.
            rng = np.random.default_rng([0, int(place)])
            whole = FailedAttemptAugmentation(examples(topblock), Memory(3, "all"), 0).trial(
                int(index), int(rng.integers(3)), rng
            )
            ask: TrialSpec | None = TrialSpec(Presenter(topblock), item, PLAIN, memory)
            for turn in whole.context:
                if turn.role == "assistant":
                    assert ask is not None
                    ask = episodes.following(ask, scorer.row(item, turn.text, None) | {"error": None})
            assert ask is not None
            asked = model._make_inputs([ask.trial(with_picture=True)])["input_ids"][0].tolist()
            assert ids[mask.bool()].tolist()[: len(asked)] == asked
            assert labels[mask.bool()].tolist()[: len(asked)] == [-100] * len(asked)
            lengths.add(len(asked))
    assert len(lengths) > 1
    result = json.loads((tmp_path / "run/training.json").read_text())
    assert (result["method"], result["attempts"], result["memory"]) == ("sft", 3, kept)
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in result["curves"])


def test_without_memory_there_is_nothing_to_correct() -> None:
    with pytest.raises(TrainingError, match=r"--memory none .* leave --attempts out"):
        settings(memory="none")
