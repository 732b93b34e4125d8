"""Tests on means, alongside the model: the success of runs as plain numbers, with nothing assumed about log odds.

There are two, and they differ in what they are about. Both take runs for a sample of the training runs of their kind.

**On these items**, the test on run means: every run is one number, and items and the untrained model's answers to them are what they
are. It says what these items show, and nothing about others.

**Over runs and items**: items are a sample as well, and the items on which a training happens to gain move all of its runs at once. The
variance of the difference is that of crossed random effects,

    runs + items - residual,

each from its own mean square, and never less than that of runs or of items alone: chance in single answers is in both, and counts once. With
t and Satterthwaite's degrees of freedom this is the quasi-F test of Clark (1973, J Verb Learn Verb Behav 12:335-359); where every run
answers every item, it is the linear mixed model with runs and items at random, fitted by REML (Baayen, Davidson & Bates, 2008).

`contrast_of_means` does both for methods, `compare` the second for any two sets of runs, with items in groups that depend on each other and weights of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import t as student

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
    """Success rate of every run on every test, next to that of the untrained model."""
    keys = ["run", *TRAINING, "test"]
    text = tested.assign(**{name: tested[name].astype(str) for name in keys})
    rates = text.groupby(keys)["success"].mean().rename("rate").reset_index()
    base = rates[rates["method"] == UNTRAINED].groupby("test")["rate"].mean()
    return rates.assign(untrained=rates["test"].map(base))


def per_item(tested: pd.DataFrame) -> pd.DataFrame:
    """Success of every run at every item (`y`), with numbers for the names of runs, training runs and items.

    Args:
        tested: `run`, `method`, `training`, `test`, `item` and `success`, one row per trial.
    """
    numbered = {name: pd.factorize(tested[name].astype(str))[0] for name in ("training", "run", "item")}
    named = {name: tested[name].astype(str) for name in ("method", "test")}
    keys = [*TRAINING, "run", "test", "item"]
    return tested.assign(**numbered, **named).groupby(keys, sort=False)["success"].mean().rename("y").reset_index()


def contrast_of_means(answers: pd.DataFrame, weights: Mapping[str, float]) -> MeansTests:
    """Test a contrast of the methods' mean success rates.

    A run counts with its mean over tests, in which tasks weigh the same. Training runs of a method on different tasks are different kinds of run: they
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
        # One run per training: the training runs are the replications.
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


@dataclass(frozen=True)
class Side:
    """One side of a contrast.

    Attributes:
        runs: Their places.
        kinds: The kind of training of each; runs of a kind differ in their seed.
        fixed: Whether they are one fixed thing, as the untrained model is.
    """

    runs: npt.NDArray[np.int64]
    kinds: tuple[str, ...]
    fixed: bool = False


@dataclass(frozen=True)
class Compared:
    """A difference of two sides on one measure.

    Attributes:
        over_runs: About training runs of the kind and items of the kind; about items alone if there is one run.
        each: Largest p of single runs tested over items; nan where the signs differ, or there are none.
        of_runs: The difference of every run of the first side.
        runs_p: One-sided p of every run of the first side, upwards.
    """

    over_runs: Estimate
    each: float
    of_runs: Floats
    runs_p: Floats


def compare(
    y: Floats, w: Floats, strata: npt.NDArray[np.int64], clusters: npt.NDArray[np.int64], a: Side, b: Side | None
) -> Compared:
    """Compare two sides by the mean over runs and items.

    Args:
        y: Values (runs, items).
        w: Weight of every item; they sum to 1.
        strata: Items are centred within these.
        clusters: Items that depend on each other.
        a: Side whose mean is positive.
        b: Side that is subtracted; None for a comparison with 0.
    """
    share, kinds, weights = _shares(a, b)
    places = np.concatenate([a.runs, *([b.runs] if b is not None else [])])
    own = y[places]
    means = own @ w
    n_clusters = int(clusters.max()) + 1
    of_cluster = _by_cluster(_centred(own, w, strata) * w, clusters, n_clusters)
    small = n_clusters / max(n_clusters - 1, 1)
    least = (0.5 / (len(w) + 1)) ** 2  # items that all agree leave the doubt of half an observation
    n_a = len(a.runs)
    items = max(float(((weights @ of_cluster) ** 2).sum()) * small, least)
    value = float(weights @ means)
    base = np.zeros(n_clusters) if b is None else -weights[n_a:] @ of_cluster[n_a:]
    start = 0.0 if b is None else float(-weights[n_a:] @ means[n_a:])
    single = np.sqrt(np.maximum(((of_cluster[:n_a] - base) ** 2).sum(1) * small, least))
    of_runs = means[:n_a] - start
    runs_p = student.sf(of_runs / single, n_clusters - 1)
    same_sign = bool((np.sign(of_runs) == np.sign(of_runs[0])).all() and of_runs[0] != 0)
    each = float((2 * np.minimum(runs_p, 1 - runs_p)).max()) if same_sign else 1.0
    varying = share > 0
    n_varying, n_kinds = int(varying.sum()), len(set(np.asarray(kinds)[varying]))
    df = n_varying - n_kinds
    if n_varying < 2 or df < 1:
        return Compared(estimate(value, math.sqrt(items), n_clusters - 1), each, of_runs, runs_p)
    squares, residual = 0.0, 0.0
    factor: dict[str, tuple[float, int]] = {}
    for kind in set(np.asarray(kinds)[varying]):
        inside = varying & (np.asarray(kinds) == kind)
        n = int(inside.sum())
        factor[kind] = (float(weights[inside].sum()) ** 2 / n, n)
        squares += float(((means[inside] - means[inside].mean()) ** 2).sum())
        if n > 1:
            moved = of_cluster[inside] - of_cluster[inside].mean(0)
            residual += factor[kind][0] * float((moved**2).sum()) * small / (n - 1)
    runs = squares / df * sum(part for part, _ in factor.values())
    variance, freedom = crossed((runs, df), (items, n_clusters - 1), (residual, df * (n_clusters - 1)))
    found = estimate(value, math.sqrt(float(variance)), float(freedom))
    return Compared(found, each, of_runs, runs_p)


def _shares(a: Side, b: Side | None) -> tuple[Floats, list[str], Floats]:
    """For every run of both sides: 1 if it varies (0 if fixed), its kind, and its signed weight. Kinds of a side count the same."""
    share: list[float] = []
    kinds: list[str] = []
    weights: list[float] = []
    for name, side, sign in (("a", a, 1.0), ("b", b, -1.0)):
        if side is None:
            continue
        own = list(side.kinds)
        n_kinds = len(set(own))
        weights += [sign / n_kinds / own.count(kind) for kind in own]
        # One run of every kind: the kinds are the replications.
        alone = n_kinds == len(own)
        kinds += [f"{name} {'' if alone else kind}" for kind in own]
        share += [0.0 if side.fixed else 1.0] * len(own)
    return np.array(share), kinds, np.array(weights)


def _centred(y: Floats, w: Floats, strata: npt.NDArray[np.int64]) -> Floats:
    """Values less the weighted mean of their stratum, by run."""
    member = np.eye(int(strata.max()) + 1)[strata]
    total = w @ member
    means = (y * w) @ member / np.where(total > 0, total, 1.0)
    return np.asarray(y - means[:, strata])


def _by_cluster(values: Floats, clusters: npt.NDArray[np.int64], n: int) -> Floats:
    found = np.zeros((n, len(values)))
    np.add.at(found, clusters, values.T)
    return np.asarray(found.T)


def fieller(
    a: float, b: float, v_a: float, v_b: float, c: float, df: float, level: float = 0.95
) -> tuple[float, float]:
    """The interval of a ratio a / b of two estimates (Fieller, 1954, J R Stat Soc B 16:175-185); nan where it is unbounded.

    Args:
        a, b: The estimates.
        v_a, v_b, c: Their variances, and their covariance.
        df: Degrees of freedom.
        level: Of confidence.
    """
    critical = float(student.ppf((1 + level) / 2, df)) ** 2 if df > 0 else math.nan
    lead = b * b - critical * v_b
    root = (a * b - critical * c) ** 2 - (a * a - critical * v_a) * lead
    if not lead > 0 or root < 0:
        return math.nan, math.nan
    half = math.sqrt(root)
    return (a * b - critical * c - half) / lead, (a * b - critical * c + half) / lead
