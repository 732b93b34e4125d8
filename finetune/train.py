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
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed
from safetensors import SafetensorError
from transformers import TrainerCallback

from vlm_probe.finetune.closed_loop import PLAYERS, check_episodes, make_loop
from vlm_probe.finetune.closed_loop import reward_functions as loop_rewards
from vlm_probe.finetune.config import Budget, TrainConfig, TrainingError, check_needs, per_process
from vlm_probe.finetune.corrections import FailedAttemptAugmentation
from vlm_probe.finetune.data import TrainingSet, check_tasks, training_set
from vlm_probe.finetune.data import rows as make_rows
from vlm_probe.finetune.first_batch import try_batch
from vlm_probe.finetune.grpo import TRAINERS, make_rl_trainer
from vlm_probe.finetune.monitor import LIVE, Monitor, Progress, draw_curves, finished_checkpoints, last_checkpoint
from vlm_probe.finetune.policy import Policy, load_policy, reply_tokens, silent_tokens
from vlm_probe.finetune.ppo import CRITIC
from vlm_probe.finetune.reward import RewardScorer, reward_functions
from vlm_probe.finetune.sampling import TrainingSchedule
from vlm_probe.finetune.sft import make_sft
from vlm_probe.finetune.trl_adapter import score_replies_only
from vlm_probe.probes.allocation import keep_freed_memory
from vlm_probe.probes.episodes import Memory
from vlm_probe.probes.models import Trial
from vlm_probe.probes.models.adapter_folder import CONFIG, TRAINING, WEIGHTS, adapter_hash
from vlm_probe.probes.models.device import choose_device
from vlm_probe.probes.models.prompting import Prompter
from vlm_probe.probes.provenance import origin
from vlm_probe.stimuli.errors import reading, reason_of
from vlm_probe.stimuli.output import OutputFolder, check_claim, claim
from vlm_probe.stimuli.plain_json import dumps, parse, parse_object

SPARE = 50_000_000
"""Bytes that must be free next to what the checkpoints take."""


def check_room(folder: Path, model: Any, checkpoints: int) -> None:
    """Make sure that the checkpoints of a training fit on the disk.

    Args:
        folder: Where they are written.
        model: Its parameters that are trained are what a checkpoint holds, with Adam's moments.
        checkpoints: Most that are kept at a time.

    Raises:
        TrainingError: If they do not.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # Weights and Adam's two moments, for each checkpoint and the one that is being written.
    needed = SPARE + 3 * 4 * trained * (checkpoints + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TrainingError(
            f"{folder} has {free / 1e9:.1f} GB free, and this run needs {needed / 1e9:.1f} GB for its checkpoints: free some"
            " space, or choose another --out"
        )


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Tell of a disk that does not take a checkpoint as such.

    Raises:
        TrainingError: In place of the errors that safetensors and torch have for it; all others pass.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise TrainingError(
            f"cannot write to {folder}: {reason}; the last whole checkpoint is kept: make room and give the same command again"
        ) from error


def _refusal(error: Exception) -> str | None:
    """Why the disk did not take something; None if the error is another."""
    if isinstance(error, OSError):
        return error.strerror if error.filename is None else None  # those with a name say themselves what to do
    if number := re.search(r"os error (\d+)", str(error)):  # safetensors, in the words of Rust
        return os.strerror(int(number[1]))
    # torch.save goes through a writer of its own (c10's inline_container), which does not say why.
    is_writer = any(name in str(error) for name in ("PytorchStreamWriter", "inline_container"))
    return "the disk takes no more" if is_writer else None


log = logging.getLogger(__name__)

FORMAT = 1
KIND = "training run"
CURVES, CHECKPOINTS, SETTINGS = "curves.png", "checkpoints", "settings.json"
FINAL = f"{CHECKPOINTS}/final"
"""Where TRL saves to at the end; what is wanted of it moves up."""
NOT_KEPT = ("training_args.bin", "README.md")
STRAY = (f"{CHECKPOINTS}/{LIVE}", f"{CHECKPOINTS}/README.md")
"""What else lies next to the checkpoints while a run goes on: its curves, and what TRL writes."""
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
        tokens_per_sample: Tokens of a prompt with its image and reply, about: for budgets in tokens.
    """
    budget = Budget.parse(config.budget)
    per_rollout = config.epochs * (config.rollout // config.batch) if config.is_rl else 1
    samples = config.rollout if config.is_rl else config.batch
    tokens = samples * tokens_per_sample * (config.epochs if config.is_rl else 1)
    each = {"samples": samples, "steps": per_rollout, "tokens": tokens}[budget.kind]
    rounds = max(1, math.ceil(budget.amount / each))
    steps = rounds * per_rollout
    log_every = per_rollout if config.is_rl else max(1, steps // LOG_ROWS)
    wanted = math.ceil(config.save_every / samples) if config.save_every else max(1, rounds // 10)
    # At the end of a rollout only: there, nothing of what is under way is lost.
    save_every = max(1, wanted) * per_rollout
    if config.is_rl:
        return Plan(
            steps, samples / per_rollout, rounds * samples // config.group, log_every, save_every, _tokens(budget)
        )
    return Plan(steps, samples, rounds * samples, log_every, save_every, _tokens(budget))


def train(config: TrainConfig, out: str | Path, *, jobs: int = 1, progress: Progress | None = None) -> dict[str, Any]:
    """Train, or go on training, and save what was learned.

    Args:
        config: The settings.
        out: Folder of the run; one with the same settings that was interrupted is resumed.
        jobs: Processes that make training items.
        progress: Called with (done, in all), for items and then for steps.

    Returns:
        What `training.json` says.

    Raises:
        OutputError: If `out` holds something else, cannot be written, or another process trains there.
        TrainingError, ModelError, StimulusError: If it cannot start or has to be stopped; one line with the fix.
    """
    folder = Path(out)
    check_needs(config)
    state = PartialState(cpu=choose_device(config.device) == "cpu")
    config = per_process(config, state.num_processes)
    check_tasks(config)
    check_claim(folder, KIND)
    done = _finished(folder, config)
    if done is not None:
        return done
    state.wait_for_everyone()
    with claim(folder, KIND) if state.is_main_process else contextlib.nullcontext() as output:
        # Again: another process may have finished it meanwhile.
        return _finished(folder, config) or _train(config, folder, output, state, jobs, progress)


def _train(
    config: TrainConfig,
    folder: Path,
    output: OutputFolder | None,
    state: PartialState,
    jobs: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """Train in a folder that the first process has claimed; the others have no `output`."""
    # First of all, since it may find that nothing can be resumed.
    warn = log.warning if state.is_main_process else log.debug
    checkpoint = last_checkpoint(folder / CHECKPOINTS, warn)
    device = choose_device(config.device)
    if device == "cpu":
        keep_freed_memory()
        score_replies_only()
    # The adapter's first weights are drawn from torch's global generator.
    set_seed(config.seed)
    begun = _read(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    # Of the first process, for all: prompts may state it.
    (moment,) = broadcast_object_list([str(begun.get("moment") or datetime.now().isoformat(timespec="seconds"))])
    with _quiet():
        policy = load_policy(config, device, moment)
    _check_model(folder, begun, policy)
    if checkpoint is None and state.num_processes == 1:
        with _quiet():
            try_batch(config, policy, _small_trainer)
    with state.main_process_first():
        data = training_set(config, jobs=jobs if state.is_main_process else 1, progress=progress)
    table = make_rows(data, config)
    lengths = _sample_tokens(policy.prompter, data)
    planned = plan(config, lengths)
    check_room(folder, policy.model, CHECKPOINTS_KEPT)
    monitor = Monitor(
        config, planned.samples_per_step, planned.token_budget, progress if state.is_main_process else None
    )
    if output is not None:
        output.write_json(
            SETTINGS, config.to_dict() | {"base_files": policy.files, "moment": policy.prompter.moment}, indent=1
        )
        output.track(*STRAY)
        first = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        upcoming = [name for step, name in _checkpoints(planned).items() if step > first]
        for name in upcoming:  # half written, or damaged
            output.drop(name)
        output.announce(*upcoming, FINAL)
    state.wait_for_everyone()
    with _quiet():
        course = TrainingSchedule(config, [example.item for example in data.examples], policy.model, planned.prompts)
        trainer = _trainer(config, policy, data, course, table, planned, folder, monitor)
    if output is not None:
        trainer.add_callback(_Checkpoints(output))
    if checkpoint is not None:
        monitor.resume(checkpoint)
        course.resume(checkpoint)
        log.info("going on from %s", checkpoint)
    started = datetime.now(UTC)
    monitor.start()
    with _quiet(), saving(folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        trainer.save_model(str(folder / FINAL))
    result = _result(config, policy, data, course, monitor, planned, started)
    state.wait_for_everyone()
    if output is not None:
        made = folder / FINAL
        if (made / WEIGHTS).is_file():
            # The rest is what TRL saves next to an adapter, and nothing reads: its reference copy, the processor, its own settings.
            kept = [made / CONFIG, made / WEIGHTS, *sorted(made.glob(f"{CRITIC}/*"))]
            result["adapter_sha256"] = adapter_hash(made)
        else:
            policy.processor.save_pretrained(made)
            policy.generation.save_pretrained(made)
            kept = [path for path in sorted(made.rglob("*")) if path.is_file() and path.name not in NOT_KEPT]
        for path in kept:
            output.place(path, path.relative_to(made).as_posix())
        with output.file(CURVES) as partial:
            _draw(monitor.record.rows, f"{config.method} on {', '.join(config.tasks)}", partial)
        output.write_json(TRAINING, result, indent=1)
        for name in (*_checkpoints(planned).values(), FINAL):
            output.drop(name)
        output.remove(*STRAY)
    state.wait_for_everyone()
    return result


def _checkpoints(planned: Plan) -> dict[int, str]:
    """Step -> folder of all checkpoints that a run makes."""
    steps = (*range(planned.save_every, planned.steps + 1, planned.save_every), planned.steps)
    return {step: f"{CHECKPOINTS}/checkpoint-{step}" for step in steps}


class _Checkpoints(TrainerCallback):
    """Keeps the last checkpoints. Comes after what marks them as whole."""

    def __init__(self, output: OutputFolder) -> None:
        self._output = output

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """List the new checkpoint's files, and delete those of the oldest one."""
        self._output.adopt(f"{CHECKPOINTS}/checkpoint-{state.global_step}")
        steps = sorted(step for step, _ in finished_checkpoints(self._output.path / CHECKPOINTS))
        for step in steps[:-CHECKPOINTS_KEPT]:
            self._output.drop(f"{CHECKPOINTS}/checkpoint-{step}")


def _check_model(folder: Path, begun: dict[str, Any], policy: Policy) -> None:
    """Refuse to resume a run whose base model has changed. Raises TrainingError."""
    before = begun.get("base_files")
    if isinstance(before, dict):
        changed = sorted(name for name in {**before, **policy.files} if before.get(name) != policy.files.get(name))
        if changed:
            raise TrainingError(
                f"{folder} holds a run of another model ({', '.join(changed)} of {policy.name} differ): restore the model, or"
                " choose another --out"
            )


def is_first() -> bool:
    """Whether this is the process that prints and saves."""
    return bool(PartialState().is_main_process)


def _tokens(budget: Budget) -> int:
    return budget.amount if budget.kind == "tokens" else 0


def _finished(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """What a finished run of these settings says; None if there is none.

    Raises:
        TrainingError: If the folder holds a run of other settings.
    """
    file = folder / SETTINGS
    if not file.is_file():
        return None
    settings, before = parse(dumps(config.to_dict())), _read(file)
    differ = sorted(name for name in settings if settings[name] != before.get(name))
    if differ:
        raise TrainingError(
            f"{folder} holds a run with other settings ({', '.join(differ)}): choose another --out, or delete it first"
        )
    return _result_of(folder / TRAINING) if (folder / TRAINING).is_file() else None


def _sample_tokens(prompter: Prompter, data: TrainingSet, n: int = 8) -> float:
    """Tokens of a prompt with its image and of the expert's reply: the mean over a few items."""
    total = 0
    some = data.examples[:: max(1, len(data) // n)][:n]
    for example in some:
        turns = Trial(example.item, example.image).turns
        (reply,) = prompter.reply_tokens(turns, (example.demonstration,))
        total += int(prompter.inputs([turns])["input_ids"].shape[1]) + len(reply)
    return total / len(some)


def _trainer(
    config: TrainConfig,
    policy: Policy,
    data: TrainingSet,
    course: TrainingSchedule,
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
    if not config.is_rl:
        shown: Any = dict
        if config.attempts > 1:
            memory = Memory(config.attempts, config.memory)
            check_episodes(memory, policy, data, longest_reply)
            shown = FailedAttemptAugmentation(data.examples, memory, config.seed)
        watching = make_sft(policy.model, policy.processor, rows, settings, callbacks, policy.prompter, shown)
        watching.auxiliary, watching.results = course.objective, course.results
        watching.tasks = [example.item.task for example in data.examples] if len(config.tasks) > 1 else ()
        return watching
    judge = RewardScorer(items)
    loop = make_loop(config, policy, data, judge, longest_reply, course.results) if config.attempts > 1 else None
    acting = make_rl_trainer(
        config,
        policy.model,
        policy.processor,
        rows,
        reward_functions(judge, config, course.results) if loop is None else loop_rewards(loop, config),
        settings,
        callbacks,
        prompter=policy.prompter,
        reply_tokens=longest_reply,
        silent=silent_tokens(policy.model, policy.processor),
        trainers=TRAINERS if loop is None else PLAYERS,
    )
    acting.auxiliary = course.objective
    if loop is not None:
        acting.loop = loop
    return acting


def _small_trainer(config: TrainConfig, policy: Policy, data: TrainingSet, folder: Path) -> Any:
    """The trainer of a run of one step."""
    items = [example.item for example in data.examples]
    planned = Plan(1, config.batch, config.batch // config.group, 1, 1)
    course, monitor = TrainingSchedule(config, items, policy.model, planned.prompts), Monitor(config, config.batch)
    table = make_rows(data, config)
    return _trainer(config, policy, data, course, table, planned, folder, monitor)


def _result(
    config: TrainConfig,
    policy: Policy,
    data: TrainingSet,
    course: TrainingSchedule,
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
        "base": {
            "name": policy.name,
            "revision": policy.revision,
            "weights_sha256": policy.weights_sha256,
            "files": policy.files,
        },
        "moment": policy.prompter.moment,
        "thinking": policy.prompter.thinking_used,
        "tasks": list(config.tasks),
        "weights": list(config.shares()),
        "seed": config.seed,
        "shift": config.shift,
        "attempts": config.attempts,
        "memory": config.memory,
        "init": adapter_hash(Path(config.init)) if config.init else None,
        "demonstrations": config.demonstrations,
        "curriculum": config.curriculum,
        "auxiliary": config.auxiliary,
        "diversity": config.diversity,
        "capacity": policy.capacity,
        "lineage": policy.lineage,
        "budget": {"samples": last.get("samples", 0), "steps": last.get("step", 0), "tokens": last.get("tokens", 0)},
        "config": config.to_dict(),
        "data_sha256": data.content_sha256,
        "processes": PartialState().num_processes,
        **origin("trl", "datasets", "bitsandbytes"),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        **monitor.spent(),
        **course.summary(),
        "curves": monitor.record.rows,
        "adapter_sha256": None,
    }


def _draw(rows: list[dict[str, float]], title: str, file: Path) -> None:
    """Draw the curves, which are in `training.json` as well: a figure that fails must not cost what was learned."""
    try:
        draw_curves(rows, title, file)
    except Exception as error:
        log.warning("the curves could not be drawn: %s", reason_of(error))


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file of the run. Raises TrainingError if it is damaged."""
    with reading(file, TrainingError, "choose another --out, or delete the folder first"):
        return parse_object(file.read_bytes())


def _result_of(file: Path) -> dict[str, Any]:
    """What a training run that is over says. Raises TrainingError if it does not say what it should."""
    with reading(file, TrainingError, "choose another --out, or delete the folder first"):
        found = parse_object(file.read_bytes())
        kinds = {"method": str, "model": str, "tasks": list, "budget": dict, "curves": list}
        for name, kind in kinds.items():
            if not isinstance(found[name], kind):
                raise TypeError(f"{name} is {str(found[name])[:40]!r}")
        for values in (found["budget"], *found["curves"]):
            if not all(isinstance(value, int | float) for value in values.values()):
                raise TypeError(f"a number is missing in {str(values)[:40]!r}")
        return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the rows that transformers prints for itself, and its warnings of names that will change in future."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FutureWarning)
        yield
