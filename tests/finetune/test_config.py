"""Settings: what is refused before anything starts, presets, and how work is divided."""

import json

import pytest

from vlm_probe.finetune.config import (
    Budget,
    TrainConfig,
    TrainingError,
    check_needs,
    make_config,
    per_process,
    preset_names,
    read_preset,
)
from vlm_probe.finetune.train import plan
from vlm_probe.probes.models import ModelError
from vlm_probe.stimuli.dataset import StimulusError
from vlm_probe.stimuli.ranges import OutOfRange
from vlm_probe.stimuli.tasks import UnknownTask

GIVEN = {"model": "tiny", "tasks": ("towers-topblock",), "method": "ppo"}


def test_what_is_given_wins_over_the_preset_and_the_preset_over_the_defaults():
    config = make_config(GIVEN | {"epochs": 7, "rank": None}, "tiny")
    table = read_preset("tiny", "ppo")
    assert config.epochs == 7
    assert (config.rank, config.batch) == (table["rank"], table["batch"])
    assert config.gae_lambda == TrainConfig(**GIVEN).gae_lambda


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("method", ["sft", "ppo", "grpo", "rloo"])
def test_every_preset_is_valid_for_every_method(name, method):
    config = make_config(GIVEN | {"method": method}, name)
    assert per_process(config, 1).batch % config.group in (0, config.batch % config.group)
    assert per_process(config, 2).micro_batch <= config.batch // 2


def test_the_preset_of_the_reference_study_is_the_reference_study():
    config = make_config(GIVEN | {"method": "grpo"}, "80gb")
    assert (config.load_in_4bit, config.rank, config.alpha) == (True, 16, 16)
    assert (config.generations, config.learning_rate, config.schedule, config.warmup) == (16, 5e-6, "cosine", 0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "dpo"}, "use sft, ppo, grpo, rloo"),
        ({"tasks": ()}, "names no task"),
        ({"tasks": ("a", "a")}, "names a task twice"),
        ({"weights": (1.0, 2.0)}, "there are 2 weights for 1 tasks"),
        ({"budget": "5000"}, "samples=5000"),
        ({"budget": "samples=0"}, "samples=5000"),
        ({"budget": "hours=3"}, "samples=5000"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0 and at most 1, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number above 0 and at most 1, got nan"),
        ({"learning_rate": "5e-6"}, "learning_rate must be a number above 0 and at most 1, got '5e-6'"),
        ({"warmup": 1.5}, "warmup must be a number from 0 to 1"),
        ({"beta": -0.1}, "beta must be a number from 0"),
        ({"weights": (float("inf"),)}, "weights must be a number above 0"),
        ({"budget": "tokens=inf"}, "samples=5000"),
        ({"method": "grpo", "generations": 1}, "at least 2"),
        ({"method": "grpo", "generations": 12, "rollout": 64}, "does not hold whole groups"),
        ({"rollout": 64, "batch": 48, "generations": 1}, "cannot be divided into batches"),
        ({"method": "sft", "style": "think"}, "demonstrations state answers and no reasons"),
        ({"where": "eyes"}, "use language, vision, projector, all, full"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES=1"),
        ({"device": "gpu"}, "--device is 'gpu': use auto, cpu, cuda"),
        ({"rank": 0}, "rank must be a whole number from 1"),
        ({"rank": 8.0}, "rank must be a whole number from 1"),
        ({"rank": True}, "rank must be a whole number from 1"),
        ({"learning_rat": 1.0}, "there is no training setting 'learning_rat'"),
    ],
)
def test_bad_settings_get_one_line_that_says_what_would_do(changes, words):
    with pytest.raises((TrainingError, OutOfRange)) as caught:
        make_config(GIVEN | changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_that_this_machine_lacks_something_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    check_needs(make_config(GIVEN))
    monkeypatch.setattr("vlm_probe.finetune.config.is_installed", lambda package: package == "tensorboardX")
    check_needs(make_config(GIVEN | {"report_to": "tensorboard"}))
    with pytest.raises(TrainingError, match="wandb, which is not installed: pip install wandb"):
        check_needs(make_config(GIVEN | {"report_to": "wandb"}))
    with pytest.raises(ModelError, match="no adapter folder nowhere"):
        check_needs(make_config(GIVEN | {"init": "nowhere"}))
    with pytest.raises(UnknownTask, match="nowhere"):
        check_needs(make_config(GIVEN | {"avoid": ("nowhere",)}))
    (tmp_path / "file").touch()
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StimulusError, match="set PROBE_CACHE"):
        check_needs(make_config(GIVEN))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("items", 3.5),
        ("items", True),
        ("size", "large"),
        ("beta", float("inf")),
        ("force", 1),
        ("avoid", 3),
    ],
)
def test_settings_of_another_type_are_one_line(name, value):
    with pytest.raises((TrainingError, OutOfRange), match=f"{name} must be"):
        TrainConfig(**(GIVEN | {"tasks": ("towers-topblock",), name: value}))


def test_no_preset_of_that_name():
    with pytest.raises(TrainingError, match="use 24gb, 80gb, tiny"):
        make_config(GIVEN, "huge")


def test_a_batch_that_cannot_be_divided_among_processes():
    config = make_config(GIVEN | {"batch": 30, "rollout": 60, "generations": 1})
    assert per_process(config, 2).micro_batch == 15
    with pytest.raises(TrainingError, match="cannot be divided among 4 processes"):
        per_process(config, 4)
    with pytest.raises(TrainingError, match="take a divisor of 15"):
        per_process(make_config(GIVEN | {"batch": 30, "rollout": 60, "generations": 1, "micro_batch": 4}), 2)


def test_settings_survive_json():
    config = make_config(GIVEN | {"weights": (2.0,), "avoid": ("towers",)}, "tiny")
    stored = json.loads(json.dumps(config.to_dict()))
    assert make_config(stored) == config


def test_budgets_of_the_same_size_are_the_same_run():
    grpo = make_config(
        GIVEN | {"method": "grpo", "rollout": 64, "batch": 32, "generations": 8, "epochs": 3, "budget": "samples=640"}
    )
    by_samples = plan(grpo, 100.0)
    assert (by_samples.steps, by_samples.prompts) == (10 * 2 * 3, 640 // 8)
    assert by_samples.steps * by_samples.samples_per_step == pytest.approx(640)
    by_steps = plan(make_config(grpo.to_dict() | {"budget": "steps=60"}), 100.0)
    # Every epoch passes every token through the optimiser.
    by_tokens = plan(make_config(grpo.to_dict() | {"budget": f"tokens={640 * 100 * 3}"}), 100.0)
    assert by_steps.steps == by_tokens.steps == by_samples.steps
    assert by_tokens.token_budget == 192_000
    assert by_samples.save_every % 6 == 0, "checkpoints stand at the end of rollouts"


def test_supervised_budgets_count_demonstrations():
    sft = make_config(GIVEN | {"method": "sft", "batch": 32, "budget": "samples=96"})
    assert plan(sft, 100.0).steps == 3
    assert plan(sft, 100.0).prompts == 96


def test_amounts_may_be_written_with_an_exponent():
    assert Budget.parse("tokens=1e6") == Budget("tokens", 1_000_000)
