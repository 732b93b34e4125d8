"""One probe: a target decoded from one set of features, with its interval, its chance level and its control task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.decoding import DecodingError
from vlm_probe.probes.decoding.crossval import (
    ALPHAS,
    OUTER,
    STRENGTHS,
    Folds,
    accuracy_sums,
    arbitrary_columns,
    bootstrap_counts,
    interval,
    logistic,
    make_folds,
    permutations,
    permuted_columns,
    r2_sums,
    ridge,
    types_shared,
)
from vlm_probe.probes.decoding.targets import Target, scene_types, target_values
from vlm_probe.stimuli.dataset import Item

ARBITRARY = 10
"""Control tasks per probe, each with other arbitrary values."""
BOOTSTRAP = 2000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What is decoded, and everything that is the same for all features it is decoded from.

    Attributes:
        target: The target.
        y: (n,) its values, or class numbers.
        classes: Labels in the order of the class numbers; empty for a number.
        folds: The splits.
        nulls: (n, permutations) permuted values, the same for all features, so that their largest score over layers corrects
            for the number of layers.
        arbitrary: (n, draws) values of the control tasks.
        counts: (draws, groups) the bootstrap, the same for all features, so that differences are paired.
        shared_types: Share of the items whose type of scene the control task can test.
    """

    target: Target
    y: npt.NDArray[Any]
    classes: tuple[str, ...]
    folds: Folds
    nulls: npt.NDArray[Any]
    arbitrary: npt.NDArray[Any]
    counts: Floats
    shared_types: float

    @property
    def metric(self) -> str:
        """What a score is."""
        return "balanced accuracy" if self.classes else "R2"

    @property
    def chance(self) -> float:
        """What a constant prediction scores at best, in the long run."""
        return 1 / len(self.classes) if self.classes else 0.0


def make_problem(target: Target, items: Sequence[Item], draws: int, seed: int) -> Problem:
    """Set up the decoding of a target.

    Args:
        target: The target.
        items: The items.
        draws: Permuted sets of values.
        seed: Of folds, permutations, control tasks and bootstrap.

    Raises:
        DecodingError: If there are too few groups, or groups of some class.
    """
    streams = [np.random.default_rng([seed, part]) for part in range(4)]
    folds = make_folds([item.group_id for item in items], streams[0])
    values = target_values(target, items)
    classes: tuple[str, ...] = ()
    if target.kind == "label":
        names, values = np.unique(values, return_inverse=True)
        classes = tuple(names.tolist())
        rare = [name for c, name in enumerate(classes) if len(set(folds.groups[values == c].tolist())) < 2 * OUTER]
        if rare:
            raise DecodingError(
                f"too few groups of items have the {target.name} {rare[0]!r} for {OUTER} folds: take a larger set"
            )
    types = scene_types(items)
    return Problem(
        target,
        values,
        classes,
        folds,
        permuted_columns(values, permutations(items, folds.groups, draws, streams[1])),
        arbitrary_columns(values, types, ARBITRARY, streams[2]),
        bootstrap_counts(folds.n_groups, BOOTSTRAP, streams[3]),
        types_shared(types, folds.groups),
    )


@dataclass(frozen=True)
class Reading:
    """How well a target is decoded from some features.

    Attributes:
        features: Number of features.
        score: R2 or balanced accuracy of the pooled out-of-fold predictions; not clipped.
        interval: 95 % bootstrap interval over groups (predictions fixed).
        secondary: Pearson's r, or the area under the ROC curve of a two-class label; None for more classes.
        by_fold: The score within every outer fold; None where the target does not vary in it.
        nulls: (permutations,) scores of permuted values, found by the same nested procedure.
        arbitrary: (draws,) scores of the control tasks.
        penalties: Chosen in every outer fold: alpha of the ridge, or C of the logistic regression.
        predictions: (n,) out-of-fold predictions, or (n, classes) probabilities.
        bootstrap: (draws,) scores of the bootstrap.
        grid: Penalties on offer.
    """

    features: int
    score: float
    interval: tuple[float, float]
    secondary: float | None
    by_fold: list[float | None]
    nulls: Floats
    arbitrary: Floats
    penalties: list[float]
    predictions: Floats
    bootstrap: Floats
    grid: tuple[float, ...]

    @property
    def p(self) -> float | None:
        """One-sided permutation p-value, or None without permutations."""
        return None if not len(self.nulls) else float((1 + (self.nulls >= self.score).sum()) / (1 + len(self.nulls)))

    @property
    def at_edge(self) -> bool:
        """Whether most folds chose the first or last penalty on offer."""
        return bool(np.mean([p in (self.grid[0], self.grid[-1]) for p in self.penalties]) > 0.5)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data, without the arrays of predictions and bootstrap draws."""
        controlled = bool(len(self.arbitrary))
        mean = float(self.arbitrary.mean()) if controlled else None
        return {
            "features": self.features,
            "score": self.score,
            "ci": list(self.interval),
            "secondary": self.secondary,
            "by_fold": self.by_fold,
            "p": self.p,
            "permuted": _spread(self.nulls),
            "control_task": _spread(self.arbitrary),
            "selectivity": None if mean is None else self.score - mean,
            "penalties": self.penalties,
        }


def read(x: Floats, problem: Problem, *, controls: bool = True) -> Reading:
    """Decode the target from features.

    Args:
        x: (n, features).
        problem: What is decoded.
        controls: Also decode permuted values and the control tasks.
    """
    columns = [problem.y[:, None], *([problem.nulls, problem.arbitrary] if controls else [])]
    values = np.concatenate(columns, axis=1)
    groups, folds = problem.folds.groups, problem.folds
    if problem.classes:
        k = len(problem.classes)
        every, chosen = logistic(x, values, k, folds)
        sums = [accuracy_sums(values[:, c], every[:, c].argmax(axis=1), k, groups) for c in range(values.shape[1])]
        predictions, penalties = every[:, 0], chosen[:, 0]
        secondary = _auc(problem.y, predictions[:, 1]) if k == 2 else None
    else:
        guessed, chosen = ridge(x, values, folds)
        sums = [r2_sums(values[:, c], guessed[:, c], groups) for c in range(values.shape[1])]
        predictions, penalties = guessed[:, 0], chosen[:, 0]
        secondary = float(np.corrcoef(problem.y, predictions)[0, 1]) if predictions.std() > 0 else 0.0
    one = np.ones((1, folds.n_groups))
    scores = np.array([float(s.score(one)[0]) for s in sums])
    boot = sums[0].score(problem.counts)
    tested = np.zeros((len(folds.outer), folds.n_groups))
    for number, (_, test) in enumerate(folds.outer):
        tested[number, np.unique(groups[test])] = 1
    n_null = problem.nulls.shape[1] if controls else 0
    return Reading(
        x.shape[1],
        float(scores[0]),
        interval(boot),
        secondary,
        [float(s) if np.isfinite(s) else None for s in sums[0].score(tested)],
        scores[1 : 1 + n_null],
        scores[1 + n_null :],
        [float(p) for p in penalties],
        predictions,
        boot,
        STRENGTHS if problem.classes else ALPHAS,
    )


def familywise(readings: Sequence[Reading]) -> list[float | None]:
    """p-values corrected for looking at all of these: against the largest permuted score over them (Westfall & Young)."""
    if not readings or not len(readings[0].nulls):
        return [None for _ in readings]
    largest = np.max([reading.nulls for reading in readings], axis=0)
    return [float((1 + (largest >= reading.score).sum()) / (1 + len(largest))) for reading in readings]


def difference(base: Reading, other: Reading) -> dict[str, Any]:
    """How much better another reading of the same problem is, with its paired bootstrap interval over groups.

    Args:
        base: What is compared with.
        other: Its problem is the same, so that both have the same bootstrap.

    Returns:
        {"difference", "ci": [low, high]}.
    """
    draws = other.bootstrap - base.bootstrap
    low, high = interval(draws)
    return {"difference": other.score - base.score, "ci": [low, high]}


def _auc(y: npt.NDArray[Any], p: Floats) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, p))


def _spread(values: Floats) -> dict[str, Any] | None:
    if not len(values):
        return None
    quantile = float(np.quantile(values, 0.95))
    return {"n": len(values), "mean": float(values.mean()), "sd": float(values.std()), "q95": quantile}
