"""PPO on TRL's trainer: what a rollout holds, what the loss sees, and what is saved."""

from __future__ import annotations

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_probe.finetune.lora import Capacity, make_trainable
from vlm_probe.finetune.ppo import PPOConfig, PPOTrainer
from vlm_probe.probes.models.network import load_network

torch.set_num_threads(1)
ROWS = 16


def dense(completion_ids, **_):
    """A reward that every reply can get: whether its first token is odd."""
    return [float(ids[0] % 2) for ids in completion_ids]


def dataset():
    from datasets import Dataset

    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(ROWS)]
    questions = ["how far ?" if i % 2 else "how far to the left ?" for i in range(ROWS)]
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": question}], "images": [picture]}
            for question, picture in zip(questions, pictures, strict=True)
        ]
    )


@pytest.fixture
def make(llava, tmp_path):
    def build(folder="run", *, where="language", reward=dense, model=None, **changes):
        network, processor, _ = load_network(model or llava, "llava", device="cpu")
        processor.tokenizer.padding_side = "left"
        torch.manual_seed(0)
        settings = {
            "output_dir": str(tmp_path / folder),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "generation_batch_size": 8,
            "num_iterations": 2,
            "learning_rate": 1e-3,
            "max_completion_length": 3,
            "report_to": [],
            "save_strategy": "no",
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "shuffle_dataset": False,
            "logging_steps": 1,
            "seed": 3,
        }
        return PPOTrainer(
            model=make_trainable(network, Capacity(where, 4, 8)),
            reward_funcs=reward,
            args=PPOConfig(**(settings | changes)),
            train_dataset=dataset(),
            processing_class=processor,
        )

    return build


def quietly(call, *arguments, **named):
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments, **named)


def rollout(trainer):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(8)])


def latest(trainer, found, completions=None):
    """Log-probabilities and values of a rollout, or of other replies to its prompts, as the policy is now."""
    replies = found["completion_ids"] if completions is None else completions
    ids = torch.cat([found["prompt_ids"], replies], dim=1)
    attention = torch.cat([found["prompt_mask"], torch.ones_like(replies)], dim=1)
    trainer._get_per_token_logps_and_entropies(
        trainer.model,
        ids,
        attention,
        replies.size(1),
        pixel_values=found["pixel_values"],
        num_images=found["num_images"],
    )
    return trainer._latest


def shake(head):
    torch.manual_seed(1)
    torch.nn.init.normal_(head.out.weight, std=0.3)


def test_a_first_rollout_has_values_of_zero_no_divergence_and_whitened_advantages(make):
    found = rollout(make())
    shape = found["completion_ids"].shape
    names = ("advantages", "returns", "old_values", "old_per_token_logps", "ref_per_token_logps")
    assert all(found[name].shape == shape for name in names)
    assert not found["old_values"].any()
    torch.testing.assert_close(found["old_per_token_logps"], found["ref_per_token_logps"])
    mask = found["completion_mask"].bool()
    assert not found["advantages"][~mask].any()
    assert abs(float(found["advantages"][mask].mean())) < 1e-5
    assert float(found["advantages"][mask].var(unbiased=False)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_policy_that_learns_is_the_one_that_acted_before_the_first_update(make, accumulation):
    # With as many accumulated batches as a rollout has in all its epochs, TRL makes no pass of its own for old
    # log-probabilities, and ours must.
    trainer = make(gradient_accumulation_steps=accumulation)
    shake(trainer.value_head)
    found = rollout(trainer)
    logps, values = latest(trainer, found)
    mask = found["completion_mask"].bool()
    torch.testing.assert_close(logps[mask], found["old_per_token_logps"][mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(values[mask], found["old_values"][mask], atol=1e-5, rtol=0)


def test_a_value_depends_on_the_tokens_before_it_alone(make):
    trainer = make()
    shake(trainer.value_head)
    found = rollout(trainer)
    replies = torch.randint(6, 40, (8, 3), generator=torch.Generator().manual_seed(0))
    other = replies.clone()
    other[:, 1] = (other[:, 1] + 7) % 30 + 6
    before, after = latest(trainer, found, replies)[1], latest(trainer, found, other)[1]
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_padding_does_not_change_the_loss(make):
    trainer = make()
    shake(trainer.value_head)
    found = rollout(trainer)
    plain = trainer._compute_loss(trainer.model, found)
    padded = dict(found)
    for name, fill in (
        ("completion_ids", trainer.processing_class.tokenizer.pad_token_id),
        ("completion_mask", 0),
        ("advantages", 9.0),
        ("old_values", 5.0),
        ("returns", -3.0),
        ("old_per_token_logps", 0.0),
        ("ref_per_token_logps", 0.0),
    ):
        padded[name] = torch.nn.functional.pad(found[name], (0, 2), value=fill)
    torch.testing.assert_close(trainer._compute_loss(trainer.model, padded), plain, atol=1e-5, rtol=1e-5)


def test_replies_that_cannot_be_scored_teach_nothing(make):
    trainer = make(reward=lambda completions, **_: [None if i % 2 else 1.0 for i in range(len(completions))])
    found = rollout(trainer)
    assert not found["advantages"][1::2].any()
    assert torch.equal(found["returns"][1::2], found["old_values"][1::2])


@pytest.mark.parametrize("where", ["language", "full"])
def test_training_moves_policy_and_critic_and_saves_them_apart(make, where, tmp_path):
    from peft import PeftModel
    from safetensors.torch import load_file

    trainer = make(where=where, beta=0.0 if where == "full" else 0.01)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    quietly(trainer.train)
    changed = {
        name for name, p in trainer.model.named_parameters() if name in before and not torch.equal(before[name], p)
    }
    assert any("value_head.out" in name for name in changed)
    assert any(("lora_B" if where == "language" else "q_proj") in name for name in changed)
    quietly(trainer.save_model, str(tmp_path / "saved"))
    weights = "adapter_model.safetensors" if where == "language" else "model.safetensors"
    assert not [name for name in load_file(tmp_path / "saved" / weights) if "value_head" in name]
    stored = load_file(tmp_path / "saved" / "critic" / "value_head.safetensors")
    torch.testing.assert_close(stored["out.weight"], trainer.value_head.out.weight.detach())
    if where == "language":
        network, _, _ = load_network(trainer.model.get_base_model().config._name_or_path, "llava", device="cpu")
        assert "default" in PeftModel.from_pretrained(network, tmp_path / "saved").peft_config
    log = trainer.state.log_history[0]
    assert {"explained_variance", "value_loss", "policy_kl", "entropy", "optimiser_tokens"} <= set(log)


def test_the_rest_of_a_rollout_is_left_out_once_the_policy_has_moved_far(make):
    trainer = make(target_kl=1e-9, max_steps=8, learning_rate=1e-2)
    weights = []
    trainer.add_callback(_Note(lambda: weights.append(_sum(trainer))))
    quietly(trainer.train)
    skipped = [row["skipped"] for row in trainer.state.log_history if "skipped" in row]
    # Two batches, two epochs: the first update of each rollout is made at a ratio of 1; the one after it goes too far.
    assert skipped == [0.0, 0.0, 1.0, 1.0] * 2
    assert weights[1] == weights[2] == weights[3], "a step that is left out leaves the weights as they are"
    assert weights[3] != weights[4]


def test_beta_is_steered_towards_the_target_and_saved(make, tmp_path):
    trainer = make(adaptive_kl=1.0, max_steps=8)
    quietly(trainer.train)
    # The divergence is far below its target, so beta falls by 2 % per rollout, the most that there is.
    assert trainer.beta == pytest.approx(0.01 * 0.98**2, rel=1e-6)
    quietly(trainer.save_model, str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "critic" / "ppo.json").read_text())["beta"] == trainer.beta


def test_the_value_head_can_learn_at_its_own_rate(make):
    trainer = make(value_learning_rate=0.5)
    groups = trainer.create_optimizer().param_groups
    own = {id(p) for p in trainer.value_head.parameters()}
    assert [(group["lr"], {id(p) for p in group["params"]} & own != set()) for group in groups][-1] == (0.5, True)
    assert all({id(p) for p in group["params"]}.isdisjoint(own) for group in groups[:-1])


def test_settings_that_make_no_sense_together():
    with pytest.raises(ValueError, match="use bnpo, grpo, dr_grpo or dapo"):
        PPOConfig("x", loss_type="cispo", use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="start with beta"):
        PPOConfig("x", beta=0.0, adaptive_kl=1.0, use_cpu=True, bf16=False)


class _Note:
    """A callback that does something after every step."""

    def __new__(cls, what):
        from transformers import TrainerCallback

        return type("Note", (TrainerCallback,), {"on_step_end": lambda self, *_, **__: what()})()


def _sum(trainer):
    return SimpleNamespace(
        total=[float(p.detach().double().sum()) for p in trainer.model.parameters() if p.requires_grad]
    ).total
