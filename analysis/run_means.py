"""Tests on means, beside the model: the success of runs as plain numbers, with nothing assumed about log odds.

There are two, and they differ in what they are about. Both take runs for a sample of the trainings of their kind.

**On these items**, the test on run means: every run is one number, and items and the untrained model's answers to them are what they
are. It says what these items show, and nothing about others.

**Over runs and items**: items are a sample as well, and the items on which a training happens to gain move all of its runs at once. The
variance of the difference is that of crossed random effects,

    runs + items - residual,

each from its own mean square, and never less than that of runs or of items alone: chance in single answers is in both, and counts once. With
t and Satterthwaite's degrees of freedom this is the quasi-F test of Clark (1973, J Verb Learn Verb Behav 12:335-359); where every run
answers every item, it is the linear mixed model with runs and items at random, fitted by REML (Baayen, Davidson & Bates, 2008).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from vlm_probe.analysis.cell_model import UNTRAINED, Estimate, estimate
from vlm_probe.analysis.labels import test_shares
from vlm_probe.analysis.selection import Floats

TRAINING = ["method", "training"]
HOW = (
    "tests on means: mean difference of the runs' success rates; p_runs: t test on run means, pooled within training, about trainings of the kind on"
    " these items (items and the untrained model's answers as they are); p_means: over runs and items, with the variance of crossed random"
    " effects, runs + items - residual (Clark, 1973), and Satterthwaite's df"
)


@dataclass(frozen=True)
class MeansTests:
    """One contrast of means, tested in both ways.

    Attributes:
        on_these_items: Runs are a sample; items and the untrained model's answers are as they are.
        over_items: Runs and items are samples; items alone where there are no two runs of a kind.
        runs: Effective number of runs, 1 / sum(weight^2 / runs), for Bayes factors; nan if nothing tells how runs vary.
        about: What `over_items` generalises to: "runs and items", or "items".
    """

    on_these_items: Estimate
    over_items: Estimate
    runs: float
    about: str


def run_means(tested: pd.DataFrame) -> pd.DataFrame:
    """Success rate of every run on every test, beside that of the untrained model."""
    keys = ["run", *TRAINING, "test"]
    text = tested.assign(**{name: tested[name].astype(str) for name in keys})
    rates = text.groupby(keys)["success"].mean().rename("rate").reset_index()
    base = rates[rates["method"] == UNTRAINED].groupby("test")["rate"].mean()
    return rates.assign(untrained=rates["test"].map(base))


def per_item(tested: pd.DataFrame) -> pd.DataFrame:
    """Success of every run at every item (`y`), with numbers for the names of runs, trainings and items.

    Args:
        tested: `run`, `method`, `training`, `test`, `item` and `success`, one row per trial.
    """
    numbered = {name: pd.factorize(tested[name].astype(str))[0] for name in ("training", "run", "item")}
    named = {name: tested[name].astype(str) for name in ("method", "test")}
    keys = [*TRAINING, "run", "test", "item"]
    return tested.assign(**numbered, **named).groupby(keys, sort=False)["success"].mean().rename("y").reset_index()


def contrast_of_means(answers: pd.DataFrame, weights: Mapping[str, float]) -> MeansTests:
    """Test a contrast of the methods' mean success rates.

    A run counts with its mean over tests, in which tasks weigh the same. Trainings of a method on different tasks are different kinds of run: they
    count equally, and the variance between runs is pooled within them, over all methods that are there.

    Args:
        answers: Of `per_item`, on the tests that all sides took.
        weights: Method -> weight; those above 0 and those below sum to 1 each.
    """
    trained = (answers["method"] != UNTRAINED).to_numpy()
    if not trained.any():
        nothing = estimate(math.nan, math.nan, math.nan)
        return MeansTests(nothing, nothing, math.nan, "")
    answers = answers.assign(weight=_weights(answers, trained, weights))
    value = float(answers["weight"].to_numpy(float) @ answers["y"].to_numpy(float))
    of_runs, df, runs = _between_runs(answers, trained, weights)
    items = _between_items(answers)
    if not df >= 1:
        over_items = estimate(value, math.sqrt(items[0]), items[1])
        return MeansTests(estimate(value, math.nan, math.nan), over_items, math.nan, "items")
    variance, freedom = crossed((of_runs, df), items, _residual(answers[trained]))
    return MeansTests(
        estimate(value, math.sqrt(of_runs), df),
        estimate(value, math.sqrt(float(variance)), float(freedom)),
        runs,
        "runs and items",
    )


def crossed(
    runs: tuple[npt.ArrayLike, npt.ArrayLike],
    items: tuple[npt.ArrayLike, npt.ArrayLike],
    residual: tuple[npt.ArrayLike, npt.ArrayLike],
) -> tuple[Floats, Floats]:
    """Variance of a mean over crossed random effects, and its degrees of freedom by Satterthwaite's rule.

    Args:
        runs: The variance of the mean as runs show it, and its degrees of freedom.
        items: As items show it.
        residual: What chance in single answers adds to each of the two.
    """
    (v_runs, df_runs), (v_items, df_items), (v_residual, df_residual) = (
        (np.asarray(v, dtype=float), np.asarray(df, dtype=float)) for v, df in (runs, items, residual)
    )
    variance = np.maximum(np.maximum(v_runs, v_items), v_runs + v_items - v_residual)
    with np.errstate(divide="ignore", invalid="ignore"):
        uncertain = (
            v_runs**2 / df_runs + v_items**2 / df_items + np.where(v_residual > 0, v_residual**2 / df_residual, 0)
        )
        freedom = np.where(uncertain > 0, variance**2 / uncertain, np.nan)
    return variance, np.asarray(freedom, dtype=float)


def _weights(answers: pd.DataFrame, trained: npt.NDArray[np.bool_], weights: Mapping[str, float]) -> Floats:
    """What every answer counts in the contrast."""
    items = answers.groupby(["run", "test"])["y"].transform("size")
    tests = answers.groupby("run")["test"].transform(lambda own: own.map(test_shares(own)))
    runs = answers.groupby(TRAINING)["run"].transform("nunique")
    kinds = answers.groupby("method")["training"].transform("nunique")
    share = answers["method"].map(lambda name: weights.get(name, 0.0)) / kinds / runs * tests / items
    found: Floats = share.to_numpy(float).copy()
    found[~trained] = 0.0
    if UNTRAINED in weights:
        # The untrained model is subtracted from every run on the tests that this run took.
        against = pd.Series(found, answers.index).groupby(answers["test"]).sum()
        base = answers[~trained]
        copies = base.groupby("test")["run"].transform("nunique")
        found[~trained] = (-base["test"].map(against) / copies / items[~trained]).to_numpy(float)
    return found


def _between_runs(
    answers: pd.DataFrame, trained: npt.NDArray[np.bool_], weights: Mapping[str, float]
) -> tuple[float, float, float]:
    """Variance of the contrast as runs show it, its degrees of freedom, and the effective number of runs."""
    rates = answers.groupby([*TRAINING, "run", "test"])["y"].mean().reset_index()
    base = rates[rates["method"] == UNTRAINED].groupby("test")["y"].mean()
    own = rates[rates["method"] != UNTRAINED]
    start = own["test"].map(base) if UNTRAINED in weights else 0.0
    shares = own.groupby("run")["test"].transform(lambda tests: tests.map(test_shares(tests)))
    values = own.assign(value=(own["y"] - start) * shares.astype(float)).groupby([*TRAINING, "run"])["value"].sum()
    groups = values.groupby(TRAINING)
    mean, size = groups.mean(), groups.size()
    squares = float(((values - groups.transform("mean")) ** 2).sum())
    kinds = mean.groupby("method").size()
    share = np.array([weights.get(method, 0.0) / kinds[method] for method, _ in mean.index])
    df = float(len(values) - len(mean))
    if df < 1 and len(values) > 1 and UNTRAINED in weights:
        # One run per training: the trainings are the replications.
        df, squares = float(len(values) - 1), float(((values - values.mean()) ** 2).sum())
    n = 1 / float((share**2 / size.to_numpy(float)).sum())
    return (squares / df / n if df >= 1 else math.nan), df, n


def _between_items(answers: pd.DataFrame) -> tuple[float, float]:
    """Variance of the contrast as items show it, and its degrees of freedom; items of different tests are independent."""
    rates = answers.groupby([*TRAINING, "run", "test"])["y"].transform("mean")
    centre = rates.groupby([answers[name] for name in (*TRAINING, "test")]).transform("mean")
    moved = (answers["weight"] * (answers["y"] - centre)).groupby([answers["test"], answers["item"]]).sum()
    by_test = moved.groupby(level=0)
    n = by_test.size().to_numpy(float)
    if (n < 2).any():
        return math.nan, math.nan
    variances = n / (n - 1) * (moved**2).groupby(level=0).sum().to_numpy(float)
    whole, uncertain = float(variances.sum()), float((variances**2 / (n - 1)).sum())
    return whole, whole**2 / uncertain if uncertain > 0 else math.nan


def _residual(answers: pd.DataFrame) -> tuple[float, float]:
    """What chance in single answers adds to the variance of the contrast, and its degrees of freedom."""
    cell = [*TRAINING, "test"]
    y = answers["y"]
    of_run, of_item = (answers.groupby([*cell, name])["y"].transform("mean") for name in ("run", "item"))
    centre = answers.groupby(cell)["y"].transform("mean")
    runs, items = (answers.groupby([*cell, name])["y"].transform("size") for name in ("item", "run"))
    scale = (runs * items / ((runs - 1) * (items - 1))).where((runs > 1) & (items > 1), 0.0)
    parts = answers.assign(
        part=scale * answers["weight"] ** 2 * (y - of_run - of_item + centre) ** 2,
        df=(runs - 1) * (items - 1) / runs / items,
    )
    by_cell = parts.groupby(cell)[["part", "df"]].sum()
    by_cell = by_cell[by_cell["part"] > 0]
    whole, uncertain = float(by_cell["part"].sum()), float((by_cell["part"] ** 2 / by_cell["df"]).sum())
    return whole, whole**2 / uncertain if uncertain > 0 else math.nan
