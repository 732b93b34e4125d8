from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from vlm_probe.probes.trials import COLUMNS, TrialLog, trials_hash

Rows = list[dict[str, Any]]
BINS = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.7), (0.7, 1.0))


def judgement_rows(p_stands: Callable[[float], float], per_bin: int = 60, seed: int = 0, graded: bool = False) -> Rows:
    """Trials of a stability judgement by an observer who says "stands" with a probability that the margin gives."""
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for low, high in (*((-b, -a) for a, b in reversed(BINS)), *BINS):
        for index in range(per_bin):
            margin = float(rng.uniform(low, high))
            truth = "stands" if margin > 0 else "falls"
            p = p_stands(margin)
            answer = "stands" if rng.random() < p else "falls"
            polarity, order = index % 2, index // 2 % 2
            yes = ("stands", "falls")[polarity]
            options = [yes, "falls" if yes == "stands" else "stands"]
            rows.append(
                {
                    "key": f"{low}-{index}",
                    "item_id": f"{low}-{index}",
                    "task": "towers-stability",
                    "model": "synthetic",
                    "readout": "options" if graded else "generate",
                    "answer": answer,
                    "answer_text": "yes" if answer == yes else "no",
                    "status": "ok",
                    "options": options if order == 0 else options[::-1],
                    "p_correct": (p if truth == "stands" else 1 - p) if graded else None,
                    "truth": truth,
                    "correct": answer == truth,
                    "success": answer == truth,
                    "reward": float(answer == truth),
                    "margin": margin,
                    "condition": {"count": 2 + index % 3, "margin_bin": [low, high], "build": "plain"},
                    "variant": {"paraphrase": 0, "polarity": polarity, "order": order},
                    "pair_id": f"{abs(low) + abs(high):.2f}-{index}",
                    "error": None,
                }
            )
    return rows


def action_rows(per_build: int = 30, seed: int = 0) -> Rows:
    """Trials of an action: the further the block has to go, the fewer attempts work."""
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for build, p in (("2to4cm", 0.8), ("5to7cm", 0.5), ("8to10cm", 0.3), ("11to13cm", 0.1)):
        for index in range(per_build):
            success = bool(rng.random() < p)
            rows.append(
                {
                    "key": f"{build}-{index}",
                    "task": "towers-topblock",
                    "model": "synthetic",
                    "readout": "generate",
                    "answer": 3,
                    "answer_text": "3",
                    "status": "ok",
                    "options": None,
                    "p_correct": None,
                    "truth": int(build.split("to")[0]),
                    "correct": success,
                    "success": success,
                    "reward": 1.0 if success else 0.25,
                    "margin": -0.5,
                    "condition": {"count": 3, "margin_bin": [-2.0, -0.1], "build": build},
                    "variant": {"polarity": 0, "order": 0},
                    "pair_id": f"{build}-{index}",
                    "error": None,
                }
            )
    return rows


@pytest.fixture
def judgements() -> Callable[..., Rows]:
    return judgement_rows


@pytest.fixture
def actions() -> Callable[..., Rows]:
    return action_rows


def trial_table(
    cells: dict[tuple[str, str, str], float],
    runs: int = 3,
    items: int = 60,
    run_sd: float = 0.0,
    item_sd: float = 0.0,
    seed: int = 0,
    task_shift: str = "none",
) -> pd.DataFrame:
    """A table of simulated judgements with the columns of `vlm_probe.analysis.frame`.

    Args:
        cells: (method, training task, test task) -> log odds of a right answer. Method "none" is one untrained run.
        runs: Runs (seeds) per trained cell.
        items: Items per test task; the same for all runs, in pairs of foils.
        run_sd, item_sd: Standard deviations of the effects of (trained) runs and items on the log odds.
        seed: Of everything random.
        task_shift: The shift of all items.
    """
    rng = np.random.default_rng(seed)
    tasks = sorted({test for _, _, test in cells})
    item_effects = {task: rng.normal(0, item_sd, items) for task in tasks}
    size = {task: rng.uniform(0.1, 1.0, items // 2 + 1) for task in tasks}
    run_effects: dict[str, float] = {}
    parts = []
    for (method, train, test), log_odds in cells.items():
        for number in range(1 if method == "none" else runs):
            run = f"tiny {method} {train} {number}"
            effect = run_effects.setdefault(run, float(rng.normal(0, run_sd)) if method != "none" else 0.0)
            index = np.arange(items)
            stands = index % 2 == 0
            correct = rng.random(items) < expit(log_odds + effect + item_effects[test])
            truth = np.where(stands, "stands", "falls")
            answer = np.where(correct, truth, np.where(stands, "falls", "stands"))
            parts.append(
                pd.DataFrame(
                    {
                        "run": run,
                        "model": "tiny",
                        "method": method,
                        "train_tasks": train,
                        "train_family": train.partition("-")[0],
                        "seed": number,
                        "test_task": test,
                        "test_family": test.partition("-")[0],
                        "shift": task_shift,
                        "shift_level": 0 if task_shift == "none" else 1,
                        "transfer": _transfer(train, test, task_shift),
                        "item_id": [f"{test} {i}" for i in index],
                        "pair_id": [f"{test} p{i // 2}" for i in index],
                        "group_id": [f"{test} g{i // 4}" for i in index],
                        "role": np.where(stands, "base", "foil1"),
                        "margin": np.where(stands, 1, -1) * size[test][index // 2],
                        "build": np.where(index // 2 % 4 == 0, "tricky", "plain"),
                        "count": 2 + index // 2 % 3,
                        "manner": "",
                        "examples": 0,
                        "attempt": 1,
                        "answer": answer,
                        "truth": truth,
                        "signal": "stands",
                        "correct": correct.astype(int),
                        "success": correct.astype(int),
                        "reward": correct.astype(float),
                        "p_correct": np.nan,
                        "chance": 0.5,
                        "status": "ok",
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def _transfer(train: str, test: str, shift: str) -> str | None:
    if train == "none":
        return None
    if train == test:
        return "within" if shift == "none" else "shifted"
    return "cross-task" if train.partition("-")[0] == test.partition("-")[0] else "cross-family"


@pytest.fixture
def simulated() -> Callable[..., pd.DataFrame]:
    return trial_table


# What a synthetic model gets right, in logits: of its own task after training, of others, and without training.
LEARNED, CARRIED = {"sft": 2.0, "ppo": 1.5, "grpo": 1.5}, {"sft": 0.0, "ppo": 0.2, "grpo": 0.2}
TASKS = ("towers-stability", "towers-topblock", "balance-tilt")
TWO_OPTIONS = {"towers-stability": ("stands", "falls"), "support-hold": ("stays up", "comes down")}


def run_rows(
    task: str = "towers-stability",
    *,
    logit: float = 0.0,
    slope: float = 0.0,
    n: int = 48,
    seed: int = 0,
    shifts: Sequence[tuple[str, int]] = (),
    manner: str = "",
    model: str = "tiny",
    readout: str = "generate",
) -> Rows:
    """The log rows of one run: success has this logit, plus `slope` times |margin|, plus an effect of the item.

    Items are the same in all runs of a task: two of opposite margin in every pair.
    """
    rng, of_items = np.random.default_rng([seed, 1]), np.random.default_rng(7)
    options = TWO_OPTIONS.get(task)
    rows: Rows = []
    code = "".join(f"_{name}{level}" for name, level in shifts)
    for index in range(n):
        size = BINS[(index // 2) % len(BINS)]
        margin = float(of_items.uniform(*size)) * (1 if index % 2 else -1)
        low, high = size if margin > 0 else (-size[1], -size[0])
        p = 1 / (1 + np.exp(-(logit + slope * abs(margin) + of_items.normal(0, 0.5))))
        right = bool(rng.random() < p)
        item = (
            f"{task}_v1_s0_g{index // 2:05d}_n3_m{low:+.2f}{high:+.2f}_plain{code}_{'foil1' if index % 2 else 'base'}"
        )
        if options is not None:
            truth: Any = options[0] if margin > 0 else options[1]
            answer: Any = truth if right else options[margin > 0]
        else:
            truth, answer = 4, 4 if right else -1
        key = hashlib.sha256(f"{item} {manner} {model} {readout} {seed}".encode()).hexdigest()
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        rows.append(
            row
            | {
                "key": key,
                "item_id": item,
                "task": task,
                "task_version": 1,
                "model": model,
                "readout": readout,
                "prompt": "?",
                "raw": str(answer),
                "answer": answer,
                "answer_text": str(answer),
                "status": "ok",
                "options": list(options) if options else None,
                "truth": truth,
                "correct": right,
                "success": right,
                "reward": 1.0 if right else 0.0,
                "detail": {},
                "n_candidates": 2 if options else 41,
                "chance": 0.5 if options else 3 / 41,
                "margin": margin,
                "condition": {
                    "count": 3,
                    "margin_bin": [low, high],
                    "build": ("plain", "counterweighted")[index // 2 % 2],
                    "mirrored": False,
                    "shifts": [list(shift) for shift in shifts],
                },
                "variant": {"paraphrase": 0, "polarity": 0, "order": 0},
                "manner": {"code": manner, "control": manner or "intact", "examples": 0},
                "examples": [],
                "pair_id": f"{task}_v1_s0_g{index // 2:05d}",
                "group_id": f"{task}_v1_s0_g{index // 2:05d}",
                "role": "foil1" if index % 2 else "base",
                "image_sha256": hashlib.sha256(item.encode()).hexdigest(),
                "scene_sha256": hashlib.sha256(item.encode()).hexdigest(),
                "latency_s": 0.01,
                "time": "2026-01-01T00:00:00.000+00:00",
            }
        )
    return rows


def write_run(
    folder: Path,
    rows: Rows,
    *,
    method: str = "none",
    train_tasks: Sequence[str] = (),
    seed: int = 0,
    samples: int = 1000,
    temperature: float = 0.0,
    **training: Any,
) -> Path:
    """Write rows as `probe run` would; of an adapter, with the facts of its training."""
    trained = method != "none"
    model = str(rows[0]["model"])
    adapter = hashlib.sha256(f"{method} {train_tasks} {seed} {training}".encode()).hexdigest() if trained else ""
    facts = {"method": method, "tasks": list(train_tasks), "seed": seed, "budget": {"samples": samples}} | training
    record = {
        "format": 1,
        "status": "running",
        "config": {"model": model, "temperature": temperature},
        "seed": 0 if trained else seed,
        "n": len(rows),
        "n_errors": 0,
        "model": {"name": model, "revision": "", "weights_sha256": f"weights of {model}", "adapter_sha256": adapter},
        "training": facts if trained else None,
        "stimuli": {
            "path": "sets/synthetic",
            "content_sha256": hashlib.sha256(str(rows[0]["task"]).encode()).hexdigest(),
            "task": rows[0]["task"],
            "n": len(rows),
            "baselines": {"chance": 0.5, "constant": {"answer": "falls", "score": 0.5}, "shortcuts": {"height": 0.55}},
        },
        "fingerprint": {"adapter": adapter, "model": model},
        "resumed": 0,
    }
    who = f"{adapter} {seed if temperature else ''}"
    with TrialLog(folder, record) as log:
        for row in rows:
            log.append(row | {"key": hashlib.sha256(f"{row['key']} {who}".encode()).hexdigest()})
        log.update(status="finished", trials_sha256=trials_hash(folder))
    return folder


def write_study(
    folder: Path,
    *,
    methods: Sequence[str] = ("sft", "grpo"),
    seeds: int = 3,
    tasks: Sequence[str] = TASKS,
    n: int = 48,
    shifts: Sequence[tuple[str, int]] = (),
) -> list[Path]:
    """A small study: an untrained model and adapters trained on the first task, all of them asked every task."""
    found = [write_run(folder / f"base-{task}", run_rows(task, n=n)) for task in tasks]
    for method in methods:
        for seed in range(seeds):
            luck = np.random.default_rng([seed, len(method)]).normal(0, 0.3)
            for task in tasks:
                own = task == tasks[0]
                logit = (LEARNED if own else CARRIED)[method] + luck
                rows = run_rows(task, logit=logit, slope=2.0 if own else 0.0, n=n, seed=100 * seed + len(method))
                out = folder / f"{method}-{seed}-{task}"
                found.append(write_run(out, rows, method=method, train_tasks=tasks[:1], seed=seed))
                if own and shifts:
                    rows = run_rows(task, logit=logit / 2, n=n, seed=100 * seed + len(method) + 50, shifts=shifts)
                    found.append(
                        write_run(
                            out.with_name(f"{out.name}-shifted"), rows, method=method, train_tasks=tasks[:1], seed=seed
                        )
                    )
    return found


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of a small study (see `write_study`); not to be changed."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, shifts=(("camera", 2),))
    return folder


def saying(trials: pd.DataFrame, answer: np.ndarray) -> pd.DataFrame:
    """The trials with these answers instead."""
    right = (answer == trials["truth"].to_numpy()).astype(int)
    return trials.assign(answer=answer, correct=right, success=right)


def answering(trials: pd.DataFrame, p_stands: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """The trials with answers drawn with these probabilities of "stands"."""
    said = np.random.default_rng(seed).random(len(trials)) < p_stands
    return saying(trials, np.where(said, "stands", "falls"))
