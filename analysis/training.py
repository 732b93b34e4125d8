"""How a model was trained: the facts that a run has of its adapter, what the run is called, and curves of training runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vlm_probe.analysis.levels import families
from vlm_probe.probes.trials import RunError
from vlm_probe.stimuli.errors import reading
from vlm_probe.stimuli.plain_json import dumps, parse_object
from vlm_probe.stimuli.shifts import Shifts, parse_shifts

TRAINING = "training.json"
UNKNOWN = "unknown"
"""Method of an adapter that nothing is known about."""
RANDOM_ANSWERS = "demonstrations random"
"""Regime of the format-only control, which learned random legal answers."""
AFTER = "after "
"""How the regime of a training run begins that went on from an adapter."""
MEASURES = ("success", "reward", "parse_rate", "step", "tokens")
"""What curves are kept of, next to the samples seen."""
CURVE_COLUMNS = ("run", "model", "method", "train_tasks", "train_family", "regime", "seed", "samples", *MEASURES)


@dataclass(frozen=True)
class Training:
    """How a model was trained; an untrained one has no method.

    Attributes:
        method: "none", "sft", "ppo", ...; `UNKNOWN` if nobody wrote it down.
        tasks: Tasks that were trained on, sorted.
        shifts: Shifts that were trained under.
        seed: Of the training run.
        samples: That were seen; None if unknown.
        regime: What else was special, empty if nothing.
    """

    method: str = "none"
    tasks: tuple[str, ...] = ()
    shifts: Shifts = ()
    seed: int = 0
    samples: float | None = 0
    regime: str = ""

    def columns(self) -> dict[str, Any]:
        """As columns of the tidy table."""
        return {
            "method": self.method,
            "train_tasks": "+".join(self.tasks) or "none",
            "train_family": families(self.tasks) or "none",
            "regime": self.regime,
            "seed": self.seed,
            "samples": self.samples,
        }

    def label(self, model: str) -> str:
        """What a run of the trained model is called."""
        what = [self.method, "+".join(self.tasks), f"({self.regime})" if self.regime else "", f"seed {self.seed}"]
        return " ".join(filter(None, (model, *what)))


def training_of(record: Mapping[str, Any]) -> Training:
    """How the model of a run was trained, from its `run.json`: by an adapter, or as a whole."""
    seed = int(record.get("seed") or 0)
    facts = record.get("training") or {}
    if not (record.get("model") or {}).get("adapter_sha256") and not facts.get("method"):
        return Training(seed=seed)
    return read_facts(facts, seed)


def read_facts(facts: Mapping[str, Any], seed: int = 0) -> Training:
    """A training run from the entries of `training.json`.

    Args:
        facts: The entries; what is not there has its default.
        seed: Of the training run, where the entries do not say.
    """
    tasks = facts.get("tasks") or ()
    return Training(
        method=str(facts.get("method") or UNKNOWN),
        tasks=tuple(sorted(tasks.split(",") if isinstance(tasks, str) else map(str, tasks))),
        shifts=parse_shifts(str(facts.get("shift") or "")),
        seed=facts.get("seed", seed),
        samples=(facts.get("budget") or {}).get("samples"),
        regime=_regime(facts),
    )


def read_curves(folder: Path) -> pd.DataFrame:
    """The curves of a training run, one row per logged step, with `CURVE_COLUMNS`; empty if none were kept.

    Raises:
        RunError: If its `training.json` cannot be read.
    """
    path = folder / TRAINING
    with reading(path, RunError, "leave the folder out"):
        facts = parse_object(path.read_bytes())
        rows: Sequence[Mapping[str, Any]] = facts.get("curves") or ()
        training = read_facts(facts)
        found = pd.DataFrame([{"samples": row["samples"]} | {m: row.get(m) for m in MEASURES} for row in rows])
    if found.empty:
        return pd.DataFrame(columns=list(CURVE_COLUMNS))
    model = model_name(str(facts.get("model") or ""))
    columns = training.columns() | {"run": training.label(model), "model": model}
    del columns["samples"]
    return found.assign(**columns)[list(CURVE_COLUMNS)]


def model_name(name: str) -> str:
    """A model as it is written in tables: of a path, the last part."""
    return Path(name).name if name.startswith(("/", ".", "~")) else name


def who(model: str, training: Training, sample: int, record: Mapping[str, Any]) -> dict[str, str]:
    """The name of who answered, and the hash that tells it from others: a trained adapter, or an untrained model.

    Samples of an untrained model with different seeds are runs of their own, because nothing else varies between them;
    samples of an adapter are repeated measures of it.

    Args:
        model: What the model is called.
        training: How it was trained.
        sample: Seed of its sampled replies.
        record: The contents of `run.json`.
    """
    facts = record.get("model") or {}
    parts = [str(facts.get(name) or "") for name in ("name", "revision", "weights_sha256", "adapter_sha256")]
    files = facts.get("files")
    if files:  # left out by observers, whose hash says everything
        parts.append(dumps(files, sort_keys=True))
    if training.method == "none":
        run = f"{model} sample {sample}" if sample else model
        parts.append(str(sample))
    else:
        run = training.label(model)
    return {"run": run, "identity": hashlib.sha256("\n".join(parts).encode()).hexdigest()}


def _start(facts: Mapping[str, Any]) -> str:
    """What an adapter was that training went on from: what it had learned, so that seeds are runs of one kind, or else its hash."""
    before = facts.get("lineage") or ()
    if not before:
        return f"init {str(facts['init'])[:8]}"
    steps = [f"{step.get('method', UNKNOWN)} on {'+'.join(step.get('tasks') or [UNKNOWN])}" for step in before]
    return AFTER + ", then ".join(steps)


def _regime(facts: Mapping[str, Any]) -> str:
    """What was special about a training run: everything but method, tasks, seed and budget that is not the default."""
    parts = []
    if facts.get("demonstrations") == "random":
        parts.append(RANDOM_ANSWERS)
    for name in ("shift", "curriculum", "auxiliary"):
        value = facts.get(name)
        if value not in (None, "", "none", False, 0, [], {}):
            parts.append(f"{name} {value}")
    if facts.get("init"):
        parts.append(_start(facts))
    if int(facts.get("attempts") or 1) > 1:
        memory = facts.get("memory")
        parts.append(
            f"{facts['attempts']} attempts" + (f", memory {memory}" if memory not in (None, "", "none") else "")
        )
    return ", ".join(parts)
