"""The settings of a training run: one vocabulary for all methods, checked before anything slow happens."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from typing import Any

from vlm_probe.finetune.curriculum import parse_curriculum
from vlm_probe.finetune.devices import DEVICES
from vlm_probe.finetune.diversity import parse_diversity
from vlm_probe.finetune.mixture import LARGEST_WEIGHT
from vlm_probe.probes.memory import Memory
from vlm_probe.stimuli.errors import ProbeError, is_installed
from vlm_probe.stimuli.ranges import (
    AMOUNT,
    ATTEMPTS,
    BATCH,
    IMAGE_SIZE,
    REPLY_LENGTH,
    SEED,
    Range,
    check_ranges,
    ranged,
    whole,
)

METHODS = ("sft", "ppo", "grpo", "rloo")
PLACES = ("language", "vision", "projector", "all", "full")
BUDGETS = ("samples", "steps", "tokens")
SCHEDULES = ("constant", "linear", "cosine")
TRACKERS = ("none", "trackio", "wandb", "tensorboard")
LONGEST = whole(1, 10**15)
"""Of a budget: samples, steps or tokens."""
COUNT, FACTOR, SHARE = whole(1, 65_536), Range(0, 1000), Range(0, 1)
RANK, ALPHA, DROPOUT = whole(1, 4096), Range(above=0, most=65_536), Range(0, below=1)
"""Of LoRA."""
POSITIVE = Range(above=0, most=1000)


class TrainingError(ProbeError):
    """A training run cannot start, or has to be stopped; the message names the thing and ends with the fix."""


@dataclass(frozen=True)
class Budget:
    """How long a run is: so many samples seen, gradient steps made, or tokens that the optimiser has seen."""

    kind: str
    amount: int

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `samples=5000`, `steps=200` or `tokens=1e6`. Raises TrainingError on anything else."""
        kind, _, amount = text.partition("=")
        try:
            number = int(float(amount))
        except (ValueError, OverflowError):
            number = 0
        if kind not in BUDGETS or not LONGEST.holds(number):
            raise TrainingError(f"--budget is {text!r}: write samples=5000, steps=200 or tokens=1000000")
        return cls(kind, number)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run learns, apart from the versions of the software.

    A *sample* is one answer that is learned from: a demonstration (SFT), or a generated reply with its reward (PPO, GRPO,
    RLOO). A *step* is one step of the optimiser.

    Attributes:
        model: Short name, local folder or hub id of the base model.
        tasks: Tasks to train on; judgements or actions.
        weights: Share of each task, in their order; equal where left out.
        method: "sft", "ppo", "grpo" or "rloo".
        seed: Of the training items, of their order, of the adapter's initial weights and of sampled replies.
        budget: `samples=N`, `steps=N` or `tokens=N`.
        items: Distinct training items; beyond them, items are seen again in another order.
        size: Edge of the pictures, pixels.
        shift: Domain randomisation: the shifts that are drawn for every training scene, with their highest levels, such as
            `visual:2`.
        diversity: Limits on the training set, such as `conditions=2,wordings=1`; empty: all that the designs have.
        style: "direct", or "think" for prompts that ask for reasoning first (not for SFT, which has none to show).
        batch: Samples per step of the optimiser, over all processes.
        micro_batch: Samples per forward pass and process; 0: as many as the batch asks for. The loss of sft does not depend on it;
            that of the other methods is a mean over the tokens of a micro-batch (TRL's "bnpo"), which differs a little from that
            over the batch where replies differ in length.
        learning_rate: Highest learning rate.
        schedule: "constant", "linear" or "cosine" decay after the warm-up.
        warmup: Share of the steps in which the learning rate rises.
        max_grad_norm: Norm to which gradients are clipped.
        rollout: Replies generated between updates, over all processes (RL).
        generations: Replies per prompt (GRPO, RLOO: the group; PPO: 1 is usual).
        epochs: Passes over a rollout before the next one (RL).
        temperature: Of sampled replies (RL).
        max_new_tokens: Longest reply; 0: what the longest legal answer needs (RL).
        beta: Weight of the KL divergence from the base model (RL).
        clip: How far a probability ratio may move before its gradient is cut (RL).
        entropy_bonus: Weight of the policy's entropy in the loss (RL).
        success_reward: Learn from success alone (1 or 0) rather than from the task's graded reward (RL).
        format_reward: Paid for a reply that can be read, beside the task's own reward, and logged apart; 0: none (RL).
        target_kl: Steps of a rollout are skipped once the policy has moved so far from the one that generated it; 0: never (PPO).
        adaptive_kl: Target of the KL divergence from the base model, nats per reply, towards which beta is steered; 0: fixed (PPO).
        gamma, gae_lambda: Discount and the lambda of generalised advantage estimation, per token (PPO).
        value_coefficient: Weight of the value loss (PPO).
        value_clip: How far a value may move per rollout before its gradient is cut; 0: not cut (PPO).
        value_learning_rate: Of the value head; 0: as the policy's (PPO).
        rank, alpha, dropout: Of LoRA.
        where: What is adapted: "language", "vision", "projector", "all" of them, or "full" for every weight without LoRA.
        load_in_4bit: Quantise the base model (nf4, double quantisation).
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu" or "cuda".
        gradient_checkpointing: Trade time for memory.
        init: Folder of an adapter to go on from: warm start, or learning a second task.
        curriculum: "none", "easy-to-hard", "hard-to-easy" or "adaptive" (to success).
        attempts: Attempts per scene (closed loop; SFT: the expert answers after up to one fewer that failed).
        memory: "none", "last-k" or "all" earlier attempts in the context.
        discount: Factor on what an episode comes to, for every further attempt that it takes.
        auxiliary: Weight of the auxiliary loss on the physical state; 0: none.
        auxiliary_target: Quantity that it predicts, as in `probe decode`.
        auxiliary_layer: Language layer that it reads, from 1; 0: the middle one.
        avoid: Test sets, by name or folder, none of whose scenes may be trained on, beside the standard sets of the tasks.
        save_every: Samples between checkpoints; 0: a tenth of the run.
        report_to: "none", "trackio", "wandb" or "tensorboard".
        force: Train on a held-out task all the same.

    Raises:
        OutOfRange: If a number is outside its range.
        TrainingError: If there is no such choice, or the settings do not go together.
    """

    model: str
    tasks: tuple[str, ...]
    method: str
    weights: tuple[float, ...] = ranged((), Range(above=0, most=LARGEST_WEIGHT**2))
    seed: int = ranged(0, SEED)
    budget: str = "samples=5000"
    items: int = ranged(3000, AMOUNT)
    size: int = ranged(224, IMAGE_SIZE)
    shift: str = ""
    diversity: str = ""
    style: str = "direct"
    batch: int = ranged(32, COUNT)
    micro_batch: int = ranged(0, BATCH)
    learning_rate: float = ranged(5e-6, Range(above=0, most=1))
    schedule: str = "cosine"
    warmup: float = ranged(0.1, SHARE)
    max_grad_norm: float = ranged(1.0, Range(above=0, most=1e9))
    rollout: int = ranged(64, COUNT)
    generations: int = ranged(16, COUNT)
    epochs: int = ranged(1, whole(1, 1000))
    temperature: float = ranged(1.0, Range(above=0, most=100))
    max_new_tokens: int = ranged(0, REPLY_LENGTH)
    beta: float = ranged(0.01, FACTOR)
    clip: float = ranged(0.2, POSITIVE)
    entropy_bonus: float = ranged(0.0, FACTOR)
    success_reward: bool = False
    format_reward: float = ranged(0.0, FACTOR)
    target_kl: float = ranged(0.0, FACTOR)
    adaptive_kl: float = ranged(0.0, FACTOR)
    gamma: float = ranged(1.0, SHARE)
    gae_lambda: float = ranged(0.95, SHARE)
    value_coefficient: float = ranged(0.5, FACTOR)
    value_clip: float = ranged(0.2, FACTOR)
    value_learning_rate: float = ranged(0.0, Range(0, 1))
    rank: int = ranged(16, RANK)
    alpha: int = ranged(16, COUNT)
    dropout: float = ranged(0.0, DROPOUT)
    where: str = "language"
    load_in_4bit: bool = False
    dtype: str = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    init: str = ""
    curriculum: str = "none"
    attempts: int = ranged(1, ATTEMPTS)
    memory: str = "all"
    discount: float = ranged(1.0, SHARE)
    auxiliary: float = ranged(0.0, FACTOR)
    auxiliary_target: str = "margin"
    auxiliary_layer: int = ranged(0, whole(0, 10_000))
    avoid: tuple[str, ...] = ()
    save_every: int = ranged(0, whole(0, 10**15))
    report_to: str = "none"
    force: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def reinforced(self) -> bool:
        """Whether the method learns from rewards rather than from demonstrations."""
        return self.method != "sft"

    @property
    def group(self) -> int:
        """Samples that share a prompt."""
        return self.generations if self.reinforced else 1

    def shares(self) -> tuple[float, ...]:
        """The share of each task, adding up to 1."""
        weights = self.weights or (1.0,) * len(self.tasks)
        return tuple(weight / sum(weights) for weight in weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def make_config(given: Mapping[str, Any], preset: str = "") -> TrainConfig:
    """The settings of a preset, with those that are given in their place.

    Args:
        given: Settings by name; those that are None count as not given.
        preset: Name of a preset, or empty for none.

    Raises:
        OutOfRange: If a number is outside its range.
        TrainingError: If there is no such preset, setting or choice, or the settings do not go together.
    """
    known = {field.name for field in fields(TrainConfig)}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = (read_preset(preset, str(chosen.get("method", ""))) if preset else {}) | chosen
    unknown = sorted(set(settings) - known)
    if unknown:
        raise TrainingError(f"there is no training setting {unknown[0]!r}: there are {', '.join(sorted(known))}")
    lists: dict[str, Any] = {name: tuple(settings[name]) for name in ("tasks", "weights", "avoid") if name in settings}
    return TrainConfig(**{**settings, **lists})


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    folder = resources.files("vlm_probe.finetune") / "presets"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def read_preset(name: str, method: str) -> dict[str, Any]:
    """The settings of a preset for a method: its top level, then the method's own table.

    Raises:
        TrainingError: If there is no such preset.
    """
    if name not in preset_names():
        raise TrainingError(f"there is no preset {name!r}: use {', '.join(preset_names())}")
    table = tomllib.loads(
        (resources.files("vlm_probe.finetune") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    )
    own = table.get(method, {})
    return {key: value for key, value in table.items() if key not in METHODS} | own


def per_process(config: TrainConfig, processes: int) -> TrainConfig:
    """The settings with a micro-batch that divides the work among that many processes.

    Raises:
        TrainingError: If it cannot be divided; the message says what would do.
    """
    if config.batch % processes:
        raise TrainingError(
            f"--batch {config.batch} cannot be divided among {processes} processes: take a multiple of {processes}"
        )
    if config.reinforced and config.attempts > 1 and config.rollout // processes % config.generations:
        raise TrainingError(
            f"--rollout {config.rollout} does not hold whole groups of --generations {config.generations} for each of"
            f" {processes} processes, which --attempts needs: take a multiple of {processes * config.generations}"
        )
    share = config.batch // processes
    micro = config.micro_batch or share
    if share % micro:
        raise TrainingError(
            f"--batch {config.batch} is {share} samples per process, which --micro-batch {micro} does not divide: take"
            f" a divisor of {share}"
        )
    return replace(config, micro_batch=micro)


def check_needs(config: TrainConfig) -> None:
    """Refuse settings that this machine lacks something for, before anything is made or loaded.

    Args:
        config: The settings.

    Raises:
        TrainingError, ModelError, StimulusError: If a package, a device, a folder or the cache is missing; with the fix.
    """
    # Here, since only a training that begins needs them, and not every reading of a study's file.
    from vlm_probe.probes.models.loading import check_options
    from vlm_probe.stimuli.standard import check_available, check_cache

    wanted = {"tensorboard": ("tensorboard", "tensorboardX")}.get(config.report_to, (config.report_to,))
    if config.report_to != "none" and not any(map(is_installed, wanted)):
        raise TrainingError(
            f"--report-to {config.report_to} needs {wanted[0]}, which is not installed: pip install {wanted[0]}, or leave it out"
        )
    check_options(config.device, config.load_in_4bit, *([config.init] if config.init else []))
    check_cache()
    for name in config.avoid:
        check_available(name)


def _check(config: TrainConfig) -> None:
    """Raise OutOfRange if a number is outside its range, and TrainingError if anything else is wrong."""
    _check_kinds(config)
    check_ranges(config)
    choices = (
        ("method", METHODS),
        ("where", PLACES),
        ("schedule", SCHEDULES),
        ("style", ("direct", "think")),
        ("dtype", ("auto", "float32", "bfloat16", "float16")),
        ("report_to", TRACKERS),
    )
    for name, values in choices:
        if getattr(config, name) not in values:
            raise TrainingError(f"--{_option(name)} is {getattr(config, name)!r}: use {', '.join(values)}")
    if config.device not in DEVICES:
        which = (
            f" (for one GPU of several, CUDA_VISIBLE_DEVICES={config.device[5:]})"
            if config.device[:5] == "cuda:"
            else ""
        )
        raise TrainingError(f"--device is {config.device!r}: use {', '.join(DEVICES)}{which}")
    if config.method == "ppo" and config.adaptive_kl and not config.beta:
        raise TrainingError("--adaptive-kl steers --beta, which must not be 0: start with --beta 0.01")
    Budget.parse(config.budget)
    try:
        parse_curriculum(config.curriculum)
        parse_diversity(config.diversity)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    _check_tasks(config)
    _check_attempts(config)
    if config.reinforced:
        _check_groups(config)
    if config.reinforced and config.dropout:
        raise TrainingError(
            f"--dropout {config.dropout:g} is for sft: with {config.method}, the policy that is updated would not be the one that"
            " acted; leave it out"
        )
    if config.method == "sft" and config.style == "think":
        raise TrainingError("--style think cannot be trained by sft: demonstrations state answers and no reasons")


_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a finite number"),
    "bool": (bool, "true or false"),
    "str": (str, "a text"),
}
"""Types of settings as they are annotated, and in words."""


def _check_kinds(config: TrainConfig) -> None:
    """Raise TrainingError if a value is of another type, as files of settings may have it, or is not finite.

    Single numbers that have a range are left to it, since it names its bounds as well.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        kind, name = _KINDS.get(str(field.type), (tuple, "a list"))
        if "range" in field.metadata and kind is not tuple:
            continue
        is_kind = isinstance(value, kind) and (not isinstance(value, bool) or kind is bool)
        if not is_kind or (isinstance(value, float) and not math.isfinite(value)):
            raise TrainingError(f"--{_option(field.name)} must be {name}, got {str(value)[:40]!r}")


def _check_tasks(config: TrainConfig) -> None:
    if not config.tasks:
        raise TrainingError("--tasks names no task: give at least one, as in --tasks towers-stability")
    if len(set(config.tasks)) < len(config.tasks):
        raise TrainingError(
            f"--tasks {','.join(config.tasks)} names a task twice: give it a weight, as in {config.tasks[0]}:2"
        )
    if config.weights and len(config.weights) != len(config.tasks):
        raise TrainingError(f"there are {len(config.weights)} weights for {len(config.tasks)} tasks: give one for each")


def _check_attempts(config: TrainConfig) -> None:
    """Raise TrainingError if the method cannot learn from several attempts, or there is no such memory."""
    try:
        Memory(config.attempts, config.memory)
    except ValueError as error:
        raise TrainingError(f"--{error}") from error
    if config.attempts > 1 and config.method == "rloo":
        raise TrainingError(f"--attempts {config.attempts} goes with sft, ppo and grpo, not with {config.method}")
    if config.attempts > 1 and config.method == "sft" and config.memory == "none":
        raise TrainingError(
            "--memory none shows an expert no earlier attempt to correct: give another, or leave --attempts out"
        )


def _check_groups(config: TrainConfig) -> None:
    """Raise TrainingError if the replies of a rollout do not make whole groups and whole batches."""
    if config.method in ("grpo", "rloo") and config.generations < 2:
        raise TrainingError(f"{config.method} compares the replies to one prompt: --generations must be at least 2")
    if config.rollout % config.generations:
        raise TrainingError(
            f"--rollout {config.rollout} does not hold whole groups of --generations {config.generations}: take a multiple"
        )
    if config.rollout % config.batch:
        raise TrainingError(
            f"--rollout {config.rollout} cannot be divided into batches of --batch {config.batch}: take a multiple of it"
        )


def _option(name: str) -> str:
    return name.replace("_", "-")
