"""The eyes of a training run: what is logged, on which common scale, and when a run has to be stopped."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from vlm_probe.finetune.config import TrainConfig, TrainingError
from vlm_probe.stimuli.errors import reading
from vlm_probe.stimuli.plain_json import dumps, parse_object

log = logging.getLogger(__name__)

PATIENCE = 20
"""Log rows in a row after which what cannot be learned from ends a run."""
LEAST_PARSED = 0.05
COMPLETE = "complete"
"""File that says of a checkpoint that it was written to its end, with the hash of everything in it."""
RESTART = "restore it, or delete the folder of checkpoints to begin from the start"
"""What to do about a checkpoint that is damaged."""
STATE = "monitor.json"
LIVE = "curves.jsonl"
"""File next to the checkpoints in which a run can be watched while it goes on."""

# What TRL calls it, and what it is called here.
NAMES = {
    "loss": "loss",
    "reward": "reward",
    "success": "success",
    "first_success": "first_success",
    "attempts": "attempts",
    "score": "score",
    "parse_rate": "parse_rate",
    "rewards/readable/mean": "format_reward",
    "kl": "kl",
    "kl_reply": "kl_reply",
    "entropy": "entropy",
    "explained_variance": "explained_variance",
    "value_loss": "value_loss",
    "policy_kl": "policy_kl",
    "skipped": "skipped",
    "beta": "beta",
    "frac_reward_zero_std": "zero_spread",
    "reward_std": "reward_sd",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "clip_ratio/region_mean": "clipped",
    "completions/mean_length": "reply_tokens",
    "completions/clipped_ratio": "cut_off",
    "mean_token_accuracy": "token_accuracy",
    "simulator_s": "simulator_s",
    "auxiliary_loss": "auxiliary_loss",
    "step_time": "step_s",
}

BY_TASK = "success/"
"""Of several tasks, the success of each is logged under its name after this."""

Progress = Callable[[int, int], None]


class CountingMixin:
    """Makes a trainer of TRL count the tokens that its optimiser has seen (prompt, image and reply, every epoch)."""

    tokens_seen: int = 0
    """Of this process, since it was started."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss as TRL computes it."""
        if getattr(model, "training", False):
            masks = [inputs[name] for name in ("prompt_mask", "completion_mask", "attention_mask") if name in inputs]
            self.tokens_seen += int(sum(mask.sum() for mask in masks))
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as TRL does, with the tokens of all processes."""
        if getattr(self.model, "training", False):  # type: ignore[attr-defined]
            seen = torch.tensor(float(self.tokens_seen), device=self.accelerator.device)  # type: ignore[attr-defined]
            logs["optimiser_tokens"] = float(self.accelerator.reduce(seen, reduction="sum"))  # type: ignore[attr-defined]
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


@dataclass
class Record:
    """What has been logged so far: one row per log step, and the sums that they hold."""

    rows: list[dict[str, float]] = field(default_factory=list)
    tokens_before: int = 0
    """Tokens seen before this process was started, by the run that it goes on with."""
    seconds_before: float = 0.0
    """Seconds until the checkpoint that this process goes on from; what was done after it, and is done again, does not count."""
    cpu_seconds_before: float = 0.0

    @property
    def last(self) -> dict[str, float]:
        """The latest row; empty before the first."""
        return self.rows[-1] if self.rows else {}


class Monitor(TrainerCallback):
    """Keeps the record of a run, marks whole checkpoints, and stops what cannot be learned from.

    Args:
        config: The run's settings.
        samples_per_step: Samples that a step of the optimiser stands for (RL: a share of a rollout).
        token_budget: Tokens after which to stop; 0: no such budget.
        progress: Called with (steps done, steps in all).
    """

    def __init__(
        self, config: TrainConfig, samples_per_step: float, token_budget: int = 0, progress: Progress | None = None
    ) -> None:
        self.config = config
        self.record = Record()
        self._samples_per_step, self._token_budget, self._progress = samples_per_step, token_budget, progress
        self._unread = self._unmoved = self._even = 0
        self.start()

    def start(self) -> None:
        """Start the clocks of this process."""
        self._clock, self._cpu = time.monotonic(), time.process_time()

    def spent(self) -> dict[str, float]:
        """Seconds, and CPU-seconds of this process, that the training run has taken, those before its checkpoint included."""
        return {
            "seconds": round(self.record.seconds_before + time.monotonic() - self._clock, 1),
            "cpu_seconds": round(self.record.cpu_seconds_before + time.process_time() - self._cpu, 1),
        }

    def resume(self, checkpoint: Path) -> None:
        """Go on with the record of a checkpoint."""
        with reading(checkpoint / STATE, TrainingError, RESTART):
            stored = parse_object((checkpoint / STATE).read_bytes())
            spent = stored.get("spent", {})
            before = (float(spent.get(name, 0.0)) for name in ("seconds", "cpu_seconds"))
            self.record = Record([dict(row) for row in stored["rows"]], int(stored["tokens"]), *before)
            self._unread, self._unmoved, self._even = map(int, stored["patience"])
        lines = "".join(dumps(row) + "\n" for row in self.record.rows)
        (checkpoint.parent / LIVE).write_text(lines, encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Keep a row, and look whether the run can go on."""
        found = {
            NAMES.get(name, name): float(value)
            for name, value in (logs or {}).items()
            if (name in NAMES or name.startswith(BY_TASK)) and value is not None
        }
        if "train_runtime" in (logs or {}) or not found:
            return
        tokens = self.record.tokens_before + int((logs or {}).get("optimiser_tokens", 0))
        row = {
            "step": state.global_step,
            "samples": round(state.global_step * self._samples_per_step),
            "tokens": tokens,
        }
        # What is not finite cannot be written, and stops the run below.
        kept = row | {name: value for name, value in found.items() if math.isfinite(value)}
        self.record.rows.append(kept)
        if args is not None and state.is_world_process_zero:
            with (Path(args.output_dir) / LIVE).open("a", encoding="utf-8") as file:
                file.write(dumps(kept) + "\n")
        self._judge(row | found)
        if self._token_budget and tokens >= self._token_budget:
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell how far the run is."""
        if self._progress is not None:
            self._progress(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the record into the checkpoint, and then the file that says that it is whole."""
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            patience = [self._unread, self._unmoved, self._even]
            stored = {
                "rows": self.record.rows,
                "tokens": self.record.last.get("tokens", 0),
                "patience": patience,
                "spent": self.spent(),
            }
            (folder / STATE).write_text(dumps(stored), encoding="utf-8")
            mark_complete(folder)

    def _judge(self, row: dict[str, float]) -> None:
        """Raise TrainingError if there is nothing to be learned in this way."""
        wrong = [name for name in ("loss", "gradient_norm", "reward") if not math.isfinite(row.get(name, 0.0))]
        if wrong:
            raise TrainingError(
                f"{wrong[0]} is {row[wrong[0]]} at step {row['step']}: lower --learning-rate"
                f" ({self.config.learning_rate:g}), or use --dtype float32"
            )
        self._unread = self._unread + 1 if row.get("parse_rate", 1.0) < LEAST_PARSED else 0
        self._unmoved = self._unmoved + 1 if row.get("gradient_norm", 1.0) == 0.0 else 0
        # All right is no failure: there, no reply differs from another because there is nothing left to learn.
        even = row.get("reward_sd", 1.0) < 1e-8 and row.get("success", 0.0) < 0.99
        self._even = self._even + 1 if even else 0
        if self._unread >= PATIENCE:
            raise TrainingError(
                f"fewer than {LEAST_PARSED:.0%} of the replies could be read over the last {PATIENCE} log rows, so that almost"
                " nothing is rewarded: warm up with --method sft and go on with --init, or add --format-reward 0.1"
            )
        if self._even >= PATIENCE:
            raise TrainingError(
                f"every reply got the same reward over the last {PATIENCE} log rows, so that nothing can be learned:"
                " raise --temperature or --rollout, or warm up with --method sft and go on with --init"
            )
        if self._unmoved >= PATIENCE:
            raise TrainingError(
                f"the gradient was 0 over the last {PATIENCE} log rows: nothing is trained; raise --temperature or"
                " --generations, or look whether --where names a part of this model"
            )


def by_task(tasks: Sequence[str], successes: Sequence[float]) -> dict[str, float]:
    """Measure name -> mean success of each task; empty if there is only one, whose success is the whole."""
    names = list(dict.fromkeys(tasks))
    if len(names) < 2:
        return {}
    own = {name: [s for task, s in zip(tasks, successes, strict=True) if task == name] for name in names}
    return {BY_TASK + name: sum(values) / len(values) for name, values in own.items()}


def mark_complete(checkpoint: Path) -> None:
    """Say of a checkpoint that it is whole, with the hash of every file in it."""
    (checkpoint / COMPLETE).write_text(dumps(_hashes(checkpoint), indent=1) + "\n", encoding="utf-8")


def last_checkpoint(folder: Path, warn: Callable[..., None] = log.warning) -> Path | None:
    """The latest whole checkpoint of a run; None if none was finished.

    Args:
        folder: Of the checkpoints.
        warn: Told of those that are damaged and passed over, as a logger is.

    Raises:
        TrainingError: If all of them are damaged.
    """
    wrong = ""
    for _, path in sorted(finished_checkpoints(folder), reverse=True):
        if wrong:
            warn("%s: resuming from the checkpoint before it, if that is whole", wrong)
        wrong = _damage(path)
        if not wrong:
            return path
    if wrong:
        raise TrainingError(f"{wrong}, and there is no whole checkpoint before it: {RESTART}")
    return None


def _damage(checkpoint: Path) -> str:
    """What is damaged in a checkpoint; empty if it is as it was written."""
    try:
        with reading(checkpoint / COMPLETE, TrainingError, RESTART):
            written = parse_object((checkpoint / COMPLETE).read_bytes())
            found = _hashes(checkpoint)
    except TrainingError as error:
        return str(error).partition(": ")[0]
    changed = [name for name in written if found.get(name) != written[name]]
    return f"{checkpoint / changed[0]} is {'damaged' if changed[0] in found else 'missing'}" if changed else ""


def _hashes(checkpoint: Path) -> dict[str, str]:
    """Path of every file of a checkpoint, except for the mark itself -> its SHA-256."""
    found = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / COMPLETE):
        with path.open("rb") as file:
            found[path.relative_to(checkpoint).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def finished_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run that were written to their end, with the numbers of their steps."""
    finished = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return [(int(number), path) for path in finished if (number := path.name.partition("-")[2]).isdecimal()]


PANELS = (
    (
        "share of replies",
        (
            ("success", "success"),
            ("first_success", "at the first attempt"),
            ("parse_rate", "read"),
            ("zero_spread", "groups without spread"),
        ),
    ),
    ("reward", (("reward", "mean"), ("reward_sd", "standard deviation"))),
    ("loss", (("loss", "loss"), ("value_loss", "value loss"))),
    (
        "entropy, KL (nats per token)",
        (("entropy", "entropy"), ("kl", "KL from the start"), ("policy_kl", "KL per rollout")),
    ),
    ("explained variance", (("explained_variance", "of the returns"),)),
    ("gradient norm", (("gradient_norm", "norm"),)),
    ("auxiliary loss", (("auxiliary_loss", "squared error"),)),
)
INCH = 25.4


def draw_curves(rows: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Draw the curves of a run.

    Args:
        rows: Log rows, with `samples` and the measures that the method has.
        title: What was trained.
        file: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = dict.fromkeys(name for row in rows for name in row if name.startswith(BY_TASK))
    by_task = ("success by task", tuple((name, name.removeprefix(BY_TASK)) for name in tasks))
    wanted = (PANELS[0], by_task, *PANELS[1:])
    panels = [(label, [line for line in lines if any(line[0] in row for row in rows)]) for label, lines in wanted]
    panels = [(label, lines) for label, lines in panels if lines]
    across = min(3, max(1, len(panels)))
    down = -(-len(panels) // across) or 1
    figure = Figure(figsize=(across * 60 / INCH, (down * 48 + 8) / INCH), layout="constrained", dpi=200)
    FigureCanvasAgg(figure)
    for place, (label, lines) in enumerate(panels):
        axes = figure.add_subplot(down, across, place + 1)
        for name, text in lines:
            points = [(row["samples"], row[name]) for row in rows if row.get(name) is not None]
            axes.plot(*zip(*points, strict=True), label=text, linewidth=1)
        # A share without a legend would not say of what.
        axes.set_ylabel("success" if [name for name, _ in lines] == ["success"] else label, fontsize=7)
        axes.set_xlabel("samples", fontsize=7)
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
        if label in ("share of replies", "success by task"):
            axes.set_ylim(-0.02, 1.02)
        if len(lines) > 1:
            axes.legend(fontsize=6, frameon=False)
    figure.suptitle(title, fontsize=8)
    figure.savefig(file)
