"""`probe train`: adapt a model to a task, by demonstrations or by reinforcement learning against the simulator."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Jobs, Json

if TYPE_CHECKING:
    from vlm_probe.stimuli.output import OutputFolder


def train(
    *,
    model: str,
    tasks: str,
    method: Literal["sft", "ppo", "grpo", "rloo"],
    out: Path | None = None,
    seed: int | None = None,
    preset: str | None = None,
    budget: str | None = None,
    items: int | None = None,
    size: int | None = None,
    shift: str | None = None,
    diversity: str | None = None,
    style: Literal["direct", "think"] | None = None,
    batch: int | None = None,
    micro_batch: int | None = None,
    learning_rate: float | None = None,
    schedule: Literal["constant", "linear", "cosine"] | None = None,
    warmup: float | None = None,
    max_grad_norm: float | None = None,
    rollout: int | None = None,
    generations: int | None = None,
    epochs: int | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    beta: float | None = None,
    clip: float | None = None,
    entropy_bonus: float | None = None,
    success_reward: bool | None = None,
    format_reward: float | None = None,
    target_kl: float | None = None,
    adaptive_kl: float | None = None,
    gamma: float | None = None,
    gae_lambda: float | None = None,
    value_coefficient: float | None = None,
    value_clip: float | None = None,
    value_learning_rate: float | None = None,
    rank: int | None = None,
    alpha: int | None = None,
    dropout: float | None = None,
    where: Literal["language", "vision", "projector", "all", "full"] | None = None,
    load_in_4bit: Annotated[bool | None, Parameter(name="--load-in-4bit")] = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    device: str | None = None,
    gradient_checkpointing: bool | None = None,
    init: str | None = None,
    demonstrations: Literal["expert", "random"] | None = None,
    curriculum: str | None = None,
    attempts: int | None = None,
    memory: str | None = None,
    discount: float | None = None,
    auxiliary: float | None = None,
    auxiliary_target: str | None = None,
    auxiliary_layer: int | None = None,
    avoid: str | None = None,
    save_every: int | None = None,
    report_to: Literal["none", "trackio", "wandb", "tensorboard"] | None = None,
    force: bool | None = None,
    jobs: Jobs = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Adapt a model to tasks; save the adapter, how it was made, and its curves.

    The same command again goes on where it was stopped. What is not given comes from the preset, else from the defaults.

    Args:
        model: Short name (see `probe models`), local folder or hub id of the base model.
        tasks: Tasks to train on, separated by commas, with weights where their shares differ: `towers-stability:2,balance-tilt`.
        method: `sft`: an expert's answers. `ppo`, `grpo`, `rloo`: trying out, rewarded by the simulator.
        out: Folder of the run; by default adapters/MODEL_TASKS_METHOD_sSEED.
        seed: Of items, their order, the adapter's first weights, and sampled replies.
        preset: `tiny` (the default for the embedded model), `24gb` or `80gb`.
        budget: `samples=5000`, `steps=200` or `tokens=1e6`.
        items: Distinct training items.
        size: Edge of the pictures (pixels).
        shift: Shifts that are drawn for every training scene, with their highest levels: `visual:2` (domain randomisation).
        diversity: Limits on the training set: `conditions=2`, `wordings=1`, or both.
        style: Ask for the bare answer, or for reasoning first.
        batch: Samples per step of the optimiser, over all processes.
        micro_batch: Samples per forward pass of a process; 0: as many as the batch asks for.
        learning_rate: The highest.
        schedule: Of the learning rate, after the warm-up.
        warmup: Share of the steps in which the learning rate rises.
        max_grad_norm: Norm to which gradients are clipped.
        rollout: Replies generated between updates.
        generations: Replies per prompt.
        epochs: Passes over a rollout.
        temperature: Of sampled replies.
        max_new_tokens: Longest reply; 0: as long as the longest legal answer.
        beta: Weight of the KL divergence from the base model.
        clip: Clip range of the probability ratios.
        entropy_bonus: Weight of the entropy (ppo, grpo, rloo).
        success_reward: Reward success alone, instead of the task's graded reward.
        format_reward: Extra reward for a reply that can be read.
        target_kl: Leave out the rest of a rollout's steps once the policy has moved so far (ppo).
        adaptive_kl: KL divergence per reply that beta is steered towards (ppo).
        gamma: Discount per token (ppo).
        gae_lambda: Of generalised advantage estimation (ppo).
        value_coefficient: Weight of the value loss (ppo).
        value_clip: Clip range of the values (ppo).
        value_learning_rate: Of the value head; 0: as the policy's (ppo).
        rank: Of LoRA.
        alpha: Of LoRA.
        dropout: Of LoRA.
        where: What is adapted; `full`: every weight.
        load_in_4bit: Quantise the base model to four bits.
        dtype: Number format of the weights.
        device: `cpu` or `cuda`; by default a GPU, if there is one.
        gradient_checkpointing: Trade time for memory.
        init: Adapter to go on from.
        demonstrations: `expert`, or `random`: legal answers at random, the control for what learning the form of answers does (sft).
        curriculum: `none`, `easy-to-hard`, `hard-to-easy`, or `adaptive` to success.
        attempts: Attempts per scene (closed loop).
        memory: `none`, `last-k` or `all` earlier attempts in the context.
        discount: Factor on the reward for every earlier attempt.
        auxiliary: Weight of the auxiliary loss on the physical state.
        auxiliary_target: What it predicts: `margin`, or another number that `probe decode` knows.
        auxiliary_layer: Language layer that it reads, from 1; 0: the middle one.
        avoid: Test sets whose scenes must not be trained on, separated by commas, beside the tasks' standard sets.
        save_every: Samples between checkpoints; 0: a tenth of the run.
        report_to: Where to report progress.
        force: Train on a held-out task all the same.
    """
    given = {name: value for name, value in locals().items() if name not in ("out", "preset", "jobs", "json", "config")}
    from vlm_probe.finetune.config import check_needs, make_config
    from vlm_probe.probes.cli.console import progress, show, show_json
    from vlm_probe.probes.cli.errors import SUCCESS, check_texts
    from vlm_probe.probes.cli.resources import check_model_name, cores
    from vlm_probe.probes.cli.settings import listed
    from vlm_probe.probes.models.catalog import lookup

    if avoid is not None:
        given["avoid"] = tuple(listed(avoid))
    given = with_tasks(given, tasks)
    check_model_name(model)
    embedded = lookup(model).kind == "embedded"
    resolved = make_config(given, preset if preset is not None else "tiny" if embedded else "")
    folder = out or Path("adapters") / run_name(resolved)
    check_texts({"--out": str(folder.resolve())})
    check_needs(resolved)  # before transformers is imported, which takes longest of all
    # Where bitsandbytes is installed, importing peft loads it, and it complains of an optional kernel on some CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from vlm_probe.finetune.train import KIND, is_first
    from vlm_probe.finetune.train import train as run
    from vlm_probe.stimuli.output import claim

    with progress(f"{method} of {model}") as step:
        result = run(resolved, folder, jobs=jobs or cores(), progress=step)
    if not is_first():
        return SUCCESS
    with claim(folder, KIND) as output:
        _save_settings(output, resolved.to_dict() | {"out": str(folder.resolve())})
    if json:
        show_json(result | {"out": str(folder)})
    else:
        show(_table(result, folder))
    return SUCCESS


def with_tasks(settings: dict[str, Any], tasks: str) -> dict[str, Any]:
    """Settings of a training with its tasks and their weights.

    Args:
        settings: Fields of the configuration.
        tasks: Separated by commas, with weights where their shares differ: `towers-stability:2,balance-tilt`.

    Raises:
        UnknownName, TrainingError: If there is no such task, or a weight is no number.
    """
    from vlm_probe.finetune.mixture import parse_mixture
    from vlm_probe.probes.cli.resources import task_name

    mixture = parse_mixture(tasks)
    equal = len({round(share.share, 9) for share in mixture}) == 1
    names = tuple(task_name(share.task) for share in mixture)
    return settings | {"tasks": names, "weights": () if equal else _weights(mixture)}


def run_name(config: Any) -> str:
    """The default folder of a run."""
    model = Path(config.model).name or config.model
    return f"{model}_{'+'.join(config.tasks)}_{config.method}_s{config.seed}"


def _weights(mixture: Any) -> tuple[float, ...]:
    """The weights of the tasks, the smallest being 1."""
    least = min(share.share for share in mixture)
    return tuple(round(share.share / least, 6) for share in mixture)


def _save_settings(folder: OutputFolder, settings: dict[str, Any]) -> None:
    from vlm_probe.probes.cli.settings import save

    weights = settings.pop("weights") or [1] * len(settings["tasks"])
    settings["tasks"] = [f"{task}:{weight:g}" for task, weight in zip(settings["tasks"], weights, strict=True)]
    flat = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in settings.items()}
    save(folder, "train", {name: value for name, value in flat.items() if value != ""})


def _table(result: dict[str, Any], folder: Path) -> Any:
    """What came of it, at the beginning and at the end of the run."""
    from rich.table import Table

    rows = result["curves"]
    tenth = max(1, len(rows) // 10)
    parts = (rows[:tenth], rows[-tenth:])
    budget = result["budget"]
    title = (
        f"{result['method']} of {result['model']} on {', '.join(result['tasks'])}: {budget['samples']} samples,"
        f" {budget['steps']} steps, {budget['tokens']} tokens"
    )
    table = Table(title=title, title_justify="left", title_style="", box=None)
    for column in ("measure", "first tenth", "last tenth"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for name in dict.fromkeys(key for row in rows for key in row if key not in ("step", "samples", "tokens")):
        means = []
        for part in parts:
            values = [row[name] for row in part if name in row]
            means.append(f"{sum(values) / len(values):.4g}" if values else "")
        table.add_row(name, *means)
    table.caption = f"adapter, training.json and curves.png in {folder}"
    return table
