"""The closed loop: a model tries a scene up to K times, sees what each answer did, and learns from how it ends.

Every attempt is a sample of its own. Its prompt is the conversation that the memory allows, made by the very code with which a model
is asked at probing (`vlm_probe.probes.episodes`, `vlm_probe.probes.models.prompting`); its completion is the reply and nothing else. So images and
words of what happened are never in the loss, any memory can be had, and a conversation is whole or the run does not begin.

That is why TRL's own ways into a rollout are not taken. `environment_factory` appends what happened to the completion: nothing
can be forgotten, the chat template must render tool calls, and what does not fit into `max_completion_length` is rolled back while the
environment has moved on. `rollout_func` can give back no images. What is overridden here is the pair of methods in
which TRL collects a rollout; generation, scoring under the old policy and the reference, and the loss are TRL's.

The return of an attempt is what its episode came to: the task's score of the last answer, times the discount for every
attempt that was made after it. GRPO compares attempts of the same number at the same scene; PPO's critic values each attempt on its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from vlm_probe.finetune.config import TrainConfig
from vlm_probe.finetune.data import TrainingSet
from vlm_probe.finetune.grpo import GroupTrainer
from vlm_probe.finetune.monitor import by_task
from vlm_probe.finetune.policy import Policy
from vlm_probe.finetune.ppo import PPOTrainer
from vlm_probe.finetune.reward import RewardFunction, RewardScorer, ScoredReply
from vlm_probe.finetune.sampling import Results
from vlm_probe.probes.episodes import Memory, Past
from vlm_probe.probes.models import Trial
from vlm_probe.probes.models.prompting import Prompter, check_context, message
from vlm_probe.stimuli.attempts import carry_out
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import get_task

PRIVATE = (
    "_generate",
    "_generate_single_turn",
    "_generate_and_score_completions",
    "_calculate_rewards",
    "_prepare_inputs",
    "_get_per_token_logps_and_entropies",
    "_buffered_inputs",
    "_step",
    "_metrics",
    "_log_metric",
)
"""Names of TRL's trainer that are used here although they are private; tests/finetune/test_contract.py holds TRL to them."""

PER_TOKEN = ("token_type_ids", "mm_token_type_ids")
"""Entries of a rollout that have a column for every token of prompt and reply, next to the tokens themselves."""
LONGEST = 8
"""Of the longest prompts, so many different ones are tried for whether a whole episode fits into the model's context."""


@dataclass(frozen=True)
class Loop:
    """What decides how episodes go.

    Attributes:
        items: The training items, by index.
        judge: Scores their answers.
        memory: Attempts at most, and what is remembered of them.
        prompter: Makes the prompts.
        discount: Factor on the return for every further attempt.
        success_reward: Whether only success pays.
        results: Where successes are told, for a curriculum that follows them.
    """

    items: Sequence[Item]
    judge: RewardScorer
    memory: Memory
    prompter: Prompter
    discount: float = 1.0
    success_reward: bool = False
    results: Results | None = None


@dataclass(frozen=True)
class Sample:
    """One attempt, as it is learned from.

    Attributes:
        episode: Number of the episode in the rollout of this process.
        index: Of the item.
        trial: What was asked.
        prompt_ids: The prompt's tokens.
        reply_ids: The reply's tokens.
        reply: The reply.
        judged: What it is worth by itself.
        value: The return; None for a copy that only fills up a batch.
    """

    episode: int
    index: int
    trial: Trial
    prompt_ids: list[int]
    reply_ids: list[int]
    reply: str
    judged: ScoredReply
    value: float | None = None

    @property
    def row(self) -> dict[str, Any]:
        """The attempt in the form of a row of TRL's data."""
        return {"prompt": conversation(self.trial), "index": self.index, "value": self.value}


@dataclass
class Episode:
    """The attempts at one scene, as far as they have been made."""

    number: int
    index: int
    first: Trial
    past: list[Past] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    over: bool = False


class Playing:
    """Makes a trainer of TRL's GRPO kind play episodes of several attempts. Set `loop` before training."""

    loop: Loop
    _samples: list[Sample]

    def _generate_and_score_completions(self: Any, inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        episodes = self._play(inputs)
        self._log_episodes(episodes)
        if self.loop.results is not None:
            solved = [float(episode.samples[-1].judged.success) for episode in episodes]
            self.loop.results.note([int(row["place"]) for row in inputs], solved)
        self._samples = self._filled([sample for episode in episodes for sample in episode.samples])
        rollout: dict[str, Any] = super()._generate_and_score_completions([s.row for s in self._samples])  # type: ignore[misc]
        learned = torch.tensor([s.value is not None for s in self._samples], device=rollout["completion_mask"].device)
        rollout["completion_mask"] = rollout["completion_mask"] * learned.unsqueeze(1)
        return rollout

    def _prepare_inputs(self: Any, generation_batch: Any) -> Any:
        """A micro-batch, of prompts that are about as long: the last attempt's is several times as long as the first's."""
        fresh = (
            self._step % (self.args.steps_per_generation * self.num_iterations) == 0 or self._buffered_inputs is None
        )
        inputs = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        if not (self.model.training and fresh):
            return inputs
        steps = self.args.gradient_accumulation_steps
        windows = [self._buffered_inputs[i : i + steps] for i in range(0, self.args.steps_per_generation, steps)]
        self._buffered_inputs = [batch for window in windows for batch in by_length(window)]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _get_per_token_logps_and_entropies(
        self: Any, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        # A rollout is padded to its longest prompt; what of that is padding in all rows need not be computed.
        cut = int(attention_mask.argmax(dim=1).min())
        for name in PER_TOKEN:
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name][:, cut:]
        return super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
            model, input_ids[:, cut:], attention_mask[:, cut:], *args, **kwargs
        )

    def _generate(self: Any, prompts: Sequence[Any]) -> Any:
        """What TRL's method gives for the attempts that were made."""
        made = self._samples
        lengths = [len(sample.reply_ids) for sample in made]
        log = self._metrics["train" if self.model.training else "eval"]
        log["completions/mean_length"].append(sum(lengths) / len(lengths))
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        log["completions/clipped_ratio"].append(sum(s.reply_ids[-1] not in ends for s in made) / len(made))
        replies = [[{"role": "assistant", "content": sample.reply}] for sample in made]
        pictures = [images(sample.trial) for sample in made]
        ids = [sample.prompt_ids for sample in made], [sample.reply_ids for sample in made]
        return *ids, None, replies, None, {}, pictures, []

    def _calculate_rewards(self, *args: Any) -> Any:
        # Copies have no reward, of which TRL would warn in every rollout.
        logger = logging.getLogger(GRPOTrainer.__module__)
        logger.disabled = True
        try:
            return super()._calculate_rewards(*args)  # type: ignore[misc]
        finally:
            logger.disabled = False

    def _play(self: Any, inputs: Sequence[dict[str, Any]]) -> list[Episode]:
        """Play an episode for every row: all first attempts together, then the second ones, and so on."""
        loop = self.loop
        episodes = [
            Episode(number, int(row["index"]), Trial(loop.items[int(row["index"])], row["images"][0]))
            for number, row in enumerate(inputs)
        ]
        for _ in range(loop.memory.attempts):
            active = [episode for episode in episodes if not episode.over]
            if not self._everywhere(len(active), "sum"):
                break
            # Where weights are shared out, all processes generate together, also one whose episodes are over.
            asked = active or episodes[:1]
            trials = [loop.memory.trial(episode.first, episode.past) for episode in asked]
            prompts, replies = self._ask(trials)
            for episode, trial, prompt, reply in zip(active, trials, prompts, replies, strict=False):
                self._attempt(episode, trial, prompt, reply)
        return [_valued(episode, loop) for episode in episodes]

    def _ask(self: Any, trials: Sequence[Trial]) -> tuple[list[list[int]], list[list[int]]]:
        """The tokens of the prompts, and those of a sampled reply to each."""
        made = self.loop.prompter.inputs([trial.turns for trial in trials])
        masks = made["attention_mask"].bool()
        prompts = [ids[mask].tolist() for ids, mask in zip(made["input_ids"], masks, strict=True)]
        further = {name: value for name, value in made.items() if name not in ("input_ids", "attention_mask")}
        replies, _ = self._generate_single_turn(prompts, [images(trial) for trial in trials], further, 1)
        return prompts, replies

    def _attempt(self: Any, episode: Episode, trial: Trial, prompt: list[int], reply_ids: list[int]) -> None:
        """Carry out a reply."""
        loop, item, (reply,) = self.loop, trial.item, self.processing_class.batch_decode([reply_ids])
        (judged,) = loop.judge.judge([reply], [episode.index])
        episode.samples.append(Sample(episode.number, episode.index, trial, prompt, reply_ids, reply, judged))
        episode.over = judged.success or trial.attempt == loop.memory.attempts
        if episode.over:
            return
        past = Past(reply, "", None)
        if loop.memory.kept != "none":
            begun = time.perf_counter()
            assert item.scene is not None and episode.first.image is not None
            attempt = carry_out(
                get_task(item.task),
                item.scene,
                item.question,
                judged.parsed,
                size=episode.first.image.width,
                simulator=get_simulator(),
                cache=loop.judge.cache,
                scene_hash=item.scene_sha256,
            )
            past = Past.of(reply, attempt)
            loop.judge.seconds += time.perf_counter() - begun
        episode.past.append(past)

    def _filled(self: Any, samples: list[Sample]) -> list[Sample]:
        """The samples, with copies that teach nothing, to a number that divides into TRL's groups and micro-batches."""
        unit = math.lcm(self.num_generations, self.args.steps_per_generation)
        most = self._everywhere(len(samples), "max")
        wanted = unit * math.ceil(most / unit)
        return samples + [replace(samples[0], value=None)] * (wanted - len(samples))

    def _everywhere(self: Any, count: int, kind: str) -> int:
        """The sum or the maximum of a number over all processes."""
        counts = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.sum() if kind == "sum" else counts.max())

    def _log_episodes(self: Any, episodes: Sequence[Episode]) -> None:
        """Log the outcome of the episodes, and of the attempts."""
        made = [sample for episode in episodes for sample in episode.samples]
        solved = [episode.samples[-1].judged.success for episode in episodes]
        first = [episode.samples[0].judged.success for episode in episodes]
        self._log_metric("success", sum(solved) / len(episodes))
        for name, value in by_task([e.first.item.task for e in episodes], list(map(float, solved))).items():
            self._log_metric(name, value)
        self._log_metric("first_success", sum(first) / len(episodes))
        self._log_metric("attempts", len(made) / len(episodes))
        self._log_metric("score", sum(episode.samples[-1].judged.reward for episode in episodes) / len(episodes))
        self._log_metric("parse_rate", sum(sample.judged.parsed.value is not None for sample in made) / len(made))
        self._log_metric("simulator_s", self.loop.judge.seconds)
        self.loop.judge.seconds = 0.0


class PlayingPPO(Playing, PPOTrainer):
    """PPO on episodes of several attempts."""


class PlayingGroup(Playing, GroupTrainer):
    """GRPO on episodes of several attempts: those of the same number at the same scene are each other's baseline."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        rollout = super()._generate_and_score_completions(inputs)
        found, even = compared(self._samples, self.num_generations, scaled=self.scale_rewards == "group")
        log = self._metrics["train" if self.model.training else "eval"]
        log["frac_reward_zero_std"][-1] = even  # TRL's is about groups that mix attempts
        rollout["advantages"] = torch.tensor(found, device=rollout["completion_mask"].device)
        return rollout


def by_length(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of micro-batches that go into one step of the optimiser, sorted again by the lengths of their prompts."""
    parts = [split_pixel_values_by_grid(batch) for batch in batches]
    order = torch.cat([part["prompt_mask"].sum(dim=1) for part in parts]).argsort(stable=True)
    size = len(order) // len(parts)
    found: list[dict[str, Any]] = [{} for _ in parts]
    for name, value in parts[0].items():
        if isinstance(value, list):
            every = [one for part in parts for one in part[name]]
            rows: Any = [every[place] for place in order.tolist()]
        elif isinstance(value, torch.Tensor) and value.ndim:
            rows = torch.cat([part[name] for part in parts])[order.to(value.device)]
        else:  # one value for all
            rows = None
        for number, batch in enumerate(found):
            batch[name] = value if rows is None else rows[number * size : (number + 1) * size]
    return [unsplit_pixel_values_by_grid(batch) for batch in found]


PLAYERS: Mapping[str, Any] = {"ppo": PlayingPPO, "grpo": PlayingGroup}
"""The trainer of each method that can learn in the closed loop."""


def make_loop(
    config: TrainConfig,
    policy: Policy,
    data: TrainingSet,
    judge: RewardScorer,
    reply_tokens: int,
    results: Results | None = None,
) -> Loop:
    """The episodes of a run, which are known to fit into the model's context.

    Args:
        config: The run's settings.
        policy: The model that plays them.
        data: The training items, by index.
        judge: Scores the answers.
        reply_tokens: Longest reply.
        results: Where successes are told, for a curriculum that follows them.

    Raises:
        ModelError: If they do not.
    """
    memory = Memory(config.attempts, config.memory)
    prompter = check_episodes(memory, policy, data, reply_tokens)
    items = [example.item for example in data.examples]
    return Loop(items, judge, memory, prompter, config.discount, config.success_reward, results)


def check_episodes(memory: Memory, policy: Policy, data: TrainingSet, reply_tokens: int) -> Prompter:
    """Refuse episodes that do not fit into the model's context; gives what makes the prompts of the others.

    Args:
        memory: Attempts at most, and what is remembered of them.
        policy: The model that plays them.
        data: The training items; the longest prompts among them are tried.
        reply_tokens: Longest reply.

    Raises:
        ModelError: If they do not.
    """
    prompter = policy.prompter
    prompts = {example.item.question.prompt: example for example in data.examples}
    chosen = [prompts[prompt] for prompt in sorted(prompts, key=len)[-LONGEST:]]
    trials = [memory.longest(Trial(example.item, example.image)) for example in chosen]
    check_context(policy.model, prompter, trials, lambda _: reply_tokens, policy.name)
    return prompter


def compared(samples: Sequence[Sample], group: int, *, scaled: bool) -> tuple[list[float], float]:
    """The advantages of attempts over those of the same number in the same group of episodes.

    Args:
        samples: Of whole groups: episodes 0 to `group` - 1 are the first group, and so on.
        group: Episodes per group.
        scaled: Whether advantages are divided by the group's standard deviation.

    Returns:
        The advantage of each sample; 0 for one that is alone, and for copies. And the share of groups without any spread.
    """
    sets: dict[tuple[int, int], list[int]] = {}
    for place, sample in enumerate(samples):
        if sample.value is not None:
            sets.setdefault((sample.episode // group, sample.trial.attempt), []).append(place)
    found, even = [0.0] * len(samples), 0
    for places in sets.values():
        values = torch.tensor([float(samples[place].value or 0.0) for place in places])
        spread = float(values.std()) if len(places) > 1 else 0.0
        even += spread < 1e-8
        for place, value in zip(places, values.tolist(), strict=True):
            found[place] = (value - float(values.mean())) / (spread + 1e-4 if scaled else 1.0)
    return found, even / len(sets)


def returns(value: Sequence[float | None], **_: Any) -> list[float | None]:
    """The reward function of the closed loop: the returns, which the rollout has worked out."""
    return list(value)


def reward_functions(loop: Loop, config: TrainConfig) -> tuple[list[RewardFunction], list[float]]:
    """The reward functions for TRL and their weights: the return, and the format term where one is asked for."""

    def readable(completions: Sequence[Any], index: Sequence[int], value: Sequence[Any], **_: Any) -> list[Any]:
        read = (
            loop.items[i].question.parse(str(turns[-1]["content"])) for turns, i in zip(completions, index, strict=True)
        )
        return [None if v is None else float(p.value is not None) for p, v in zip(read, value, strict=True)]

    if config.format_reward:
        return [returns, readable], [1.0, config.format_reward]  # type: ignore[list-item]
    return [returns], [1.0]  # type: ignore[list-item]


def conversation(trial: Trial) -> list[dict[str, Any]]:
    """A trial as TRL takes conversations: with its images in their places."""
    found = []
    for turn in trial.turns:
        told, pictures = message(turn), iter(turn.images)
        parts = [part | {"image": next(pictures)} if part["type"] == "image" else part for part in told["content"]]
        found.append(told | {"content": parts})
    return found


def images(trial: Trial) -> list[Any]:
    """The images of a trial, in the order in which they are shown."""
    return [image for turn in trial.turns for image in turn.images]


def _valued(episode: Episode, loop: Loop) -> Episode:
    """The episode with the returns of its attempts."""
    last = episode.samples[-1].judged
    final = float(last.success) if loop.success_reward else last.reward
    after = range(len(episode.samples) - 1, -1, -1)
    episode.samples = [
        replace(sample, value=final * loop.discount**k) for sample, k in zip(episode.samples, after, strict=True)
    ]
    return episode
