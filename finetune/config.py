"""The settings of a training run: one vocabulary for all methods, checked before anything slow happens."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from vlm_probe.finetune.mixture import LARGEST_WEIGHT
from vlm_probe.probes.options import (
    DATA,
    ESSENTIALS,
    FLAG,
    LOADING,
    LORA,
    OPTIMISATION,
    OUTPUT,
    PPO,
    RL,
    THOUGHT_LENGTH,
    THOUGHT_TOKENS,
    commas,
    names,
)
from vlm_probe.stimuli.errors import ProbeError, is_installed
from vlm_probe.stimuli.ranges import (
    AMOUNT,
    ATTEMPTS,
    BATCH,
    IMAGE_SIZE,
    REPLY_LENGTH,
    SEED,
    Range,
    check_settings,
    ranged,
    whole,
)

if TYPE_CHECKING:
    from vlm_probe.probes.models.thinking import Thinking

DEVICES = ("auto", "cpu", "cuda")
"""What a training run can be told. One GPU of several is chosen by what the process can see (`CUDA_VISIBLE_DEVICES`)."""


def on_one_gpu(arguments: Any) -> Any:
    """Make a process train on one GPU, however many it sees.

    Without a launcher, transformers would hand a part of every batch to each GPU in threads (`nn.DataParallel`), and TRL refuses
    to go on. More GPUs take more processes, which `accelerate launch` starts.

    Args:
        arguments: Of a trainer of transformers; changed in place, and given back.
    """
    if arguments.n_gpu > 1:  # a process of a launcher counts its own alone
        # As transformers does for a model that lies on several GPUs; there is no setting for it.
        arguments._n_gpu = 1
    return arguments


METHODS = ("sft", "ppo", "grpo", "rloo")
BUDGETS = ("samples", "steps", "tokens")
LONGEST = whole(1, 10**15)
"""Of a budget: samples, steps or tokens."""
COUNT, FACTOR, SHARE = whole(1, 65_536), Range(0, 1000), Range(0, 1)
RANK, ALPHA, DROPOUT = whole(1, 4096), Range(above=0, most=65_536), Range(0, below=1)
"""Of LoRA."""
POSITIVE = Range(above=0, most=1000)


VLLM_ARGS = (
    *("gpu_memory_utilization", "tensor_parallel_size", "max_model_length", "enable_sleep_mode", "model_impl"),
    *("server_base_url", "server_host", "server_port", "server_timeout", "group_port"),
)
"""Options of vLLM that TRL's settings of GRPO and RLOO have, after `vllm_`."""


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


Essential, Data, Optimiser, Reinforced, ByPpo, Lora, Loaded, Kept = (
    Parameter(group=group) for group in (ESSENTIALS, DATA, OPTIMISATION, RL, PPO, LORA, LOADING, OUTPUT)
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run learns, except for the versions of the software.

    A *sample* is one answer that is learned from: a demonstration (SFT), or a generated reply with its reward (PPO, GRPO,
    RLOO). A *step* is one step of the optimiser.

    Attributes:
        model: Short name (see `probe models`), local folder or hub id of the base model.
        tasks: Tasks to train on, separated by commas, with weights if their shares differ: `towers-stability:2,balance-tilt`.
        method: `sft`: an expert's answers. `ppo`, `grpo`, `rloo`: the model's own answers, rewarded by the simulator.
        weights: Weight of each task, in their order; equal where left out.
        seed: Seed of items, their order, the adapter's initial weights, and sampled replies.
        budget: `samples=5000`, `steps=200` or `tokens=1e6`.
        items: Distinct training items; beyond them, items are seen again in another order.
        size: Edge of the images, pixels.
        shift: Shifts drawn for every training scene, with their highest levels: `visual:2` (domain randomisation).
        diversity: Limits on the training set: `conditions=2`, `wordings=1`, or both; empty: all that the designs have.
        style: Ask for the bare answer (`direct`), or for reasoning first (`think`; not for sft, which has none to show).
        batch: Samples per step of the optimiser, over all processes.
        micro_batch: Samples per forward pass and process; 0 = the whole share of the batch.
        learning_rate: Peak learning rate.
        schedule: Decay of the learning rate after the warm-up.
        warmup: Share of the steps in which the learning rate rises.
        max_grad_norm: Norm to which gradients are clipped.
        rollout: Replies generated between updates, over all processes.
        generations: Replies per prompt (grpo, rloo: the group; ppo: 1 is usual).
        epochs: Passes over a rollout before the next one.
        temperature: Sampling temperature.
        max_new_tokens: Longest reply, tokens; 0 = as many as the longest legal answer needs.
        beta: Weight of the KL divergence from the base model.
        clip: Clip range of the probability ratios.
        entropy_bonus: Weight of the policy's entropy in the loss.
        success_reward: Reward success alone (1 or 0) instead of the task's graded reward.
        format_reward: Additional reward for a valid reply, logged separately; 0 = none.
        target_kl: Skip the remaining steps of a rollout once the policy has moved so far; 0 = never.
        adaptive_kl: KL divergence per reply, nats, towards which beta is adapted; 0 = beta is fixed.
        gamma: Discount per token.
        gae_lambda: Lambda of generalised advantage estimation, per token.
        value_coefficient: Weight of the value loss.
        value_clip: Clip range of the values per rollout; 0 = no clipping.
        value_learning_rate: Learning rate of the value head; 0 = the policy's.
        rank: LoRA rank (r).
        alpha: LoRA alpha.
        dropout: LoRA dropout.
        where: Parts of the model that are adapted; `full`: every weight, without LoRA.
        load_in_4bit: Quantise the base model to four bits (nf4, double quantisation).
        dtype: Number format of the weights.
        device: `cpu` or `cuda`; by default a GPU, if there is one.
        gradient_checkpointing: Recompute activations to save memory.
        init: Adapter to start from: a warm start, or learning a second task.
        demonstrations: What sft learns: an expert's answers, or legal answers at random (a control for what learning the form of answers does).
        curriculum: `none`, `easy-to-hard`, `hard-to-easy`, or `adaptive` to success.
        attempts: Attempts per scene (sft: the expert answers after up to one fewer that failed).
        memory: Earlier attempts in the context: `none`, `last-k` or `all`.
        thinking: Whether a model that can think does so before it answers; `auto`: as its makers recommend, and off with sft.
        chat_template_args: Further arguments of the model's chat template: `key=value`, separated by commas.
        max_thinking_tokens: Longest thought, tokens; a longer one is cut, and its reply counts as unfinished.
        vllm: Generate replies with vLLM, as TRL does: in the training process (`colocate`), or on a server started with
            `vllm serve` (`server`).
        vllm_args: TRL's options for vLLM without their prefix `vllm_`: `gpu_memory_utilization=0.4,server_port=8001`.
        discount: Factor on the reward for every further attempt.
        auxiliary: Weight of the auxiliary loss on the physical state; 0 = none.
        auxiliary_target: Quantity that it predicts: `margin`, or another number that `probe decode` knows.
        auxiliary_layer: Language layer that it reads, from 1; 0 = the middle one.
        avoid: Test sets whose scenes must not be trained on, separated by commas, in addition to the tasks' standard sets.
        save_every: Samples between checkpoints; 0 = a tenth of the run.
        report_to: Tracker that progress is reported to.
        force: Allow training on a held-out task.

    Raises:
        OutOfRange: If a value is of another type, outside its range, or no choice that there is.
        TrainingError: If the settings do not go together.
    """

    model: Annotated[str, Essential, names("model", "model-name-or-path")]
    tasks: Annotated[tuple[str, ...], Essential, commas()]
    method: Annotated[Literal["sft", "ppo", "grpo", "rloo"], Essential]
    weights: Annotated[tuple[float, ...], Parameter(parse=False)] = ranged((), Range(above=0, most=LARGEST_WEIGHT**2))
    seed: Annotated[int, Essential] = ranged(0, SEED)
    budget: Annotated[str, Essential] = "samples=5000"
    items: Annotated[int, Data] = ranged(3000, AMOUNT)
    size: Annotated[int, Data] = ranged(224, IMAGE_SIZE)
    shift: Annotated[str, Data] = ""
    diversity: Annotated[str, Data] = ""
    style: Annotated[Literal["direct", "think"], Data] = "direct"
    batch: Annotated[int, Optimiser] = ranged(32, COUNT)
    micro_batch: Annotated[int, Optimiser] = ranged(0, BATCH)
    learning_rate: Annotated[float, Optimiser] = ranged(5e-6, Range(above=0, most=1))
    schedule: Annotated[Literal["cosine", "constant", "linear"], Optimiser] = "cosine"
    warmup: Annotated[float, Optimiser] = ranged(0.1, SHARE)
    max_grad_norm: Annotated[float, Optimiser] = ranged(1.0, Range(above=0, most=1e9))
    rollout: Annotated[int, Reinforced] = ranged(64, COUNT)
    generations: Annotated[int, Reinforced, names("generations", "num-generations")] = ranged(16, COUNT)
    epochs: Annotated[int, Reinforced] = ranged(1, whole(1, 1000))
    temperature: Annotated[float, Reinforced] = ranged(1.0, Range(above=0, most=100))
    max_new_tokens: Annotated[int, Reinforced] = ranged(0, REPLY_LENGTH)
    beta: Annotated[float, Reinforced] = ranged(0.01, FACTOR)
    clip: Annotated[float, Reinforced] = ranged(0.2, POSITIVE)
    entropy_bonus: Annotated[float, Reinforced] = ranged(0.0, FACTOR)
    success_reward: Annotated[bool, Reinforced] = False
    format_reward: Annotated[float, Reinforced] = ranged(0.0, FACTOR)
    target_kl: Annotated[float, ByPpo] = ranged(0.0, FACTOR)
    adaptive_kl: Annotated[float, ByPpo] = ranged(0.0, FACTOR)
    gamma: Annotated[float, ByPpo] = ranged(1.0, SHARE)
    gae_lambda: Annotated[float, ByPpo] = ranged(0.95, SHARE)
    value_coefficient: Annotated[float, ByPpo] = ranged(0.5, FACTOR)
    value_clip: Annotated[float, ByPpo] = ranged(0.2, FACTOR)
    value_learning_rate: Annotated[float, ByPpo] = ranged(0.0, Range(0, 1))
    rank: Annotated[int, Lora, names("rank", "lora-r")] = ranged(16, RANK)
    alpha: Annotated[int, Lora, names("alpha", "lora-alpha")] = ranged(16, COUNT)
    dropout: Annotated[float, Lora, names("dropout", "lora-dropout")] = ranged(0.0, DROPOUT)
    where: Annotated[Literal["language", "vision", "projector", "all", "full"], Lora] = "language"
    load_in_4bit: Annotated[bool, Loaded] = False
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Loaded] = "auto"
    device: Annotated[str, Loaded] = "auto"
    gradient_checkpointing: Annotated[bool, Loaded] = False
    init: Annotated[str, Essential] = ""
    demonstrations: Annotated[Literal["expert", "random"], Data] = "expert"
    curriculum: Annotated[str, Data] = "none"
    attempts: Annotated[int, Data] = ranged(1, ATTEMPTS)
    memory: Annotated[str, Data] = "all"
    thinking: Annotated[Literal["auto", "off", "on"], Data] = "auto"
    chat_template_args: Annotated[str, Data] = ""
    max_thinking_tokens: Annotated[int, Reinforced] = ranged(THOUGHT_TOKENS, THOUGHT_LENGTH)
    vllm: Annotated[Literal["", "colocate", "server"], Reinforced] = ""
    vllm_args: Annotated[str, Reinforced] = ""
    discount: Annotated[float, Reinforced] = ranged(1.0, SHARE)
    auxiliary: Annotated[float, Optimiser] = ranged(0.0, FACTOR)
    auxiliary_target: Annotated[str, Optimiser] = "margin"
    auxiliary_layer: Annotated[int, Optimiser] = ranged(0, whole(0, 10_000))
    avoid: Annotated[tuple[str, ...], Data, commas()] = ()
    save_every: Annotated[int, Kept] = ranged(0, whole(0, 10**15))
    report_to: Annotated[Literal["none", "trackio", "wandb", "tensorboard"], Kept] = "none"
    force: Annotated[bool, Data, FLAG] = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def is_rl(self) -> bool:
        """Whether the method learns from rewards rather than from demonstrations."""
        return self.method != "sft"

    @property
    def thoughts(self) -> Thinking:
        """Whether the model is to think before it answers."""
        from vlm_probe.probes.models.thinking import Thinking

        mode: Any = "off" if self.method == "sft" else self.thinking
        return Thinking(mode, self.chat_template_args, self.max_thinking_tokens)

    @property
    def vllm_settings(self) -> dict[str, Any]:
        """TRL's settings for generating with vLLM; empty without it. Raises TrainingError if there is no such option."""
        from vlm_probe.probes.models.thinking import read_arguments

        try:
            given = read_arguments(self.vllm_args)
        except ValueError as error:
            raise TrainingError(
                f"--vllm-args is {self.vllm_args[:60]!r} ({error}): write key=value,key=value"
            ) from error
        wrong = [name for name in given if name not in VLLM_ARGS]
        if wrong:
            raise TrainingError(f"--vllm-args has no {wrong[0]!r}: use {', '.join(VLLM_ARGS)}")
        if given and not self.vllm:
            raise TrainingError("--vllm-args goes with --vllm colocate or --vllm server: give one of them")
        chosen = {f"vllm_{name}": value for name, value in given.items()}
        return {"use_vllm": True, "vllm_mode": self.vllm} | chosen if self.vllm else {}

    @property
    def images(self) -> int:
        """Images in the longest prompt."""
        from vlm_probe.stimuli.attempts import remembered

        return 1 + min(remembered(self.memory, self.attempts), self.attempts - 1)

    @property
    def group(self) -> int:
        """Samples that share a prompt."""
        return self.generations if self.is_rl else 1

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
    if config.is_rl and config.attempts > 1 and config.rollout // processes % config.generations:
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
    # Here, since only a training run that begins needs them, and not every reading of a study's file.
    from vlm_probe.probes.models.loading import check_options
    from vlm_probe.stimuli.standard import check_available, check_cache

    wanted = {"tensorboard": ("tensorboard", "tensorboardX")}.get(config.report_to, (config.report_to,))
    if config.report_to != "none" and not any(map(is_installed, wanted)):
        raise TrainingError(
            f"--report-to {config.report_to} needs {wanted[0]}, which is not installed: pip install {wanted[0]}, or leave it out"
        )
    if config.vllm and not is_installed("vllm"):
        raise TrainingError(f"--vllm {config.vllm} needs vLLM, which is not installed: pip install 'trl[vllm]'")
    check_options(config.device, config.load_in_4bit, *([config.init] if config.init else []))
    check_cache()
    for name in config.avoid:
        check_available(name)


def _check(config: TrainConfig) -> None:
    """Raise OutOfRange if a value is not as its field says, and TrainingError if anything else is wrong."""
    # Imported here: help pages need the fields alone.
    from vlm_probe.finetune.curriculum import parse_curriculum
    from vlm_probe.finetune.diversity import parse_diversity

    check_settings(config)
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
    if config.is_rl:
        _check_groups(config)
    if config.demonstrations == "random" and (config.is_rl or config.attempts > 1):
        raise TrainingError(
            "--demonstrations random replaces an expert's answers to first attempts: use it with --method sft, and without --attempts"
        )
    if config.is_rl and config.dropout:
        raise TrainingError(
            f"--dropout {config.dropout:g} is for sft: with {config.method}, the policy that is updated would not be the one that"
            " acted; leave it out"
        )
    if config.method == "sft" and "think" in (config.style, config.thinking == "on" and "think"):
        option = "--style think" if config.style == "think" else "--thinking on"
        raise TrainingError(
            f"{option} cannot be trained by sft: demonstrations state answers and no reasons; leave it out"
        )
    config.thoughts  # noqa: B018
    if config.vllm_settings and (config.method == "sft" or config.attempts > 1):
        why = "sft generates no replies" if config.method == "sft" else "several attempts are generated by transformers"
        raise TrainingError(f"--vllm {config.vllm} cannot be used here, because {why}: leave it out")


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
    """Raise TrainingError if the method cannot learn from several attempts, and OutOfRange if there is no such memory."""
    from vlm_probe.probes.episodes import Memory

    Memory(config.attempts, config.memory)
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
