from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

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
    """A table of simulated judgements with the columns of `analysis.frame`.

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
