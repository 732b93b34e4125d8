"""Training small untrained models of every family: pictures stay with their prompts, in any micro-batch and in episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.families import FAMILIES
from vlm_probe.finetune.closed_loop import PlayingPPO
from vlm_probe.finetune.config import TrainConfig, TrainingError, make_config
from vlm_probe.finetune.policy import silent_tokens
from vlm_probe.finetune.reward import RewardScorer, ScoredReply
from vlm_probe.finetune.train import train
from vlm_probe.probes.models.huggingface import end_tokens

TRAINABLE = tuple(name for name in FAMILIES if name != "paligemma")
METHODS = ("sft", "grpo", *(pytest.param(method, marks=pytest.mark.slow) for method in ("ppo", "rloo")))
SaveFamily = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights say nothing that can be read, and replies that are all worth nothing teach nothing."""
    monkeypatch.setattr(
        RewardScorer,
        "_one",
        lambda _, reply, item: ScoredReply(item.question.parse("3"), False, len(reply.encode()) % 5 / 4),
    )


def settings(model: Path, method: str, **changes: Any) -> TrainConfig:
    """Two rollouts of eight replies, or two batches of eight demonstrations."""
    given = {
        "model": str(model),
        "tasks": ("towers-topblock",),
        "method": method,
        "items": 16,
        "size": 64,
        "batch": 8,
        "rollout": 8,
        "generations": 1 if method == "ppo" else 4,
        "epochs": 1,
        "budget": "samples=16",
        "learning_rate": 1e-3,
        "beta": 0.05,
    }
    return make_config(given | changes)


@pytest.mark.parametrize("family", TRAINABLE)
@pytest.mark.parametrize("method", METHODS)
def test_every_family_learns_the_same_in_any_micro_batch(
    family: str, method: str, save_family: SaveFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that went to another prompt, or tiles that were dealt out wrongly, would change the gradient."""
    folder = save_family(family)
    # The loss of reinforcement is a mean over the tokens of a micro-batch: the same for any if all replies are as long.
    monkeypatch.setattr(
        "vlm_probe.finetune.train.silent_tokens",
        lambda model, processor: [*silent_tokens(model, processor), *end_tokens(model, processor.tokenizer, family)],
    )
    # With this seed the first demonstrations have different lengths.
    whole, parts = (
        train(settings(folder, method, micro_batch=size, seed=2), tmp_path / str(size))["curves"] for size in (8, 2)
    )
    # Of the first step: from there on, what is sampled differs with the last digits.
    assert whole[0]["gradient_norm"] == pytest.approx(parts[0]["gradient_norm"], rel=1e-3)
    tensors = load_file(tmp_path / "2" / "adapter_model.safetensors")
    assert any(bool(tensor.abs().max() > 0) for name, tensor in tensors.items() if "lora_B" in name)


@pytest.mark.parametrize("family", TRAINABLE)
def test_replies_in_episodes_are_scored_as_alone(
    family: str, save_family: SaveFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log-probabilities that are learned from are those of the model for each attempt by itself, with all its pictures."""
    pictures: list[int] = []
    play = PlayingPPO._generate_and_score_completions

    def checked(trainer: Any, inputs: Any) -> Any:
        rollout = play(trainer, inputs)
        network = trainer.accelerator.unwrap_model(trainer.model)
        for number, sample in enumerate(trainer._samples):
            made = trainer.loop.prompter.inputs([sample.trial.turns]).to(network.device)
            reply = torch.tensor([sample.reply_ids], device=network.device)
            ids = torch.cat([made.pop("input_ids"), reply], dim=1)
            made.pop("attention_mask")
            for name in ("token_type_ids", "mm_token_type_ids"):
                if name in made:
                    made[name] = torch.cat([made[name], torch.zeros_like(reply)], dim=1)
            with torch.no_grad():
                logits = network(input_ids=ids, attention_mask=torch.ones_like(ids), **made).logits
            before = logits[0, -reply.shape[1] - 1 : -1].float() / trainer.temperature
            alone = torch.log_softmax(before, dim=-1).gather(1, reply.T)[:, 0]
            torch.testing.assert_close(
                rollout["old_per_token_logps"][number, : reply.shape[1]], alone, atol=1e-3, rtol=0
            )
            pictures.append(sum(len(turn.images) for turn in sample.trial.turns))
        return rollout

    monkeypatch.setattr(PlayingPPO, "_generate_and_score_completions", checked)
    train(settings(save_family(family), "ppo", attempts=2, memory="all", micro_batch=4), tmp_path / "run")
    assert {1, 2} <= set(pictures)


def test_what_a_family_cannot_is_said(save_family: SaveFamily, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has no chat template"):
        train(settings(save_family("paligemma"), "sft"), tmp_path / "paligemma")
