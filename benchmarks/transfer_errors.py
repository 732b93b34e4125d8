"""Error rates of the transfer contrasts: how often they reject a true null, how often intervals contain the truth, and what is named.

    python benchmarks/transfer_errors.py [--studies 1000] [--scenarios 200] [--out benchmarks/transfer_errors.csv]

A study has one untrained run and trained runs that answer the same items, in groups of two that depend on each other. Log odds are normal: runs,
groups, and groups for the trained model alone have the standard deviations of `KINDS`. Rates over runs and items are equal (or differ by the bound,
for the equivalence test), so that every rejection is wrong. With random tests, what a training run does differs from test to test: the claim is
then about these tests. The scenarios are whole studies with one kind of transfer each; the table says how often each verdict came out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from vlm_probe.analysis.effect_sizes import log_odds_of
from vlm_probe.analysis.equivalence import equivalence
from vlm_probe.analysis.run_means import Side, compare
from vlm_probe.analysis.source_target import transfer_contrasts

KINDS = {"usual": (0.3, 0.7, 0.2), "wide": (0.3, 2.0, 1.0), "near deterministic": (0.5, 4.0, 3.0)}
DESIGNS = {
    "1 method x 3 seeds": (1, 3),
    "1 method x 5 seeds": (1, 5),
    "1 method x 10 seeds": (1, 10),
    "3 methods x 1 seed": (3, 1),
    "3 methods x 3 seeds": (3, 3),
}
RATE, BOUND, ALPHA = 0.5, 0.1, 0.05
SCENARIOS = ("none", "reversed", "partial", "format only", "positive")


def study(
    rng: np.random.Generator,
    sds: tuple[float, float, float],
    design: tuple[int, int],
    tests: int,
    difference: float,
    spread: float,
) -> Any:
    """Answers (runs, items) of one study, untrained run last, with tests and groups of the items."""
    run_sd, item_sd, own_sd = sds
    methods, seeds = design
    items = 80
    test = np.repeat(np.arange(tests), items)
    cluster = np.arange(tests * items) // 2
    of_item = rng.normal(0, item_sd, tests * items // 2)[cluster]
    of_own = rng.normal(0, own_sd, (methods, tests * items // 2))[:, cluster]
    moved = rng.normal(0, spread, tests)
    moved = (moved - moved.mean())[test]
    start = log_odds_of(RATE, item_sd)
    mean = log_odds_of(RATE + difference, float(np.hypot(np.hypot(item_sd, own_sd), run_sd)))
    rows = [
        mean + of_item + of_own[method] + moved + rng.normal(0, run_sd)
        for method in range(methods)
        for _ in range(seeds)
    ]
    eta = np.array([*rows, start + of_item])
    return (rng.random(eta.shape) < expit(eta)).astype(float), test, cluster


def row(kind: str, design: str, tests: int, spread: float, studies: int) -> dict[str, Any]:
    """One row of the table of errors."""
    methods, seeds = DESIGNS[design]
    n = methods * seeds
    kinds = tuple(str(i // seeds) for i in range(n))
    trained, base = Side(np.arange(n), kinds), Side(np.array([n]), ("none",), fixed=True)
    over, covered, wrong, width = [], [], [], []
    for number in range(studies):
        rng = np.random.default_rng([number, tests, n])
        y, test, cluster = study(rng, KINDS[kind], DESIGNS[design], tests, 0.0, spread)
        weights = np.full(len(test), 1 / len(test))
        e = compare(y, weights, test, cluster, trained, base).over_runs
        over.append(e.p < ALPHA)
        covered.append(e.low <= 0 <= e.high)
        width.append(e.high - e.low)
        y, test, cluster = study(rng, KINDS[kind], DESIGNS[design], tests, BOUND, spread)
        e = compare(y, weights, test, cluster, trained, base).over_runs
        wrong.append(equivalence(e.value, e.se, BOUND, e.df, ALPHA).p < ALPHA)
    means = [float(np.mean(values)) for values in (over, covered, width, wrong)]
    names = ("rejects", "interval_covers", "interval_width", "equivalent_at_bound")
    label = {
        "table": "errors",
        "data": kind,
        "design": design,
        "tests": f"{tests} {'random' if spread else 'fixed'}",
        "studies": studies,
    }
    return label | dict(zip(names, means, strict=True))


def scenario(name: str, seed: int) -> str:
    """The verdict on the target of a study of six sources' worth of runs with one kind of transfer."""
    rng = np.random.default_rng([seed, SCENARIOS.index(name)])
    items = np.arange(80)
    truth = np.where(items % 2 == 0, "left", "right")
    other = np.where(items % 2 == 0, "right", "left")
    parts = []
    for run in range(-1, 6):
        trained = run >= 0
        for task, p in (("towers-topblock", 0.9 if trained else 0.3), ("towers-direction", _right(name, trained))):
            right = rng.random(80) < expit(np.log(p / (1 - p)) + rng.normal(0, 0.3) * trained)
            invalid = rng.random(80) < (0.0 if trained or name != "format only" else 0.6)
            answer = pd.Series(np.where(right, truth, other), dtype=object).mask(invalid)
            parts.append(pd.DataFrame({"run": f"r{run}", "model": "m", "method": "sft" if trained else "none"} | {
                "train_tasks": "towers-topblock" if trained else "none", "regime": "", "seed": max(run, 0), "test_task": task, "shift": "none",
                "shift_level": 0, "transfer": (None if not trained else "within" if task == "towers-topblock" else "cross-task"),
                "item_id": [f"{task}{i}" for i in items], "group_id": [f"{task}g{i // 2}" for i in items], "truth": truth, "answer": answer,
                "status": np.where(invalid, "no_answer", "ok"), "success": (right & ~invalid).astype(int), "chance": 0.5}))  # fmt: skip
    table = transfer_contrasts(pd.concat(parts, ignore_index=True)).table
    found = table[table["target"] == "towers-direction"].iloc[0]
    return f"{found['verdict']} ({found['measure']})" if found["measure"] else str(found["verdict"])


def _right(name: str, trained: bool) -> float:
    """The rate of right answers on the target among valid replies."""
    return {"reversed": 0.1, "partial": 0.68, "positive": 0.9}.get(name, 0.5) if trained else 0.5


def main() -> None:
    """Simulate, print, and write the table."""
    parser = argparse.ArgumentParser(description="Error rates of the transfer contrasts.")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--scenarios", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    rows = []
    for kind in KINDS:
        for design in DESIGNS:
            for tests, spread in ((1, 0.0), (5, 0.0), (5, 0.5)):
                rows.append(row(kind, design, tests, spread, options.studies))
                print(rows[-1], flush=True)
    for name in SCENARIOS:
        words = pd.Series([scenario(name, seed) for seed in range(options.scenarios)]).value_counts(normalize=True)
        for word, share in words.items():
            rows.append(
                {"table": "verdicts", "data": name, "design": str(word), "studies": options.scenarios, "share": share}
            )
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
