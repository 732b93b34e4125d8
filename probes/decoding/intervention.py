"""Does the model use what can be decoded? Its states are moved along a probe's direction; does its answer follow?

A probe's weights say how to read a value, not how states differ when the value does: they also cancel what is not wanted, and
point where states hardly vary. The step of the probe is its activation pattern (Haufe et al. 2014), the covariance of the states
with the decoded value: how states move, in the data, when the decoded value moves by one standard deviation. It is taken from
a probe that was fitted without the trial's own fold. Next to it, the same states are moved equally far along

weights    the probe's weights themselves
random     random directions
permuted   the patterns of probes of permuted values: directions in which states do vary, without the meaning
readout    the pattern of a probe of the very outcome that is looked at, the model's own log-odds: if that does not follow even its
           own direction, the step is too small or the place is wrong, and nothing can be concluded from the others

Random and permuted directions are made orthogonal to the probe's weights and pattern, so that they leave the decoded value as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.decoding import DecodingError
from vlm_probe.probes.decoding.crossval import Folds, bootstrap_counts, interval, logistic_model, permutations, ridge
from vlm_probe.probes.decoding.readings import BOOTSTRAP, Problem, Reading
from vlm_probe.probes.models import Trial
from vlm_probe.probes.models.activations import Mover, Site
from vlm_probe.stimuli.dataset import Item, StimulusSet
from vlm_probe.stimuli.question import ChoiceFormat, IntegerFormat

KINDS = ("probe", "weights", "readout", "random", "permuted")
DOSES = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)
"""Standard deviations of the decoded value."""
TRIALS = 120
"""Largest number of items whose states are moved."""
PERMUTED = 10
"""Directions of probes of permuted values."""

Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What is read off a model's log-probabilities of the options, to see whether its answer moved.

    Attributes:
        name: In words.
        of: From an item and its log-probabilities to a number.
    """

    name: str
    of: Callable[[Item, Floats], float]


def outcomes(items: Sequence[Item]) -> list[Outcome]:
    """What the answers to these items can be read as; the first is the one that matters.

    Two options: the log-odds of their meanings and, where the wording turns these round, those of the words. One number: its
    expectation.

    Raises:
        DecodingError: If the answers are of other kinds.
    """
    grammars = [item.question.grammar for item in items]
    if all(isinstance(g, IntegerFormat) and len(g.ranges) == 1 for g in grammars):
        return [Outcome("expected answer", _expected)]
    two = [g for g in grammars if isinstance(g, ChoiceFormat) and len(g.options) == 2]
    meanings = {frozenset(option.value for option in g.options) for g in two}
    if len(two) < len(grammars) or len(meanings) != 1:
        raise DecodingError(
            "states are moved for questions with the same two options, or with one number: give --intervene none"
        )
    signal, other = _signal(items)
    found = [Outcome(f"log-odds of {signal!r} against {other!r}", lambda item, p: _log_odds(item, p, signal))]
    words = {option.text for option in two[0].options}
    if words == {"yes", "no"} and words != {signal, other}:
        found.append(Outcome("log-odds of the word 'yes' against 'no'", lambda item, p: _word_odds(item, p, "yes")))
    return found


def _signal(items: Sequence[Item]) -> tuple[str, str]:
    """The two meanings, first the one that "yes" has in the wording of polarity 0 and order 0 ("stands")."""
    pairs = set()
    for item in items:
        grammar = item.question.grammar
        assert isinstance(grammar, ChoiceFormat)
        first, second = (option.value for option in grammar.options)
        pairs.add((second, first) if (item.variant.order == 1) != (item.variant.polarity == 1) else (first, second))
    signal, other = min(pairs)
    return signal, other


def _log_odds(item: Item, scores: Floats, signal: str) -> float:
    values = [value for _, value in item.question.grammar.candidates()]
    at = values.index(signal)
    return float(scores[at] - scores[1 - at])


def _word_odds(item: Item, scores: Floats, word: str) -> float:
    texts = [text for text, _ in item.question.grammar.candidates()]
    at = texts.index(word)
    return float(scores[at] - scores[1 - at])


def _expected(item: Item, scores: Floats) -> float:
    values = np.array([value for _, value in item.question.grammar.candidates()], dtype=np.float64)
    weights = np.exp(scores - scores.max())
    return float(values @ weights / weights.sum())


def direction(x: Floats, y: npt.NDArray[Any], penalty: float, labels: bool) -> tuple[Floats, Floats]:
    """A probe's weights and its pattern, in the space of the states.

    Args:
        x: (n, width) states.
        y: (n,) values, or class numbers 0 and 1.
        penalty: Of the probe.
        labels: Whether the probe is a logistic regression.

    Returns:
        The unit vector of the weights, and the step: what is added to a state to move its decoded value by one standard
        deviation along the pattern. (width,) each.

    Raises:
        DecodingError: If what the probe decodes does not vary at all.
    """
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    scaled = scaler.transform(x)
    fitted = logistic_model(scaled, y, penalty) if labels else Ridge(penalty).fit(scaled, y)
    # The probe's value is w (x - mean) / deviation + b.
    weights = np.ravel(fitted.coef_) / scaler.scale_
    decoded = (x - scaler.mean_) @ weights
    spread = decoded.std()
    if not spread > 0:
        raise DecodingError("the states do not vary with the target at all here: choose another layer with --intervene")
    return weights / np.linalg.norm(weights), (x - scaler.mean_).T @ decoded / (len(x) * spread)


def intervene(
    model: Any,
    stimuli: StimulusSet,
    items: Sequence[Item],
    x: Floats,
    site: Site,
    problem: Problem,
    reading: Reading,
    *,
    draws: int = 20,
    seed: int = 0,
    batch_size: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Move the states at a site along the probe's direction and along its controls.

    Args:
        model: The model.
        stimuli: The set.
        items: All items, of which at most `TRIALS`, in whole groups, are asked with moved states.
        x: (n, width) the states at the site.
        site: The site, in the language model.
        problem: What the probe decodes: a number, or a label of two classes (then towards the answer that the first outcome
            counts as the signal, if it is one of the classes).
        reading: The probe's reading at the site, for its penalties.
        draws: Random directions.
        seed: Of the directions and of the items.
        batch_size: Items per batch; 0 = what suits the model.
        progress: Told how many items are done, and how many there are.

    Returns:
        Plain data: doses, and per kind of direction the mean change of every outcome at every dose, its slope per standard
        deviation with the bootstrap interval over groups, and p-values of the probe's slope among those of its controls.

    Raises:
        DecodingError: If the answers or the target are of a kind for which this means nothing.
    """
    read_as = outcomes(items)
    if len(problem.classes) > 2:
        raise DecodingError(f"{problem.target.name} has {len(problem.classes)} classes, and no one direction")
    rng = np.random.default_rng([seed, 7])
    size = batch_size or int(model.batch_size)
    plain = _score(model, stimuli, items, size)
    own = np.array([[o.of(item, p) for o in read_as] for item, p in zip(items, plain, strict=True)])
    y, flipped = _towards_signal(problem, items)
    steps = _steps(items, x, y, own, problem, reading, draws, rng)
    chosen = _whole_groups(problem.folds, rng)
    before = own[chosen]
    curves = _moved(model, stimuli, items, chosen, site, problem.folds, steps, read_as, size, progress)
    groups = np.unique(problem.folds.groups[chosen], return_inverse=True)[1]
    counts = bootstrap_counts(int(groups.max()) + 1, BOOTSTRAP, rng)
    result: dict[str, Any] = {
        "site": site.name,
        "doses_sd": [float(d) for d in DOSES],
        "step_norm": float(np.linalg.norm(steps["probe"], axis=2).mean()),
        "state_sd": float(np.sqrt(x.var(axis=0).sum())),
        "items": len(chosen),
        "groups": int(groups.max()) + 1,
        "towards": flipped,
        "outcomes": [],
    }
    for number, outcome in enumerate(read_as):
        start = before[:, number]
        changes = {kind: array[..., number] - start[:, None, None] for kind, array in curves.items()}
        changes["readout"] = changes["readout"][:, [number]]
        result["outcomes"].append(
            {
                "name": outcome.name,
                "before": {"mean": float(start.mean()), "sd": float(start.std())},
                "directions": {kind: _summary(change, groups, counts) for kind, change in changes.items()},
                "p_random": _rank(changes["probe"], changes["random"]),
                "p_permuted": _rank(changes["probe"], changes["permuted"]),
            }
        )
    return result


def _towards_signal(problem: Problem, items: Sequence[Item]) -> tuple[npt.NDArray[Any], str]:
    """The values to fit, with labels turned so that class 1 is the signal; and what the direction points to, in words."""
    if not problem.classes:
        return problem.y, f"more {problem.target.name}"
    grammar = items[0].question.grammar
    wanted = _signal(items)[0] if isinstance(grammar, ChoiceFormat) else problem.classes[1]
    if wanted == problem.classes[0]:
        return 1 - problem.y, f"{problem.target.name} = {wanted}"
    return problem.y, f"{problem.target.name} = {problem.classes[1]}"


def _steps(
    items: Sequence[Item],
    x: Floats,
    y: npt.NDArray[Any],
    own: Floats,
    problem: Problem,
    reading: Reading,
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Floats]:
    """By kind of direction, what moves a state by one standard deviation of the probe: (folds, draws, width).

    All kinds are equally long in each outer fold, and all come from its training items.
    """
    folds, labels = problem.folds, bool(problem.classes)
    own_penalties = ridge(x, own, folds)[1]
    noise = rng.normal(size=(draws, x.shape[1]))
    orders = permutations(items, folds.groups, PERMUTED, rng)
    found: dict[str, list[Floats]] = {kind: [] for kind in KINDS}
    for number, (train, _) in enumerate(folds.outer):
        penalty = reading.penalties[number]
        weights, step = direction(x[train], y[train], penalty, labels)
        readouts = [
            direction(x[train], values[train], p, False)[1]
            for values, p in zip(own.T, own_penalties[number], strict=True)
        ]
        patterns = [direction(x[train], y[order][train], penalty, labels)[1] for order in orders]
        vectors = {
            "probe": step[None],
            "weights": weights[None],
            "readout": np.stack(readouts),
            "random": _orthogonal(noise, weights, step),
            "permuted": _orthogonal(np.stack(patterns), weights, step),
        }
        for kind, rows in vectors.items():
            found[kind].append(rows / np.linalg.norm(rows, axis=1, keepdims=True) * np.linalg.norm(step))
    return {kind: np.stack(of_fold) for kind, of_fold in found.items()}


def _orthogonal(vectors: Floats, *to: Floats) -> Floats:
    """Vectors (draws, width) without their parts in the plane of others."""
    basis = np.linalg.qr(np.stack(to, axis=1))[0]
    return np.asarray(vectors - vectors @ basis @ basis.T)


def _whole_groups(folds: Folds, rng: np.random.Generator) -> list[int]:
    """Items of randomly drawn groups, up to `TRIALS` (at least one group)."""
    chosen: list[int] = []
    for group in rng.permutation(folds.n_groups):
        members = np.flatnonzero(folds.groups == group).tolist()
        if chosen and len(chosen) + len(members) > TRIALS:
            break
        chosen += members
    return sorted(chosen)


def _score(model: Any, stimuli: StimulusSet, items: Sequence[Item], size: int) -> list[npt.NDArray[np.float64]]:
    """Log-probabilities of the options with the states as they are."""
    scores: list[npt.NDArray[np.float64]] = [np.empty(0)] * len(items)
    for batch in _batches(items, range(len(items)), size):
        given = model.score_options([Trial(items[i], stimuli.image(items[i])) for i in batch])
        for i, row in zip(batch, given, strict=True):
            scores[i] = row
    return scores


def _moved(
    model: Any,
    stimuli: StimulusSet,
    items: Sequence[Item],
    chosen: Sequence[int],
    site: Site,
    folds: Folds,
    steps: dict[str, Floats],
    read_as: Sequence[Outcome],
    size: int,
    progress: Progress | None,
) -> dict[str, Floats]:
    """Outcomes after moving: by kind (items, draws, doses, outcomes)."""
    fold_of, place = folds.fold_of(), {i: row for row, i in enumerate(chosen)}
    found = {
        kind: np.empty((len(chosen), vectors.shape[1], len(DOSES), len(read_as))) for kind, vectors in steps.items()
    }
    done = 0
    for batch in _batches(items, chosen, size):
        mover = Mover(model, [Trial(items[i], stimuli.image(items[i])) for i in batch], site)
        of_fold = fold_of[batch]
        for kind, vectors in steps.items():
            for draw in range(vectors.shape[1]):
                for number, dose in enumerate(DOSES):
                    for i, scores in zip(batch, mover.score(dose * vectors[of_fold, draw]), strict=True):
                        found[kind][place[i], draw, number] = [o.of(items[i], scores) for o in read_as]
        done += len(batch)
        if progress is not None:
            progress(done, len(chosen))
    return found


def _batches(items: Sequence[Item], numbers: Sequence[int], size: int) -> list[list[int]]:
    """Items of similar prompts together."""
    ordered = sorted(numbers, key=lambda i: len(items[i].question.prompt))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _slopes(changes: Floats) -> Floats:
    """(items, draws) least-squares slopes through the origin, per standard deviation, of changes (items, draws, doses)."""
    doses = np.array(DOSES)
    return np.asarray(changes @ doses / (doses @ doses))


def _summary(changes: Floats, groups: npt.NDArray[np.int64], counts: Floats) -> dict[str, Any]:
    """Mean change per dose and mean slope with intervals (over groups, of the mean of the draws), and every draw's slope."""

    def mean_and_interval(values: Floats) -> dict[str, Any]:
        sums, n = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
        np.add.at(sums, groups, values)
        np.add.at(n, groups, 1.0)
        return {"mean": float(values.mean()), "ci": list(interval(counts @ sums / (counts @ n)))}

    slopes = _slopes(changes)
    return {
        "curve": [mean_and_interval(changes[..., d].mean(axis=1)) for d in range(len(DOSES))],
        "curve_by_draw": changes.mean(axis=0).round(6).tolist(),
        "slope": mean_and_interval(slopes.mean(axis=1)),
        "slope_by_draw": [float(s) for s in slopes.mean(axis=0)],
        "absolute_change": float(np.abs(changes[..., [0, -1]]).mean()),
    }


def _rank(probe: Floats, controls: Floats) -> float:
    """Two-sided p: how often a control direction's |slope| is as large as the probe's."""
    size = abs(float(_slopes(probe).mean()))
    others = np.abs(_slopes(controls).mean(axis=0))
    return float((1 + (others >= size).sum()) / (1 + len(others)))
