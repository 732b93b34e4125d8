"""Simulated trials of three methods with five runs each, and a logistic mixed model of them."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from vlm_probe.analysis import fit

FORMULA = "correct ~ method*margin + (1|run) + (1 + margin|item)"


def simulate(seed=1, runs=5, items=60, per_run=50):
    rng = np.random.default_rng(seed)
    item_effect, item_margin = rng.normal(0, 0.7, items), rng.uniform(-0.7, 0.7, items)
    rows = []
    for m, method in enumerate(["none", "sft", "ppo"]):
        for replicate in range(runs):
            item = rng.choice(items, per_run, replace=False)
            predictor = 0.2 + 0.4 * m + rng.normal(0, 0.4) + item_effect[item] + 0.8 * item_margin[item]
            rows.append(
                pd.DataFrame(
                    {
                        "correct": rng.random(per_run) < expit(predictor),
                        "rt": predictor + rng.normal(0, 1, per_run),
                        "method": method,
                        "run": f"{method}-{replicate}",
                        "item": item,
                        "margin": item_margin[item],
                    }
                )
            )
    table = pd.concat(rows, ignore_index=True)
    table["method"] = pd.Categorical(table["method"], ["none", "sft", "ppo"])
    return table


def quietly(*args, **kwargs):
    """A fit whose warnings are looked at in the result."""
    with warnings.catch_warnings(action="ignore"):
        return fit(*args, **kwargs)


@pytest.fixture(scope="session")
def trials():
    return simulate()


@pytest.fixture(scope="session")
def logistic(trials):
    return quietly(FORMULA, trials, family="binomial")


@pytest.fixture(scope="session")
def linear(trials):
    return quietly("rt ~ method*margin + (1|run) + (1|item)", trials)
