"""What the answers of a run say about the truth of a test: success, information, and sensitivity with a sign.

Success counts right answers, and cannot tell a model that guesses from one that knows the answer and turns it round. Two measures can:

- **information**: Cramér's V of truth and answer, corrected for bias (Bergsma, 2013, J Korean Stat Soc 42:323-328). It is free of the mapping: a
  model that answers "left" where "right" is right has as much of it as one that is right. Numbers are cut at their quartiles.
- **signed sensitivity**: below 0 where answers are turned round. The *signed score* of an answer is 1 where it is on the side of the truth, -1
  on the other side and 0 where it is on neither or invalid; its mean, with both sides counting the same, is the hit rate minus the
  false-alarm rate, from -1 to 1, and 0 for every constant answer. It is linear in the answers, so that runs and items can both be random
  in its tests. The same as d' (log-linear correction) for choices and as a correlation and direction accuracy for numbers
  stand next to it, of valid replies.

Sides are those of the truth: left and right, the two options, the signs of numbers, or above and below the median where no truth is negative.
Choices among unordered options have none: there the score is (right - chance) / (1 - chance).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_probe.analysis.result import Result
from vlm_probe.analysis.selection import Floats, cells, item_groups, need, present
from vlm_probe.analysis.signal_detection import signal_detection

OPPOSITES = ("left", "right")
CLASSES = 4
"""Classes into which numbers are cut, at most, to measure information."""
PERMUTATIONS = 999
HOW = (
    "information: Cramér's V of truth and valid answer, bias-corrected (Bergsma, 2013), numbers cut at their quartiles; p_information, p_signed:"
    f" {PERMUTATIONS} permutations of the truths, in which groups of foils and mirror images stay together; signed: hit rate minus false-alarm rate"
    " of the side of the truth, invalid replies 0; d_prime: log-linear correction; correlation, direction_accuracy: of numbers; rate counts invalid"
    " replies as wrong, rate_valid leaves them out"
)

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Coded:
    """The answers of one test as numbers, one entry per trial.

    Attributes:
        kind: "sides" (two options, opposites or numbers), or "options" (unordered).
        numeric: Whether answers are numbers.
        side: Of the truth: 1, -1, or 0 for neither.
        said: Of the answer, likewise; nan where the reply is invalid.
        truth, answer: Classes for the measure of information; -1 where the reply is invalid.
        truth_value, answer_value: Of numbers, as such; nan elsewhere.
        score: The signed score.
    """

    kind: str
    numeric: bool
    side: Floats
    said: Floats
    truth: Ints
    answer: Ints
    truth_value: Floats
    answer_value: Floats
    score: Floats


def code(trials: pd.DataFrame) -> Coded:
    """Code the answers of one test.

    Args:
        trials: `truth`, `answer` and `chance` of one test, of any number of runs.
    """
    truth = trials["truth"].astype(object).to_numpy()
    answer = trials["answer"].astype(object).where(trials["answer"].notna(), None).to_numpy()
    valid = np.array([given is not None for given in answer], dtype=bool)
    values = _numbers(truth)
    if values is not None:
        return _code_numbers(values, _numbers(answer, values.shape[1]), valid)
    names = sorted({str(word) for word in truth})
    classes = {word: index for index, word in enumerate(sorted({*names, *(str(a) for a in answer[valid])}))}
    of_truth = np.array([classes[str(word)] for word in truth], dtype=np.int64)
    of_answer = np.array(
        [classes[str(word)] if ok else -1 for word, ok in zip(answer, valid, strict=True)], dtype=np.int64
    )
    none = np.full(len(truth), np.nan)
    pair = OPPOSITES if set(OPPOSITES) <= set(names) else tuple(names) if len(names) == 2 else None
    if pair is None:
        chance = trials["chance"].to_numpy(float) if "chance" in trials else none
        chance = np.where(np.isfinite(chance) & (chance < 1), chance, 1 / max(len(names), 2))
        score = np.where(valid, ((of_truth == of_answer) - chance) / (1 - chance), 0.0)
        return Coded("options", False, np.zeros(len(truth)), none, of_truth, of_answer, none, none, score)
    signs = {pair[0]: -1.0, pair[1]: 1.0}
    side = np.array([signs.get(str(word), 0.0) for word in truth])
    said = np.array([signs.get(str(word), 0.0) if ok else np.nan for word, ok in zip(answer, valid, strict=True)])
    return Coded("sides", False, side, said, of_truth, of_answer, none, none, side * np.nan_to_num(said))


def _numbers(words: NDArray[Any], width: int = 0) -> Floats | None:
    """Numbers (n, components) of texts such as "-11" or "-11 20"; None if some text is none. With a width, those that do not fit are nan."""
    rows: list[list[float]] = []
    for word in words:
        parts = str(word).replace(",", " ").strip("()[] ").split() if word is not None else []
        try:
            row = [float(part) for part in parts]
        except ValueError:
            row = []
        if width and len(row) != width:
            row = [math.nan] * width
        if not row or (rows and len(row) != len(rows[0])):
            return None
        rows.append(row)
    return np.array(rows, dtype=float) if rows else None


def _code_numbers(truth: Floats, answer: Floats | None, valid: NDArray[np.bool_]) -> Coded:
    """Sides are signs of the first component whose truths have both; else above and below the median of the first."""
    given = np.full_like(truth, np.nan) if answer is None else answer
    valid = valid & np.isfinite(given).all(1)
    signed = [k for k in range(truth.shape[1]) if truth[:, k].min() < 0 < truth[:, k].max()]
    place = signed[0] if signed else 0
    t, a = truth[:, place], np.where(valid, given[:, place], np.nan)
    middle = 0.0 if signed else float(np.median(t))
    side, said = np.sign(t - middle), np.where(valid, np.sign(a - middle), np.nan)
    cuts = [
        np.unique(np.quantile(x[np.isfinite(x)], np.arange(1, CLASSES) / CLASSES)) if np.isfinite(x).any() else x[:0]
        for x in (t, a)
    ]
    classes = [
        np.searchsorted(cut, np.nan_to_num(x), side="left").astype(np.int64)
        for cut, x in zip(cuts, (t, a), strict=True)
    ]
    return Coded(
        "sides", True, side, said, classes[0], np.where(valid, classes[1], -1), t, a, side * np.nan_to_num(said)
    )


def balance(side: Floats) -> Floats:
    """Weights of items under which both sides count the same, with mean 1; 1 for all where there are no two sides."""
    weights = np.zeros(len(side))
    for sign in (1.0, -1.0):
        here = side == sign
        if not here.any():
            return np.ones(len(side))
        weights[here] = len(side) / 2 / here.sum()
    return weights


def cramers_v(table: NDArray[Any]) -> Floats:
    """Bias-corrected Cramér's V of contingency tables (..., rows, columns); nan where one side does not vary."""
    counts = np.asarray(table, dtype=float)
    n = counts.sum((-1, -2))
    rows, columns = counts.sum(-1), counts.sum(-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = rows[..., :, None] * columns[..., None, :] / n[..., None, None]
        phi = np.where(expected > 0, (counts - expected) ** 2 / expected, 0.0).sum((-1, -2)) / n
        r, c = (rows > 0).sum(-1), (columns > 0).sum(-1)
        phi = np.maximum(0.0, phi - (r - 1) * (c - 1) / (n - 1))
        r_c, c_c = r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)
        found = np.sqrt(phi / np.minimum(r_c - 1, c_c - 1))
    return np.where((r > 1) & (c > 1) & (n > 2), np.minimum(found, 1.0), np.nan)


def permutations(groups: NDArray[Any], n: int, rng: np.random.Generator) -> Ints:
    """Orders of items under which groups stay together (n, items): groups of a size change places, and items do within groups.

    Args:
        groups: The group of every item.
        n: How many.
        rng: Of the random numbers.
    """
    index = np.unique(groups, return_inverse=True)[1]
    members = [np.flatnonzero(index == group) for group in range(index.max() + 1)]
    found = np.empty((n, len(index)), dtype=np.int64)
    for size in sorted({len(own) for own in members}):
        blocks = np.array([own for own in members if len(own) == size])
        order = rng.permuted(np.tile(np.arange(len(blocks)), (n, 1)), axis=1)
        taken = rng.permuted(blocks[order], axis=2)
        found[:, blocks.ravel()] = taken.reshape(n, -1)
    return found


def measure_cells(trials: pd.DataFrame, seed: int = 0, n: int = PERMUTATIONS) -> Result:
    """Measure every run on every test.

    Args:
        trials: A trial table, plain trials only: `run`, `test_task`, `item_id`, `success`, `truth`, `answer`.
        seed: Of the permutations.
        n: How many.
    """
    need(trials, "run", "test_task", "item_id", "success", "truth", "answer")
    test = present(trials, ("model", "task", "test_task", "shift", "shift_level", "stimuli"))
    facts = present(trials, ("method", "train_tasks", "regime", "transfer"))
    rows: list[dict[str, Any]] = []
    for number, (key, members) in enumerate(cells(trials, test)):
        coded = code(members)
        rng = np.random.default_rng([seed, number])
        for run, row in _measure_test(members, coded, n, rng):
            first = members.iloc[row.pop("first")]
            rows.append(dict(zip(test, key, strict=True)) | {name: first[name] for name in facts} | {"run": run} | row)
    return Result(
        title="What the answers of every run say about the truth",
        table=pd.DataFrame(rows),
        how=f"{HOW.replace(str(PERMUTATIONS), str(n))}; seed {seed}; {len(trials)} trials",
    )


def _measure_test(
    members: pd.DataFrame, coded: Coded, n: int, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The measures of every run on one test. Runs that took the same items share their permutations."""
    runs = members["run"].astype(str).to_numpy()
    items, groups = members["item_id"].astype(str).to_numpy(), item_groups(members)
    classes = int(max(coded.truth.max(), coded.answer.max())) + 1
    shared: dict[bytes, Ints] = {}
    for run in dict.fromkeys(runs):
        own = np.flatnonzero(runs == run)
        own = own[np.argsort(items[own], kind="stable")]
        key = "\n".join(groups[own]).encode()
        if key not in shared:
            shared[key] = permutations(groups[own], n, rng)
        yield run, _measures(members.iloc[own], coded, own, shared[key], classes) | {"first": int(own[0])}


def _measures(rows: pd.DataFrame, coded: Coded, own: Ints, orders: Ints, classes: int) -> dict[str, Any]:
    """The measures of one run on one test."""
    side, said, truth, answer = coded.side[own], coded.said[own], coded.truth[own], coded.answer[own]
    valid = answer >= 0
    success = rows["success"].to_numpy(float)
    weights = balance(side)
    signed = round(float((weights * coded.score[own]).mean()), 12) + 0.0
    onehot = np.eye(classes)[truth]
    answered = np.eye(classes)[np.where(valid, answer, 0)] * valid[:, None]
    observed = float(cramers_v(onehot.T @ answered))
    chance = cramers_v(np.einsum("pik,ij->pkj", onehot[orders], answered, optimize=True))
    found: dict[str, Any] = {
        "rate": float(success.mean()),
        "rate_valid": float(success[valid].mean()) if valid.any() else math.nan,
        "reward": float(rows["reward"].mean()) if "reward" in rows else math.nan,
        "invalid": float(1 - valid.mean()),
        "information": observed,
        "p_information": _p(observed, chance),
        "signed": signed,
        "p_signed": math.nan,
        **dict.fromkeys(("d_prime", "correlation", "direction_accuracy"), math.nan),
        "n_trials": len(own),
    }
    if coded.kind == "options":
        return found
    told = np.nan_to_num(said)
    found["p_signed"] = _p(abs(signed), np.abs((weights * side)[orders] @ told) / len(own))
    clear = valid & (side != 0) & (told != 0)
    if coded.numeric:
        found["direction_accuracy"] = float((side == told)[clear].mean()) if clear.any() else math.nan
        t, a = coded.truth_value[own][valid], coded.answer_value[own][valid]
        if len(t) > 2 and t.std() > 0 and a.std() > 0:
            found["correlation"] = float(np.corrcoef(t, a)[0, 1])
    else:
        hits, false = int(((side > 0) & (told > 0) & clear).sum()), int(((side < 0) & (told > 0) & clear).sum())
        up, down = int(((side > 0) & clear).sum()), int(((side < 0) & clear).sum())
        found["d_prime"] = signal_detection(hits, up - hits, false, down - false).d_prime
    return found


def _p(observed: float, chance: Floats) -> float:
    """Of a permutation test, one-sided upward; the observed order counts as one of the orders."""
    if math.isnan(observed):
        return math.nan
    return float((1 + (np.nan_to_num(chance) >= observed - 1e-12).sum()) / (len(chance) + 1))
