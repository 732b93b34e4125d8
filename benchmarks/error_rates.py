"""How often tests err: simulated studies whose true effects are known.

    python benchmarks/error_rates.py few-runs [--replications 400] [--seeds 3 5 10] [--markdown]     # fixed effects, few runs per method
    python benchmarks/error_rates.py contrasts [--replications 200] [--runs 3] [--kinds usual settled] [--markdown]
    python benchmarks/error_rates.py means [--replications 5000] [--items 60] [--runs 3 5 10]
    python benchmarks/error_rates.py pipeline [--studies 200] [--runs 5] [--jobs 2] [--rows FILE]    # from the logs on

Kinds of data of `contrasts` (standard deviations in log-odds):

- usual: .7 (items), .3 (runs), .2 (items by training).
- wide: 2 for items and 1 for items by training.
- items: 4 for items, which nothing else moves.
- near: 4 for items and 3 for items by training, so that the answers of the runs of a training largely repeat.
- settled: 8 and 4, as at temperature 0: nearly all of them do.
- identical: the runs of a training answer all items alike.
- ceiling: rates of about .97, so that many cells are without an error.
- collapse: every other run answers all items with one option, and the rest guess.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import scipy.stats
from cyclopts import App, Parameter
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binomtest

from vlm_probe.analysis import FitError, FitResult, fit
from vlm_probe.analysis.contrasts import planned_contrasts
from vlm_probe.analysis.frame import from_table, load
from vlm_probe.analysis.material import Settings, select
from vlm_probe.analysis.power import Scenario, power
from vlm_probe.probes.trials import COLUMNS, TrialLog, trials_hash

app = App(
    help="How often tests err, in simulated studies.", default_parameter=Parameter(negative="", consume_multiple=True)
)
ALPHA = 0.05
FEW_ITEMS, RUN_SD, ITEM_SD, EFFECT = 40, 0.4, 0.7, 0.5
TESTS = {
    "glmm_z": "logistic mixed model, z",
    "glmm_t": "logistic mixed model, t between runs",
    "run_means_t": "t test on run means",
    "item_only_z": "logistic model with items alone, z",
    "lmm_z": "linear mixed model, z",
    "lmm_t": "linear mixed model, Satterthwaite",
}


def two_methods(runs: int, effect: float, rng: np.random.Generator) -> pd.DataFrame:
    """Answers and response times of two methods with `runs` runs each."""
    run, item = (a.ravel() for a in np.meshgrid(np.arange(2 * runs), np.arange(FEW_ITEMS), indexing="ij"))
    method = run % 2
    predictor = 0.4 + effect * method + rng.normal(0, RUN_SD, 2 * runs)[run] + rng.normal(0, ITEM_SD, FEW_ITEMS)[item]
    return pd.DataFrame(
        {
            "correct": (rng.random(len(run)) < expit(predictor)).astype(int),
            "rt": predictor + rng.normal(0, 1.5, len(run)),
            "method": np.where(method, "ppo", "none"),
            "run": run,
            "item": item,
        }
    )


def replicate(runs: int, number: int) -> dict[str, float]:
    """One replication: for every test whether it rejects (p < .05), and whether its interval covers the effect."""
    rng = np.random.default_rng([runs, number])
    effect = EFFECT * (number % 2)
    data = two_methods(runs, effect, rng)
    row: dict[str, float] = {"runs": runs, "number": number, "effect": effect}

    def note(test: str, result: FitResult | None, df: str | None = None) -> None:
        if result is None:
            row[f"{test}_p"] = row[f"{test}_covers"] = float("nan")
            return
        found = result.coefficient_table(df=df).loc[["method[T.ppo]"]]
        p, low, high = found[["p", "ci_low", "ci_high"]].to_numpy(dtype=float)[0]
        row[f"{test}_p"], row[f"{test}_covers"] = float(p), float(low <= effect <= high)

    logistic = _fit("correct ~ method + (1|run) + (1|item)", data, "binomial")
    note("glmm_z", logistic, "asymptotic")
    note("glmm_t", logistic)
    row["glmm_singular"] = float(logistic.singular) if logistic else float("nan")
    means = data.groupby(["method", "run"])["correct"].mean()
    test = scipy.stats.ttest_ind(means["ppo"], means["none"])
    # Its effect is a difference of proportions, so that it has no interval for the log-odds.
    row["run_means_t_p"] = test.pvalue
    note("item_only_z", _fit("correct ~ method + (1|item)", data, "binomial"), "asymptotic")
    linear = _fit("rt ~ method + (1|run) + (1|item)", data, "gaussian")
    note("lmm_z", linear, "asymptotic")
    note("lmm_t", linear)
    return row


def _fit(formula: str, data: pd.DataFrame, family: str) -> FitResult | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            return fit(formula, data, family=family)
    except FitError:
        return None


def test_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Rejection rates of true nulls, coverage and power by number of runs and test, with Monte-Carlo standard errors."""
    rows = []
    for runs in sorted(set(table["runs"])):
        part = table[table["runs"] == runs]
        for test, label in TESTS.items():
            null = part.loc[part["effect"] == 0, f"{test}_p"].dropna()
            there = part.loc[part["effect"] != 0, f"{test}_p"].dropna()
            error = float((null < 0.05).mean())
            covers = part[f"{test}_covers"].dropna() if f"{test}_covers" in part else pd.Series(dtype=float)
            rows.append(
                {
                    "runs per method": int(runs),
                    "test": label,
                    "replications": len(null) + len(there),
                    "type-I error": error,
                    "its s.e.": float(np.sqrt(0.05 * 0.95 / len(null))),
                    "coverage": float(covers.mean()) if len(covers) else float("nan"),
                    "its s.e. ": float(np.sqrt(0.05 * 0.95 / len(covers))) if len(covers) else float("nan"),
                    "power at 0.5": float((there < 0.05).mean()),
                }
            )
    return pd.DataFrame(rows)


def show(table: pd.DataFrame, markdown: bool) -> None:
    """Print a table, as text or in Markdown."""
    if not markdown:
        print(table.to_string(index=False))
        return
    print("| " + " | ".join(map(str.strip, table.columns)) + " |\n" + "|---" * len(table.columns) + "|")
    for row in table.itertuples(index=False):
        cells = [("" if np.isnan(v) else f"{v:.3f}") if isinstance(v, float) else str(v) for v in row]
        print("| " + " | ".join(cells) + " |")


@app.command
def few_runs(
    *,
    replications: int = 400,
    seeds: tuple[int, ...] = (3, 5, 10),
    out: Path = Path("type_one_error.csv"),
    markdown: bool = False,
) -> None:
    """Type-I error and coverage with few runs: how often tests of a method effect reject a true null hypothesis.

    Two methods with S runs each (seeds of training), all runs on the same 40 items; standard deviations in log-odds: 0.4 between
    runs, 0.7 between items. In every other replication there is no effect; in the others it is 0.5. Compared are, for the same
    data, the z test of the logistic mixed model, its t test with between-run degrees of freedom, the t test on run means, the z test
    of a model that forgets runs, and a linear mixed model of a response time with Satterthwaite's degrees of freedom and with z.
    Every replication has a seed of its own and one line in the output, so that the command resumes where it was stopped.

    Args:
        replications: Per number of runs.
        seeds: Runs per method.
        out: File with a line per replication.
        markdown: Print a table for the documentation.
    """
    done = set()
    if out.exists():
        known = pd.read_csv(out)
        done = set(zip(known["runs"], known["number"], strict=True))
    # Numbers outside, so that all sizes have about as many replications whenever the script is stopped.
    for number in range(replications):
        for runs in seeds:
            if (runs, number) in done:
                continue
            row = replicate(runs, number)
            new = not out.exists()
            with out.open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if new:
                    writer.writeheader()
                writer.writerow(row)
    show(test_rates(pd.read_csv(out)), markdown)


Answers = Callable[[np.random.Generator, int, int], list[NDArray[np.bool_]]]


def normal(level: float, items: float, runs: float, both: float) -> Answers:
    """Answers of normal effects of items, of runs, and of items by training, around a level in log-odds.

    Args:
        level: Mean log odds.
        items, runs, both: Standard deviations of items, of runs, and of items for one training alone.
    """

    def draw(rng: np.random.Generator, n_runs: int, n_items: int) -> list[NDArray[np.bool_]]:
        of_item, found = rng.normal(0, items, n_items), []
        for count, of_run in ((1, 0.0), (n_runs, runs), (n_runs, runs)):
            own = level + of_item + rng.normal(0, both, n_items)
            found += [rng.random(n_items) < expit(own + rng.normal(0, of_run)) for _ in range(count)]
        return found

    return draw


def identical(rng: np.random.Generator, n_runs: int, n_items: int) -> list[NDArray[np.bool_]]:
    """All runs of a training run with the same answers, right in .7 of the items."""
    return [answers for count in (1, n_runs, n_runs) for answers in [rng.random(n_items) < 0.7] * count]


def collapse(rng: np.random.Generator, n_runs: int, n_items: int) -> list[NDArray[np.bool_]]:
    """Guesses, or one option for all items, of which half are right."""
    one_option = np.arange(n_items) % 2 == 0
    found = []
    for _ in range(1 + 2 * n_runs):
        guesses, option = rng.random(n_items) < 0.5, one_option ^ (rng.random() < 0.5)
        found.append(option if rng.random() < 0.5 else guesses)
    return found


ANSWERS: dict[str, Answers] = {
    "usual": normal(0.5, 0.7, 0.3, 0.2),
    "wide": normal(0.7, 2.0, 0.3, 1.0),
    "items": normal(1.0, 4.0, 0.3, 0.0),
    "near": normal(1.0, 4.0, 0.5, 3.0),
    "settled": normal(1.0, 8.0, 0.5, 4.0),
    "identical": identical,
    "ceiling": normal(5.0, 2.0, 0.5, 0.5),
    "collapse": collapse,
}


def three_methods(kind: str, n_runs: int, n_items: int, rng: np.random.Generator) -> pd.DataFrame:
    """The trials of one study."""
    names = ["none", *["sft"] * n_runs, *["grpo"] * n_runs]
    runs = [f"{method}-{number}" for number, method in enumerate(names)]
    answers = np.concatenate(ANSWERS[kind](rng, n_runs, n_items)).astype(int)
    methods = np.repeat(names, n_items)
    items = np.tile([f"i{number}" for number in range(n_items)], len(runs))
    about = {"run": np.repeat(runs, n_items), "method": methods, "training": methods, "test": TESTED, "item": items}
    return pd.DataFrame(about | {"success": answers})


def as_logged(trials: pd.DataFrame) -> pd.DataFrame:
    """Such trials as a trial table."""
    trained = trials["method"] != "none"
    about = trials[["run", "method"]].assign(item_id=trials["item"], correct=trials["success"], model="simulated")
    about = about.assign(seed=pd.factorize(about["run"])[0], test_task=TESTED)
    about["train_tasks"] = np.where(trained, TESTED, "none")
    about["transfer"] = pd.Series("within", about.index).where(trained)
    return from_table(about).table


def contrasts_of(kind: str, n_runs: int, n_items: int, number: int) -> pd.DataFrame:
    """The planned contrasts of one simulated study."""
    with warnings.catch_warnings(action="ignore"):
        trials = three_methods(kind, n_runs, n_items, np.random.default_rng([n_runs, number, 17]))
        return planned_contrasts(as_logged(trials)).table


def contrast_rates(kind: str, n_runs: int, n_items: int, replications: int) -> pd.DataFrame:
    """Rejections and coverage of one kind of data, by contrast."""
    table = pd.concat(map(partial(contrasts_of, kind, n_runs, n_items), range(replications)), ignore_index=True)
    low, high = table["difference_low"], table["difference_high"]
    shown = {
        "rejects": table["p"] < ALPHA,
        "interval covers 0": (low <= 0) & (high >= 0),
        "its width": high - low,
        "equivalent within .1": table["p_equivalence"] < ALPHA,
        "means: rejects": table["p_means"] < ALPHA,
        "these items: rejects": table["p_runs"] < ALPHA,
    }
    rows = table[["contrast"]].assign(**shown).groupby("contrast", sort=False)
    size = rows.size()
    about = {"data": kind, "runs": n_runs, "contrast": list(size.index), "studies": size.to_numpy()}
    return pd.DataFrame(about | {name: rows[name].mean().to_numpy(float) for name in shown})


@app.command
def contrasts(
    *,
    replications: int = 200,
    runs: tuple[int, ...] = (3,),
    items: int = 100,
    kinds: tuple[str, ...] = tuple(ANSWERS),
    markdown: bool = False,
) -> None:
    """How often the planned contrasts reject a true null, in the kinds of data that make mixed models falter.

    One run of an untrained model and some of SFT and of GRPO, all on the same items, with the same expected rate: every rejection of
    `planned_contrasts` (SFT - base, GRPO - base, RL - SFT) is wrong, and intervals should contain 0.

    Args:
        replications: Studies per kind of data.
        runs: Runs per method.
        items: Items per study.
        kinds: Kinds of data, of those in `ANSWERS`.
        markdown: Print a table for the documentation.
    """
    table = pd.concat([contrast_rates(kind, n, items, replications) for kind in kinds for n in runs])
    show(table, markdown)


DEVIATIONS = {"usual": (0.3, 0.7, 0.2), "wide": (0.3, 2.0, 1.0), "near": (0.5, 4.0, 3.0), "settled": (0.5, 8.0, 4.0)}
OFF_BY = 0.1


@app.command
def means(*, replications: int = 5000, items: int = 60, runs: tuple[int, ...] = (3, 5, 10)) -> None:
    """How often each of the two tests on means rejects a true null, over items that are a sample.

    Every run of a method answers the same items; the other side is the untrained model (one run), or a second method with as many runs. All
    have the same expected rate over items, so that every rejection is wrong. Log odds are normal, with the standard deviations of
    `DEVIATIONS`: of runs, of items, and of items for one method alone.

    Args:
        replications: Simulated studies per row.
        items: Items per study.
        runs: Runs per method.
    """
    print(f"| data | against | runs | over runs and items | its power at {OFF_BY:g} | on these items |")
    print("|---|---|---|---|---|---|")
    for kind, (run_sd, item_sd, interaction_sd) in DEVIATIONS.items():
        for against in ("base", "method"):
            scenario = Scenario(OFF_BY, 0.5, against, run_sd, item_sd, interaction_sd)
            found = power(runs, [items], scenario, replications, seed=1).table
            for row in found.itertuples():
                numbers = f"{row.type_1:.3f} | {row.power:.3f} | {row.type_1_runs:.3f}"
                print(f"| {kind} | {against} | {row.runs} | {numbers} |", flush=True)


for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


ITEMS, SD_RUN, SD_ITEM, TRANSFER = 60, 0.3, 0.7, 0.6
TRAINED, TESTED = "towers-topblock", "towers-stability"


def write_log(folder: Path, success: list[bool], run: int | None) -> None:
    """The log of one run: of the untrained model, or of the adapter of a seed.

    Args:
        folder: Of the run.
        success: Of every item.
        run: Seed of the adapter; None for the untrained model.
    """
    task, adapter = TESTED, "" if run is None else hashlib.sha256(f"adapter {run}".encode()).hexdigest()
    facts = {"method": "ppo", "tasks": [TRAINED], "seed": run, "budget": {"samples": 6400}}
    record: dict[str, Any] = {
        "format": 1,
        "status": "running",
        "config": {"model": "simulated", "temperature": 0.0},
        "seed": 0,
        "n": len(success),
        "n_errors": 0,
        "model": {"name": "simulated", "revision": "", "weights_sha256": "0" * 64, "adapter_sha256": adapter},
        "training": None if run is None else facts,
        "stimuli": {
            "path": "sets/simulated",
            "content_sha256": hashlib.sha256(task.encode()).hexdigest(),
            "task": task,
        },
        "fingerprint": {"adapter": adapter},
        "resumed": 0,
    }
    with TrialLog(folder, record) as log:
        for number, right in enumerate(success):
            truth, other = ("stands", "falls") if number % 2 else ("falls", "stands")
            margin = (0.1 + 0.6 * number / ITEMS) * (1 if number % 2 else -1)
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            row |= {
                "key": hashlib.sha256(f"{adapter} {task} {number}".encode()).hexdigest(),
                "item_id": f"{task}_{number:03d}",
                "task": task,
                "model": "simulated",
                "readout": "generate",
                "prompt": "?",
                "status": "ok",
                "truth": truth,
                "answer": truth if right else other,
                "options": ["stands", "falls"],
                "correct": right,
                "success": right,
                "reward": float(right),
                "chance": 0.5,
                "margin": margin,
                "condition": {"count": 3, "build": "plain", "mirrored": False, "shifts": []},
                "variant": {"polarity": 0, "order": 0},
                "pair_id": f"{task}_{number // 2:03d}",
                "group_id": f"{task}_{number // 2:03d}",
                "role": "base",
            }
            log.append(row)
        log.update(status="finished", trials_sha256=trials_hash(folder))


@functools.cache
def true_difference(effect: float) -> float:
    """Of the success rates over runs and items, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    weights = weights / weights.sum()

    def rate(logit: float, sd: float) -> float:
        return float(weights @ expit(logit + sd * nodes))

    return rate(effect, float(np.hypot(SD_RUN, SD_ITEM))) - rate(0.0, SD_ITEM)


def logged_study(number: int, runs: int) -> dict[str, float]:
    """One simulated study: written, read, and its planned contrast. Every other one has transfer."""
    rng, effect = np.random.default_rng([number, runs]), TRANSFER * (number % 2)
    items = rng.normal(0, SD_ITEM, ITEMS)
    with tempfile.TemporaryDirectory() as home:
        for run in (None, *range(runs)):
            own = 0.0 if run is None else float(rng.normal(0, SD_RUN))
            gain = 0.0 if run is None else effect
            success = (rng.random(ITEMS) < expit(gain + own + items)).tolist()
            write_log(Path(home) / str(run), success, run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = planned_contrasts(select(load([home]), Settings()).plain).table
    (row,) = table[table["transfer"] == "cross-task"].to_dict("records")
    truth = true_difference(effect)
    return {
        "number": number,
        "runs": runs,
        "effect": effect,
        "model": float(row["p"] < ALPHA),
        "means": float(row["p_means"] < ALPHA),
        "run_means": float(row["p_runs"] < ALPHA),
        "covers": float(row["difference_low"] <= truth <= row["difference_high"]),
        "difference": float(row["difference"]) - truth,
        "equivalent": float(row["verdict"] == "equivalent"),
        "failed": float(np.isnan(row["p"])),
    }


@app.command
def pipeline(
    *, studies: int = 200, runs: int = 5, jobs: int = 2, rows_file: Annotated[Path | None, Parameter("--rows")] = None
) -> None:
    """The whole way from trial logs to the planned contrasts: simulated studies with and without transfer.

    A study is an untrained model and `--runs` PPO adapters that learned their own task, all asked the same 60 items of another task of the
    family. What is written is what `probe run` writes, `run.json` and `trials.jsonl`; what is read is `vlm_probe.analysis.frame.load` and then the
    planned contrast PPO - untrained at the level cross-task, as `probe analyze` reports it. Success has a logit of 0 in the untrained model;
    standard deviations of 0.3 (runs) and 0.7 (items). Without transfer the adapters have the same mean; with transfer 0.6 more.

    Args:
        studies: With transfer, and as many without.
        runs: Trained runs per study.
        jobs: Processes.
        rows_file: File for one JSON object per study; studies that are in it are not simulated again.
    """
    rows = logged_studies(studies, runs, jobs, rows_file)
    print(f"| {runs} runs | studies | rejected, model | means | run means | coverage | bias | no fit |")
    print("|---|---|---|---|---|---|---|---|")
    for effect, name in ((0.0, "no transfer"), (TRANSFER, f"transfer of {true_difference(TRANSFER):.3f}")):
        own = [row for row in rows if row["effect"] == effect]
        keys = ("model", "means", "run_means", "covers")
        cells = [_share([row[key] for row in own if not row["failed"]]) for key in keys]
        bias = float(np.nanmean([row["difference"] for row in own]))
        print(f"| {name} | {len(own)} | {' | '.join(cells)} | {bias:+.3f} | {sum(r['failed'] for r in own):.0f} |")


def logged_studies(studies: int, runs: int, jobs: int, kept: Path | None) -> list[dict[str, float]]:
    """All studies, with transfer and without: read from a file as far as they are there, else done now.

    Args:
        studies: How many of each kind.
        runs: Trained runs per study.
        jobs: Processes.
        kept: The file; None keeps nothing.
    """
    rows: dict[int, dict[str, float]] = {}
    if kept is not None and kept.exists():
        found = [json.loads(line) for line in kept.read_text().splitlines() if line.endswith("}")]
        rows = {row["number"]: row for row in found if row["runs"] == runs}
    left = [number for number in range(2 * studies) if number not in rows]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for row in pool.imap_unordered(functools.partial(logged_study, runs=runs), left):
            rows[int(row["number"])] = row
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return [row for number, row in sorted(rows.items()) if number < 2 * studies]


def _share(values: list[float]) -> str:
    """A share with its Wilson interval."""
    interval = binomtest(int(sum(values)), len(values)).proportion_ci(method="wilson")
    return f"{np.mean(values):.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    app()
