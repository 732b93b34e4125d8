"""A model is trained on the prompts that it is asked with: tokens by family, labels by template, sampling without a checkpoint's habits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig, RLOOConfig

from tests.families import FAMILIES
from tests.probes.test_prompting import KINDS, THINKING, with_template
from vlm_probe.finetune import train as training
from vlm_probe.finetune.config import VLLM_ARGS, TrainConfig, TrainingError, make_config
from vlm_probe.finetune.data import rows, training_set
from vlm_probe.finetune.grpo import AskedAlike, GroupTrainer
from vlm_probe.finetune.ppo import PPOConfig
from vlm_probe.finetune.sft import Labelled
from vlm_probe.finetune.train import train
from vlm_probe.probes.models import Trial
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.thinking import Thinking
from vlm_probe.probes.tiny import WEIGHTS

MAKERS = ("grpo", "rloo", "ppo")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def settings(model: Path | str, method: str, **changes: Any) -> TrainConfig:
    """One rollout of eight replies, or one batch of eight demonstrations."""
    given = {
        "model": str(model),
        "tasks": ("towers-topblock",),
        "method": method,
        "items": 8,
        "size": 64,
        "batch": 8,
        "rollout": 8,
        "generations": 1 if method == "ppo" else 4,
        "budget": "samples=8",
    }
    return make_config(given | changes)


def batch_of(prompter: Any, config: TrainConfig, n: int = 2) -> tuple[Any, list[Any], dict[str, Any]]:
    """The first training items, their rows, and the batch of SFT that they make."""
    data = training_set(config)
    table = rows(data, config)
    told = [dict(table[place]) | {"place": place} for place in range(n)]
    return data.examples[:n], told, Labelled(prompter)(told)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "paligemma"])
def test_prompts_are_the_same_tokens_wherever_a_model_is_asked(family: str, save_family: Callable[[str], Path]) -> None:
    """Evaluation (replies, log-probabilities, decoding), SFT, and the rollouts of TRL; the label is the answer and its end."""
    model: Any = load_model(str(save_family(family)))
    prompter = model._prompter
    examples, told, batch = batch_of(prompter, settings(save_family(family), "sft"))
    asked = model._make_inputs([Trial(example.item, example.image) for example in examples])
    processor = AskedAlike(prompter._processor, prompter, 8)
    turns = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": row["images"][0]},
                    {"type": "text", "text": row["prompt"][0]["content"]},
                ],
            }
        ]
        for row in told
    ]
    rollout = processor.apply_chat_template(turns, tokenize=True)
    again = processor(
        text=[processor.apply_chat_template(one, tokenize=False) for one in turns],
        images=[row["images"] for row in told],
    )
    for number, example in enumerate(examples):
        ids = asked["input_ids"][number][asked["attention_mask"][number].bool()].tolist()
        labels = batch["labels"][number]
        learned = labels[labels != -100].tolist()
        shown = batch["input_ids"][number][batch["attention_mask"][number].bool()].tolist()
        assert shown == [*ids, *learned] and rollout["input_ids"][number] == ids
        assert again["input_ids"][number][again["attention_mask"][number].bool()].tolist() == ids
        assert prompter.decode(learned, special=True).strip() == example.demonstration + FAMILIES[family].end
        assert learned == list(
            prompter.reply_tokens(Trial(example.item, example.image).turns, (example.demonstration,))[0]
        )
    for name in set(asked) - {"input_ids", "attention_mask"}:
        assert (asked[name] == again[name]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_answer_and_the_token_that_ends_it(kind: str, tmp_path: Path) -> None:
    """By templates of every kind."""
    folder = with_template(KINDS[kind][0], tmp_path / "m")
    prompter = load_model(str(folder))._prompter  # type: ignore[attr-defined]
    examples, _, batch = batch_of(prompter, settings(folder, "sft"))
    for example, labels in zip(examples, batch["labels"], strict=True):
        assert prompter.decode(labels[labels != -100], special=True) == f"{example.demonstration}</s>"


@pytest.mark.parametrize("method", ["grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in MAKERS[1:])])
def test_replies_are_sampled_without_the_habits_of_the_checkpoint(method: str, tmp_path: Path) -> None:
    """Penalties, beams and forbidden words would be in the replies, but not in the likelihoods that are learned from."""
    habits = {
        "no_repeat_ngram_size": 1,
        "bad_words_ids": [[index] for index in range(40, 100)],
        "min_new_tokens": 6,
        "typical_p": 0.2,
        "min_p": 0.5,
        "num_beams": 3,
        "repetition_penalty": 5.0,
        "sequence_bias": [[[50], 30.0]],
    }
    curves = []
    for name, change in (("plain", {}), ("bent", habits)):
        folder = Path(shutil.copytree(WEIGHTS, tmp_path / name))
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        curves.append(train(settings(folder, method), tmp_path / f"run-{name}")["curves"])
    timed = ("step_s", "simulator_s")
    plain, bent = ([{k: v for k, v in row.items() if k not in timed} for row in rows] for rows in curves)
    assert plain == bent


def test_a_model_that_is_trained_whole_keeps_its_generation_settings(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(WEIGHTS, tmp_path / "m"))
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.5}))
    train(settings(folder, "sft", where="full"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "generation_config.json").read_text())["repetition_penalty"] == 1.5


def test_a_thought_is_rewarded_by_its_answer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens are among those that are sampled and counted; what is read begins after it."""
    folder = with_template(THINKING, tmp_path / "m")
    read: list[str] = []
    judge = training.RewardScorer.judge
    monkeypatch.setattr(
        training.RewardScorer,
        "judge",
        lambda self, replies, indices: read.extend(replies) or judge(self, replies, indices),
    )
    said = ("3 or 4, so</seed:think>\n7</s>", "3</s>")

    def generate(self: Any, prompts: Any, images: Any, *_: Any) -> Any:
        words = [self.processing_class.encode_for_test(said[number % 2]) for number in range(len(prompts))]
        return words, None

    monkeypatch.setattr(GroupTrainer, "_generate_single_turn", generate)
    monkeypatch.setattr(AskedAlike, "encode_for_test", lambda self, text: self._prompter.encode(text), raising=False)
    result = train(settings(folder, "grpo", max_thinking_tokens=20), tmp_path / "run")
    assert read == ["\n7", "<think>"] * 8  # of the batch that is tried first, and of the rollout
    assert result["curves"][0]["parse_rate"] == 0.5 and result["thinking"].startswith(
        "on (default of its chat template)"
    )
    assert result["curves"][0]["reply_tokens"] > 5


def test_demonstrations_are_shown_without_a_thought(tmp_path: Path) -> None:
    folder = with_template(THINKING, tmp_path / "m")
    config = settings(folder, "sft")
    prompter = load_model(str(folder), thinking=config.thoughts)._prompter  # type: ignore[attr-defined]
    _, _, batch = batch_of(prompter, config, 1)
    text = prompter.decode(batch["input_ids"][0], special=True)
    assert "<assistant><seed:think></seed:think>" in text and config.thoughts == Thinking("off")
    with pytest.raises(TrainingError, match="--thinking on cannot be trained by sft"):
        settings(folder, "sft", thinking="on")


def test_options_of_vllm_are_those_of_trl() -> None:
    """The path itself needs a GPU."""
    given = "gpu_memory_utilization=0.4,server_port=8001,model_impl=transformers"
    config = settings("tiny", "grpo", vllm="server", vllm_args=given)
    for kind in (GRPOConfig, RLOOConfig, PPOConfig):
        names = kind.__dataclass_fields__  # type: ignore[attr-defined]
        assert {"use_vllm", "vllm_mode", *(f"vllm_{name}" for name in VLLM_ARGS)} <= set(names)
        made = kind(output_dir="x", use_cpu=True, bf16=False, **config.vllm_settings)
        assert made.use_vllm and made.vllm_mode == "server" and made.vllm_server_port == 8001
        assert made.vllm_gpu_memory_utilization == 0.4 and made.vllm_model_impl == "transformers"
    for changes, words in (
        ({"method": "sft", "vllm": "server"}, "sft generates no replies"),
        ({"vllm": "server", "attempts": 2}, "several attempts are generated by transformers"),
        ({"vllm_args": "server_port=1"}, "goes with --vllm"),
        ({"vllm": "server", "vllm_args": "port=1"}, "has no 'port': use gpu_memory_utilization"),
    ):
        with pytest.raises(TrainingError, match=words):
            settings("tiny", **{"method": "grpo"} | changes)  # type: ignore[arg-type]
