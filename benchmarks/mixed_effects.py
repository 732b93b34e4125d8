"""Time and memory of mixed-effects fits, next to lme4 where R is installed.

    python benchmarks/mixed_effects.py [SIZE...] [--no-r]

Sizes: glmm-4k, glmm-60k, glmm-500k (logistic, crossed runs and items), lmm-crossed (3,000 x 1,000 levels, 60,000 rows),
lmm-500k. Every fit runs in a process of its own, on one core; times are CPU time without start and reading. lme4 fits the same
rows with its defaults; 500,000 rows are left out for it unless they are asked for with --r-large, since glmer needs hours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

ROOT = Path(__file__).parent.parent
GLMM = "correct ~ method + margin + (1|run) + (1|item)"
LMM = "rt ~ method + margin + (1|run) + (1|item)"
SIZES: dict[str, dict[str, Any]] = {
    "glmm-4k": {"rows": 4_000, "runs": 20, "items": 200, "formula": GLMM},
    "glmm-60k": {"rows": 60_000, "runs": 60, "items": 1_000, "formula": GLMM},
    "glmm-500k": {"rows": 500_000, "runs": 200, "items": 2_500, "formula": GLMM},
    "lmm-crossed": {"rows": 60_000, "runs": 1_000, "items": 3_000, "formula": LMM},
    "lmm-500k": {"rows": 500_000, "runs": 200, "items": 2_500, "formula": LMM},
}

OURS = """
import json, resource, sys, time, warnings
import pandas as pd
from vlm_probe.analysis import fit
data = pd.read_csv(sys.argv[1])
family = sys.argv[3]
with warnings.catch_warnings(action="ignore"):
    fit(sys.argv[2], data.iloc[:400], family=family)  # loads what is loaded late, as library() does in R
start = time.process_time()
with warnings.catch_warnings(action="ignore"):
    result = fit(sys.argv[2], data, family=family)
print(json.dumps({
    "seconds": time.process_time() - start,
    "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "log_likelihood": result.log_likelihood, "converged": result.converged,
    "evaluations": result.solution.evaluations,
}))
"""

THEIRS = """
suppressPackageStartupMessages(library(lme4)); options(warn = -1)
a <- commandArgs(trailingOnly = TRUE); d <- read.csv(a[1]); f <- as.formula(a[2])
t <- system.time(m <- if (a[3] == "binomial") glmer(f, d, family = binomial) else lmer(f, d))
cat(sprintf('{"seconds": %f, "log_likelihood": %f}', t[["user.self"]] + t[["sys.self"]], as.numeric(logLik(m))))
"""


def simulate(rows: int, runs: int, items: int, seed: int = 0) -> pd.DataFrame:
    """Trials with runs and items drawn at random, and an accuracy and a response time that depend on both."""
    rng = np.random.default_rng(seed)
    run, item = rng.integers(0, runs, rows), rng.integers(0, items, rows)
    margin = rng.uniform(-0.7, 0.7, items)[item]
    predictor = 0.3 + 0.4 * (run % 2) + margin + rng.normal(0, 0.4, runs)[run] + rng.normal(0, 0.8, items)[item]
    return pd.DataFrame(
        {
            "correct": (rng.random(rows) < expit(predictor)).astype(int),
            "rt": predictor + rng.normal(0, 1, rows),
            "method": np.where(run % 2, "ppo", "none"),
            "margin": margin,
            "run": run,
            "item": item,
        }
    )


def measure(size: str, *, with_r: bool) -> dict[str, Any]:
    """One size: our CPU seconds and memory, and lme4's seconds."""
    settings = SIZES[size]
    family = "binomial" if settings["formula"] == GLMM else "gaussian"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "trials.csv")
        simulate(settings["rows"], settings["runs"], settings["items"]).to_csv(path, index=False)
        arguments = [path, settings["formula"], family]

        def run(command: list[str]) -> dict[str, Any]:
            found = subprocess.run(
                [*command, *arguments], check=True, capture_output=True, text=True, env=environment, cwd=ROOT
            )
            return dict(json.loads(found.stdout))

        ours = run([sys.executable, "-c", OURS])
        theirs = run(["Rscript", "-e", THEIRS]) if with_r else None
    row = {"size": size, "rows": settings["rows"], **ours}
    if theirs:
        row |= {
            "lme4_seconds": theirs["seconds"],
            "ratio": theirs["seconds"] / ours["seconds"],
            "log_likelihood_gain": ours["log_likelihood"] - theirs["log_likelihood"],
        }
    return row


def main() -> None:
    """Measure the sizes that were asked for and print one line each."""
    parser = argparse.ArgumentParser(description="Time and memory of mixed-effects fits.")
    parser.add_argument("sizes", nargs="*", help=f"of {', '.join(SIZES)}; default: all")
    parser.add_argument("--no-r", action="store_true", help="do not compare with lme4")
    parser.add_argument("--r-large", action="store_true", help="let glmer fit 500,000 rows, too")
    arguments = parser.parse_args()
    there = shutil.which("Rscript") is not None and not arguments.no_r
    for size in arguments.sizes or SIZES:
        with_r = there and (size != "glmm-500k" or arguments.r_large)
        row = measure(size, with_r=with_r)
        text = f"{size:12} {row['rows']:>7,} rows  {row['seconds']:7.2f} s  {row['gib']:.2f} GiB  {row['evaluations']} evaluations"
        if "ratio" in row:
            text += f"  lme4 {row['lme4_seconds']:.2f} s, {row['ratio']:.1f} times ours; log-likelihood {row['log_likelihood_gain']:+.5f}"
        print(text, flush=True)


if __name__ == "__main__":
    main()
