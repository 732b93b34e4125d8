"""One training run, from its settings to an adapter that says how it was made.

RUN/adapter_model.safetensors, adapter_config.json   what PEFT and `probe run --adapter RUN` load
RUN/critic/                                          the value head (PPO)
RUN/training.json                                    how it was made, and the curves
RUN/curves.png
RUN/checkpoints/                                     while it runs: the same command goes on from the last whole one
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import set_seed

from vlm_probe.finetune.closed_loop import PLAYERS, check_episodes, make_loop
from vlm_probe.finetune.closed_loop import reward_functions as loop_rewards
from vlm_probe.finetune.config import Budget, TrainConfig, TrainingError, per_process
from vlm_probe.finetune.corrections import Corrections
from vlm_probe.finetune.course import Course
from vlm_probe.finetune.curves import draw_curves
from vlm_probe.finetune.data import TrainingSet, check_tasks, training_set
from vlm_probe.finetune.data import rows as make_rows
from vlm_probe.finetune.disk import check_room, saving
from vlm_probe.finetune.grpo import TRAINERS, make_reinforced
from vlm_probe.finetune.kernels import score_replies_only
from vlm_probe.finetune.monitor import Monitor, Progress, last_checkpoint
from vlm_probe.finetune.policy import Policy, load_policy, reply_tokens, silent_tokens
from vlm_probe.finetune.reward import Judge, reward_functions
from vlm_probe.finetune.sft import make_sft
from vlm_probe.probes.allocation import keep_freed_memory
from vlm_probe.probes.memory import Memory
from vlm_probe.probes.models.adapter_folder import CONFIG, TRAINING, WEIGHTS, adapter_hash
from vlm_probe.probes.models.device import choose_device
from vlm_probe.probes.provenance import git_state, hardware, versions
from vlm_probe.probes.trials import LOCK, lock_folder
from vlm_probe.stimuli.plain_json import dumps, parse, parse_object

FORMAT = 1
CURVES, CHECKPOINTS, SETTINGS = "curves.png", "checkpoints", "settings.json"
LOG_ROWS = 200
"""Rows of the record that a supervised run has; a reinforced one has a row for every rollout."""
CHECKPOINTS_KEPT = 2


@dataclass(frozen=True)
class Plan:
    """How long a run is, and how its work is divided.

    Attributes:
        steps: Steps of the optimiser.
        samples_per_step: Samples that each stands for.
        prompts: Rows shown in all.
        log_every, save_every: Steps between rows of the record, and between checkpoints.
        token_budget: Tokens after which it ends; 0 where the budget is another.
    """

    steps: int
    samples_per_step: float
    prompts: int
    log_every: int
    save_every: int
    token_budget: int = 0


def plan(config: TrainConfig, tokens_per_sample: float) -> Plan:
    """How long a run is, from its budget.

    Args:
        config: The run's settings.
        tokens_per_sample: Tokens of a prompt with its picture and reply, about: for budgets in tokens.
    """
    budget = Budget.parse(config.budget)
    per_rollout = config.epochs * (config.rollout // config.batch) if config.reinforced else 1
    samples = config.rollout if config.reinforced else config.batch
    tokens = samples * tokens_per_sample * (config.epochs if config.reinforced else 1)
    each = {"samples": samples, "steps": per_rollout, "tokens": tokens}[budget.kind]
    rounds = max(1, math.ceil(budget.amount / each))
    steps = rounds * per_rollout
    log_every = per_rollout if config.reinforced else max(1, steps // LOG_ROWS)
    wanted = math.ceil(config.save_every / samples) if config.save_every else max(1, rounds // 10)
    # At the end of a rollout only: there, nothing of what is under way is lost.
    save_every = max(1, wanted) * per_rollout
    if config.reinforced:
        return Plan(
            steps, samples / per_rollout, rounds * samples // config.group, log_every, save_every, _tokens(budget)
        )
    return Plan(steps, samples, rounds * samples, log_every, save_every, _tokens(budget))


def train(config: TrainConfig, out: str | Path, *, jobs: int = 1, progress: Progress | None = None) -> dict[str, Any]:
    """Train, or go on training, and save what was learned.

    Args:
        config: The settings.
        out: Folder of the run; one with the same settings that was interrupted is gone on with.
        jobs: Processes that make training items.
        progress: Called with (done, in all), for items and then for steps.

    Returns:
        What `training.json` says.

    Raises:
        TrainingError, ModelError: If it cannot start or has to be stopped; one line with the fix.
        RunError: If another process trains there.
    """
    folder = Path(out)
    state = PartialState(cpu=choose_device(config.device) == "cpu")
    config = per_process(config, state.num_processes)
    check_tasks(config)
    done = _open(folder, config, state)
    if done is not None:
        return done
    with _held(folder, state):
        # Once more: another process may have finished it meanwhile.
        return _open(folder, config, state) or _train(config, folder, state, jobs, progress)


def _train(
    config: TrainConfig, folder: Path, state: PartialState, jobs: int, progress: Progress | None
) -> dict[str, Any]:
    device = choose_device(config.device)
    if device == "cpu":
        keep_freed_memory()
        score_replies_only()
    # The adapter's first weights are drawn from torch's global generator.
    set_seed(config.seed)
    with _quiet():
        policy = load_policy(config, device)
    with state.main_process_first():
        data = training_set(config, jobs=jobs if state.is_main_process else 1, progress=progress)
    table = make_rows(data, config)
    lengths = _sample_tokens(policy.processor, data)
    planned = plan(config, lengths)
    check_room(folder, policy.model, CHECKPOINTS_KEPT)
    monitor = Monitor(
        config, planned.samples_per_step, planned.token_budget, progress if state.is_main_process else None
    )
    if state.is_main_process:
        _write(folder / SETTINGS, config.to_dict())
    with _quiet():
        course = Course(config, [example.item for example in data.examples], policy.model, planned.prompts)
        trainer = _trainer(config, policy, data, course, table, planned, folder, monitor)
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    if checkpoint is not None:
        monitor.resume(checkpoint)
        course.resume(checkpoint)
        logging.getLogger(__name__).info("going on from %s", checkpoint)
    started = datetime.now(UTC)
    monitor.start()
    with _quiet(), saving(folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        trainer.save_model(str(folder))
    result = _result(config, policy, data, course, monitor, planned, started)
    state.wait_for_everyone()
    if state.is_main_process:
        if (folder / WEIGHTS).is_file():
            result["adapter_sha256"] = adapter_hash(folder)
        else:
            policy.processor.save_pretrained(folder)
        draw_curves(monitor.record.rows, f"{config.method} on {', '.join(config.tasks)}", folder / CURVES)
        _tidy(folder)
        _write(folder / TRAINING, result)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    state.wait_for_everyone()
    return result


def is_first() -> bool:
    """Whether this is the process that prints and saves."""
    return bool(PartialState().is_main_process)


def _tokens(budget: Budget) -> int:
    return budget.amount if budget.kind == "tokens" else 0


def _open(folder: Path, config: TrainConfig, state: PartialState) -> dict[str, Any] | None:
    """Make the folder, or recognise it; what it says if it is finished.

    Raises:
        TrainingError: If it holds another run.
    """
    settings = parse(dumps(config.to_dict()))
    file = folder / SETTINGS
    if file.is_file():
        before = _read(file)
        differ = sorted(name for name in settings if settings[name] != before.get(name))
        if differ:
            raise TrainingError(
                f"{folder} holds a run with other settings ({', '.join(differ)}): choose another --out, or delete it first"
            )
        if (folder / TRAINING).is_file():
            return _read(folder / TRAINING)
        return None
    if (folder / CONFIG).exists() or (folder / TRAINING).exists():
        raise TrainingError(f"{folder} holds an adapter already: choose another --out, or delete it first")
    state.wait_for_everyone()
    if state.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error
    return None


@contextlib.contextmanager
def _held(folder: Path, state: PartialState) -> Iterator[None]:
    """Keep other trainings out of the folder. Raises RunError if there is one."""
    lock = lock_folder(folder) if state.is_main_process else -1
    try:
        yield
    finally:
        if lock >= 0:
            os.close(lock)


def _sample_tokens(processor: Any, data: TrainingSet, n: int = 8) -> float:
    """Tokens of a prompt with its picture and of the expert's reply: the mean over a few items."""
    total = 0
    some = data.examples[:: max(1, len(data) // n)][:n]
    for example in some:
        content = [{"type": "image", "image": example.image}, {"type": "text", "text": example.item.question.prompt}]
        turns = [{"role": "user", "content": content}]
        ids = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
        total += len(ids["input_ids"][0]) + len(processor.tokenizer(example.demonstration)["input_ids"])
    return total / len(some)


def _trainer(
    config: TrainConfig,
    policy: Policy,
    data: TrainingSet,
    course: Course,
    table: Any,
    planned: Plan,
    folder: Path,
    monitor: Monitor,
) -> Any:
    on_cpu = choose_device(config.device) == "cpu"
    accumulated = config.batch // (config.micro_batch * PartialState().num_processes)
    settings: dict[str, Any] = {
        "output_dir": str(folder / CHECKPOINTS),
        "max_steps": planned.steps,
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if config.schedule == "constant" else config.schedule,
        "warmup_steps": math.ceil(config.warmup * planned.steps),
        "max_grad_norm": config.max_grad_norm,
        "logging_steps": planned.log_every,
        "save_strategy": "steps",
        "save_steps": planned.save_every,
        "save_total_limit": CHECKPOINTS_KEPT,
        "seed": config.seed,
        "data_seed": config.seed,
        "report_to": [] if config.report_to == "none" else [config.report_to],
        "bf16": config.dtype == "bfloat16" and not on_cpu,
        "use_cpu": on_cpu,
        "gradient_checkpointing": config.gradient_checkpointing,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
    }
    rows, callbacks = course.rows(table), [*course.callbacks, monitor]
    items = [example.item for example in data.examples]
    longest_reply = reply_tokens(policy.processor, (item.question for item in items), config)
    if not config.reinforced:
        shown: Any = dict
        if config.attempts > 1:
            memory = Memory(config.attempts, config.memory)
            check_episodes(memory, policy, data, longest_reply)
            shown = Corrections(data.examples, memory, config.seed)
        watching = make_sft(policy.model, policy.processor, rows, settings, callbacks, shown)
        watching.auxiliary, watching.results = course.objective, course.results
        watching.tasks = [example.item.task for example in data.examples] if len(config.tasks) > 1 else ()
        return watching
    judge = Judge(items)
    loop = make_loop(config, policy, data, judge, longest_reply, course.results) if config.attempts > 1 else None
    acting = make_reinforced(
        config,
        policy.model,
        policy.processor,
        rows,
        reward_functions(judge, config, course.results) if loop is None else loop_rewards(loop, config),
        settings,
        callbacks,
        reply_tokens=longest_reply,
        silent=silent_tokens(policy.model, policy.processor),
        trainers=TRAINERS if loop is None else PLAYERS,
    )
    acting.auxiliary = course.objective
    if loop is not None:
        acting.loop = loop
    return acting


def _result(
    config: TrainConfig,
    policy: Policy,
    data: TrainingSet,
    course: Course,
    monitor: Monitor,
    planned: Plan,
    started: datetime,
) -> dict[str, Any]:
    """What `training.json` says."""
    last = monitor.record.last
    return {
        "format": FORMAT,
        "method": config.method,
        "model": policy.name,
        "base": {"name": policy.name, "revision": policy.revision, "weights_sha256": policy.weights_sha256},
        "tasks": list(config.tasks),
        "weights": list(config.shares()),
        "seed": config.seed,
        "shift": config.shift,
        "attempts": config.attempts,
        "memory": config.memory,
        "init": adapter_hash(Path(config.init)) if config.init else None,
        "curriculum": config.curriculum,
        "auxiliary": config.auxiliary,
        "diversity": config.diversity,
        "capacity": policy.capacity,
        "lineage": policy.lineage,
        "budget": {"samples": last.get("samples", 0), "steps": last.get("step", 0), "tokens": last.get("tokens", 0)},
        "config": config.to_dict(),
        "data_sha256": data.content_sha256,
        "processes": PartialState().num_processes,
        "versions": versions("trl", "datasets", "bitsandbytes"),
        "git": git_state(),
        "hardware": hardware(),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        **monitor.spent(),
        **course.summary(),
        "curves": monitor.record.rows,
        "adapter_sha256": None,
    }


def _tidy(folder: Path) -> None:
    """Remove what TRL saves beside an adapter, and nothing reads: its reference copy, the processor, its own settings."""
    shutil.rmtree(folder / "ref", ignore_errors=True)
    keep = {CONFIG, WEIGHTS, CURVES, SETTINGS, TRAINING, LOCK}
    if (folder / WEIGHTS).is_file():
        for file in folder.iterdir():
            if file.is_file() and file.name not in keep:
                file.unlink()
    for stray in ("training_args.bin", "README.md"):
        (folder / stray).unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file of the run. Raises TrainingError if it is damaged."""
    try:
        return parse_object(file.read_bytes())
    except ValueError as error:
        raise TrainingError(f"{file} is damaged ({error}): choose another --out, or delete the folder first") from error


def _write(file: Path, data: Any) -> None:
    """Write JSON so that the file is whole or absent."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(dumps(data, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the rows that transformers prints for itself, and its warnings of names that will change in future."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
