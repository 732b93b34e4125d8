"""What is used of TRL although it is private. When TRL changes, this names what changed."""

import inspect

import pytest
from trl import GRPOTrainer, RLOOTrainer, SFTTrainer
from trl.trainer import utils

from vlm_probe.finetune.grpo import PRIVATE as PRIVATE_OF_RLOO
from vlm_probe.finetune.ppo import MULTIMODAL, PRIVATE


def signature(name):
    return list(inspect.signature(inspect.unwrap(getattr(GRPOTrainer, name))).parameters)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_compute_loss", ["self", "model", "inputs"]),
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("save_model", ["self", "output_dir", "_internal_call"]),
    ],
)
def test_methods_that_are_overridden_take_what_they_took(name, parameters):
    assert signature(name) == parameters


def test_log_probabilities_are_asked_for_as_before():
    parameters = signature("_get_per_token_logps_and_entropies")
    assert parameters[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert set(parameters[5:]) == {*MULTIMODAL, "batch_size", "compute_entropy", "compute_aux_loss"}


def test_the_loss_of_rloo_is_that_of_the_log_probabilities_and_entropies_that_are_kept():
    source = inspect.getsource(RLOOTrainer._compute_loss)
    assert "self._get_per_token_logps_and_entropies(" in source and "compute_entropy=True" in source
    assert 'inputs["completion_mask"]' in source
    assert all(hasattr(RLOOTrainer, name) for name in PRIVATE_OF_RLOO)
    returned = inspect.getsource(RLOOTrainer._get_per_token_logps_and_entropies).rstrip().splitlines()[-1]
    assert returned.strip() == "return logps, entropies, aux_loss"


def test_a_rollout_has_the_entries_that_are_read():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_per_token_logps", "tool_mask")
    missing = [name for name in (*names, "ref_per_token_logps", *MULTIMODAL) if f'"{name}"' not in source]
    assert not missing


def test_advantages_may_differ_between_tokens():
    assert "advantages.dim() == 1" in inspect.getsource(GRPOTrainer._compute_loss)


def test_attributes_that_are_read_or_set_are_still_there():
    source = inspect.getsource(GRPOTrainer)
    attributes = (*(name for name in PRIVATE if not hasattr(GRPOTrainer, name)), "ref_model", "reward_weights")
    missing = [
        name
        for name in (*attributes, "num_iterations", "current_gradient_accumulation_steps", "beta")
        if f"self.{name}" not in source
    ]
    assert not missing


def test_trainers_say_whether_their_loss_is_scaled_for_accumulation():
    """TRL sees to it that versions of transformers before 5.19, which do not ask, do accordingly."""
    said = [trainer.loss_is_scaled_for_ga for trainer in (SFTTrainer, GRPOTrainer, RLOOTrainer)]
    assert said == [None, True, False]
    assert 'Version("5.19.0")' in inspect.getsource(SFTTrainer.__mro__[1].__init__)


def test_a_rollout_is_generated_where_the_step_counter_says():
    assert "self._step % generate_every == 0" in inspect.getsource(GRPOTrainer._prepare_inputs)


def test_log_probabilities_of_labelled_positions_alone():
    assert "compact = _use_triton(hidden_states.device)" in inspect.getsource(utils.add_fused_lm_head)


def test_sft_takes_its_rows_in_order():
    assert "train_sampling_strategy" in inspect.signature(SFTTrainer.__init__.__globals__["SFTConfig"]).parameters
