"""Cross-validation by scene group: folds, nested choice of the regularisation, out-of-fold predictions and their scores.

A group is a base scene with its foils and mirror images; no group is ever on both sides of a split, in the outer folds nor in
the inner ones. Features are standardised with the mean and deviation of the training part of each split.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.decoding import DecodingError
from vlm_probe.stimuli.dataset import Item

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Split = tuple[Ints, Ints]

OUTER, INNER = 5, 3
ALPHAS = tuple(float(a) for a in np.logspace(-3, 6, 10))
"""Ridge penalties to choose from, for standardised features."""
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse penalties C of the logistic regression."""
NEWTON = 160
"""Features up to which a logistic regression is fitted by Newton's method."""
INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap interval."""


@dataclass(frozen=True)
class Folds:
    """The splits of a set of items, the same for every target, layer and model.

    Attributes:
        groups: (n,) running number of each item's group.
        outer: Training and test items of every outer fold.
        inner: For every outer fold, the splits of its training items (as indices into all items).
    """

    groups: Ints
    outer: tuple[Split, ...]
    inner: tuple[tuple[Split, ...], ...]

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return int(self.groups.max()) + 1

    def fold_of(self) -> Ints:
        """(n,) the outer fold in which each item is tested."""
        found = np.empty(len(self.groups), dtype=np.int64)
        for number, (_, test) in enumerate(self.outer):
            found[test] = number
        return found


def make_folds(groups: Sequence[str], rng: np.random.Generator, outer: int = OUTER, inner: int = INNER) -> Folds:
    """Draw the folds.

    Args:
        groups: Group of every item.
        rng: Draws which groups go together.
        outer, inner: Number of folds.

    Raises:
        DecodingError: If there are too few groups.
    """
    names, numbers = np.unique(np.array(groups, dtype=str), return_inverse=True)
    if len(names) < 2 * outer:
        raise DecodingError(
            f"{len(names)} groups of items are too few for {outer} folds: take a set of at least {2 * outer} groups (a group"
            " is a scene with its foils and mirror images)"
        )
    everything = np.arange(len(numbers))
    splits = tuple(_splits(everything, numbers, rng, outer))
    return Folds(numbers, splits, tuple(tuple(_splits(train, numbers, rng, inner)) for train, _ in splits))


def _splits(items: Ints, groups: Ints, rng: np.random.Generator, folds: int) -> Iterator[Split]:
    from sklearn.model_selection import GroupKFold

    # GroupKFold goes by the numbers of the groups, so that new numbers at random draw the folds.
    shuffled = rng.permutation(groups.max() + 1)[groups[items]]
    for train, test in GroupKFold(folds).split(items, groups=shuffled):
        yield items[train], items[test]


def ridge(x: Floats, y: Floats, folds: Folds) -> tuple[Floats, Floats]:
    """Out-of-fold predictions of ridge regressions of many targets on the same features.

    Args:
        x: (n, features).
        y: (n, targets); each target gets its own penalty, chosen by the inner folds' squared error.
        folds: The splits.

    Returns:
        Predictions (n, targets) and chosen penalties (outer folds, targets).
    """
    predictions, chosen = np.empty_like(y), np.empty((len(folds.outer), y.shape[1]))
    for number, ((train, test), inner) in enumerate(zip(folds.outer, folds.inner, strict=True)):
        errors = np.zeros((len(ALPHAS), y.shape[1]))
        for fit, held in inner:
            # All penalties as targets of one regression, whose singular value decomposition is done once.
            alphas = np.repeat(ALPHAS, y.shape[1])
            guess = _ridge(x[fit], np.tile(y[fit], len(ALPHAS)), alphas).predict(x[held])
            errors += ((guess.reshape(len(held), len(ALPHAS), -1) - y[held][:, None]) ** 2).sum(axis=0)
        chosen[number] = np.array(ALPHAS)[errors.argmin(axis=0)]
        predictions[test] = _ridge(x[train], y[train], chosen[number]).predict(x[test]).reshape(len(test), -1)
    return predictions, chosen


def _ridge(x: Floats, y: Floats, alphas: Floats) -> Any:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), Ridge(alphas, solver="svd")).fit(x, y)


def logistic(x: Floats, y: Ints, classes: int, folds: Folds) -> tuple[Floats, Floats]:
    """Out-of-fold class probabilities of logistic regressions of many targets on the same features.

    Args:
        x: (n, features).
        y: (n, targets) class numbers.
        classes: Number of classes.
        folds: The splits; each target's penalty is chosen by the inner folds' balanced log loss.

    Returns:
        Probabilities (n, targets, classes) and chosen inverse penalties (outer folds, targets). Class weights are balanced.
    """
    targets = range(y.shape[1])
    probabilities, chosen = np.zeros((*y.shape, classes)), np.empty((len(folds.outer), y.shape[1]))
    for number, ((train, test), inner) in enumerate(zip(folds.outer, folds.inner, strict=True)):
        losses = np.zeros((len(STRENGTHS), y.shape[1]))
        for fit, held in inner:
            a, b = _scaled(x[fit], x[held])
            for t in targets:
                weight = 1 / np.maximum(np.bincount(y[train, t], minlength=classes), 1)[y[held, t]]
                for place, strength in enumerate(STRENGTHS):
                    p = _probabilities(a, y[fit, t], b, strength, classes)[np.arange(len(held)), y[held, t]]
                    losses[place, t] -= (np.log(np.maximum(p, 1e-12)) * weight).sum()
        chosen[number] = np.array(STRENGTHS)[losses.argmin(axis=0)]
        a, b = _scaled(x[train], x[test])
        for t in targets:
            probabilities[test, t] = _probabilities(a, y[train, t], b, float(chosen[number, t]), classes)
    return probabilities, chosen


def logistic_model(x: Floats, y: Ints, strength: float) -> Any:
    """A logistic regression with balanced class weights, fitted to standardised features.

    Args:
        x: (n, features), standardised.
        y: (n,) class numbers, each of which occurs.
        strength: C, the inverse of the penalty.

    Returns:
        A fitted classifier of scikit-learn.
    """
    from sklearn import config_context
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weight = 1 / np.bincount(y)[y]
    # Tens of thousands of small fits: scikit-learn's checks of its arguments would take longer than the fits.
    fast = config_context(assume_finite=True, skip_parameter_validation=True)
    with fast, warnings.catch_warnings():
        # The penalty makes the solution unique; what is left after so many steps does not change a prediction.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Newton's steps are few whatever the penalty, but each is cubic in the number of features.
        solver = "newton-cholesky" if x.shape[1] <= NEWTON else "lbfgs"
        model = LogisticRegression(C=strength, solver=solver, max_iter=500, tol=1e-3)
        return model.fit(x, y, weight / weight.mean())


def _scaled(fit: Floats, held: Floats) -> tuple[Floats, Floats]:
    """Both parts, standardised by the first; turned onto its principal axes where it has more features than items.

    The penalty is the same in every direction, so that a rotation changes no prediction, and the axes in which the training run
    items do not vary get weight 0.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(fit)
    a, b = scaler.transform(fit), scaler.transform(held)
    if a.shape[1] > a.shape[0]:
        axes = np.linalg.svd(a, full_matrices=False)[2].T
        a, b = a @ axes, b @ axes
    return a, b


def _probabilities(fit: Floats, y: Ints, held: Floats, strength: float, classes: int) -> Floats:
    """(held items, classes), with 0 for a class that was not in the training part."""
    found = np.zeros((len(held), classes))
    if y.min() == y.max():  # a control task, by chance: there is nothing to tell apart
        found[:, y[0]] = 1.0
    else:
        model = logistic_model(fit, y, strength)
        found[:, model.classes_] = model.predict_proba(held)
    return found


@dataclass(frozen=True)
class Sums:
    """A score as a function of sums over items, taken group by group, so that a bootstrap over groups is a matrix product.

    Attributes:
        table: (groups, sums).
        kind: "number" (R2) or "label" (balanced accuracy).
    """

    table: Floats
    kind: str

    def score(self, counts: Floats) -> Floats:
        """(draws,) scores when group g is counted counts[draw, g] times; NaN where the target does not vary in what is counted."""
        sums = counts @ self.table
        if self.kind == "number":
            n, total, squares, errors = sums.T
            # R2 on the pooled predictions, about the mean of the very items that are counted; it may be negative.
            spread = squares - total**2 / np.maximum(n, 1)
            varies = spread > 1e-9 * np.maximum(squares, 1e-300)
            return np.where(varies, 1 - errors / np.where(varies, spread, 1), np.nan)
        half = sums.shape[1] // 2
        hits, totals = sums[:, :half], sums[:, half:]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.nanmean(np.where(totals > 0, hits / totals, np.nan), axis=1))


def r2_sums(y: Floats, predictions: Floats, groups: Ints) -> Sums:
    """The sums of which R2 is made: n, y, y^2 and squared errors.

    Args:
        y: (n,) values.
        predictions: (n,) out of fold.
        groups: (n,) running number of each item's group.
    """
    errors = (y - predictions) ** 2
    centred = y - y.mean()  # for precision: the spread about the mean does not depend on it
    return Sums(_by_group(np.stack([np.ones_like(y), centred, centred**2, errors], axis=1), groups), "number")


def accuracy_sums(y: Ints, guessed: Ints, classes: int, groups: Ints) -> Sums:
    """The sums of which balanced accuracy is made: hits and items per class.

    Args:
        y: (n,) class numbers.
        guessed: (n,) class numbers, out of fold.
        classes: How many there are.
        groups: (n,) running number of each item's group.
    """
    is_class = np.eye(classes)[y]
    return Sums(_by_group(np.concatenate([is_class * (guessed == y)[:, None], is_class], axis=1), groups), "label")


def _by_group(columns: Floats, groups: Ints) -> Floats:
    table = np.zeros((int(groups.max()) + 1, columns.shape[1]))
    np.add.at(table, groups, columns)
    return table


def bootstrap_counts(groups: int, draws: int, rng: np.random.Generator) -> Floats:
    """(draws, groups) how often each group is drawn, with replacement."""
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(np.float64)


def interval(values: Floats) -> tuple[float, float]:
    """The 95 % percentile interval."""
    low, high = np.nanpercentile(values, INTERVAL)
    return float(low), float(high)


def permuted(groups: Ints, cells: Sequence[tuple[str, bool]], rng: np.random.Generator) -> Ints:
    """(n,) an order of the items that deals whole groups' values to other groups, and turns each group round as a whole.

    Which scene has which values is broken, and so is which member of a pair has which: base scenes may all stand and all foils
    fall, so that dealing groups alone would change no label at all. What is kept is that the values of a group come together,
    and those of a scene with those of its mirror image, because permuted values must be as dependent as real ones, or their
    scores would vary too little.

    Args:
        groups: (n,) running number of each item's group.
        cells: Role and mirroring of every item. A group that has every role in every mirroring exchanges roles, and mirrorings,
            as a whole; the members of any other group are shuffled.
        rng: Draws the order.
    """
    alike: dict[tuple[int, int], list[Ints]] = {}
    for group in range(int(groups.max()) + 1):
        members = sorted(np.flatnonzero(groups == group).tolist(), key=lambda i: cells[i])
        roles, mirrorings = ({cells[i][part] for i in members} for part in (0, 1))
        whole = len({cells[i] for i in members}) == len(members) == len(roles) * len(mirrorings)
        shape = (len(roles), len(mirrorings)) if whole else (len(members), 0)
        alike.setdefault(shape, []).append(np.array(members))
    order = np.arange(len(groups))
    for (rows, columns), blocks in alike.items():
        for to, source in enumerate(rng.permutation(len(blocks))):
            taken = blocks[int(source)]
            if columns:
                grid = taken.reshape(rows, columns)
                taken = grid[rng.permutation(rows)][:, rng.permutation(columns)].ravel()
            else:
                taken = rng.permutation(taken)
            order[blocks[to]] = taken
    return order


def permutations(items: Sequence[Item], groups: Ints, draws: int, rng: np.random.Generator) -> list[Ints]:
    """Orders of the items in which scenes have the values of others (`crossval.permuted`).

    Args:
        items: The items, whose roles and mirroring are kept together.
        groups: (n,) running number of each item's group.
        draws: How many orders.
        rng: Draws them.

    Returns:
        The orders, each (n,) indices of items.
    """
    cells = [(item.role, item.condition.mirrored) for item in items]
    return [permuted(groups, cells, rng) for _ in range(draws)]


def permuted_columns(values: npt.NDArray[np.generic], orders: Sequence[Ints]) -> npt.NDArray[np.generic]:
    """(n, orders) the values in these orders.

    Args:
        values: (n,) of the items.
        orders: Each (n,) indices of items.
    """
    return np.stack([values[order] for order in orders], axis=1) if orders else values[:, None][:, :0]


def arbitrary_columns(
    values: npt.NDArray[np.generic], types: npt.NDArray[np.str_], draws: int, rng: np.random.Generator
) -> npt.NDArray[np.generic]:
    """(n, draws) control tasks (Hewitt & Liang 2019): every type of scene has one value, drawn from the real values.

    A probe that does well on these has learnt an arbitrary table, so that only what it does better on the real values
    (its selectivity) speaks of what the states represent. Draws in which all types got the same value are drawn again.

    Args:
        values: (n,) of the items, from which the arbitrary ones are drawn.
        types: (n,) type of each item's scene.
        draws: How many tasks.
        rng: Draws them.
    """
    names, numbers = np.unique(types, return_inverse=True)
    columns: list[npt.NDArray[np.generic]] = []
    while len(columns) < draws and len(names) > 1:
        of_type = rng.choice(values, size=len(names))
        if len(set(of_type.tolist())) > 1:
            columns.append(of_type[numbers])
    return np.stack(columns, axis=1) if columns else values[:, None][:, :0]


def types_shared(types: npt.NDArray[np.str_], groups: npt.NDArray[np.int64]) -> float:
    """Share of the items whose type of scene comes in more than one group, so that it can be learnt and tested.

    Args:
        types: (n,) type of each item's scene.
        groups: (n,) running number of each item's group.
    """
    several = {kind for kind in set(types.tolist()) if len(set(groups[types == kind].tolist())) > 1}
    return float(np.mean([kind in several for kind in types.tolist()]))
