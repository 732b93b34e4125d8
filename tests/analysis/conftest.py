from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

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
